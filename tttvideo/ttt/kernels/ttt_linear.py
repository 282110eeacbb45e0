"""TTT-Linear, token-causal: one program reads the whole sequence of one (row, head) with A in registers.

Arguments are those of ``ttt_mlp``; the state is A [D, D], b [D]. The backward kernel recomputes all of a chunk
from the state before it, so that nothing but states is saved.
"""

import triton
import triton.language as tl

from .pointwise import across, loss_gradient, loss_gradient_backward, mm, standardised


@triton.jit
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
    width,  # of no use here
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
    programs = tl.num_programs(0)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    slot, col = tl.arange(0, K), tl.arange(0, D)
    at_a = col[:, None] * D + col[None, :]
    at_b = D * D + col
    gamma_row = tl.load(gamma + head * D + col).to(ACC)[None, :]
    beta_row = tl.load(beta + head * D + col).to(ACC)[None, :]
    size_of = tl.load(scale + slot).to(ACC)
    last = tl.load(scale + K - 1).to(ACC)
    seen = tl.where(slot[:, None] >= slot[None, :], size_of[:, None], 0.0)  # e[t, s]
    state += program * SIZE
    before_begin = state
    if SAVE:
        before_begin += (begin - origin) * programs * SIZE
    a, b = tl.load(before_begin + at_a), tl.load(before_begin + at_b)
    q += program * tokens * D
    k += program * tokens * D
    v += program * tokens * D
    out += program * tokens * D
    rate += program * tokens
    pending += program * SIZE
    opened += program * SIZE

    for c in range(begin, tl.minimum(end, (first + length + K - 1) // K)):
        if group > 0:  # noqa: SIM102 - Triton's `and` evaluates both sides, and group may be 0
            if c % group == 0:
                start = starts + (c // group * programs + program) * SIZE
                tl.store(start + at_a, a)
                tl.store(start + at_b, b)
        closes = (c + 1) * K <= first + length
        t = c * K + slot - first
        valid = (t >= 0) & (t < length)
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        k_tile = tl.load(k + at, mask=some, other=0.0).to(ACC)
        v_tile = tl.load(v + at, mask=some, other=0.0).to(ACC)
        rates = tl.load(rate + t, mask=valid, other=0.0).to(ACC)[:, None]
        z = mm(k_tile, a, MODE) + b[None, :]
        g = rates * loss_gradient(z, v_tile - k_tile, gamma_row, beta_row, D)
        if not SAVE:
            q_tile = tl.load(q + at, mask=some, other=0.0).to(ACC)
            weight = seen * (mm(q_tile, tl.trans(k_tile), MODE) + 1.0)
            zq = mm(q_tile, a, MODE) + b[None, :] - mm(weight, g, MODE)
            if CARRIED:
                before = tl.load(pending + at_b)[None, :]
                before += mm(q_tile, tl.load(pending + at_a), MODE)
                zq -= size_of[:, None] * before
            h, _ = standardised(zq, D)
            tl.store(out + at, q_tile + gamma_row * h + beta_row, mask=some)
        sum_a, sum_b = mm(tl.trans(k_tile), g, MODE), tl.sum(g, 0)
        if CARRIED:
            sum_a += tl.load(pending + at_a)
            sum_b += tl.load(pending + at_b)
        if closes:
            a -= last * sum_a
            b -= last * sum_b
        elif not SAVE:
            tl.store(opened + at_a, sum_a)
            tl.store(opened + at_b, sum_b)
        if SAVE:
            after = state + (c - origin + 1) * programs * SIZE
            tl.store(after + at_a, a)
            tl.store(after + at_b, b)
    if not SAVE:
        tl.store(state + at_a, a)
        tl.store(state + at_b, b)


@triton.jit
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
    programs = tl.num_programs(0)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    slot, col = tl.arange(0, K), tl.arange(0, D)
    at_a = col[:, None] * D + col[None, :]
    at_b = D * D + col
    gamma_row = tl.load(gamma + head * D + col).to(ACC)[None, :]
    beta_row = tl.load(beta + head * D + col).to(ACC)[None, :]
    size_of = tl.load(scale + slot).to(ACC)
    last = tl.load(scale + K - 1).to(ACC)
    causal = slot[:, None] >= slot[None, :]
    seen = tl.where(causal, size_of[:, None], 0.0)
    of_gamma = tl.load(dgamma + program * D + col)
    of_beta = tl.load(dbeta + program * D + col)
    of_scale = tl.load(dscale + program * K + slot)
    state += program * SIZE
    pending += program * SIZE
    dpending += program * SIZE
    dopened += program * SIZE
    dstate += program * SIZE
    da, db = tl.load(dstate + at_a), tl.load(dstate + at_b)
    q += program * tokens * D
    k += program * tokens * D
    v += program * tokens * D
    dout += program * tokens * D
    dq += program * tokens * D
    dk += program * tokens * D
    dv += program * tokens * D
    rate += program * tokens
    drate += program * tokens

    stop = tl.minimum(end, (first + length + K - 1) // K)
    for back_to in range(0, stop - begin):
        c = stop - 1 - back_to
        here = state + (c - origin) * programs * SIZE
        closes = (c + 1) * K <= first + length
        # The gradient at the chunk's sum of rate * gradient is step * (u, u_b).
        u, u_b, step = da, db, -last
        if not closes:
            u, u_b, step = tl.load(dopened + at_a), tl.load(dopened + at_b), last * 0.0 + 1.0
        a, b = tl.load(here + at_a), tl.load(here + at_b)
        t = c * K + slot - first
        valid = (t >= 0) & (t < length)
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        q_tile = tl.load(q + at, mask=some, other=0.0).to(ACC)
        k_tile = tl.load(k + at, mask=some, other=0.0).to(ACC)
        target = tl.load(v + at, mask=some, other=0.0).to(ACC) - k_tile
        rates = tl.load(rate + t, mask=valid, other=0.0).to(ACC)[:, None]
        dout_tile = tl.load(dout + at, mask=some, other=0.0).to(ACC)
        z = mm(k_tile, a, MODE) + b[None, :]
        slope = loss_gradient(z, target, gamma_row, beta_row, D)
        g = rates * slope
        products = mm(q_tile, tl.trans(k_tile), MODE) + 1.0
        zq = mm(q_tile, a, MODE) + b[None, :] - mm(seen * products, g, MODE)
        if CARRIED:
            p_a = tl.load(pending + at_a)
            p_b = tl.load(pending + at_b)[None, :]
            zq -= size_of[:, None] * (mm(q_tile, p_a, MODE) + p_b)

        # read: out = q + gamma h(zq) + beta
        h, r = standardised(zq, D)
        of_gamma += tl.sum(dout_tile * h, 0)
        of_beta += tl.sum(dout_tile, 0)
        dzq = across(gamma_row * dout_tile, h, r, D)
        # zq = q A + b - e (q k + 1) g
        to_products = -mm(dzq, tl.trans(g), MODE)
        of_scale += tl.sum(tl.where(causal, to_products * products, 0.0), 1)
        to_products = seen * to_products
        to_q = dout_tile + mm(dzq, tl.trans(a), MODE) + mm(to_products, k_tile, MODE)
        # the update
        moved = mm(k_tile, u, MODE) + u_b[None, :]
        of_last = tl.sum(tl.sum(moved * g, 1), 0)
        dg = step * moved - mm(tl.trans(seen * products), dzq, MODE)
        to_k = step * mm(g, tl.trans(u), MODE) + mm(tl.trans(to_products), q_tile, MODE)
        if CARRIED:
            p_a = tl.load(pending + at_a)
            p_b = tl.load(pending + at_b)[None, :]
            scaled = size_of[:, None] * dzq
            to_q -= mm(scaled, tl.trans(p_a), MODE)
            of_scale -= tl.sum((mm(q_tile, p_a, MODE) + p_b) * dzq, 1)
            of_last += tl.sum(tl.sum(u * p_a, 1), 0) + tl.sum(tl.sum(u_b[None, :] * p_b, 1), 0)
            tl.store(dpending + at_a, step * u - mm(tl.trans(q_tile), scaled, MODE))
            tl.store(dpending + at_b, step * u_b - tl.sum(scaled, 0))
        of_scale -= tl.where((slot == K - 1) & closes, of_last, 0.0)

        # g = rate * slope(z)
        dz, derror, rows = loss_gradient_backward(rates * dg, z, target, gamma_row, beta_row, D)
        of_gamma += tl.sum(rows, 0)
        of_beta += tl.sum(derror, 0)
        to_k += derror + mm(dz, tl.trans(a), MODE)
        da += mm(tl.trans(q_tile), dzq, MODE) + mm(tl.trans(k_tile), dz, MODE)
        db += tl.sum(dzq, 0) + tl.sum(dz, 0)
        tl.store(dq + at, to_q, mask=some)
        tl.store(dk + at, to_k, mask=some)
        tl.store(dv + at, -derror, mask=some)
        tl.store(drate + t, tl.sum(dg * slope, 1), mask=valid)

    tl.store(dstate + at_a, da)
    tl.store(dstate + at_b, db)
    tl.store(dgamma + program * D + col, of_gamma)
    tl.store(dbeta + program * D + col, of_beta)
    tl.store(dscale + program * K + slot, of_scale)
