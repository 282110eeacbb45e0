"""TTT-MLP, token-causal: one program reads the whole sequence of one (row, head), chunk after chunk.

The hidden width is walked in blocks, and the state stays in global memory, in float32, in place: it is larger than
what the registers hold beside it (README.md), and 2 d F numbers per program stay in the L2 cache.

A chunk takes two walks. The first finds z2 = gelu(k A1 + b1) A2 + b2 and with it the loss gradient g2; the second
needs g2 and does the rest block by block: g1, the queries' dual form, the update.

State of a program, ``size`` = 2 D F + F + D numbers: A1 [D, F], b1 [F], A2 [F, D], b2 [D]; ``pending`` likewise.
"""

import triton
import triton.language as tl

from .pointwise import across, gelu, gelu_bend, gelu_slope, loss_gradient, loss_gradient_backward, mm, standardised


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
    saved,  # where SAVE: [chunks, programs, saved_size]: what the backward kernel reads again
    heads,
    tokens,  # T
    width,  # F again, but not known to the compiler: it would unroll the walks, and spill
    begin,  # chunks begin ... end - 1 are read
    end,
    group,  # chunks per group; 0: starts is not wanted
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
    SAVE: tl.constexpr,
):
    SIZE: tl.constexpr = 2 * D * F + F + D
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    slot, col, hidden = tl.arange(0, K), tl.arange(0, D), tl.arange(0, BLOCK)
    one = D * F + F + F * D  # where b2 begins
    gamma_row = tl.load(gamma + head * D + col).to(ACC)[None, :]
    beta_row = tl.load(beta + head * D + col).to(ACC)[None, :]
    size_of = tl.load(scale + slot).to(ACC)
    last = tl.load(scale + K - 1).to(ACC)
    seen = tl.where(slot[:, None] >= slot[None, :], size_of[:, None], 0.0)  # e[t, s]
    here = state + program * SIZE
    q += program * tokens * D
    k += program * tokens * D
    v += program * tokens * D
    rate += program * tokens
    pending += program * SIZE
    opened += program * SIZE

    for c in range(begin, tl.minimum(end, (first + length + K - 1) // K)):
        if group > 0:  # noqa: SIM102 - Triton's `and` evaluates both sides, and group may be 0
            if c % group == 0:
                start = starts + (c // group * programs + program) * SIZE
                for i in range(0, SIZE, 1024):
                    inside = i + tl.arange(0, 1024)
                    tl.store(start + inside, tl.load(here + inside, mask=inside < SIZE), mask=inside < SIZE)
        there = here
        if SAVE:
            there = here + programs * SIZE
            tile = saved + ((c - begin) * programs + program) * (3 * K * F + 2 * K * D + K * K)
        closes = (c + 1) * K <= first + length
        carried = (c == 0) & (first > 0)  # the chunk was open before
        t = c * K + slot - first
        valid = (t >= 0) & (t < length)
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        q_tile = tl.load(q + at, mask=some, other=0.0).to(ACC)
        k_tile = tl.load(k + at, mask=some, other=0.0).to(ACC)
        v_tile = tl.load(v + at, mask=some, other=0.0).to(ACC)
        rates = tl.load(rate + t, mask=valid, other=0.0).to(ACC)[:, None]
        bias2 = tl.load(here + one + col)[None, :]

        z2 = tl.zeros((K, D), ACC) + bias2
        for f in range(0, width, BLOCK):
            a1 = tl.load(here + col[:, None] * F + f + hidden[None, :])
            b1 = tl.load(here + D * F + f + hidden)[None, :]
            a2 = tl.load(here + D * F + F + (f + hidden)[:, None] * D + col[None, :])
            z2 += mm(gelu(mm(k_tile, a1, MODE) + b1), a2, MODE)
        g2 = rates * loss_gradient(z2, v_tile - k_tile, gamma_row, beta_row, D)

        weight1 = seen * (mm(q_tile, tl.trans(k_tile), MODE) + 1.0)
        products2 = tl.zeros((K, K), ACC)  # xq . x
        zq2 = tl.zeros((K, D), ACC) + bias2
        for f in range(0, width, BLOCK):
            at_a1 = col[:, None] * F + f + hidden[None, :]
            at_b1 = D * F + f + hidden
            at_a2 = D * F + F + (f + hidden)[:, None] * D + col[None, :]
            a1, b1, a2 = tl.load(here + at_a1), tl.load(here + at_b1)[None, :], tl.load(here + at_a2)
            z1 = mm(k_tile, a1, MODE) + b1
            x = gelu(z1)
            back = mm(g2, tl.trans(a2), MODE)
            g1 = back * gelu_slope(z1)
            zq1 = mm(q_tile, a1, MODE) + b1 - mm(weight1, g1, MODE)
            if carried:
                before = tl.load(pending + at_b1)[None, :]
                zq1 -= size_of[:, None] * (mm(q_tile, tl.load(pending + at_a1), MODE) + before)
            xq = gelu(zq1)
            zq2 += mm(xq, a2, MODE)
            if carried:
                zq2 -= size_of[:, None] * mm(xq, tl.load(pending + at_a2), MODE)
            products2 += mm(xq, tl.trans(x), MODE)
            sum_a1 = mm(tl.trans(k_tile), g1, MODE) + tl.load(pending + at_a1, mask=carried, other=0.0)
            sum_b1 = tl.sum(g1, 0) + tl.load(pending + at_b1, mask=carried, other=0.0)
            sum_a2 = mm(tl.trans(x), g2, MODE) + tl.load(pending + at_a2, mask=carried, other=0.0)
            tl.debug_barrier()  # all have read the block before any writes it
            if closes:
                tl.store(there + at_a1, a1 - last * sum_a1)
                tl.store(there + at_b1, tl.reshape(b1, (BLOCK,)) - last * sum_b1)
                tl.store(there + at_a2, a2 - last * sum_a2)
            elif not SAVE:
                tl.store(opened + at_a1, sum_a1)
                tl.store(opened + at_b1, sum_b1)
                tl.store(opened + at_a2, sum_a2)
            if SAVE:
                at_tile = slot[:, None] * F + f + hidden[None, :]
                tl.store(tile + at_tile, z1)
                tl.store(tile + K * F + at_tile, back)
                tl.store(tile + 2 * K * F + at_tile, zq1)
        zq2 -= mm(seen * (products2 + 1.0), g2, MODE)
        sum_b2 = tl.sum(g2, 0) + tl.load(pending + one + col, mask=carried, other=0.0)
        zq2 -= size_of[:, None] * tl.load(pending + one + col, mask=carried, other=0.0)[None, :]
        tl.debug_barrier()
        if closes:
            tl.store(there + one + col, tl.reshape(bias2, (D,)) - last * sum_b2)
        elif not SAVE:
            tl.store(opened + one + col, sum_b2)
        if SAVE:
            at_row = slot[:, None] * D + col[None, :]
            tl.store(tile + 3 * K * F + at_row, z2)
            tl.store(tile + 3 * K * F + K * D + at_row, zq2)
            tl.store(tile + 3 * K * F + 2 * K * D + slot[:, None] * K + slot[None, :], products2)
        else:
            h, _ = standardised(zq2, D)
            tl.store(out + program * tokens * D + at, q_tile + gamma_row * h + beta_row, mask=some)
        here = there
        tl.debug_barrier()  # the next chunk reads what this one wrote


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
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
):
    SIZE: tl.constexpr = 2 * D * F + F + D
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    head = program % heads
    first = tl.load(position + program // heads).to(tl.int32)
    length = tl.load(lengths + program // heads).to(tl.int32)
    slot, col, hidden = tl.arange(0, K), tl.arange(0, D), tl.arange(0, BLOCK)
    one = D * F + F + F * D
    gamma_row = tl.load(gamma + head * D + col).to(ACC)[None, :]
    beta_row = tl.load(beta + head * D + col).to(ACC)[None, :]
    size_of = tl.load(scale + slot).to(ACC)
    last = tl.load(scale + K - 1).to(ACC)
    causal = slot[:, None] >= slot[None, :]
    seen = tl.where(causal, size_of[:, None], 0.0)
    of_gamma = tl.load(dgamma + program * D + col)
    of_beta = tl.load(dbeta + program * D + col)
    of_scale = tl.load(dscale + program * K + slot)
    q += program * tokens * D
    k += program * tokens * D
    v += program * tokens * D
    dout += program * tokens * D
    dq += program * tokens * D
    dk += program * tokens * D
    dv += program * tokens * D
    rate += program * tokens
    drate += program * tokens
    pending += program * SIZE
    dpending += program * SIZE
    dopened += program * SIZE
    dstate += program * SIZE
    bent += program * K * F

    stop = tl.minimum(end, (first + length + K - 1) // K)
    for back_to in range(0, stop - begin):
        c = stop - 1 - back_to
        here = state + ((c - begin) * programs + program) * SIZE
        tile = saved + ((c - begin) * programs + program) * (3 * K * F + 2 * K * D + K * K)
        closes = (c + 1) * K <= first + length
        carried = (c == 0) & (first > 0)
        # The gradient at the chunk's sum of rate * gradient is step * upon.
        upon, step = dopened, last * 0.0 + 1.0
        if closes:
            upon, step = dstate, -last
        t = c * K + slot - first
        valid = (t >= 0) & (t < length)
        at, some = t[:, None] * D + col[None, :], valid[:, None]
        q_tile = tl.load(q + at, mask=some, other=0.0).to(ACC)
        k_tile = tl.load(k + at, mask=some, other=0.0).to(ACC)
        target = tl.load(v + at, mask=some, other=0.0).to(ACC) - k_tile
        rates = tl.load(rate + t, mask=valid, other=0.0).to(ACC)[:, None]
        dout_tile = tl.load(dout + at, mask=some, other=0.0).to(ACC)
        at_row = slot[:, None] * D + col[None, :]
        z2 = tl.load(tile + 3 * K * F + at_row)
        zq2 = tl.load(tile + 3 * K * F + K * D + at_row)
        products2 = tl.load(tile + 3 * K * F + 2 * K * D + slot[:, None] * K + slot[None, :])
        slope2 = loss_gradient(z2, target, gamma_row, beta_row, D)
        g2 = rates * slope2

        # read: out = q + gamma h(zq2) + beta
        h, r = standardised(zq2, D)
        of_gamma += tl.sum(dout_tile * h, 0)
        of_beta += tl.sum(dout_tile, 0)
        dzq2 = across(gamma_row * dout_tile, h, r, D)
        # zq2 = xq A2 + b2 - e (xq x + 1) g2
        to_products2 = -mm(dzq2, tl.trans(g2), MODE)
        of_scale += tl.sum(tl.where(causal, to_products2 * (products2 + 1.0), 0.0), 1)
        to_products2 = seen * to_products2
        u2 = tl.load(upon + one + col)[None, :]
        dg2 = step * u2 - mm(tl.trans(seen * (products2 + 1.0)), dzq2, MODE)
        of_last = tl.sum(tl.sum(u2 * g2, 1), 0)

        products1 = mm(q_tile, tl.trans(k_tile), MODE) + 1.0
        weight1 = seen * products1
        to_products1 = tl.zeros((K, K), ACC)
        to_q = dout_tile
        to_k = tl.zeros((K, D), ACC)
        if carried:
            pending2 = tl.load(pending + one + col)[None, :]
            of_scale -= tl.sum(pending2 * dzq2, 1)
            of_last += tl.sum(tl.sum(u2 * pending2, 1), 0)
            tl.store(dpending + one + col, tl.reshape(step * u2, (D,)) - tl.sum(size_of[:, None] * dzq2, 0))
        for f in range(0, width, BLOCK):
            at_a1 = col[:, None] * F + f + hidden[None, :]
            at_b1 = D * F + f + hidden
            at_a2 = D * F + F + (f + hidden)[:, None] * D + col[None, :]
            at_tile = slot[:, None] * F + f + hidden[None, :]
            a1, a2 = tl.load(here + at_a1), tl.load(here + at_a2)
            u_a1, u_b1, u_a2 = tl.load(upon + at_a1), tl.load(upon + at_b1)[None, :], tl.load(upon + at_a2)
            z1, back, zq1 = (
                tl.load(tile + at_tile),
                tl.load(tile + K * F + at_tile),
                tl.load(tile + 2 * K * F + at_tile),
            )
            x, xq, slope1 = gelu(z1), gelu(zq1), gelu_slope(z1)
            g1 = back * slope1
            # the queries, from zq2 down to q
            dxq = mm(dzq2, tl.trans(a2), MODE) + mm(to_products2, x, MODE)
            if carried:
                p_a2 = tl.load(pending + at_a2)
                dxq -= mm(size_of[:, None] * dzq2, tl.trans(p_a2), MODE)
                of_scale -= tl.sum(mm(xq, p_a2, MODE) * dzq2, 1)
                of_last += tl.sum(tl.sum(u_a2 * p_a2, 1), 0)
                tl.store(dpending + at_a2, step * u_a2 - mm(tl.trans(xq), size_of[:, None] * dzq2, MODE))
            dzq1 = dxq * gelu_slope(zq1)
            to_products1 -= mm(dzq1, tl.trans(g1), MODE)
            to_q += mm(dzq1, tl.trans(a1), MODE)
            if carried:
                p_a1, p_b1 = tl.load(pending + at_a1), tl.load(pending + at_b1)[None, :]
                scaled = size_of[:, None] * dzq1
                to_q -= mm(scaled, tl.trans(p_a1), MODE)
                of_scale -= tl.sum((mm(q_tile, p_a1, MODE) + p_b1) * dzq1, 1)
                of_last += tl.sum(tl.sum(u_a1 * p_a1, 1), 0) + tl.sum(tl.sum(u_b1 * p_b1, 1), 0)
                tl.store(dpending + at_a1, step * u_a1 - mm(tl.trans(q_tile), scaled, MODE))
                tl.store(dpending + at_b1, tl.reshape(step * u_b1, (BLOCK,)) - tl.sum(scaled, 0))
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
            tl.store(bent + at_tile, dx * slope1 + dg1 * back * gelu_bend(z1))
            da1, db1 = tl.load(dstate + at_a1), tl.load(dstate + at_b1)
            da2 = tl.load(dstate + at_a2)
            tl.debug_barrier()  # all have read the block before any writes it
            tl.store(dstate + at_a1, da1 + mm(tl.trans(q_tile), dzq1, MODE))
            tl.store(dstate + at_b1, db1 + tl.sum(dzq1, 0))
            tl.store(dstate + at_a2, da2 + mm(tl.trans(xq), dzq2, MODE) + mm(tl.trans(dback), g2, MODE))
        of_scale += tl.sum(tl.where(causal, to_products1 * products1, 0.0), 1)
        to_products1 = seen * to_products1
        to_q += mm(to_products1, k_tile, MODE)
        to_k += mm(tl.trans(to_products1), q_tile, MODE)
        of_scale -= tl.where((slot == K - 1) & closes, of_last, 0.0)

        # g2 = rate * slope2(z2)
        dz2, derror, rows = loss_gradient_backward(rates * dg2, z2, target, gamma_row, beta_row, D)
        of_gamma += tl.sum(rows, 0)
        of_beta += tl.sum(derror, 0)
        to_k += derror
        db2 = tl.load(dstate + one + col)
        tl.debug_barrier()
        tl.store(dstate + one + col, db2 + tl.sum(dzq2, 0) + tl.sum(dz2, 0))
        for f in range(0, width, BLOCK):
            at_a1 = col[:, None] * F + f + hidden[None, :]
            at_b1 = D * F + f + hidden
            at_a2 = D * F + F + (f + hidden)[:, None] * D + col[None, :]
            at_tile = slot[:, None] * F + f + hidden[None, :]
            a1, a2, z1 = tl.load(here + at_a1), tl.load(here + at_a2), tl.load(tile + at_tile)
            dz1 = tl.load(bent + at_tile) + mm(dz2, tl.trans(a2), MODE) * gelu_slope(z1)
            to_k += mm(dz1, tl.trans(a1), MODE)
            da1, db1 = tl.load(dstate + at_a1), tl.load(dstate + at_b1)
            da2 = tl.load(dstate + at_a2)
            tl.debug_barrier()
            tl.store(dstate + at_a1, da1 + mm(tl.trans(k_tile), dz1, MODE))
            tl.store(dstate + at_b1, db1 + tl.sum(dz1, 0))
            tl.store(dstate + at_a2, da2 + mm(tl.trans(gelu(z1)), dz2, MODE))
        tl.store(dq + at, to_q, mask=some)
        tl.store(dk + at, to_k, mask=some)
        tl.store(dv + at, -derror, mask=some)
        tl.store(drate + t, tl.sum(dg2 * slope2, 1), mask=valid)
        tl.debug_barrier()  # the chunk before reads what this one wrote

    tl.store(dgamma + program * D + col, of_gamma)
    tl.store(dbeta + program * D + col, of_beta)
    tl.store(dscale + program * K + slot, of_scale)
