"""The elementwise regime: K or V so small that matrix units cannot help (HGRN: K = 1; Mamba-1: V = 1).

Channels lie across lanes, heads * keys * values of them; CT steps of time lie in the registers of one thread,
scanned there, and the state passes from block to block. A thread owns a whole time block because the launcher
gives a tile exactly one lane per thread. Tiles are [CT, BH, BK, BV]: steps, heads, keys, values.

    recurrent_forward    outputs and, if asked, the state at the start of every block (for the backward)
    recurrent_backward   walks the blocks from the end, scanning states forward and their gradients backward

The gradient of a log-decay is the product (decay * state before) * (gradient of the state): exactly 0 at
decay 0.
"""

import triton
import triton.language as tl

from .decay import NONE, OUTER, VECTOR, base2, slot_of, span, steps


@triton.jit
def then(a1, p1, x1, e1, a2, p2, x2, e2):
    """Composition of two runs of steps S <- a S + x. Each carries (a, x) for all its steps and (p, e) for all
    but the last: so one scan gives the state after every step and before it, without a subtraction."""
    return a1 * a2, a1 * p2, a2 * x1 + x2, p2 * x1 + e2


@triton.jit
def load_heads(p, t, r, live, h, in_h, d, in_d, st, sh, sd):
    """[CT, BH, D] tile from base pointer p."""
    at = r[:, None, None] * st + h[None, :, None] * sh + d[None, None, :] * sd
    return tl.load(
        p + t * st + at, mask=live[:, None, None] & in_h[None, :, None] & in_d[None, None, :], other=0.0
    )


