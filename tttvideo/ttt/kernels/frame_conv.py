"""``Conv`` and ``ConvDepthwise`` on chunks of one frame: conv3x3 -> GELU -> conv1x1, update then read.

The 3 x 3 convolution is a sum of nine products with shifted tokens, read from where they stand: no neighbourhood is
ever stored. All hidden units of a tile fit at once (F is about D), so that the phases of ``frame_mlp`` become

    forward     1  tiles:  z1, z2, g1 of the keys                               -> saved
                2  taps:   the gradient of a tap over all tokens, and its W'; the tenth has b1, A2 and b2
                4  tiles:  read
    backward    1  tiles:  from dout to dzq2 and dzq1                           -> between
                2  taps:   dW' gains what reading contributes
                4  tiles:  dq from dzq1 of the neighbours; through the update: dz2, dz1, dv, drate
                8  tiles:  dk from dz1 and g1 of the neighbours
               16  taps:   dW' becomes dW

State of a program: see ``taps``.
"""

import triton
import triton.language as tl

from .blocks import (
    add_to_norm,
    column_sum,
    keep_state,
    load_lesson,
    load_norm,
    load_rows,
    slot_of_frame,
    store_rows,
)
from .pointwise import (
    across,
    gelu,
    gelu_bend,
    gelu_slope,
    loss_gradient,
    loss_gradient_backward,
    mm,
    standardised,
)
from .taps import (
    back_through_tap,
    convolved,
    load_neighbours,
    load_second,
    load_tap,
    store_second,
    store_tap,
    tap_gradient,
)


