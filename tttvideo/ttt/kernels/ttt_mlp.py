"""TTT-MLP, token-causal: one program reads the whole sequence of one (row, head), chunk after chunk.

The hidden width is walked in blocks, and the state stays in global memory, in float32, in place: it is larger than
what the registers hold beside it (README.md), and 2 d F numbers per program stay in the L2 cache.

A chunk takes two walks. The first finds z2 = gelu(k A1 + b1) A2 + b2 and with it the loss gradient g2; the second
needs g2 and does the rest block by block: g1, the queries' dual form, the update.

State of a program, ``size`` = 2 D F + F + D numbers: A1 [D, F], b1 [F], A2 [F, D], b2 [D]; ``pending`` likewise.
"""

import triton
import triton.language as tl

from .blocks import (
    column_sum,
    keep_state,
    load_block,
    load_lesson,
    load_norm,
    load_rows,
    load_sums,
    steps_of_chunk,
    store_block,
    store_sums,
    tokens_of_chunk,
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
    store,
)


@triton.jit(do_not_specialize=["heads", "tokens", "width", "begin", "end", "origin", "group"])
def forward_kernel(
    q,  # [programs, T, D], as k, v and out; programs = B * H
    k,
    v,
    rate,  # [programs, T]
    scale,  # [K]
    gamma,  # [H, D], as beta
    beta,
    position,  # [B]: tokens of the open chunk read before
    lengths,  # [B]: tokens read now
    pending,  # [programs, size]
    state,  # [programs, size], moved in place; where SAVE: one for every chunk and one more
    opened,  # [programs, size]: pending after the call
    out,  # zero; padding is not written
    starts,  # [groups, programs, size]: the state before every group of chunks
    saved,  # where SAVE: [chunks, programs, saved_size]: what the backward kernel reads again
    heads,
    tokens,  # T
    width,  # F again, but not known to the compiler: it would unroll the walks, and spill
    begin,  # chunks begin ... end - 1 are read
    end,
    origin,  # the chunk that the first slot of state and saved belongs to, where SAVE
    group,  # chunks per group; 0: starts is not wanted
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    CARRIED: tl.constexpr,  # this is chunk 0 alone, and it may have been open before
    SAVE: tl.constexpr,
):
    SIZE: tl.constexpr = 2 * D * F + F + D
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0).to(tl.int64)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    slot, col, hidden = tl.arange(0, K), tl.arange(0, D), tl.arange(0, BLOCK)
    at_b2 = D * F + F + F * D + col
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    size_of, last, causal = steps_of_chunk(scale, K, ACC)
    causal_steps = tl.where(causal, size_of[:, None], 0.0)  # e[t, s]
    here = state + program * SIZE
    if SAVE:
        here += (begin - origin) * programs * SIZE
    row = program * tokens * D
    q, k, v, out, rate = q + row, k + row, v + row, out + row, rate + program * tokens
    pending, opened = pending + program * SIZE, opened + program * SIZE

    for c in range(begin, tl.minimum(end, (first + length + K - 1) // K)):
        keep_state(starts, here, c, group, program, programs, SIZE)
        t, valid, closes = tokens_of_chunk(c, first, length, K)
        there = here
        if SAVE:
            there = here + programs * SIZE
            tile = saved + ((c - origin) * programs + program) * (3 * K * F + 2 * K * D + K * K)
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        q_tile, k_tile = load_rows(q, t, valid, D, ACC), load_rows(k, t, valid, D, ACC)
        target, rates = load_lesson(k, v, rate, t, valid, D, ACC)
        b2 = tl.load(here + at_b2)[None, :]

        z2 = tl.zeros((K, D), ACC) + b2
        for f in range(0, width, BLOCK):
            a1, b1, a2 = load_block(here, f, D, F, BLOCK)
            z2 += mm(gelu(mm(k_tile, a1, MODE) + b1, MODE), a2, MODE)
        g2 = rates * loss_gradient(z2, target, gamma_row, beta_row, D)

        weight1 = causal_steps * (mm(q_tile, tl.trans(k_tile), MODE) + 1.0)
        products2 = tl.zeros((K, K), ACC)  # xq . x
        zq2 = tl.zeros((K, D), ACC) + b2
        for f in range(0, width, BLOCK):
            a1, b1, a2 = load_block(here, f, D, F, BLOCK)
            z1 = mm(k_tile, a1, MODE) + b1
            x = gelu(z1, MODE)
            back = mm(g2, tl.trans(a2), MODE)
            g1 = back * gelu_slope(z1, MODE)
            zq1 = mm(q_tile, a1, MODE) + b1 - mm(weight1, g1, MODE)
            if CARRIED:
                p_a1, p_b1, p_a2 = load_block(pending, f, D, F, BLOCK)
                zq1 -= size_of[:, None] * (mm(q_tile, p_a1, MODE) + p_b1)
            xq = gelu(zq1, MODE)
            zq2 += mm(xq, a2, MODE)
            if CARRIED:
                zq2 -= size_of[:, None] * mm(xq, p_a2, MODE)
            products2 += mm(xq, tl.trans(x), MODE)
            sum_a1, sum_b1 = tl.trans(mm(tl.trans(g1), k_tile, MODE)), column_sum(g1)
            sum_a2 = mm(tl.trans(x), g2, MODE)
            if CARRIED:
                sum_a1, sum_b1, sum_a2 = sum_a1 + p_a1, sum_b1 + p_b1, sum_a2 + p_a2
            tl.debug_barrier()  # all have read the block before any writes it
            if closes:
                store_block(there, f, a1 - last * sum_a1, b1 - last * sum_b1, a2 - last * sum_a2, D, F, BLOCK)
            elif not SAVE:
                store_block(opened, f, sum_a1, sum_b1, sum_a2, D, F, BLOCK)
            if SAVE:
                at_tile = slot[:, None] * F + f + hidden[None, :]
                tl.store(tile + at_tile, z1)
                tl.store(tile + K * F + at_tile, back)
                tl.store(tile + 2 * K * F + at_tile, zq1)
        zq2 -= mm(causal_steps * (products2 + 1.0), g2, MODE)
        sum_b2 = column_sum(g2)
        if CARRIED:
            p_b2 = tl.load(pending + at_b2)[None, :]
            zq2 -= size_of[:, None] * p_b2
            sum_b2 += p_b2
        tl.debug_barrier()
        if closes:
            tl.store(there + at_b2, tl.reshape(b2 - last * sum_b2, (D,)))
        elif not SAVE:
            tl.store(opened + at_b2, tl.reshape(sum_b2, (D,)))
        if SAVE:
            at_row = slot[:, None] * D + col[None, :]
            tl.store(tile + 3 * K * F + at_row, z2)
            tl.store(tile + 3 * K * F + K * D + at_row, zq2)
            tl.store(tile + 3 * K * F + 2 * K * D + slot[:, None] * K + slot[None, :], products2)
        else:
            h, _ = standardised(zq2, D)
            store(out + at, q_tile + gamma_row * h + beta_row, some)
        here = there
        tl.debug_barrier()  # the next chunk reads what this one wrote


@triton.jit(do_not_specialize=["heads", "tokens", "width", "begin", "end", "origin"])
def backward_kernel(
    q,  # as in forward_kernel, down to pending
    k,
    v,
    rate,
    scale,
    gamma,
    beta,
    position,
    lengths,
    pending,
    state,  # [chunks + 1, programs, size]: before every chunk
    saved,  # [chunks, programs, saved_size]
    dout,  # gradients that come in
    dopened,
    dstate,  # [programs, size]: of the weights after, in place of those before
    dpending,  # gradients that go out
    dq,  # zero, as dk, dv and drate; padding is not written
    dk,
    dv,
    drate,
    dscale,  # [programs, K]: added to, as dgamma and dbeta [programs, D]
    dgamma,
    dbeta,
    bent,  # [programs, K, F]: from the first walk to the second
    heads,
    tokens,
    width,
    begin,
    end,
    origin,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    CARRIED: tl.constexpr,
):
    SIZE: tl.constexpr = 2 * D * F + F + D
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0).to(tl.int64)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    slot, col, hidden = tl.arange(0, K), tl.arange(0, D), tl.arange(0, BLOCK)
    at_b2 = D * F + F + F * D + col
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    size_of, last, causal = steps_of_chunk(scale, K, ACC)
    causal_steps = tl.where(causal, size_of[:, None], 0.0)
    of_gamma, of_beta, of_scale = load_sums(dgamma, dbeta, dscale, program, D, K)
    row = program * tokens * D
    q, k, v, rate, dout = q + row, k + row, v + row, rate + program * tokens, dout + row
    dq, dk, dv, drate = dq + row, dk + row, dv + row, drate + program * tokens
    pending, dpending = pending + program * SIZE, dpending + program * SIZE
    dopened, dstate = dopened + program * SIZE, dstate + program * SIZE
    bent += program * K * F

    stop = tl.minimum(end, (first + length + K - 1) // K)
    for back_to in range(0, stop - begin):
        c = stop - 1 - back_to
        here = state + ((c - origin) * programs + program) * SIZE
        tile = saved + ((c - origin) * programs + program) * (3 * K * F + 2 * K * D + K * K)
        t, valid, closes = tokens_of_chunk(c, first, length, K)
        # The gradient at the chunk's sum of rate * gradient is step * upon.
        upon, step = dopened, last * 0.0 + 1.0
        if closes:
            upon, step = dstate, -last
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        q_tile, k_tile = load_rows(q, t, valid, D, ACC), load_rows(k, t, valid, D, ACC)
        target, rates = load_lesson(k, v, rate, t, valid, D, ACC)
        dout_tile = load_rows(dout, t, valid, D, ACC)
        at_row = slot[:, None] * D + col[None, :]
        z2 = tl.load(tile + 3 * K * F + at_row)
        zq2 = tl.load(tile + 3 * K * F + K * D + at_row)
        products2 = tl.load(tile + 3 * K * F + 2 * K * D + slot[:, None] * K + slot[None, :])
        g2 = rates * loss_gradient(z2, target, gamma_row, beta_row, D)

        # read: out = q + gamma h(zq2) + beta
        h, r = standardised(zq2, D)
        of_gamma += tl.sum(dout_tile * h, 0)
        of_beta += tl.sum(dout_tile, 0)
        dzq2 = across(gamma_row * dout_tile, h, r, D)
        # zq2 = xq A2 + b2 - e (xq x + 1) g2
        to_products2 = -mm(dzq2, tl.trans(g2), MODE)
        of_scale += tl.sum(tl.where(causal, to_products2 * (products2 + 1.0), 0.0), 1)
        to_products2 = causal_steps * to_products2
        u2 = tl.load(upon + at_b2)[None, :]
        dg2 = step * u2 - mm(tl.trans(causal_steps * (products2 + 1.0)), dzq2, MODE)
        of_last = tl.sum(tl.sum(u2 * g2, 1), 0)

        products1 = mm(q_tile, tl.trans(k_tile), MODE) + 1.0
        weight1 = causal_steps * products1
        to_products1 = tl.zeros((K, K), ACC)
        to_q = dout_tile
        to_k = tl.zeros((K, D), ACC)
        if CARRIED:
            pending2 = tl.load(pending + at_b2)[None, :]
            of_scale -= tl.sum(pending2 * dzq2, 1)
            of_last += tl.sum(tl.sum(u2 * pending2, 1), 0)
            dp_b2 = tl.reshape(step * u2 - column_sum(size_of[:, None] * dzq2), (D,))
            tl.store(dpending + at_b2, dp_b2)
        for f in range(0, width, BLOCK):
            at_tile = slot[:, None] * F + f + hidden[None, :]
            a1, _, a2 = load_block(here, f, D, F, BLOCK)
            u_a1, u_b1, u_a2 = load_block(upon, f, D, F, BLOCK)
            z1, back, zq1 = (
                tl.load(tile + at_tile),
                tl.load(tile + K * F + at_tile),
                tl.load(tile + 2 * K * F + at_tile),
            )
            x, xq, slope1 = gelu(z1, MODE), gelu(zq1, MODE), gelu_slope(z1, MODE)
            g1 = back * slope1
            # the queries, from zq2 down to q
            dxq = mm(dzq2, tl.trans(a2), MODE) + mm(to_products2, x, MODE)
            if CARRIED:
                p_a1, p_b1, p_a2 = load_block(pending, f, D, F, BLOCK)
                dxq -= mm(size_of[:, None] * dzq2, tl.trans(p_a2), MODE)
                of_scale -= tl.sum(mm(xq, p_a2, MODE) * dzq2, 1)
                of_last += tl.sum(tl.sum(u_a2 * p_a2, 1), 0)
            dzq1 = dxq * gelu_slope(zq1, MODE)
            to_products1 -= mm(dzq1, tl.trans(g1), MODE)
            to_q += mm(dzq1, tl.trans(a1), MODE)
            if CARRIED:
                scaled = size_of[:, None] * dzq1
                to_q -= mm(scaled, tl.trans(p_a1), MODE)
                of_scale -= tl.sum((mm(q_tile, p_a1, MODE) + p_b1) * dzq1, 1)
                of_last += tl.sum(tl.sum(u_a1 * p_a1, 1), 0) + tl.sum(tl.sum(u_b1 * p_b1, 1), 0)
                dp_a1 = step * u_a1 - mm(tl.trans(q_tile), scaled, MODE)
                dp_a2 = step * u_a2 - mm(tl.trans(xq), size_of[:, None] * dzq2, MODE)
                store_block(dpending, f, dp_a1, step * u_b1 - column_sum(scaled), dp_a2, D, F, BLOCK)
            # the update
            moved1 = mm(k_tile, u_a1, MODE) + u_b1
            moved2 = mm(x, u_a2, MODE)
            of_last += tl.sum(tl.sum(moved1 * g1, 1), 0) + tl.sum(tl.sum(moved2 * g2, 1), 0)
            dg1 = step * moved1 - mm(tl.trans(weight1), dzq1, MODE)
            to_k += step * mm(g1, tl.trans(u_a1), MODE)
            dx = step * mm(g2, tl.trans(u_a2), MODE) + mm(tl.trans(to_products2), xq, MODE)
            # g1 = (g2 A2^T) gelu'(z1)
            dback = dg1 * slope1
            dg2 += step * moved2 + mm(dback, a2, MODE)
            tl.store(bent + at_tile, dx * slope1 + dg1 * back * gelu_bend(z1, MODE))
            da1, db1, da2 = load_block(dstate, f, D, F, BLOCK)
            da1, db1 = da1 + tl.trans(mm(tl.trans(dzq1), q_tile, MODE)), db1 + column_sum(dzq1)
            da2 += mm(tl.trans(xq), dzq2, MODE) + mm(tl.trans(dback), g2, MODE)
            tl.debug_barrier()  # all have read the block before any writes it
            store_block(dstate, f, da1, db1, da2, D, F, BLOCK)
        of_scale += tl.sum(tl.where(causal, to_products1 * products1, 0.0), 1)
        to_products1 = causal_steps * to_products1
        store(dq + at, to_q + mm(to_products1, k_tile, MODE), some)
        to_k += mm(tl.trans(to_products1), q_tile, MODE)
        of_scale -= tl.where((slot == K - 1) & closes, of_last, 0.0)

        # g2 = rate * slope2(z2); read again rather than kept in registers over the walk
        z2 = tl.load(tile + 3 * K * F + at_row)
        k_tile = load_rows(k, t, valid, D, ACC)
        target, rates = load_lesson(k, v, rate, t, valid, D, ACC)
        slope2 = loss_gradient(z2, target, gamma_row, beta_row, D)
        tl.store(drate + t, tl.sum(dg2 * slope2, 1), mask=valid)
        dz2, derror, rows = loss_gradient_backward(rates * dg2, z2, target, gamma_row, beta_row, D)
        of_gamma += tl.sum(rows, 0)
        of_beta += tl.sum(derror, 0)
        to_k += derror
        store(dv + at, -derror, some)
        db2 = tl.load(dstate + at_b2)
        tl.debug_barrier()
        tl.store(dstate + at_b2, db2 + tl.sum(dzq2, 0) + tl.sum(dz2, 0))
        for f in range(0, width, BLOCK):
            at_tile = slot[:, None] * F + f + hidden[None, :]
            a1, _, a2 = load_block(here, f, D, F, BLOCK)
            z1 = tl.load(tile + at_tile)
            dz1 = tl.load(bent + at_tile) + mm(dz2, tl.trans(a2), MODE) * gelu_slope(z1, MODE)
            to_k += mm(dz1, tl.trans(a1), MODE)
            da1, db1, da2 = load_block(dstate, f, D, F, BLOCK)
            da1, db1 = da1 + tl.trans(mm(tl.trans(dz1), k_tile, MODE)), db1 + column_sum(dz1)
            da2 += mm(tl.trans(gelu(z1, MODE)), dz2, MODE)
            tl.debug_barrier()
            store_block(dstate, f, da1, db1, da2, D, F, BLOCK)
        store(dk + at, to_k, some)
        tl.debug_barrier()  # the chunk before reads what this one wrote

    store_sums(dgamma, dbeta, dscale, program, of_gamma, of_beta, of_scale, D, K)