@triton.jit
def load_decay(la, lb, t, r, live, h, in_h, a, d, in_k, e, in_v, sat, sah, sad, sbt, sbh, sbd,
               KEY: tl.constexpr,
               VALUE: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The decays [CT, BH, K or 1, V or 1] of a block (in [0, 1]), and dt [CT, BH, 1] for OUTER."""
    one = tl.arange(0, 1)
    w = tl.full([1, 1, 1, 1], 1.0, ACC)
    dt = tl.zeros([1, 1, 1], ACC)
    if KEY == VECTOR:
        x = load_heads(la, t, r, live, h, in_h, d, in_k, sat, sah, sad).to(ACC)
        w = tl.exp2(base2(x))[:, :, :, None]
    elif KEY != NONE:
        dt = load_heads(la, t, r, live, h, in_h, one, one < 1, sat, sah, sat * 0).to(ACC)
        if KEY == OUTER:
            # a == 0 also covers the padding: inf * 0 (a reset through dt) must not become NaN there
            w = tl.exp2(base2(tl.where(a[None, :, :] == 0.0, 0.0, dt * a[None, :, :])))[:, :, :, None]
        else:
            w = tl.exp2(base2(dt))[:, :, :, None]
    if VALUE:
        x = load_heads(lb, t, r, live, h, in_h, e, in_v, sbt, sbh, sbd).to(ACC)
        w = w * tl.exp2(base2(x))[:, :, None, :]
    return w, dt


@triton.jit
def recurrent_forward(
    q, k, v, la, A, lb, initial, states, o, final, cu_seqlens, scale: tl.float64, T, H, group_q, group_k,
    sqb, sqt, sqh, sqd, skb, skt, skh, skd, svb, svt, svh, svd, sab, sat, sah, sad, sAh, sAd, sbb, sbt, sbh,
    sbd,
    sib, sih, sik, siv,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BH: tl.constexpr, CT: tl.constexpr,
    KEY: tl.constexpr, VALUE: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr, STORE: tl.constexpr,
    OUTPUT: tl.constexpr, INITIAL: tl.constexpr, SHARE_Q: tl.constexpr, SHARE_K: tl.constexpr,
    VARLEN: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """OUTPUT: o [B, T, H, V] and final [N, H, K, V]. STORE: states [slots, H, K, V] at the start of blocks of
    CT.

    SHARE_Q, SHARE_K: all heads of a block read one q, k head. Grid: N * blocks of H * blocks of V."""
    scale = tl.full([], scale, ACC)
    blocks, heads = tl.cdiv(V, BV), tl.cdiv(H, BH)
    pid = tl.program_id(0).to(tl.int64)
    iv, ih, n = pid % blocks, pid // blocks % heads, pid // blocks // heads
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    d = tl.arange(0, BK).to(INDEX)
    e = (iv * BV).to(INDEX) + tl.arange(0, BV)
    h = (ih * BH).to(INDEX) + tl.arange(0, BH)
    in_k, in_v, in_h = d < K, e < V, h < H
    one = tl.arange(0, 1)
    hq = ((ih * BH).to(INDEX) + one) // group_q if SHARE_Q else h // group_q
    hk = ((ih * BH).to(INDEX) + one) // group_k if SHARE_K else h // group_k
    in_hq = one < 1 if SHARE_Q else in_h
    in_hk = one < 1 if SHARE_K else in_h
    q += row * sqb
    k += row * skb
    v += row * svb
    a = tl.zeros([1, 1], ACC)
    if KEY != NONE:
        la += row * sab
    if KEY == OUTER:
        a = tl.load(
            A + h[:, None] * sAh + d[None, :] * sAd, mask=in_h[:, None] & in_k[None, :], other=0.0
        ).to(ACC)
    if VALUE:
        lb += row * sbb
    in_s = in_h[:, None, None] & in_k[None, :, None] & in_v[None, None, :]
    tile = (h[:, None, None] * K + d[None, :, None]) * V + e[None, None, :]
    S = tl.zeros([BH, BK, BV], ACC)
    if INITIAL:
        seed = n * sib + h[:, None, None] * sih + d[None, :, None] * sik + e[None, None, :] * siv
        S += tl.load(initial + seed, mask=in_s, other=0.0).to(ACC)
    slot = slot_of(n, first, T, CT, VARLEN)
    r = tl.arange(0, CT)
    for c in range(((length + CT - 1) // CT).to(tl.int32)):
        if STORE:
            tl.store(states + (slot + c) * H * K * V + tile, S, mask=in_s)
        t, rel, live = steps(c * CT, length, first, CT, REVERSE, INDEX)
        kt = load_heads(k, t, rel, live, hk, in_hk, d, in_k, skt, skh, skd).to(ACC)
        vt = load_heads(v, t, rel, live, h, in_h, e, in_v, svt, svh, svd).to(ACC)
        w, _ = load_decay(la, lb, t, rel, live, h, in_h, a, d, in_k, e, in_v, sat, sah, sad, sbt, sbh, sbd,
                          KEY, VALUE, ACC)  # fmt: skip
        full = tl.zeros([CT, BH, BK, BV], ACC)
        x = full + kt[:, :, :, None] * vt[:, :, None, :]
        w = full + w
        aa, pp, xx, ee = tl.associative_scan((w, full + 1.0, x, full), 0, then)
        after = xx + aa * S[None, :, :, :]
        if OUTPUT:
            qt = load_heads(q, t, rel, live, hq, in_hq, d, in_k, sqt, sqh, sqd).to(ACC) * scale
            read = ee + pp * S[None, :, :, :] if STRICT else after
            out = tl.sum(qt[:, :, :, None] * read, 2)
            at = (rel[:, None, None] * H + h[None, :, None]) * V + e[None, None, :]
            tl.store(
                o + (row * T + t) * H * V + at,
                out,
                mask=live[:, None, None] & in_h[None, :, None] & in_v[None, None, :],
            )
        S = tl.sum(tl.where(r[:, None, None, None] == CT - 1, after, 0.0), 0)
    if OUTPUT:
        tl.store(final + n * H * K * V + tile, S, mask=in_s)


@triton.jit
def recurrent_backward(
    q, k, v, la, A, lb, do, dstate, states, dq, dk, dv, dla, dA, dlb, ds0, cu_seqlens, scale: tl.float64,
    T, H, tokens, group_q, group_k,
    sqb, sqt, sqh, sqd, skb, skt, skh, skd, svb, svt, svh, svd, sab, sat, sah, sad, sAh, sAd, sbb, sbt, sbh,
    sbd,
    sob, sot, soh, sod, sib, sih, sik, siv,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BH: tl.constexpr, CT: tl.constexpr,
    KEY: tl.constexpr, VALUE: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr,
    INITIAL: tl.constexpr,
    FINAL: tl.constexpr, SHARE_Q: tl.constexpr, SHARE_K: tl.constexpr, VARLEN: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Gradients. dq, dk [blocks of V, tokens, H or (SHARE) blocks of H, K] are sums over one block of values
    and (SHARE) of heads, added by the caller; dla [blocks of V, tokens, H(, K)] and dA [blocks of V, N, H, K]
    likewise; dv, dlb [tokens, H, V]; ds0 [N, H, K, V] if FINAL. INITIAL: dstate [N, H, K, V] is given."""
    scale = tl.full([], scale, ACC)
    blocks, heads = tl.cdiv(V, BV), tl.cdiv(H, BH)
    pid = tl.program_id(0).to(tl.int64)
    iv, ih, n = pid % blocks, pid // blocks % heads, pid // blocks // heads
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    d = tl.arange(0, BK).to(INDEX)
    e = (iv * BV).to(INDEX) + tl.arange(0, BV)
    h = (ih * BH).to(INDEX) + tl.arange(0, BH)
    in_k, in_v, in_h = d < K, e < V, h < H
    one = tl.arange(0, 1)
    hq = ((ih * BH).to(INDEX) + one) // group_q if SHARE_Q else h // group_q
    hk = ((ih * BH).to(INDEX) + one) // group_k if SHARE_K else h // group_k
    in_hq = one < 1 if SHARE_Q else in_h
    in_hk = one < 1 if SHARE_K else in_h
    q += row * sqb
    k += row * skb
    v += row * svb
    do += row * sob
    a = tl.zeros([1, 1], ACC)
    da = tl.zeros([BH, BK], ACC)
    if KEY != NONE:
        la += row * sab
    if KEY == OUTER:
        a = tl.load(
            A + h[:, None] * sAh + d[None, :] * sAd, mask=in_h[:, None] & in_k[None, :], other=0.0
        ).to(ACC)
    if VALUE:
        lb += row * sbb
    in_s = in_h[:, None, None] & in_k[None, :, None] & in_v[None, None, :]
    tile = (h[:, None, None] * K + d[None, :, None]) * V + e[None, None, :]
    F = tl.zeros([BH, BK, BV], ACC)
    if INITIAL:
        seed = n * sib + h[:, None, None] * sih + d[None, :, None] * sik + e[None, None, :] * siv
        F += tl.load(dstate + seed, mask=in_s, other=0.0).to(ACC)
    slot = slot_of(n, first, T, CT, VARLEN)
    r = tl.arange(0, CT)
    chunks = ((length + CT - 1) // CT).to(tl.int32)
    for j in range(chunks):
        c = chunks - 1 - j
        S = tl.load(states + (slot + c) * H * K * V + tile, mask=in_s, other=0.0)
        t, rel, live = steps(c * CT, length, first, CT, REVERSE, INDEX)
        qt = load_heads(q, t, rel, live, hq, in_hq, d, in_k, sqt, sqh, sqd).to(ACC)[:, :, :, None] * scale
        kt = load_heads(k, t, rel, live, hk, in_hk, d, in_k, skt, skh, skd).to(ACC)[:, :, :, None]
        vt = load_heads(v, t, rel, live, h, in_h, e, in_v, svt, svh, svd).to(ACC)[:, :, None, :]
        dot = load_heads(do, t, rel, live, h, in_h, e, in_v, sot, soh, sod).to(ACC)[:, :, None, :]
        w, dt = load_decay(la, lb, t, rel, live, h, in_h, a, d, in_k, e, in_v, sat, sah, sad, sbt, sbh, sbd,
                           KEY, VALUE, ACC)  # fmt: skip
        full = tl.zeros([CT, BH, BK, BV], ACC)
        w = full + w
        x = full + kt * vt
        _, pp, _, ee = tl.associative_scan((w, full + 1.0, x, full), 0, then)
        decayed = w * (ee + pp * S[None, :, :, :])  # w * the state before each step
        read = ee + pp * S[None, :, :, :] if STRICT else decayed + x
        # F: gradient of the state before a step. Gradient of the state after it: what the later steps give,
        # and, for read="after", what its own output gives.
        y = full + qt * dot
        z = y if STRICT else w * y
        aa, pp, xx, ee = tl.associative_scan((w, full + 1.0, z, full), 0, then, reverse=True)
        g = ee + pp * F[None, :, :, :]
        if not STRICT:
            g += y
        F = tl.sum(tl.where(r[:, None, None, None] == 0, xx + aa * F[None, :, :, :], 0.0), 0)

        in_hk_d = live[:, None, None] & in_h[None, :, None] & in_k[None, :][None, :, :]
        token = iv * tokens + row * T + t
        to_v = (row * T + t) * H * V
        at_k = (rel[:, None, None] * H + h[None, :, None]) * K + d[None, None, :]
        at_v = (rel[:, None, None] * H + h[None, :, None]) * V + e[None, None, :]
        in_tv = live[:, None, None] & in_h[None, :, None] & in_v[None, None, :]
        gq = tl.sum(read * dot, 3) * scale
        if SHARE_Q:
            at = rel[:, None] * heads * K + d[None, :]
            tl.store(dq + (token * heads + ih) * K + at, tl.sum(gq, 1), mask=live[:, None] & in_k[None, :])
        else:
            tl.store(dq + token * H * K + at_k, gq, mask=in_hk_d)
        gk = tl.sum(g * vt, 3)
        if SHARE_K:
            at = rel[:, None] * heads * K + d[None, :]
            tl.store(dk + (token * heads + ih) * K + at, tl.sum(gk, 1), mask=live[:, None] & in_k[None, :])
        else:
            tl.store(dk + token * H * K + at_k, gk, mask=in_hk_d)
        tl.store(dv + to_v + at_v, tl.sum(g * kt, 2), mask=in_tv)
        g *= decayed
        if VALUE:
            tl.store(dlb + to_v + at_v, tl.sum(g, 2), mask=in_tv)
        if KEY == VECTOR:
            tl.store(dla + token * H * K + at_k, tl.sum(g, 3), mask=in_hk_d)
        if KEY != NONE and KEY != VECTOR:
            u = tl.sum(g, 3)
            at = rel[:, None] * H + h[None, :]
            if KEY == OUTER:
                # a reset through dt = inf has gradient 0, which inf * 0 would make NaN
                da += tl.sum(tl.where(u == 0.0, 0.0, u * dt), 0)
                u = u * a[None, :, :]
            tl.store(dla + token * H + at, tl.sum(u, 2), mask=live[:, None] & in_h[None, :])
    if KEY == OUTER:
        walks = tl.num_programs(0).to(tl.int64) // blocks // heads
        at = ((iv * walks + n) * H + h[:, None]) * K + d[None, :]
        tl.store(dA + at, da, mask=in_h[:, None] & in_k[None, :])
    if FINAL:
        tl.store(ds0 + n * H * K * V + tile, F, mask=in_s)