@triton.jit(do_not_specialize=["heads", "tokens", "taps", "columns", "frame", "begin", "end", "origin", "group"])
def forward_kernel(
    q,  # [programs, T, D], as k, v and out; programs = B * H
    k,
    v,
    rate,  # [programs, T]
    step,  # [1]: size of a frame's step
    gamma,  # [H, D], as beta
    beta,
    lengths,  # [B]: tokens read now
    state,  # [programs, size], moved in place; where SAVE: one for every frame and one more
    saved,  # [programs, N (D + 2 F)]: z2 [N, D], z1 and g1 [N, F]; where SAVE: for every frame
    out,  # zero; padding is not written
    starts,  # [groups, programs, size]: the state before every group of frames
    heads,
    tokens,  # T
    taps,  # 9, but not known to the compiler: it would unroll the walks
    columns,  # of a frame's grid
    frame,  # N
    begin,  # frames begin ... end - 1 are read
    end,
    origin,  # the frame that the first slot of state and saved belongs to, where SAVE
    group,  # frames per group; 0: starts is not wanted
    D: tl.constexpr,
    F: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    PHASES: tl.constexpr,
    SAVE: tl.constexpr,
):
    SIZE: tl.constexpr = (9 * F if DEPTHWISE else 9 * D * F) + F + F * D + D
    program, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    head = program % heads
    length = tl.load(lengths + program // heads).to(tl.int32)
    row = tl.arange(0, TILE)
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    size = tl.load(step).to(ACC)
    first = program * tokens * D
    q, k, v, out, rate = q + first, k + first, v + first, out + first, rate + program * tokens

    for c in range(begin, end):
        slot = slot_of_frame(c, origin, program, programs, SAVE)
        here, there = state + slot * SIZE, state + slot * SIZE
        if SAVE:
            there += programs * SIZE
        z2_of = saved + slot * frame * (D + 2 * F)
        z1_of, g1_of = z2_of + frame * D, z2_of + frame * (D + F)
        left = tl.minimum(frame, length - c * frame)  # tokens of this frame that are not padding
        k_of, q_of = k + c * frame * D, q + c * frame * D
        if (PHASES & 1) > 0:
            if part == 0:
                keep_state(starts, here, c, group, program, programs, SIZE)
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                valid = t < left
                z1 = convolved(k_of, t, valid, here, taps, frame, columns, D, F, DEPTHWISE, ACC, MODE)
                b1, a2, b2 = load_second(here, D, F, DEPTHWISE)
                z1 += b1
                z2 = mm(gelu(z1, MODE), a2, MODE) + b2
                target, rates = load_lesson(k_of, v + c * frame * D, rate + c * frame, t, valid, D, ACC)
                g2 = rates * loss_gradient(z2, target, gamma_row, beta_row, D)
                g1 = mm(g2, tl.trans(a2), MODE) * gelu_slope(z1, MODE)
                store_rows(z1_of, t, t < frame, z1, F)
                store_rows(z2_of, t, t < frame, z2, D)
                store_rows(g1_of, t, t < frame, g1, F)
            tl.debug_barrier()
        if (PHASES & 2) > 0:
            for tap in range(part, taps + 1, parts):
                if tap < taps:
                    a1 = load_tap(here, tap, D, F, DEPTHWISE)
                    sum_a1 = tl.zeros_like(a1)
                    for tile in range(0, frame, TILE):
                        t = tile + row
                        near = load_neighbours(k_of, t, t < left, tap, frame, columns, D, ACC)
                        sum_a1 += tap_gradient(near, load_rows(g1_of, t, t < frame, F, ACC), DEPTHWISE, MODE)
                    tl.debug_barrier()  # all have read the tap before any writes it
                    store_tap(there, tap, a1 - size * sum_a1, D, F, DEPTHWISE)
                else:
                    b1, a2, b2 = load_second(here, D, F, DEPTHWISE)
                    sum_b1, sum_a2, sum_b2 = tl.zeros_like(b1), tl.zeros_like(a2), tl.zeros_like(b2)
                    for tile in range(0, frame, TILE):
                        t = tile + row
                        valid = t < left
                        target = load_rows(v + c * frame * D, t, valid, D, ACC) - load_rows(k_of, t, valid, D, ACC)
                        rates = tl.load(rate + c * frame + t, mask=valid, other=0.0).to(ACC)[:, None]
                        z2 = load_rows(z2_of, t, t < frame, D, ACC)
                        g2 = rates * loss_gradient(z2, target, gamma_row, beta_row, D)
                        x = gelu(load_rows(z1_of, t, t < frame, F, ACC), MODE)
                        sum_b1 += column_sum(load_rows(g1_of, t, t < frame, F, ACC))
                        sum_a2 += mm(tl.trans(x), g2, MODE)
                        sum_b2 += column_sum(g2)
                    tl.debug_barrier()
                    b1, a2, b2 = b1 - size * sum_b1, a2 - size * sum_a2, b2 - size * sum_b2
                    store_second(there, b1, a2, b2, D, F, DEPTHWISE)
            tl.debug_barrier()
        if (PHASES & 4) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                valid = t < left
                zq1 = convolved(q_of, t, valid, there, taps, frame, columns, D, F, DEPTHWISE, ACC, MODE)
                b1, a2, b2 = load_second(there, D, F, DEPTHWISE)
                h, _ = standardised(mm(gelu(zq1 + b1, MODE), a2, MODE) + b2, D)
                q_tile = load_rows(q_of, t, valid, D, ACC)
                store_rows(out + c * frame * D, t, valid, q_tile + gamma_row * h + beta_row, D)
            tl.debug_barrier()


@triton.jit(do_not_specialize=["heads", "tokens", "taps", "columns", "frame", "begin", "end", "origin"])
def backward_kernel(
    q,  # as in forward_kernel
    k,
    v,
    rate,
    step,
    gamma,
    beta,
    lengths,
    state,  # [frames + 1, programs, size]: before every frame
    saved,  # [frames, programs, N (D + 2 F)]
    dout,
    dstate,  # [programs, size]: of the weights after, in place of those before
    dq,  # zero, as dk, dv and drate; padding is not written
    dk,
    dv,
    drate,
    dgamma,  # [programs, tiles, D]: added to, as dbeta
    dbeta,
    between,  # [programs, N (D + 3 F)]: dzq2 and then dz2 [N, D]; zq1 and then dB, dzq1, and dz1 [N, F]
    heads,
    tokens,
    taps,
    columns,
    frame,
    begin,
    end,
    origin,
    D: tl.constexpr,
    F: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    PHASES: tl.constexpr,
):
    SIZE: tl.constexpr = (9 * F if DEPTHWISE else 9 * D * F) + F + F * D + D
    program, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    head = program % heads
    length = tl.load(lengths + program // heads).to(tl.int32)
    row = tl.arange(0, TILE)
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    dstate += program * SIZE
    size = tl.load(step).to(ACC)
    rate += program * tokens
    drate += program * tokens
    last_of = between + program * frame * (D + 3 * F)  # dzq2, dz2
    back_of = last_of + frame * D  # zq1, dB
    dzq1_of = back_of + frame * F
    dz1_of = dzq1_of + frame * F
    tiles = (frame + TILE - 1) // TILE

    for back_to in range(0, end - begin):
        c = end - 1 - back_to
        here = state + ((c - origin) * programs + program) * SIZE
        there = here + programs * SIZE
        z2_of = saved + ((c - origin) * programs + program) * frame * (D + 2 * F)
        z1_of, g1_of = z2_of + frame * D, z2_of + frame * (D + F)
        left = tl.minimum(frame, length - c * frame)
        first = (program * tokens + c * frame) * D
        q_of, k_of, v_of, dout_of = q + first, k + first, v + first, dout + first
        if (PHASES & 1) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                valid = t < left
                zq1 = convolved(q_of, t, valid, there, taps, frame, columns, D, F, DEPTHWISE, ACC, MODE)
                b1, a2, b2 = load_second(there, D, F, DEPTHWISE)
                zq1 += b1
                h, r = standardised(mm(gelu(zq1, MODE), a2, MODE) + b2, D)
                dout_tile = load_rows(dout_of, t, valid, D, ACC)
                of_tile = (program * tiles + tile // TILE) * D
                add_to_norm(dgamma + of_tile, dbeta + of_tile, tl.sum(dout_tile * h, 0), tl.sum(dout_tile, 0), D)
                dzq2 = across(gamma_row * dout_tile, h, r, D)
                store_rows(last_of, t, t < frame, dzq2, D)
                store_rows(back_of, t, t < frame, zq1, F)
                store_rows(dzq1_of, t, t < frame, mm(dzq2, tl.trans(a2), MODE) * gelu_slope(zq1, MODE), F)
            tl.debug_barrier()
        if (PHASES & 2) > 0:
            for tap in range(part, taps + 1, parts):
                if tap < taps:
                    da1 = load_tap(dstate, tap, D, F, DEPTHWISE)
                    for tile in range(0, frame, TILE):
                        t = tile + row
                        near = load_neighbours(q_of, t, t < left, tap, frame, columns, D, ACC)
                        da1 += tap_gradient(near, load_rows(dzq1_of, t, t < frame, F, ACC), DEPTHWISE, MODE)
                    tl.debug_barrier()
                    store_tap(dstate, tap, da1, D, F, DEPTHWISE)
                else:
                    db1, da2, db2 = load_second(dstate, D, F, DEPTHWISE)
                    for tile in range(0, frame, TILE):
                        t = tile + row
                        dzq2 = load_rows(last_of, t, t < frame, D, ACC)
                        db1 += column_sum(load_rows(dzq1_of, t, t < frame, F, ACC))
                        da2 += mm(tl.trans(gelu(load_rows(back_of, t, t < frame, F, ACC), MODE)), dzq2, MODE)
                        db2 += column_sum(dzq2)
                    tl.debug_barrier()
                    store_second(dstate, db1, da2, db2, D, F, DEPTHWISE)
            tl.debug_barrier()
        if (PHASES & 4) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                valid = t < left
                to_q = load_rows(dout_of, t, valid, D, ACC)
                for tap in range(taps):
                    seen_by = load_neighbours(dzq1_of, t, valid, taps - 1 - tap, frame, columns, F, ACC)
                    to_q += back_through_tap(seen_by, load_tap(there, tap, D, F, DEPTHWISE), DEPTHWISE, MODE)
                store_rows(dq + first, t, valid, to_q, D)
                moved1 = convolved(k_of, t, valid, dstate, taps, frame, columns, D, F, DEPTHWISE, ACC, MODE)
                u_b1, u_a2, u_b2 = load_second(dstate, D, F, DEPTHWISE)
                _, a2, _ = load_second(here, D, F, DEPTHWISE)
                z1 = load_rows(z1_of, t, t < frame, F, ACC)
                z2 = load_rows(z2_of, t, t < frame, D, ACC)
                target, rates = load_lesson(k_of, v_of, rate + c * frame, t, valid, D, ACC)
                slope2 = loss_gradient(z2, target, gamma_row, beta_row, D)
                g2 = rates * slope2
                # The gradient at the frame's sum of rate * gradient is -step * dW'.
                dg1 = -size * (moved1 + u_b1)
                dback = dg1 * gelu_slope(z1, MODE)
                dg2 = mm(dback, a2, MODE) - size * (mm(gelu(z1, MODE), u_a2, MODE) + u_b2)
                dz2, derror, rows = loss_gradient_backward(rates * dg2, z2, target, gamma_row, beta_row, D)
                of_tile = (program * tiles + tile // TILE) * D
                add_to_norm(dgamma + of_tile, dbeta + of_tile, tl.sum(rows, 0), tl.sum(derror, 0), D)
                back = mm(g2, tl.trans(a2), MODE)
                dx = mm(dz2, tl.trans(a2), MODE) - size * mm(g2, tl.trans(u_a2), MODE)
                store_rows(dz1_of, t, t < frame, dx * gelu_slope(z1, MODE) + dg1 * back * gelu_bend(z1, MODE), F)
                store_rows(back_of, t, t < frame, dback, F)
                store_rows(last_of, t, t < frame, dz2, D)
                store_rows(dv + first, t, valid, -derror, D)
                tl.store(drate + c * frame + t, tl.sum(dg2 * slope2, 1), mask=valid)
            tl.debug_barrier()
        if (PHASES & 8) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                valid = t < left
                to_k = -load_rows(dv + first, t, valid, D, ACC)  # the error's
                for tap in range(taps):
                    seen_by = load_neighbours(dz1_of, t, valid, taps - 1 - tap, frame, columns, F, ACC)
                    to_k += back_through_tap(seen_by, load_tap(here, tap, D, F, DEPTHWISE), DEPTHWISE, MODE)
                    seen_by = load_neighbours(g1_of, t, valid, taps - 1 - tap, frame, columns, F, ACC)
                    u_a1 = load_tap(dstate, tap, D, F, DEPTHWISE)
                    to_k -= size * back_through_tap(seen_by, u_a1, DEPTHWISE, MODE)
                store_rows(dk + first, t, valid, to_k, D)
            tl.debug_barrier()
        if (PHASES & 16) > 0:
            for tap in range(part, taps + 1, parts):
                if tap < taps:
                    da1 = load_tap(dstate, tap, D, F, DEPTHWISE)
                    for tile in range(0, frame, TILE):
                        t = tile + row
                        near = load_neighbours(k_of, t, t < left, tap, frame, columns, D, ACC)
                        da1 += tap_gradient(near, load_rows(dz1_of, t, t < frame, F, ACC), DEPTHWISE, MODE)
                    tl.debug_barrier()
                    store_tap(dstate, tap, da1, D, F, DEPTHWISE)
                else:
                    db1, da2, db2 = load_second(dstate, D, F, DEPTHWISE)
                    for tile in range(0, frame, TILE):
                        t = tile + row
                        valid = t < left
                        target, rates = load_lesson(k_of, v_of, rate + c * frame, t, valid, D, ACC)
                        z2 = load_rows(z2_of, t, t < frame, D, ACC)
                        g2 = rates * loss_gradient(z2, target, gamma_row, beta_row, D)
                        dz2 = load_rows(last_of, t, t < frame, D, ACC)
                        x = gelu(load_rows(z1_of, t, t < frame, F, ACC), MODE)
                        dback = load_rows(back_of, t, t < frame, F, ACC)
                        db1 += column_sum(load_rows(dz1_of, t, t < frame, F, ACC))
                        da2 += mm(tl.trans(x), dz2, MODE) + mm(tl.trans(dback), g2, MODE)
                        db2 += column_sum(dz2)
                    tl.debug_barrier()
                    store_second(dstate, db1, da2, db2, D, F, DEPTHWISE)
            tl.debug_barrier()
