"""TTT-MLP on chunks of one frame, update then read: W' = W - size * sum of gradients, out = q + LN(z2 of q at W').

Phases of tiles (TILE tokens, all hidden units in steps of BLOCK) and of blocks (UNITS hidden units, all tokens in steps
of SPAN) take turns:

    forward    1  tiles:   z2, of k at W, and from it g2 = rate * loss gradient   -> errors
               2  blocks:  the block's gradient over all tokens; W' of the block
               4  tiles:   read
    backward   1  tiles:   from dout to dzq2 and dq
               2  blocks:  dW' gains what reading contributes
               4  tiles:   through the update: dz2, dk, dv, drate
               8  blocks:  dW' becomes dW

Hidden units are columns in a phase of tiles and rows in a phase of blocks, so that what one product makes is the left
operand of the next where it stands, in registers. A phase needs all of the phase before. Where there are enough heads
to fill the device one program per (row, head) runs all phases of all frames (``PHASES`` is their sum); otherwise each
phase is a launch, with programs for every tile or block.

State of a program, ``size`` = 2 D F + F + D numbers: A1 [D, F], b1 [F], A2 [F, D], b2 [D].
"""

import triton
import triton.language as tl

from .blocks import (
    add_to_norm,
    column_sum,
    keep_state,
    load_block,
    load_lesson,
    load_norm,
    load_row,
    load_rows,
    load_units,
    row_sum,
    slot_of_frame,
    store_rows,
    store_units,
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


@triton.jit
def unit_gradients(x, slope, a1, b1, a2, MODE: tl.constexpr):
    """Of A1, b1 and A2 of some units (rows), from inputs x [tokens, D] and gradients [tokens, D] at the outputs."""
    z1 = mm(a1, tl.trans(x), MODE) + b1
    g1 = mm(a2, tl.trans(slope), MODE) * gelu_slope(z1, MODE)
    return mm(g1, x, MODE), row_sum(g1), mm(gelu(z1, MODE), slope, MODE)


@triton.jit
def through_loss(
    k,
    v,
    rate,
    z,
    gamma,
    beta,
    head,
    dz,
    dk,
    dv,
    drate,
    dgamma,
    dbeta,
    t,
    i,
    valid,
    frame,
    D: tl.constexpr,
    ACC: tl.constexpr,
):
    """From the gradient at g2, which stands in ``dz``, to all that g2 was made of, for tokens ``t`` (in their frame:
    ``i``), of which ``valid`` were read. dz becomes dz2, dk what the loss's target contributes; it adds to dgamma and
    dbeta [D]."""
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    target, rates = load_lesson(k, v, rate, t, valid, D, ACC)
    z2, dg2 = load_rows(z, i, i < frame, D, ACC), load_rows(dz, i, i < frame, D, ACC)
    tl.store(drate + t, tl.sum(dg2 * loss_gradient(z2, target, gamma_row, beta_row, D), 1), mask=valid)
    dz2, derror, rows = loss_gradient_backward(rates * dg2, z2, target, gamma_row, beta_row, D)
    add_to_norm(dgamma, dbeta, tl.sum(rows, 0), tl.sum(derror, 0), D)
    store_rows(dv, t, valid, -derror, D)
    store_rows(dk, t, valid, derror, D)
    store_rows(dz, i, i < frame, dz2, D)


@triton.jit(do_not_specialize=["heads", "tokens", "width", "frame", "begin", "end", "origin", "group"])
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
    errors,  # [programs, 2, N, D]: z2 (where SAVE) and g2; where SAVE: for every frame
    out,  # zero; padding is not written
    starts,  # [groups, programs, size]: the state before every group of frames
    heads,
    tokens,  # T
    width,  # F again, but not known to the compiler: it would unroll the walks, and spill
    frame,  # N
    begin,  # frames begin ... end - 1 are read
    end,
    origin,  # the frame that the first slot of state and errors belongs to, where SAVE
    group,  # frames per group; 0: starts is not wanted
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    UNITS: tl.constexpr,
    SPAN: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    PHASES: tl.constexpr,
    SAVE: tl.constexpr,
):
    SIZE: tl.constexpr = 2 * D * F + F + D
    program, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    head = program % heads
    length = tl.load(lengths + program // heads).to(tl.int32)
    col, row, span_row = tl.arange(0, D), tl.arange(0, TILE), tl.arange(0, SPAN)
    at_b2 = D * F + F + F * D + col
    size = tl.load(step).to(ACC)
    first = program * tokens * D
    q, k, v, out, rate = q + first, k + first, v + first, out + first, rate + program * tokens

    for c in range(begin, end):
        slot = slot_of_frame(c, origin, program, programs, SAVE)
        here, there = state + slot * SIZE, state + slot * SIZE
        if SAVE:
            there += programs * SIZE
        z = errors + slot * 2 * frame * D
        g = z + frame * D
        if (PHASES & 1) > 0:
            if part == 0:
                keep_state(starts, here, c, group, program, programs, SIZE)
            for tile in range(part * TILE, frame, parts * TILE):
                i = tile + row
                valid = (i < frame) & (c * frame + i < length)
                k_tile = load_rows(k, c * frame + i, valid, D, ACC)
                z2 = tl.zeros((TILE, D), ACC) + tl.load(here + at_b2)[None, :]
                for f in range(0, width, BLOCK):
                    a1, b1, a2 = load_block(here, f, D, F, BLOCK)
                    z2 += mm(gelu(mm(k_tile, a1, MODE) + b1, MODE), a2, MODE)
                if SAVE:
                    store_rows(z, i, i < frame, z2, D)
                gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
                target, rates = load_lesson(k, v, rate, c * frame + i, valid, D, ACC)
                store_rows(g, i, i < frame, rates * loss_gradient(z2, target, gamma_row, beta_row, D), D)
            tl.debug_barrier()
        if (PHASES & 2) > 0:
            for u in range(part * UNITS, width, parts * UNITS):
                a1, b1, a2 = load_units(here, u, D, F, UNITS)
                sum_a1, sum_b1 = tl.zeros((UNITS, D), ACC), tl.zeros((UNITS, 1), ACC)
                sum_a2, sum_b2 = tl.zeros((UNITS, D), ACC), tl.zeros((1, D), ACC)
                for tile in range(0, frame, SPAN):
                    i = tile + span_row
                    k_tile = load_rows(k, c * frame + i, (i < frame) & (c * frame + i < length), D, ACC)
                    g2 = load_rows(g, i, i < frame, D, ACC)
                    some_a1, some_b1, some_a2 = unit_gradients(k_tile, g2, a1, b1, a2, MODE)
                    sum_a1 += some_a1
                    sum_b1 += some_b1
                    sum_a2 += some_a2
                    sum_b2 += column_sum(g2)
                tl.debug_barrier()  # all have read the block before any writes it
                store_units(there, u, a1 - size * sum_a1, b1 - size * sum_b1, a2 - size * sum_a2, D, F, UNITS)
                if u == 0:
                    b2 = tl.load(here + at_b2)
                    tl.debug_barrier()
                    tl.store(there + at_b2, b2 - tl.reshape(size * sum_b2, (D,)))
            tl.debug_barrier()
        if (PHASES & 4) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                i = tile + row
                valid = (i < frame) & (c * frame + i < length)
                q_tile = load_rows(q, c * frame + i, valid, D, ACC)
                zq2 = tl.zeros((TILE, D), ACC) + tl.load(there + at_b2)[None, :]
                for f in range(0, width, BLOCK):
                    a1, b1, a2 = load_block(there, f, D, F, BLOCK)
                    zq2 += mm(gelu(mm(q_tile, a1, MODE) + b1, MODE), a2, MODE)
                gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
                h, _ = standardised(zq2, D)
                store_rows(out, c * frame + i, valid, q_tile + gamma_row * h + beta_row, D)
            tl.debug_barrier()


@triton.jit(do_not_specialize=["heads", "tokens", "width", "frame", "begin", "end", "origin"])
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
    errors,  # [frames, programs, 2, N, D]
    dout,
    dstate,  # [programs, size]: of the weights after, in place of those before
    dq,  # zero, as dk, dv and drate; padding is not written
    dk,
    dv,
    drate,
    dgamma,  # [programs, tiles, D]: added to, as dbeta
    dbeta,
    derrors,  # [2, programs, N, D]: dzq2 and dz2, from tiles to blocks
    heads,
    tokens,
    width,
    frame,
    begin,
    end,
    origin,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    UNITS: tl.constexpr,
    SPAN: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    PHASES: tl.constexpr,
):
    SIZE: tl.constexpr = 2 * D * F + F + D
    program, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    head = program % heads
    length = tl.load(lengths + program // heads).to(tl.int32)
    col, row, span_row = tl.arange(0, D), tl.arange(0, TILE), tl.arange(0, SPAN)
    at_b2 = D * F + F + F * D + col
    dstate += program * SIZE
    size = tl.load(step).to(ACC)
    first = program * tokens * D
    q, k, v, rate, dout = q + first, k + first, v + first, rate + program * tokens, dout + first
    dq, dk, dv, drate = dq + first, dk + first, dv + first, drate + program * tokens
    dzq = derrors + program * frame * D
    dz = derrors + (programs + program) * frame * D
    tiles = (frame + TILE - 1) // TILE

    for back_to in range(0, end - begin):
        c = end - 1 - back_to
        here = state + ((c - origin) * programs + program) * SIZE
        there = here + programs * SIZE
        z = errors + ((c - origin) * programs + program) * 2 * frame * D
        g = z + frame * D
        if (PHASES & 1) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                i = tile + row
                valid = (i < frame) & (c * frame + i < length)
                q_tile = load_rows(q, c * frame + i, valid, D, ACC)
                dout_tile = load_rows(dout, c * frame + i, valid, D, ACC)
                zq2 = tl.zeros((TILE, D), ACC) + tl.load(there + at_b2)[None, :]
                for f in range(0, width, BLOCK):
                    a1, b1, a2 = load_block(there, f, D, F, BLOCK)
                    zq2 += mm(gelu(mm(q_tile, a1, MODE) + b1, MODE), a2, MODE)
                h, r = standardised(zq2, D)
                at = (program * tiles + tile // TILE) * D
                add_to_norm(dgamma + at, dbeta + at, tl.sum(dout_tile * h, 0), tl.sum(dout_tile, 0), D)
                dzq2 = across(load_row(gamma + head * D, D, ACC) * dout_tile, h, r, D)
                store_rows(dzq, i, i < frame, dzq2, D)
                to_q = dout_tile
                for f in range(0, width, BLOCK):
                    a1, b1, a2 = load_block(there, f, D, F, BLOCK)
                    zq1 = mm(q_tile, a1, MODE) + b1
                    to_q += mm(mm(dzq2, tl.trans(a2), MODE) * gelu_slope(zq1, MODE), tl.trans(a1), MODE)
                store_rows(dq, c * frame + i, valid, to_q, D)
            tl.debug_barrier()
        if (PHASES & 2) > 0:
            for u in range(part * UNITS, width, parts * UNITS):
                a1, b1, a2 = load_units(there, u, D, F, UNITS)
                da1, db1, da2 = load_units(dstate, u, D, F, UNITS)
                db2 = tl.load(dstate + at_b2)[None, :]
                for tile in range(0, frame, SPAN):
                    i = tile + span_row
                    q_tile = load_rows(q, c * frame + i, (i < frame) & (c * frame + i < length), D, ACC)
                    dzq2 = load_rows(dzq, i, i < frame, D, ACC)
                    some_a1, some_b1, some_a2 = unit_gradients(q_tile, dzq2, a1, b1, a2, MODE)
                    da1 += some_a1
                    db1 += some_b1
                    da2 += some_a2
                    db2 += column_sum(dzq2)
                tl.debug_barrier()
                store_units(dstate, u, da1, db1, da2, D, F, UNITS)
                if u == 0:
                    tl.store(dstate + at_b2, tl.reshape(db2, (D,)))
            tl.debug_barrier()
        if (PHASES & 4) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                i = tile + row
                t = c * frame + i
                valid = (i < frame) & (t < length)
                k_tile = load_rows(k, t, valid, D, ACC)
                # The gradient at the frame's sum of rate * gradient is -step * dW'.
                dg2 = tl.zeros((TILE, D), ACC) + tl.load(dstate + at_b2)[None, :]
                for f in range(0, width, BLOCK):
                    a1, b1, a2 = load_block(here, f, D, F, BLOCK)
                    u_a1, u_b1, u_a2 = load_block(dstate, f, D, F, BLOCK)
                    z1 = mm(k_tile, a1, MODE) + b1
                    dg2 += mm(gelu(z1, MODE), u_a2, MODE)
                    dg2 += mm((mm(k_tile, u_a1, MODE) + u_b1) * gelu_slope(z1, MODE), a2, MODE)
                store_rows(dz, i, i < frame, -size * dg2, D)
                tl.debug_barrier()
                of_tile = (program * tiles + tile // TILE) * D
                # A few rows at a time: registers that a whole tile would take here are spilled from the walks, too.
                for top in range(tile, tile + TILE, 16):  # type: ignore[arg-type]
                    some = top + tl.arange(0, 16)
                    through_loss(
                        k,
                        v,
                        rate,
                        z,
                        gamma,
                        beta,
                        head,
                        dz,
                        dk,
                        dv,
                        drate,
                        dgamma + of_tile,
                        dbeta + of_tile,
                        c * frame + some,
                        some,
                        (some < frame) & (c * frame + some < length),
                        frame,
                        D,
                        ACC,
                    )
                tl.debug_barrier()
                g2, dz2 = load_rows(g, i, i < frame, D, ACC), load_rows(dz, i, i < frame, D, ACC)
                to_k = load_rows(dk, t, valid, D, ACC)
                for f in range(0, width, BLOCK):
                    a1, b1, a2 = load_block(here, f, D, F, BLOCK)
                    u_a1, u_b1, u_a2 = load_block(dstate, f, D, F, BLOCK)
                    z1 = mm(k_tile, a1, MODE) + b1
                    slope1 = gelu_slope(z1, MODE)
                    back = mm(g2, tl.trans(a2), MODE)
                    to_k += mm(-size * back * slope1, tl.trans(u_a1), MODE)
                    dg1 = -size * (mm(k_tile, u_a1, MODE) + u_b1)
                    dx = mm(dz2, tl.trans(a2), MODE) - size * mm(g2, tl.trans(u_a2), MODE)
                    to_k += mm(dx * slope1 + dg1 * back * gelu_bend(z1, MODE), tl.trans(a1), MODE)
                store_rows(dk, t, valid, to_k, D)
            tl.debug_barrier()
        if (PHASES & 8) > 0:
            for u in range(part * UNITS, width, parts * UNITS):
                a1, b1, a2 = load_units(here, u, D, F, UNITS)
                u_a1, u_b1, u_a2 = load_units(dstate, u, D, F, UNITS)
                da1, db1, da2 = u_a1, u_b1, u_a2
                db2 = tl.load(dstate + at_b2)[None, :]
                for tile in range(0, frame, SPAN):
                    i = tile + span_row
                    k_tile = load_rows(k, c * frame + i, (i < frame) & (c * frame + i < length), D, ACC)
                    g2 = load_rows(g, i, i < frame, D, ACC)
                    dz2 = load_rows(dz, i, i < frame, D, ACC)
                    z1 = mm(a1, tl.trans(k_tile), MODE) + b1
                    slope1 = gelu_slope(z1, MODE)
                    back = mm(a2, tl.trans(g2), MODE)
                    dg1 = -size * (mm(u_a1, tl.trans(k_tile), MODE) + u_b1)
                    dx = mm(a2, tl.trans(dz2), MODE) - size * mm(u_a2, tl.trans(g2), MODE)
                    dz1 = dx * slope1 + dg1 * back * gelu_bend(z1, MODE)
                    da1 += mm(dz1, k_tile, MODE)
                    db1 += row_sum(dz1)
                    da2 += mm(dg1 * slope1, g2, MODE)
                    da2 += mm(gelu(z1, MODE), dz2, MODE)
                    db2 += column_sum(dz2)
                tl.debug_barrier()
                store_units(dstate, u, da1, db1, da2, D, F, UNITS)
                if u == 0:
                    tl.store(dstate + at_b2, tl.reshape(db2, (D,)))
            tl.debug_barrier()
