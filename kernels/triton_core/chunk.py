"""The matmul regime: chunks of C steps, the state between chunks on chip.

Three kernels serve every mixer; decay kind, read order, direction and the presence of states are constexpr.

    chunk_states     walks one sequence and stores the state at every SEGMENT steps
                     (ADJOINT: from the end, the gradient of the state)
    chunk_forward    outputs; walks a whole sequence, or (SPLIT) one stored segment
    chunk_backward   all gradients; walks a whole sequence from the end, or (SPLIT) one stored segment

Inside a chunk there are two bodies. TREE (a decay per key or per value): at level h the odd blocks of h = 1,
2, 4, ... steps attend to the even block before them; the weight of a pair is exp(decay since the boundary)
times exp(decay until the boundary), both at most 1. Otherwise (at most one decay per step and head) the C x C
matrix of weights is the exponential of masked sums. See decay.py for why nothing is ever subtracted.

Gradients of log-decays use only pairs whose weight holds that decay: exactly 0 where the decay is 0, and
accurate relative to their own size. The states of a segment are walked again from its stored start rather
than stored chunk by chunk: memory is K*V per SEGMENT steps.

Names: BK, BV padded block widths; DOT the dtype of matmul operands, ACC of sums; PREC the input precision of
matmuls, SUMS of sums of log-decays. Shapes in comments: C steps, K keys, V values of this block.
"""

import triton
import triton.language as tl

from .decay import (
    NONE,
    OUTER,
    SCALAR,
    VECTOR,
    after_matrix,
    base2,
    before_matrix,
    halves_matrix,
    load_key_decay,
    load_rows,
    pairs_mask,
    product,
    sequence_of,
    slot_of,
    span,
    steps,
    sums,
)


