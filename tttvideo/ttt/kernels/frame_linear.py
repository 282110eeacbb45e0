"""TTT-Linear on chunks of one frame, update then read: W' = W - size * sum of gradients, out = q + LN(q A' + b').

Phases, tiles and blocks are those of ``frame_mlp``; a block is BLOCK rows of A, and a tile walks them:

    forward    1  tiles:   z = k A + b                                          -> errors
               2  blocks:  the block's gradient over all tokens; W' of the block
               4  tiles:   read
    backward   1  tiles:   from dout to dzq and dq
               2  blocks:  dW' gains what reading contributes
               4  tiles:   through the update: dz, dk, dv, drate
               8  blocks:  dW' becomes dW

State of a program, ``size`` = D D + D numbers: A [D, D], b [D].
"""

import triton
import triton.language as tl

from .blocks import (
    add_to_norm,
    column_sum,
    keep_state,
    load_columns,
    load_lesson,
    load_norm,
    load_rows,
    slot_of_frame,
    store_rows,
)
from .pointwise import across, loss_gradient, loss_gradient_backward, mm, standardised, store


@triton.jit
def rows_of(state, i, D: tl.constexpr, BLOCK: tl.constexpr):
    """Where rows i ... i + BLOCK - 1 of A stand."""
    return state + (i + tl.arange(0, BLOCK))[:, None] * D + tl.arange(0, D)[None, :]


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
    errors,  # [programs, N, D]: z; where SAVE: for every frame
    out,  # zero; padding is not written
    starts,  # [groups, programs, size]: the state before every group of frames
    heads,
    tokens,  # T
    width,  # D again, but not known to the compiler: it would unroll the walks
    frame,  # N
    begin,  # frames begin ... end - 1 are read
    end,
    origin,  # the frame that the first slot of state and errors belongs to, where SAVE
    group,  # frames per group; 0: starts is not wanted
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    PHASES: tl.constexpr,
    SAVE: tl.constexpr,
):
    SIZE: tl.constexpr = D * D + D
    program, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    head = program % heads
    length = tl.load(lengths + program // heads).to(tl.int32)
    col, row = tl.arange(0, D), tl.arange(0, TILE)
    at_b = D * D + col
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    size = tl.load(step).to(ACC)
    first = program * tokens * D
    q, k, v, out, rate = q + first, k + first, v + first, out + first, rate + program * tokens

    for c in range(begin, end):
        slot = slot_of_frame(c, origin, program, programs, SAVE)
        here, there = state + slot * SIZE, state + slot * SIZE
        if SAVE:
            there += programs * SIZE
        z_of = errors + slot * frame * D
        if (PHASES & 1) > 0:
            if part == 0:
                keep_state(starts, here, c, group, program, programs, SIZE)
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                valid = (t < frame) & (c * frame + t < length)
                z = tl.zeros((TILE, D), ACC) + tl.load(here + at_b)[None, :]
                for i in range(0, width, BLOCK):
                    k_part = load_columns(k, c * frame + t, valid, i, D, BLOCK, ACC)
                    z += mm(k_part, tl.load(rows_of(here, i, D, BLOCK)), MODE)
                store_rows(z_of, t, t < frame, z, D)
            tl.debug_barrier()
        if (PHASES & 2) > 0:
            for i in range(part * BLOCK, width, parts * BLOCK):
                a, b = tl.load(rows_of(here, i, D, BLOCK)), tl.load(here + at_b)
                sum_a, sum_b = tl.zeros((BLOCK, D), ACC), tl.zeros((1, D), ACC)
                for tile in range(0, frame, TILE):
                    t = tile + row
                    at = c * frame + t
                    valid = (t < frame) & (at < length)
                    target, rates = load_lesson(k, v, rate, at, valid, D, ACC)
                    z = load_rows(z_of, t, t < frame, D, ACC)
                    g = rates * loss_gradient(z, target, gamma_row, beta_row, D)
                    sum_a += mm(tl.trans(load_columns(k, at, valid, i, D, BLOCK, ACC)), g, MODE)
                    sum_b += column_sum(g)
                tl.debug_barrier()  # all have read the block before any writes it
                tl.store(rows_of(there, i, D, BLOCK), a - size * sum_a)
                if i == 0:
                    tl.store(there + at_b, b - tl.reshape(size * sum_b, (D,)))
            tl.debug_barrier()
        if (PHASES & 4) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                valid = (t < frame) & (c * frame + t < length)
                zq = tl.zeros((TILE, D), ACC) + tl.load(there + at_b)[None, :]
                for i in range(0, width, BLOCK):
                    q_part = load_columns(q, c * frame + t, valid, i, D, BLOCK, ACC)
                    zq += mm(q_part, tl.load(rows_of(there, i, D, BLOCK)), MODE)
                h, _ = standardised(zq, D)
                q_tile = load_rows(q, c * frame + t, valid, D, ACC)
                store_rows(out, c * frame + t, valid, q_tile + gamma_row * h + beta_row, D)
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
    errors,  # [frames, programs, N, D]
    dout,
    dstate,  # [programs, size]: of the weights after, in place of those before
    dq,  # zero, as dk, dv and drate; padding is not written
    dk,
    dv,
    drate,
    dgamma,  # [programs, tiles, D]: added to, as dbeta
    dbeta,
    derrors,  # [2, programs, N, D]: dzq and dz, from tiles to blocks
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
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    PHASES: tl.constexpr,
):
    SIZE: tl.constexpr = D * D + D
    program, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    programs, parts = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    head = program % heads
    length = tl.load(lengths + program // heads).to(tl.int32)
    col, row = tl.arange(0, D), tl.arange(0, TILE)
    at_b = D * D + col
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    dstate += program * SIZE
    size = tl.load(step).to(ACC)
    first = program * tokens * D
    q, k, v, rate, dout = q + first, k + first, v + first, rate + program * tokens, dout + first
    dq, dk, dv, drate = dq + first, dk + first, dv + first, drate + program * tokens
    dzq_of = derrors + program * frame * D
    dz_of = derrors + (programs + program) * frame * D
    tiles = (frame + TILE - 1) // TILE

    for back_to in range(0, end - begin):
        c = end - 1 - back_to
        here = state + ((c - origin) * programs + program) * SIZE
        there = here + programs * SIZE
        z_of = errors + ((c - origin) * programs + program) * frame * D
        if (PHASES & 1) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                at = c * frame + t
                valid = (t < frame) & (at < length)
                dout_tile = load_rows(dout, at, valid, D, ACC)
                zq = tl.zeros((TILE, D), ACC) + tl.load(there + at_b)[None, :]
                for i in range(0, width, BLOCK):
                    q_part = load_columns(q, at, valid, i, D, BLOCK, ACC)
                    zq += mm(q_part, tl.load(rows_of(there, i, D, BLOCK)), MODE)
                h, r = standardised(zq, D)
                of_tile = (program * tiles + tile // TILE) * D
                add_to_norm(dgamma + of_tile, dbeta + of_tile, tl.sum(dout_tile * h, 0), tl.sum(dout_tile, 0), D)
                dzq = across(gamma_row * dout_tile, h, r, D)
                store_rows(dzq_of, t, t < frame, dzq, D)
                for i in range(0, width, BLOCK):
                    to_q = mm(dzq, tl.trans(tl.load(rows_of(there, i, D, BLOCK))), MODE)
                    at_part = at[:, None] * D + i + tl.arange(0, BLOCK)[None, :]
                    to_q += tl.load(dout + at_part, mask=valid[:, None], other=0.0).to(ACC)
                    store(dq + at_part, to_q, valid[:, None])
            tl.debug_barrier()
        if (PHASES & 2) > 0:
            for i in range(part * BLOCK, width, parts * BLOCK):
                da, db = tl.load(rows_of(dstate, i, D, BLOCK)), tl.load(dstate + at_b)[None, :]
                for tile in range(0, frame, TILE):
                    t = tile + row
                    valid = (t < frame) & (c * frame + t < length)
                    dzq = load_rows(dzq_of, t, t < frame, D, ACC)
                    da += mm(tl.trans(load_columns(q, c * frame + t, valid, i, D, BLOCK, ACC)), dzq, MODE)
                    db += column_sum(dzq)
                tl.debug_barrier()
                tl.store(rows_of(dstate, i, D, BLOCK), da)
                if i == 0:
                    tl.store(dstate + at_b, tl.reshape(db, (D,)))
            tl.debug_barrier()
        if (PHASES & 4) > 0:
            for tile in range(part * TILE, frame, parts * TILE):
                t = tile + row
                at = c * frame + t
                valid = (t < frame) & (at < length)
                target, rates = load_lesson(k, v, rate, at, valid, D, ACC)
                z = load_rows(z_of, t, t < frame, D, ACC)
                slope = loss_gradient(z, target, gamma_row, beta_row, D)
                # The gradient at the frame's sum of rate * gradient is -step * dW'.
                dg = tl.zeros((TILE, D), ACC) + tl.load(dstate + at_b)[None, :]
                for i in range(0, width, BLOCK):
                    k_part = load_columns(k, at, valid, i, D, BLOCK, ACC)
                    dg += mm(k_part, tl.load(rows_of(dstate, i, D, BLOCK)), MODE)
                dg *= -size
                dz, derror, rows = loss_gradient_backward(rates * dg, z, target, gamma_row, beta_row, D)
                store_rows(dz_of, t, t < frame, dz, D)
                store_rows(dv, at, valid, -derror, D)
                store_rows(dk, at, valid, derror, D)
                tl.store(drate + at, tl.sum(dg * slope, 1), mask=valid)
                of_tile = (program * tiles + tile // TILE) * D
                # ... whose barriers also stand between dk here and dk below, which other threads read
                add_to_norm(dgamma + of_tile, dbeta + of_tile, tl.sum(rows, 0), tl.sum(derror, 0), D)
                moved = size * rates * slope
                for i in range(0, width, BLOCK):
                    to_k = mm(dz, tl.trans(tl.load(rows_of(here, i, D, BLOCK))), MODE)
                    to_k -= mm(moved, tl.trans(tl.load(rows_of(dstate, i, D, BLOCK))), MODE)
                    at_part = at[:, None] * D + i + tl.arange(0, BLOCK)[None, :]
                    to_k += tl.load(dk + at_part, mask=valid[:, None], other=0.0).to(ACC)
                    store(dk + at_part, to_k, valid[:, None])
            tl.debug_barrier()
        if (PHASES & 8) > 0:
            for i in range(part * BLOCK, width, parts * BLOCK):
                da, db = tl.load(rows_of(dstate, i, D, BLOCK)), tl.load(dstate + at_b)[None, :]
                for tile in range(0, frame, TILE):
                    t = tile + row
                    valid = (t < frame) & (c * frame + t < length)
                    dz = load_rows(dz_of, t, t < frame, D, ACC)
                    da += mm(tl.trans(load_columns(k, c * frame + t, valid, i, D, BLOCK, ACC)), dz, MODE)
                    db += column_sum(dz)
                tl.debug_barrier()
                tl.store(rows_of(dstate, i, D, BLOCK), da)
                if i == 0:
                    tl.store(dstate + at_b, tl.reshape(db, (D,)))
            tl.debug_barrier()
