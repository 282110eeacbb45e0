"""TTT-Linear, token-causal: one program reads the whole sequence of one (row, head), chunk after chunk.

As in ``ttt_mlp`` the state, A [D, D] and b [D], stays in global memory and is walked in blocks, here of BLOCK rows of
A, twice a chunk. A walk reads the same columns of the tokens. The backward kernel recomputes all of a chunk from the
state before it, so that nothing but states is saved.
"""

import triton
import triton.language as tl

from .blocks import (
    column_sum,
    keep_state,
    load_lesson,
    load_norm,
    load_rows,
    load_sums,
    steps_of_chunk,
    store_sums,
    tokens_of_chunk,
)
from .pointwise import across, loss_gradient, loss_gradient_backward, mm, standardised, store


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
    saved,  # nothing: the backward kernel needs no more than the states
    heads,
    tokens,  # T
    width,  # D again, but not known to the compiler: it would unroll the walks, and spill
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
    SIZE: tl.constexpr = D * D + D
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0).to(tl.int64)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    col, some_rows = tl.arange(0, D), tl.arange(0, BLOCK)
    at_b = D * D + col
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
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        target, rates = load_lesson(k, v, rate, t, valid, D, ACC)
        b = tl.load(here + at_b)[None, :]
        z = tl.zeros((K, D), ACC) + b
        for i in range(0, width, BLOCK):
            k_part = tl.load(k + t[:, None] * D + i + some_rows[None, :], mask=some, other=0.0).to(ACC)
            z += mm(k_part, tl.load(here + (i + some_rows)[:, None] * D + col[None, :]), MODE)
        g = rates * loss_gradient(z, target, gamma_row, beta_row, D)

        zq = tl.zeros((K, D), ACC) + b
        products = tl.zeros((K, K), ACC)  # q . k
        for i in range(0, width, BLOCK):
            at_part = t[:, None] * D + i + some_rows[None, :]
            at_a = (i + some_rows)[:, None] * D + col[None, :]
            k_part = tl.load(k + at_part, mask=some, other=0.0).to(ACC)
            a = tl.load(here + at_a)
            sum_a = mm(tl.trans(k_part), g, MODE)
            if CARRIED:
                sum_a += tl.load(pending + at_a)
            if not SAVE:
                q_part = tl.load(q + at_part, mask=some, other=0.0).to(ACC)
                zq += mm(q_part, a, MODE)
                products += mm(q_part, tl.trans(k_part), MODE)
                if CARRIED:
                    zq -= size_of[:, None] * mm(q_part, tl.load(pending + at_a), MODE)
            tl.debug_barrier()  # all have read the block before any writes it
            if closes:
                tl.store(there + at_a, a - last * sum_a)
            elif not SAVE:
                tl.store(opened + at_a, sum_a)
        sum_b = column_sum(g)
        if CARRIED:
            p_b = tl.load(pending + at_b)[None, :]
            zq -= size_of[:, None] * p_b
            sum_b += p_b
        tl.debug_barrier()
        if closes:
            tl.store(there + at_b, tl.reshape(b - last * sum_b, (D,)))
        elif not SAVE:
            tl.store(opened + at_b, tl.reshape(sum_b, (D,)))
        if not SAVE:
            h, _ = standardised(zq - mm(causal_steps * (products + 1.0), g, MODE), D)
            q_tile = load_rows(q, t, valid, D, ACC)
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
    saved,
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
    bent,  # of no use here
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
    SIZE: tl.constexpr = D * D + D
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0).to(tl.int64)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    slot, col, some_rows = tl.arange(0, K), tl.arange(0, D), tl.arange(0, BLOCK)
    at_b = D * D + col
    gamma_row, beta_row = load_norm(gamma, beta, head, D, ACC)
    size_of, last, causal = steps_of_chunk(scale, K, ACC)
    causal_steps = tl.where(causal, size_of[:, None], 0.0)
    of_gamma, of_beta, of_scale = load_sums(dgamma, dbeta, dscale, program, D, K)
    state += program * SIZE
    pending, dpending = pending + program * SIZE, dpending + program * SIZE
    dopened, dstate = dopened + program * SIZE, dstate + program * SIZE
    row = program * tokens * D
    q, k, v, rate, dout = q + row, k + row, v + row, rate + program * tokens, dout + row
    dq, dk, dv, drate = dq + row, dk + row, dv + row, drate + program * tokens

    stop = tl.minimum(end, (first + length + K - 1) // K)
    for back_to in range(0, stop - begin):
        c = stop - 1 - back_to
        here = state + (c - origin) * programs * SIZE
        t, valid, closes = tokens_of_chunk(c, first, length, K)
        # The gradient at the chunk's sum of rate * gradient is step * upon.
        upon, step = dopened, last * 0.0 + 1.0
        if closes:
            upon, step = dstate, -last
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        target, rates = load_lesson(k, v, rate, t, valid, D, ACC)
        dout_tile = load_rows(dout, t, valid, D, ACC)
        b = tl.load(here + at_b)[None, :]
        z = tl.zeros((K, D), ACC) + b
        zq = tl.zeros((K, D), ACC) + b
        products = tl.zeros((K, K), ACC) + 1.0
        u_b = tl.load(upon + at_b)[None, :]
        moved = tl.zeros((K, D), ACC) + u_b
        if CARRIED:
            p_b = tl.load(pending + at_b)[None, :]
            held = tl.zeros((K, D), ACC) + p_b  # q P + p
        for i in range(0, width, BLOCK):
            at_part = t[:, None] * D + i + some_rows[None, :]
            at_a = (i + some_rows)[:, None] * D + col[None, :]
            k_part = tl.load(k + at_part, mask=some, other=0.0).to(ACC)
            q_part = tl.load(q + at_part, mask=some, other=0.0).to(ACC)
            a = tl.load(here + at_a)
            z += mm(k_part, a, MODE)
            zq += mm(q_part, a, MODE)
            products += mm(q_part, tl.trans(k_part), MODE)
            moved += mm(k_part, tl.load(upon + at_a), MODE)
            if CARRIED:
                held += mm(q_part, tl.load(pending + at_a), MODE)
        slope = loss_gradient(z, target, gamma_row, beta_row, D)
        g = rates * slope
        zq -= mm(causal_steps * products, g, MODE)
        if CARRIED:
            zq -= size_of[:, None] * held

        # read: out = q + gamma h(zq) + beta
        h, r = standardised(zq, D)
        of_gamma += tl.sum(dout_tile * h, 0)
        of_beta += tl.sum(dout_tile, 0)
        dzq = across(gamma_row * dout_tile, h, r, D)
        # zq = q A + b - e (q k + 1) g
        to_products = -mm(dzq, tl.trans(g), MODE)
        of_scale += tl.sum(tl.where(causal, to_products * products, 0.0), 1)
        to_products = causal_steps * to_products
        # the update
        of_last = tl.sum(tl.sum(moved * g, 1), 0)
        dg = step * moved - mm(tl.trans(causal_steps * products), dzq, MODE)
        if CARRIED:
            of_scale -= tl.sum(held * dzq, 1)
            of_last += tl.sum(tl.sum(u_b * p_b, 1), 0)
            tl.store(dpending + at_b, tl.reshape(step * u_b - column_sum(size_of[:, None] * dzq), (D,)))
        # g = rate * slope(z)
        dz, derror, rows = loss_gradient_backward(rates * dg, z, target, gamma_row, beta_row, D)
        of_gamma += tl.sum(rows, 0)
        of_beta += tl.sum(derror, 0)
        store(dv + at, -derror, some)
        store(dk + at, derror, some)
        tl.store(drate + t, tl.sum(dg * slope, 1), mask=valid)
        db = tl.load(dstate + at_b)
        tl.debug_barrier()  # all have read what is written now; dk is read again below
        tl.store(dstate + at_b, db + tl.sum(dzq, 0) + tl.sum(dz, 0))

        for i in range(0, width, BLOCK):
            at_part = t[:, None] * D + i + some_rows[None, :]
            at_a = (i + some_rows)[:, None] * D + col[None, :]
            k_part = tl.load(k + at_part, mask=some, other=0.0).to(ACC)
            q_part = tl.load(q + at_part, mask=some, other=0.0).to(ACC)
            a, u, da = tl.load(here + at_a), tl.load(upon + at_a), tl.load(dstate + at_a)
            to_q = mm(dzq, tl.trans(a), MODE) + mm(to_products, k_part, MODE)
            to_k = mm(dz, tl.trans(a), MODE) + mm(tl.trans(to_products), q_part, MODE)
            to_k += step * mm(g, tl.trans(u), MODE)
            if CARRIED:
                scaled = size_of[:, None] * dzq
                p_a = tl.load(pending + at_a)
                to_q -= mm(scaled, tl.trans(p_a), MODE)
                of_last += tl.sum(tl.sum(u * p_a, 1), 0)
                tl.store(dpending + at_a, step * u - mm(tl.trans(q_part), scaled, MODE))
            to_q += tl.load(dout + at_part, mask=some, other=0.0).to(ACC)
            to_k += tl.load(dk + at_part, mask=some, other=0.0).to(ACC)
            da += mm(tl.trans(q_part), dzq, MODE) + mm(tl.trans(k_part), dz, MODE)
            tl.debug_barrier()
            store(dq + at_part, to_q, some)
            store(dk + at_part, to_k, some)
            tl.store(dstate + at_a, da)
        of_scale -= tl.where((slot == K - 1) & closes, of_last, 0.0)
        tl.debug_barrier()  # the chunk before reads what this one wrote

    store_sums(dgamma, dbeta, dscale, program, of_gamma, of_beta, of_scale, D, K)