@triton.jit
def load_scalar(p, t, r, live, st, KEY: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    """[C] base-2 log-decays of the non-tree body."""
    if KEY == NONE:
        return tl.zeros([C], ACC)
    return base2(tl.load(p + t * st + r * st, mask=live, other=0.0).to(ACC))


@triton.jit
def load_shifted(p, start, length, first, st, SHIFT: tl.constexpr, REVERSE: tl.constexpr, INDEX: tl.constexpr,
                 KEY: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """load_scalar of the steps SHIFT (-1, 0, 1) away, zeros where they lie outside this chunk.

    Exclusive sums are inclusive sums of these: a sum minus its last term would be a difference."""
    t, r, live = steps(start + SHIFT, length, first, C, REVERSE, INDEX)
    i = tl.arange(0, C) + SHIFT
    return load_scalar(p, t, r, live & (i >= 0) & (i < C), st, KEY, C, ACC)


@triton.jit
def advance(S, k, v, la, lb, la_next, KEY: tl.constexpr, VALUE: tl.constexpr, TREE: tl.constexpr,
            C: tl.constexpr,
            DOT: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr, SUMS: tl.constexpr):  # fmt: skip
    """The state [K, V] after one more chunk. la_next: la of the next step (read where not TREE)."""
    if TREE:
        after = after_matrix(C, False, SUMS)
        k = k.to(ACC)
        v = v.to(ACC)
        if KEY != NONE:
            S = S * tl.exp2(tl.sum(la, 0))[:, None]
            k = k * tl.exp2(sums(after, la, SUMS, ACC))
        if VALUE:
            S = S * tl.exp2(tl.sum(lb, 0))[None, :]
            v = v * tl.exp2(sums(after, lb, SUMS, ACC))
    elif KEY != NONE:
        S = S * tl.exp2(tl.sum(la, 0))
        k = k.to(ACC) * tl.exp2(tl.cumsum(la_next, 0, reverse=True))[:, None]
    return S + product(tl.trans(k.to(DOT)), v.to(DOT), PREC, ACC)


@triton.jit
def retreat(G, q, do, la, lb, la_read, KEY: tl.constexpr, VALUE: tl.constexpr, TREE: tl.constexpr,
            C: tl.constexpr,
            STRICT: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
            SUMS: tl.constexpr):  # fmt: skip
    """The gradient [K, V] of the state before a chunk, from that after it. q is scaled already;
    la_read: la of the step before if STRICT (read where not TREE)."""
    if TREE:
        upto = before_matrix(C, STRICT, False, SUMS)
        do = do.to(ACC)
        if KEY != NONE:
            G = G * tl.exp2(tl.sum(la, 0))[:, None]
            q = q * tl.exp2(sums(upto, la, SUMS, ACC))
        if VALUE:
            G = G * tl.exp2(tl.sum(lb, 0))[None, :]
            do = do * tl.exp2(sums(upto, lb, SUMS, ACC))
    elif KEY != NONE:
        G = G * tl.exp2(tl.sum(la, 0))
        q = q * tl.exp2(tl.cumsum(la_read, 0))[:, None]
    return G + product(tl.trans(q.to(DOT)), do.to(DOT), PREC, ACC)


@triton.jit
def chunk_states(
    k, v, la, A, lb, initial, states, final, cu_seqlens, scale: tl.float64, N, T, H, group,
    skb, skt, skh, skd, svb, svt, svh, svd, sab, sat, sah, sad, sAh, sAd, sbb, sbt, sbh, sbd, sib, sih, sik,
    siv,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    SEGMENT: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, TREE: tl.constexpr, STRICT: tl.constexpr,
    REVERSE: tl.constexpr, ADJOINT: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
    VARLEN: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr, SUMS: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """States at segment starts (ADJOINT: gradients of states at segment ends; k, v are then q, do).

    states [slots, H, K, V], final [N, H, K, V]: both ACC, contiguous. Grid: N * H * blocks of K * blocks of
    V."""
    scale = tl.full([], scale, ACC)
    blocks, keys = tl.cdiv(V, BV), tl.cdiv(K, BK)
    pid = tl.program_id(0).to(tl.int64)
    iv, ik, h, n = pid % blocks, pid // blocks % keys, pid // (blocks * keys) % H, pid // (blocks * keys) // H
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    d = (ik * BK).to(INDEX) + tl.arange(0, BK)
    e = (iv * BV).to(INDEX) + tl.arange(0, BV)
    in_k, in_v = d < K, e < V
    k += row * skb + (h // group) * skh
    v += row * svb + h * svh
    a = tl.zeros([BK], ACC)
    if KEY != NONE:
        la += row * sab + h * sah
    if KEY == OUTER:
        a = tl.load(A + h * sAh + d * sAd, mask=in_k, other=0.0).to(ACC)
    if VALUE:
        lb += row * sbb + h * sbh
    in_s = in_k[:, None] & in_v[None, :]
    S = tl.zeros([BK, BV], ACC)
    if INITIAL:
        seed = n * sib + h * sih + d[:, None] * sik + e[None, :] * siv
        S += tl.load(initial + seed, mask=in_s, other=0.0).to(ACC)
    slot = slot_of(n, first, T, SEGMENT, VARLEN)
    tile = d[:, None] * V + e[None, :]
    chunks = ((length + C - 1) // C).to(tl.int32)
    per: tl.constexpr = SEGMENT // C
    segments = (chunks + per - 1) // per
    for i in tl.range(0, segments, disable_licm=True):
        g = segments - 1 - i if ADJOINT else i
        tl.store(states + ((slot + g) * H + h) * K * V + tile, S, mask=in_s)
        begin = g * per
        end = tl.minimum(chunks, begin + per)
        for j in tl.range(begin, end, disable_licm=True):
            c = end - 1 - (j - begin) if ADJOINT else j
            t, rel, live = steps(c * C, length, first, C, REVERSE, INDEX)
            kt = load_rows(k, t, rel, live, d, in_k, skt, skd)
            vt = load_rows(v, t, rel, live, e, in_v, svt, svd)
            lbt = tl.zeros([C, BV], ACC)
            if VALUE:
                lbt = base2(load_rows(lb, t, rel, live, e, in_v, sbt, sbd).to(ACC))
            if TREE:
                lat, _ = load_key_decay(la, t, rel, live, a, d, in_k, sat, sad, KEY, C, ACC)
                las = tl.zeros([C], ACC)
            else:
                lat = load_scalar(la, t, rel, live, sat, KEY, C, ACC)
                shift: tl.constexpr = -int(STRICT) if ADJOINT else 1
                las = load_shifted(la, c * C, length, first, sat, shift, REVERSE, INDEX, KEY, C, ACC)
            if ADJOINT:
                qt = kt.to(ACC) * scale
                S = retreat(S, qt, vt, lat, lbt, las, KEY, VALUE, TREE, C, STRICT, DOT, ACC, PREC, SUMS)
            else:
                S = advance(S, kt, vt, lat, lbt, las, KEY, VALUE, TREE, C, DOT, ACC, PREC, SUMS)
    if FINAL:
        tl.store(final + (n * H + h) * K * V + tile, S, mask=in_s)


@triton.jit
def chunk_forward(
    q, k, v, la, A, lb, initial, states, o, final, cu_seqlens, scale: tl.float64, N, T, H, tokens, group_q,
    group_k, sqb, sqt, sqh, sqd, skb, skt, skh, skd, svb, svt, svh, svd, sab, sat, sah, sad, sAh, sAd, sbb,
    sbt, sbh, sbd, sib, sih, sik, siv, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, SEGMENT: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    TREE: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr, SPLIT: tl.constexpr, INITIAL:
    tl.constexpr, VARLEN: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr, SUMS:
    tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Outputs o [blocks of K, B, T, H, V], to be added by the caller, and, unless SPLIT, final [N, H, K, V]
    in ACC.

    Grid: N, or slots if SPLIT, * H * blocks of K * blocks of V. STRICT is read="before"."""
    scale = tl.full([], scale, ACC)
    blocks, keys = tl.cdiv(V, BV), tl.cdiv(K, BK)
    pid = tl.program_id(0).to(tl.int64)
    iv, ik, h, n = pid % blocks, pid // blocks % keys, pid // (blocks * keys) % H, pid // (blocks * keys) // H
    slot = n
    if SPLIT:
        n = sequence_of(slot, cu_seqlens, N, T, SEGMENT, VARLEN)
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    d = (ik * BK).to(INDEX) + tl.arange(0, BK)
    e = (iv * BV).to(INDEX) + tl.arange(0, BV)
    in_k, in_v = d < K, e < V
    in_s = in_k[:, None] & in_v[None, :]
    tile = d[:, None] * V + e[None, :]
    q += row * sqb + (h // group_q) * sqh
    k += row * skb + (h // group_k) * skh
    v += row * svb + h * svh
    o += ((ik * tokens + row * T) * H + h) * V
    a = tl.zeros([BK], ACC)
    if KEY != NONE:
        la += row * sab + h * sah
    if KEY == OUTER:
        a = tl.load(A + h * sAh + d * sAd, mask=in_k, other=0.0).to(ACC)
    if VALUE:
        lb += row * sbb + h * sbh
    S = tl.zeros([BK, BV], ACC)
    begin = 0
    end = ((length + C - 1) // C).to(tl.int32)
    if SPLIT:
        begin = ((slot - slot_of(n, first, T, SEGMENT, VARLEN)) * (SEGMENT // C)).to(tl.int32)
        end = tl.minimum(end, begin + SEGMENT // C)
        if begin < end:
            S += tl.load(states + (slot * H + h) * K * V + tile, mask=in_s, other=0.0)
    elif INITIAL:
        seed = n * sib + h * sih + d[:, None] * sik + e[None, :] * siv
        S += tl.load(initial + seed, mask=in_s, other=0.0).to(ACC)
    r = tl.arange(0, C)
    for c in tl.range(begin, end, disable_licm=True):
        t, rel, live = steps(c * C, length, first, C, REVERSE, INDEX)
        qt = load_rows(q, t, rel, live, d, in_k, sqt, sqd)
        kt = load_rows(k, t, rel, live, d, in_k, skt, skd)
        vt = load_rows(v, t, rel, live, e, in_v, svt, svd)
        lbt = tl.zeros([C, BV], ACC)
        if VALUE:
            lbt = base2(load_rows(lb, t, rel, live, e, in_v, sbt, sbd).to(ACC))
        if TREE:
            lat, _ = load_key_decay(la, t, rel, live, a, d, in_k, sat, sad, KEY, C, ACC)
            las = tl.zeros([C], ACC)
            qs = qt.to(ACC) * scale
            kf = kt.to(ACC)
            # from the state before the chunk
            upto = before_matrix(C, STRICT, False, SUMS)
            qd = qs
            if KEY != NONE:
                qd = qs * tl.exp2(sums(upto, lat, SUMS, ACC))
            out = product(qd.to(DOT), S.to(DOT), PREC, ACC)
            if VALUE:
                out *= tl.exp2(sums(upto, lbt, SUMS, ACC))
            # within the chunk: the diagonal, then the tree
            vf = vt.to(ACC)
            if not STRICT:
                out += tl.sum(qs * kf, 1)[:, None] * vf
            for level in tl.range(0, LEVELS, disable_licm=True):
                half = halves_matrix(level, C, STRICT, False, SUMS)
                ql, kl, vl = qs, kf, vf
                if KEY != NONE:
                    w = tl.exp2(sums(half, lat, SUMS, ACC))
                    ql, kl = qs * w, kf * w
                if VALUE:
                    u = tl.exp2(sums(half, lbt, SUMS, ACC))
                    vl = vf * u
                P = product(ql.to(DOT), tl.trans(kl.to(DOT)), PREC, ACC)
                P = tl.where(pairs_mask(level, C), P, 0.0)
                ol = product(P.to(DOT), vl.to(DOT), PREC, ACC)
                if VALUE:
                    ol *= u
                out += ol
        else:
            lat = load_scalar(la, t, rel, live, sat, KEY, C, ACC)
            lar = lat
            if STRICT:
                # read="before": a pair (s, t) decays over s < r < t, so row t takes the decay of t - 1
                lar = load_shifted(la, c * C, length, first, sat, -1, REVERSE, INDEX, KEY, C, ACC)
            las = load_shifted(la, c * C, length, first, sat, 1, REVERSE, INDEX, KEY, C, ACC)
            if KEY != NONE:
                W = tl.where(r[:, None] > r[None, :] + STRICT, lar[:, None], 0.0)
                W = tl.where(r[:, None] >= r[None, :] + STRICT, tl.exp2(tl.cumsum(W, 0)), 0.0)
            else:
                W = tl.where(r[:, None] >= r[None, :] + STRICT, 1.0, 0.0).to(ACC)
            qd = qt.to(DOT)
            P = product(qd, tl.trans(kt.to(DOT)), PREC, ACC)
            out = product(qd, S.to(DOT), PREC, ACC)
            if KEY != NONE:
                out *= tl.exp2(tl.cumsum(lar, 0))[:, None]
            P *= W
            out += product(P.to(DOT), vt.to(DOT), PREC, ACC)
            out *= scale
        tl.store(
            o + t * (H * V) + (rel[:, None] * (H * V) + e[None, :]), out, mask=live[:, None] & in_v[None, :]
        )
        S = advance(S, kt, vt, lat, lbt, las, KEY, VALUE, TREE, C, DOT, ACC, PREC, SUMS)
    if not SPLIT:
        tl.store(final + (n * H + h) * K * V + tile, S, mask=in_s)


@triton.jit
def chunk_backward(
    q, k, v, la, A, lb, do, dstate, states, dstates, dq, dk, dv, dla, dA, dlb, ds0, cu_seqlens, scale:
    tl.float64, N, T, H, tokens, group_q, group_k, sqb, sqt, sqh, sqd, skb, skt, skh, skd, svb, svt, svh, svd,
    sab, sat, sah, sad, sAh, sAd, sbb, sbt, sbh, sbd, sob, sot, soh, sod, sib, sih, sik, siv, K: tl.constexpr,
    V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, SEGMENT:
    tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, TREE: tl.constexpr, STRICT: tl.constexpr, REVERSE:
    tl.constexpr, SPLIT: tl.constexpr, READS: tl.constexpr, WRITES: tl.constexpr, WITHIN: tl.constexpr,
    INITIAL: tl.constexpr, FINAL: tl.constexpr, VARLEN: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
    PREC: tl.constexpr, SUMS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Gradients, as sums over the block of keys and values of each program, which the caller adds up:
    dq, dk [blocks of V, tokens, H, K]; dv, dlb [blocks of K, tokens, H, V]; dla [blocks of V, tokens, H, K],
    or [blocks of V, blocks of K, tokens, H] where it is not a vector; dA [blocks of V, walks, H, K] (OUTER;
    walks = N, or slots if SPLIT). ds0 [N, H, K, V] if FINAL. INITIAL: dstate [N, H, K, V] is given.

    Grid: as chunk_forward."""
    scale = tl.full([], scale, ACC)
    blocks, keys = tl.cdiv(V, BV), tl.cdiv(K, BK)
    pid = tl.program_id(0).to(tl.int64)
    iv, ik, h, n = pid % blocks, pid // blocks % keys, pid // (blocks * keys) % H, pid // (blocks * keys) // H
    walk = n
    if SPLIT:
        n = sequence_of(walk, cu_seqlens, N, T, SEGMENT, VARLEN)
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    slot = slot_of(n, first, T, SEGMENT, VARLEN)
    d = (ik * BK).to(INDEX) + tl.arange(0, BK)
    e = (iv * BV).to(INDEX) + tl.arange(0, BV)
    in_k, in_v = d < K, e < V
    in_s = in_k[:, None] & in_v[None, :]
    tile = d[:, None] * V + e[None, :]
    q += row * sqb + (h // group_q) * sqh
    k += row * skb + (h // group_k) * skh
    v += row * svb + h * svh
    do += row * sob + h * soh
    dv += ((ik * tokens + row * T) * H + h) * V
    dq += ((iv * tokens + row * T) * H + h) * K
    dk += ((iv * tokens + row * T) * H + h) * K
    a = tl.zeros([BK], ACC)
    da = tl.zeros([BK], ACC)
    if KEY != NONE:
        la += row * sab + h * sah
        if KEY == VECTOR:
            dla += ((iv * tokens + row * T) * H + h) * K
        else:
            dla += ((iv * keys + ik) * tokens + row * T) * H + h
    if KEY == OUTER:
        a = tl.load(A + h * sAh + d * sAd, mask=in_k, other=0.0).to(ACC)
    if VALUE:
        lb += row * sbb + h * sbh
        dlb += ((ik * tokens + row * T) * H + h) * V
    G = tl.zeros([BK, BV], ACC)
    begin = 0
    end = ((length + C - 1) // C).to(tl.int32)
    per = SEGMENT // C
    if SPLIT:
        begin = ((walk - slot) * per).to(tl.int32)
        end = tl.minimum(end, begin + per)
        if WRITES and begin < end:
            G += tl.load(dstates + (walk * H + h) * K * V + tile, mask=in_s, other=0.0)
    elif INITIAL:
        seed = n * sib + h * sih + d[:, None] * sik + e[None, :] * siv
        G += tl.load(dstate + seed, mask=in_s, other=0.0).to(ACC)
    r = tl.arange(0, C)
    if READS and not WRITES:
        S = tl.load(states + (walk * H + h) * K * V + tile, mask=in_s & (begin < end), other=0.0)
    for j in tl.range(0, end - begin, disable_licm=True):
        c = end - 1 - j if WRITES else begin + j
        gq = tl.zeros([C, BK], ACC)
        gk = tl.zeros([C, BK], ACC)
        gv = tl.zeros([C, BV], ACC)
        ua = tl.zeros([C, BK], ACC)
        ub = tl.zeros([C, BV], ACC)
        x = tl.zeros([C], ACC)
        dt = tl.zeros([C], ACC)
        t, rel, live = steps(c * C, length, first, C, REVERSE, INDEX)
        if WRITES:
            # the state before this chunk, from the stored start of its segment
            S = tl.load(states + ((slot + c // per) * H + h) * K * V + tile, mask=in_s, other=0.0)
            for p in tl.range(c // per * per, c, disable_licm=True):
                t, rel, live = steps(p * C, length, first, C, REVERSE, INDEX)
                kt = load_rows(k, t, rel, live, d, in_k, skt, skd)
                vt = load_rows(v, t, rel, live, e, in_v, svt, svd)
                lbt = tl.zeros([C, BV], ACC)
                if VALUE:
                    lbt = base2(load_rows(lb, t, rel, live, e, in_v, sbt, sbd).to(ACC))
                if TREE:
                    lat, _ = load_key_decay(la, t, rel, live, a, d, in_k, sat, sad, KEY, C, ACC)
                    las = tl.zeros([C], ACC)
                else:
                    lat = load_scalar(la, t, rel, live, sat, KEY, C, ACC)
                    las = load_shifted(la, p * C, length, first, sat, 1, REVERSE, INDEX, KEY, C, ACC)
                S = advance(S, kt, vt, lat, lbt, las, KEY, VALUE, TREE, C, DOT, ACC, PREC, SUMS)

            # through the states at both ends of the chunk
        if READS or WRITES:
            t, rel, live = steps(c * C, length, first, C, REVERSE, INDEX)
            lbt = tl.zeros([C, BV], ACC)
            if VALUE:
                lbt = base2(load_rows(lb, t, rel, live, e, in_v, sbt, sbd).to(ACC))
            if TREE:
                lat, dt = load_key_decay(la, t, rel, live, a, d, in_k, sat, sad, KEY, C, ACC)
                if WRITES:
                    # writes: what the gradient G of the state after the chunk says
                    kf = load_rows(k, t, rel, live, d, in_k, skt, skd).to(ACC)
                    vf = load_rows(v, t, rel, live, e, in_v, svt, svd).to(ACC)
                    kd, vd = kf, vf
                    if KEY != NONE:
                        wk = tl.exp2(sums(after_matrix(C, False, SUMS), lat, SUMS, ACC))
                        kd = kf * wk
                    if VALUE:
                        wv = tl.exp2(sums(after_matrix(C, False, SUMS), lbt, SUMS, ACC))
                        vd = vf * wv
                    Gd = G.to(DOT)
                    gk += product(vd.to(DOT), tl.trans(Gd), PREC, ACC)
                    gv += product(kd.to(DOT), Gd, PREC, ACC)
                    both = S * G
                    if KEY != NONE:
                        gk *= wk
                        ua += sums(after_matrix(C, True, SUMS), kf * gk, SUMS, ACC)
                        both *= tl.exp2(tl.sum(lat, 0))[:, None]
                    if VALUE:
                        gv *= wv
                        ub += sums(after_matrix(C, True, SUMS), vf * gv, SUMS, ACC)
                        both *= tl.exp2(tl.sum(lbt, 0))[None, :]
                        ub += tl.sum(both, 0)[None, :]
                    if KEY != NONE:
                        ua += tl.sum(both, 1)[None, :]
                # reads: what the state S before the chunk says
                qf = load_rows(q, t, rel, live, d, in_k, sqt, sqd).to(ACC) * scale
                dof = load_rows(do, t, rel, live, e, in_v, sot, sod).to(ACC)
                if READS:
                    qd, dod = qf, dof
                    if KEY != NONE:
                        wq = tl.exp2(sums(before_matrix(C, STRICT, False, SUMS), lat, SUMS, ACC))
                        qd = qf * wq
                    if VALUE:
                        wo = tl.exp2(sums(before_matrix(C, STRICT, False, SUMS), lbt, SUMS, ACC))
                        dod = dof * wo
                    Sd = S.to(DOT)
                    gq += product(dod.to(DOT), tl.trans(Sd), PREC, ACC)
                    if KEY != NONE:
                        gq *= wq
                        ua += sums(before_matrix(C, STRICT, True, SUMS), qf * gq, SUMS, ACC)
                    if VALUE:
                        go = wo * product(qd.to(DOT), Sd, PREC, ACC)
                        ub += sums(before_matrix(C, STRICT, True, SUMS), dof * go, SUMS, ACC)
                if WRITES:
                    G = retreat(G, qf, dof, lat, lbt, x, KEY, VALUE, TREE, C, STRICT, DOT, ACC, PREC, SUMS)
                else:
                    kt = load_rows(k, t, rel, live, d, in_k, skt, skd)
                    vt = load_rows(v, t, rel, live, e, in_v, svt, svd)
                    S = advance(S, kt, vt, lat, lbt, x, KEY, VALUE, TREE, C, DOT, ACC, PREC, SUMS)
            else:
                qt = load_rows(q, t, rel, live, d, in_k, sqt, sqd)
                kt = load_rows(k, t, rel, live, d, in_k, skt, skd)
                vt = load_rows(v, t, rel, live, e, in_v, svt, svd)
                dot = load_rows(do, t, rel, live, e, in_v, sot, sod)
                lat = load_scalar(la, t, rel, live, sat, KEY, C, ACC)
                lar = lat
                if STRICT:
                    lar = load_shifted(la, c * C, length, first, sat, -1, REVERSE, INDEX, KEY, C, ACC)
                las = load_shifted(la, c * C, length, first, sat, 1, REVERSE, INDEX, KEY, C, ACC)
                if READS:
                    w = tl.zeros([C], ACC) + scale
                    if KEY != NONE:
                        w *= tl.exp2(tl.cumsum(lar, 0))
                    gq += product(dot.to(DOT), tl.trans(S.to(DOT)), PREC, ACC) * w[:, None]
                    if KEY != NONE:
                        y = tl.sum(qt.to(ACC) * gq, 1)
                        x += tl.sum(tl.where(r[None, :] >= r[:, None] + STRICT, y[None, :], 0.0), 1)
                if WRITES:
                    Gd = G.to(DOT)
                    gk += product(vt.to(DOT), tl.trans(Gd), PREC, ACC)
                    gv += product(kt.to(DOT), Gd, PREC, ACC)
                    if KEY != NONE:
                        w = tl.exp2(tl.cumsum(las, 0, reverse=True))
                        gk *= w[:, None]
                        gv *= w[:, None]
                        y = tl.sum(kt.to(ACC) * gk, 1)
                        x += tl.sum(tl.where(r[None, :] < r[:, None], y[None, :], 0.0), 1)
                        x += tl.sum(tl.sum(S * G, 1), 0) * tl.exp2(tl.sum(lat, 0))
                    qs = qt.to(ACC) * scale
                    G = retreat(G, qs, dot, lat, lbt, lar, KEY, VALUE, TREE, C, STRICT, DOT, ACC, PREC, SUMS)
                else:
                    S = advance(S, kt, vt, lat, lbt, las, KEY, VALUE, TREE, C, DOT, ACC, PREC, SUMS)
        if WRITES and WITHIN:
            # Inputs are read again (from cache) behind a barrier: otherwise the compiler keeps every form of
            # them that the first half made, and the registers overflow.
            tl.debug_barrier()
        if WITHIN:
            qt = load_rows(q, t, rel, live, d, in_k, sqt, sqd)
            kt = load_rows(k, t, rel, live, d, in_k, skt, skd)
            vt = load_rows(v, t, rel, live, e, in_v, svt, svd)
            dot = load_rows(do, t, rel, live, e, in_v, sot, sod)
            lbt = tl.zeros([C, BV], ACC)
            if VALUE:
                lbt = base2(load_rows(lb, t, rel, live, e, in_v, sbt, sbd).to(ACC))
            if TREE:
                lat, dt = load_key_decay(la, t, rel, live, a, d, in_k, sat, sad, KEY, C, ACC)
                qf, kf = qt.to(ACC) * scale, kt.to(ACC)
                vf, dof = vt.to(ACC), dot.to(ACC)
                if not STRICT:
                    p0 = tl.sum(qf * kf, 1)[:, None]
                    g0 = tl.sum(dof * vf, 1)[:, None]
                    gq += g0 * kf
                    gk += g0 * qf
                    gv += p0 * dof
                for level in tl.range(0, LEVELS, disable_licm=True):
                    half = halves_matrix(level, C, STRICT, False, SUMS)
                    ql, kl, vl, dol = qf, kf, vf, dof
                    if KEY != NONE:
                        w = tl.exp2(sums(half, lat, SUMS, ACC))
                        ql, kl = qf * w, kf * w
                    if VALUE:
                        u = tl.exp2(sums(half, lbt, SUMS, ACC))
                        vl, dol = vf * u, dof * u
                    ql, kl, vl, dol = ql.to(DOT), kl.to(DOT), vl.to(DOT), dol.to(DOT)
                    pairs = pairs_mask(level, C)
                    gP = product(dol, tl.trans(vl), PREC, ACC)
                    gP = tl.where(pairs, gP, 0.0).to(DOT)
                    gql = product(gP, kl, PREC, ACC)
                    gkl = product(tl.trans(gP), ql, PREC, ACC)
                    P = product(ql, tl.trans(kl), PREC, ACC)
                    P = tl.where(pairs, P, 0.0).to(DOT)
                    gvl = product(tl.trans(P), dol, PREC, ACC)
                    flah = halves_matrix(level, C, STRICT, True, SUMS)
                    if KEY != NONE:
                        gql, gkl = gql * w, gkl * w
                        ua += sums(flah, qf * gql + kf * gkl, SUMS, ACC)
                    if VALUE:
                        gvl *= u
                        gol = u * product(P, vl, PREC, ACC)
                        ub += sums(flah, dof * gol + vf * gvl, SUMS, ACC)
                    gq += gql
                    gk += gkl
                    gv += gvl
            else:
                lat = load_scalar(la, t, rel, live, sat, KEY, C, ACC)
                lar = lat
                if STRICT:
                    lar = load_shifted(la, c * C, length, first, sat, -1, REVERSE, INDEX, KEY, C, ACC)
                qd, kd, vd, dod = qt.to(DOT), kt.to(DOT), vt.to(DOT), dot.to(DOT)
                if KEY != NONE:
                    W = tl.where(r[:, None] > r[None, :] + STRICT, lar[:, None], 0.0)
                    W = tl.where(r[:, None] >= r[None, :] + STRICT, tl.exp2(tl.cumsum(W, 0)) * scale, 0.0)
                else:
                    W = tl.where(r[:, None] >= r[None, :] + STRICT, scale, 0.0).to(ACC)
                P = product(qd, tl.trans(kd), PREC, ACC)
                gP = product(dod, tl.trans(vd), PREC, ACC) * W
                if KEY != NONE:
                    # pairs with s < r <= t (r < t if STRICT): sum over t by a scan, over s by a masked sum
                    U = tl.cumsum(P * gP, 0, reverse=True)
                    y = tl.sum(tl.where(r[None, :] + STRICT < r[:, None], U, 0.0), 1)
                    if STRICT:  # y is of the step after
                        y = tl.sum(tl.where(r[None, :] == r[:, None] + 1, y[None, :], 0.0), 1)
                    x += y
                P = (P * W).to(DOT)
                gP = gP.to(DOT)
                gq += product(gP, kd, PREC, ACC)
                gk += product(tl.trans(gP), qd, PREC, ACC)
                gv += product(tl.trans(P), dod, PREC, ACC)
        at = rel[:, None] * H
        if TREE:
            gq *= scale
            if VALUE:
                tl.store(dlb + t * (H * V) + (at * V + e[None, :]), ub, mask=live[:, None] & in_v[None, :])
            if KEY == VECTOR:
                tl.store(dla + t * (H * K) + (at * K + d[None, :]), ua, mask=live[:, None] & in_k[None, :])
            if KEY == SCALAR:
                tl.store(dla + t * H + rel * H, tl.sum(ua, 1), mask=live)
            if KEY == OUTER:
                tl.store(dla + t * H + rel * H, tl.sum(ua * a[None, :], 1), mask=live)
                # a reset through dt = inf has gradient 0, which inf * 0 would make NaN
                da += tl.sum(tl.where(ua == 0.0, 0.0, ua * dt[:, None]), 0)
        elif KEY != NONE:
            tl.store(dla + t * H + rel * H, x, mask=live)
        if READS or WITHIN:
            tl.store(dq + t * (H * K) + (at * K + d[None, :]), gq, mask=live[:, None] & in_k[None, :])
        if WRITES or WITHIN:
            tl.store(dk + t * (H * K) + (at * K + d[None, :]), gk, mask=live[:, None] & in_k[None, :])
            tl.store(dv + t * (H * V) + (at * V + e[None, :]), gv, mask=live[:, None] & in_v[None, :])
    if KEY == OUTER:
        walks = tl.num_programs(0).to(tl.int64) // (blocks * keys) // H
        tl.store(dA + ((iv * walks + walk) * H + h) * K + d, da, mask=in_k)
    if FINAL:
        tl.store(ds0 + (n * H + h) * K * V + tile, G, mask=in_s)
