"""The matmul regime: chunks of C steps, the state between chunks on chip.

Three kernels serve every mixer; decay kind, read order, direction, masks and states are constexpr.

    chunk_states     walks one sequence and stores the state at every SEGMENT steps
                     (ADJOINT: from the end, the gradient of the state)
    chunk_forward    outputs; walks a whole sequence, or (SPLIT) one stored segment
    chunk_backward   all gradients; walks a whole sequence from the end, or (SPLIT) one stored segment

What happens inside a chunk is in vector.py (TREE: a decay per key or per value) and scalar.py. Gradients of
log-decays use only pairs whose weight holds that decay: exactly 0 where the decay is 0, and accurate relative
to their own size. The backward reads the state before each chunk: its segments are chunks.

Names: BK, BV padded block widths; DOT the dtype of matmul operands, ACC of sums; PREC the input precision of
matmuls. Shapes in comments: C steps, K keys, V values of this block.
"""

import triton
import triton.language as tl

from .decay import (
    NONE,
    OUTER,
    SCALAR,
    VECTOR,
    base2,
    kept,
    load_key_decay,
    load_rows,
    sequence_of,
    slot_of,
    span,
    steps,
)
from .delta import (
    DELTA,
    GENERAL,
    erased_advance,
    erased_back,
    erased_backward,
    erased_outputs,
    solved,
    solved_back,
)
from .scalar import (
    scalar_advance,
    scalar_dk,
    scalar_dq,
    scalar_dv,
    scalar_outputs,
    scalar_pairs,
    scalar_retreat,
    shifted,
)
from .vector import vector_advance, vector_backward, vector_outputs, vector_retreat

# Lengths and counts, and strides that follow from them, must not make new kernels.
COUNTS = ["N", "T", "H", "tokens", "lab", "seb", "smb"]


@triton.jit
def place(K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, INDEX: tl.constexpr):
    """Of this program: the sequence (or slot) and head, block of keys, block of values, and their columns."""
    # three axes: what needs no division stays in uniform registers
    block = tl.program_id(2)
    blocks: tl.constexpr = (V + BV - 1) // BV
    iv, ik = block % blocks, block // blocks
    d = (ik * BK).to(INDEX) + tl.arange(0, BK)
    e = (iv * BV).to(INDEX) + tl.arange(0, BV)
    n, h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    return n, h, ik.to(tl.int64), iv.to(tl.int64), d, e


@triton.jit
def load_decays(
    la, lb, t, rel, keep, a, d, in_k, e, in_v, sat, sad, sbt, sbd, KEY: tl.constexpr, VALUE: tl.constexpr,
    TREE: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Base-2 log-decays of a chunk: over keys [C, K], or [C] if not TREE; over values [C, V]; and dt [C]."""
    lbt = tl.zeros([C, e.shape[0]], ACC)
    if VALUE:
        lbt = base2(load_rows(lb, t, rel, keep, e, in_v, sbt, sbd).to(ACC))
    if TREE:
        lat, dt = load_key_decay(la, t, rel, keep, a, d, in_k, sat, sad, KEY, C, ACC)
    else:
        lat, dt = tl.zeros([C], ACC), tl.zeros([C], ACC)
        if KEY != NONE:
            lat = base2(tl.load(la + t * sat + rel * sat, mask=keep, other=0.0).to(ACC))
    return lat, lbt, dt


@triton.jit
def load_erased(
    k, x, y, beta, t, rel, keep, d, in_k, sxt, sxd, syt, syd, set, ERASE: tl.constexpr, C: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """x and y [C, K], and beta [C] (zeros if GENERAL: not loaded). k: those of DELTA. A masked step erases
    nothing."""
    bt = tl.zeros([C], ACC)
    if ERASE == DELTA:
        bt += tl.load(beta + t * set + rel * set, mask=keep, other=0.0).to(ACC)
        return k, k, bt
    else:  # noqa: RET505
        xt = load_rows(x, t, rel, keep, d, in_k, sxt, sxd)
        return xt, load_rows(y, t, rel, keep, d, in_k, syt, syd), bt


@triton.jit
def advance(
    S, k, v, lat, lbt, KEY: tl.constexpr, VALUE: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if TREE:
        return vector_advance(S, k.to(ACC), v.to(ACC), lat, lbt, BK, BV, KEY, VALUE, C, DOT, PREC, ACC)
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        return scalar_advance(S, k, v, lat, KEY, C, DOT, PREC, ACC)


@triton.jit
def only(x, keep, MASK: tl.constexpr):
    """A gradient [C, D], 0 at masked steps."""
    if MASK:
        x = tl.where(keep[:, None], x, 0.0)
    return x


@triton.jit(do_not_specialize=COUNTS)
def chunk_states(
    k, v, la, A, lb, beta, x, y, mask, initial, states, final, cu_seqlens, scale: tl.float64, N, T, H, group,
    group_x, group_y, skb, skt, skh, skd, svb, svt, svh, svd, sab, lab, sat, sah, sad, sAh, sAd, sbb, sbt,
    sbh, sbd, seb, set, seh, sxb, sxt, sxh, sxd, syb, syt, syh, syd, smb, smt,
    sib, sih, sik, siv, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    C: tl.constexpr, SEGMENT: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, TREE: tl.constexpr,
    ERASE: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr, MASK: tl.constexpr,
    ADJOINT: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, VARLEN: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr, SOLVE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """States at segment starts (ADJOINT: gradients of states at segment ends; k, v are then q, do). x and y
    are what is erased, of DELTA both the keys.

    states [slots, H, K, V], final [N, H, K, V] in ACC, contiguous. Grid: N, H, blocks of K * blocks of V."""
    scale = tl.full([], scale, ACC)
    n, h, _ik, _iv, d, e = place(K, V, BK, BV, INDEX)
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    in_k, in_v = d < (K if K % BK else K + BK), e < (V if V % BV else V + BV)
    k += row * skb + (h // group) * skh
    v += row * svb + h * svh
    a = tl.zeros([BK], ACC)
    if KEY != NONE:
        la += row * (sab + lab) + h * sah
    if KEY == OUTER:
        a = tl.load(A + h * sAh + d * sAd, mask=in_k, other=0.0).to(ACC)
    if VALUE:
        lb += row * sbb + h * sbh
    if ERASE == DELTA:
        beta += row * seb + h * seh
    if ERASE != NONE:
        x += row * sxb + (h // group_x) * sxh
        y += row * syb + (h // group_y) * syh
    if MASK:
        mask += row * smb
    in_s = in_k[:, None] & in_v[None, :]
    S = tl.zeros([BK, BV], ACC)
    if INITIAL:
        seed = n * sib + h * sih + d[:, None] * sik + e[None, :] * siv
        S += tl.load(initial + seed, mask=in_s, other=0.0).to(ACC)
    slot = slot_of(n, first, T, SEGMENT, VARLEN)
    tile = d[:, None] * V + e[None, :]
    chunks = ((length + C - 1) // C).to(tl.int32)
    per = SEGMENT // C
    for i in tl.range(0, chunks, disable_licm=True):
        c = chunks - 1 - i if ADJOINT else i
        if (c % per == (per - 1 if ADJOINT else 0)) | (i == 0):
            tl.store(states + ((slot + c // per) * H + h) * K * V + tile, S, mask=in_s)
        t, rel, live = steps(c * C, length, first, C, REVERSE, INDEX)
        keep = kept(mask, t, rel, live, smt, MASK)
        held = live if ADJOINT else keep  # a masked step writes nothing, but its output is read
        kt = load_rows(k, t, rel, held, d, in_k, skt, skd)
        vt = load_rows(v, t, rel, held, e, in_v, svt, svd)
        lat, lbt, _ = load_decays(
            la, lb, t, rel, keep, a, d, in_k, e, in_v, sat, sad, sbt, sbd, KEY, VALUE, TREE, C, ACC
        )
        if ERASE != NONE:
            of_delta = kt
            if ERASE == DELTA and ADJOINT:
                of_delta = load_rows(x, t, rel, keep, d, in_k, sxt, sxd)
            xt, yt, bt = load_erased(
                of_delta, x, y, beta, t, rel, keep, d, in_k, sxt, sxd, syt, syd, set, ERASE, C, ACC
            )
            if not ADJOINT:
                U = solved(kt, vt, xt, yt, bt, S, lat, BK, KEY, TREE, C, ERASE, DOT, PREC, SOLVE, ACC)
                S = erased_advance(S, kt, vt, xt, U, lat, BK, KEY, TREE, C, ERASE, DOT, PREC, ACC)
            else:
                U = solved_back(
                    kt, vt, xt, yt, bt, S, lat, scale, BK, KEY, TREE, C, STRICT, ERASE, DOT, PREC, SOLVE, ACC
                )
        if not ADJOINT:
            if ERASE == NONE:
                S = advance(S, kt, vt, lat, lbt, KEY, VALUE, TREE, C, BK, BV, DOT, PREC, ACC)
        elif TREE:
            S = vector_retreat(
                S, kt.to(ACC) * scale, vt.to(ACC), lat, lbt, BK, BV, KEY, VALUE, C, STRICT, DOT, PREC, ACC
            )
        else:
            S = scalar_retreat(S, kt, vt, lat, scale, KEY, C, STRICT, DOT, PREC, ACC)
        if ADJOINT and ERASE != NONE:
            S = erased_back(S, yt, U, bt, lat, BK, KEY, TREE, C, ERASE, DOT, PREC, ACC)
    if FINAL:
        tl.store(final + (n * H + h) * K * V + tile, S, mask=in_s)


@triton.jit(do_not_specialize=COUNTS)
def chunk_forward(
    q, k, v, la, A, lb, beta, x, y, mask, initial, states, o, final, cu_seqlens, scale: tl.float64, N, T, H,
    tokens, group_q, group_k, group_x, group_y, sqb, sqt, sqh, sqd, skb, skt, skh, skd, svb, svt, svh, svd,
    sab, lab, sat, sah, sad, sAh, sAd, sbb, sbt, sbh, sbd, seb, set, seh, sxb, sxt, sxh, sxd,
    syb, syt, syh, syd, smb, smt, sib, sih, sik, siv, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, SEGMENT: tl.constexpr, KEY: tl.constexpr,
    VALUE: tl.constexpr, TREE: tl.constexpr, ERASE: tl.constexpr, STRICT: tl.constexpr,
    REVERSE: tl.constexpr, MASK: tl.constexpr, SPLIT: tl.constexpr, INITIAL: tl.constexpr,
    VARLEN: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr, SOLVE: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Outputs o [blocks of K, B, T, H, V], to be added by the caller, and, unless SPLIT, final [N, H, K, V]
    in ACC.

    Grid: N, or slots if SPLIT; H; blocks of K * blocks of V. STRICT is read="before"."""
    scale = tl.full([], scale, ACC)
    slot, h, ik, _iv, d, e = place(K, V, BK, BV, INDEX)
    n = slot
    if SPLIT:
        n = sequence_of(slot, cu_seqlens, N, T, SEGMENT, VARLEN)
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    in_k, in_v = d < (K if K % BK else K + BK), e < (V if V % BV else V + BV)
    in_s = in_k[:, None] & in_v[None, :]
    tile = d[:, None] * V + e[None, :]
    q += row * sqb + (h // group_q) * sqh
    k += row * skb + (h // group_k) * skh
    v += row * svb + h * svh
    o += ((ik * tokens + row * T) * H + h) * V
    a = tl.zeros([BK], ACC)
    if KEY != NONE:
        la += row * (sab + lab) + h * sah
    if KEY == OUTER:
        a = tl.load(A + h * sAh + d * sAd, mask=in_k, other=0.0).to(ACC)
    if VALUE:
        lb += row * sbb + h * sbh
    if ERASE == DELTA:
        beta += row * seb + h * seh
    if ERASE != NONE:
        x += row * sxb + (h // group_x) * sxh
        y += row * syb + (h // group_y) * syh
    if MASK:
        mask += row * smb
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
    for c in tl.range(begin, end, disable_licm=True):
        t, rel, live = steps(c * C, length, first, C, REVERSE, INDEX)
        keep = kept(mask, t, rel, live, smt, MASK)
        qt = load_rows(q, t, rel, live, d, in_k, sqt, sqd)
        kt = load_rows(k, t, rel, keep, d, in_k, skt, skd)
        vt = load_rows(v, t, rel, keep, e, in_v, svt, svd)
        lat, lbt, _ = load_decays(
            la, lb, t, rel, keep, a, d, in_k, e, in_v, sat, sad, sbt, sbd, KEY, VALUE, TREE, C, ACC
        )
        if ERASE != NONE:
            xt, yt, bt = load_erased(
                kt, x, y, beta, t, rel, keep, d, in_k, sxt, sxd, syt, syd, set, ERASE, C, ACC
            )
            U = solved(kt, vt, xt, yt, bt, S, lat, BK, KEY, TREE, C, ERASE, DOT, PREC, SOLVE, ACC)
            out = erased_outputs(
                qt, kt, vt, xt, U, S, lat, scale, BK, KEY, TREE, C, STRICT, ERASE, DOT, PREC, ACC
            )
            S = erased_advance(S, kt, vt, xt, U, lat, BK, KEY, TREE, C, ERASE, DOT, PREC, ACC)
        elif TREE:
            out, S = vector_outputs(
                qt.to(ACC) * scale, kt.to(ACC), vt.to(ACC), S, lat, lbt, BK, BV, KEY, VALUE, C, STRICT, DOT,
                PREC, ACC,
            )  # fmt: skip
        else:
            out = scalar_outputs(qt, kt, vt, S, lat, scale, KEY, C, STRICT, DOT, PREC, ACC)
            S = scalar_advance(S, kt, vt, lat, KEY, C, DOT, PREC, ACC)
        at = o + t * (H * V) + (rel[:, None] * (H * V) + e[None, :])
        tl.store(at, out, mask=live[:, None] & in_v[None, :])
    if not SPLIT:
        tl.store(final + (n * H + h) * K * V + tile, S, mask=in_s)


@triton.jit(do_not_specialize=COUNTS)
def chunk_backward(
    q, k, v, la, A, lb, beta, x, y, do, mask, initial, states, dstates,
    dq, dk, dv, dla, dA, dlb, dbeta, dx, dy, ds0, cu_seqlens, scale: tl.float64, N, T, H, tokens,
    group_q, group_k, group_x, group_y, sqb, sqt, sqh, sqd, skb, skt, skh, skd,
    svb, svt, svh, svd, sab, lab, sat, sah, sad, sAh, sAd, sbb, sbt, sbh, sbd, seb, set, seh,
    sxb, sxt, sxh, sxd, syb, syt, syh, syd, sob, sot, soh, sod, smb, smt,
    sib, sih, sik, siv, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    C: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, TREE: tl.constexpr, ERASE: tl.constexpr,
    STRICT: tl.constexpr, REVERSE: tl.constexpr, MASK: tl.constexpr, SPLIT: tl.constexpr,
    INITIAL: tl.constexpr, FINAL: tl.constexpr, VARLEN: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
    PREC: tl.constexpr, SOLVE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Gradients, as sums over the block of keys and values of each program, which the caller adds up:
    dq, dk, dx, dy [blocks of V, tokens, H, K]; dbeta [blocks of V, tokens, H]; dv, dlb
    [blocks of K, tokens, H, V]; dla [blocks of V, tokens, H, K],
    or [blocks of V, blocks of K, tokens, H] where it is not a vector; dA [blocks of V, walks, H, K] (OUTER;
    walks = N, or slots if SPLIT). ds0 [N, H, K, V] if FINAL.

    initial: the gradient of the final state [N, H, K, V], if INITIAL; states and (SPLIT) dstates from
    chunk_states. Grid: as chunk_forward."""
    scale = tl.full([], scale, ACC)
    walk, h, ik, iv, d, e = place(K, V, BK, BV, INDEX)
    n = walk
    if SPLIT:
        n = sequence_of(walk, cu_seqlens, N, T, C, VARLEN)
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    slot = slot_of(n, first, T, C, VARLEN)
    in_k, in_v = d < (K if K % BK else K + BK), e < (V if V % BV else V + BV)
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
        la += row * (sab + lab) + h * sah
        if KEY == VECTOR:
            dla += ((iv * tokens + row * T) * H + h) * K
        else:
            dla += ((iv * tl.cdiv(K, BK) + ik) * tokens + row * T) * H + h
    if KEY == OUTER:
        a = tl.load(A + h * sAh + d * sAd, mask=in_k, other=0.0).to(ACC)
    if VALUE:
        lb += row * sbb + h * sbh
        dlb += ((ik * tokens + row * T) * H + h) * V
    if ERASE == DELTA:
        beta += row * seb + h * seh
        dbeta += (iv * tokens + row * T) * H + h
    if ERASE == GENERAL:
        dx += ((iv * tokens + row * T) * H + h) * K
        dy += ((iv * tokens + row * T) * H + h) * K
    if ERASE != NONE:
        x += row * sxb + (h // group_x) * sxh
        y += row * syb + (h // group_y) * syh
    if MASK:
        mask += row * smb
    G = tl.zeros([BK, BV], ACC)
    begin = 0
    end = ((length + C - 1) // C).to(tl.int32)
    if SPLIT:
        begin = (walk - slot).to(tl.int32)
        end = tl.minimum(end, begin + 1)
        if begin < end:
            G += tl.load(dstates + (walk * H + h) * K * V + tile, mask=in_s, other=0.0)
    elif INITIAL:
        seed = n * sib + h * sih + d[:, None] * sik + e[None, :] * siv
        G += tl.load(initial + seed, mask=in_s, other=0.0).to(ACC)
    for j in tl.range(begin, end, disable_licm=True):
        c = end - 1 - (j - begin)
        S = tl.load(states + ((slot + c) * H + h) * K * V + tile, mask=in_s, other=0.0)
        t, rel, live = steps(c * C, length, first, C, REVERSE, INDEX)
        keep = kept(mask, t, rel, live, smt, MASK)
        qt = load_rows(q, t, rel, live, d, in_k, sqt, sqd)
        kt = load_rows(k, t, rel, keep, d, in_k, skt, skd)
        vt = load_rows(v, t, rel, keep, e, in_v, svt, svd)
        dot = load_rows(do, t, rel, live, e, in_v, sot, sod)
        lat, lbt, dt = load_decays(
            la, lb, t, rel, keep, a, d, in_k, e, in_v, sat, sad, sbt, sbd, KEY, VALUE, TREE, C, ACC
        )
        to_k, to_v = rel[:, None] * (H * K) + d[None, :], rel[:, None] * (H * V) + e[None, :]
        of_k, of_v = live[:, None] & in_k[None, :], live[:, None] & in_v[None, :]
        if ERASE != NONE:
            xt, yt, bt = load_erased(
                kt, x, y, beta, t, rel, keep, d, in_k, sxt, sxd, syt, syd, set, ERASE, C, ACC
            )
            to_k, to_v = t * (H * K) + to_k, t * (H * V) + to_v
            ua, G = erased_backward(
                qt, kt, vt, xt, yt, bt, dot, S, G, lat, scale, dq + to_k, dk + to_k, dv + to_v,
                dbeta + t * H + rel * H if ERASE == DELTA else 0, dx + to_k if ERASE == GENERAL else 0,
                dy + to_k if ERASE == GENERAL else 0, of_k, of_v, keep, live, BK, KEY, TREE, C, STRICT,
                ERASE, DOT, PREC, SOLVE, ACC,
            )  # fmt: skip
            if not TREE:
                if KEY != NONE:
                    tl.store(dla + t * H + rel * H, tl.where(keep, ua, 0.0), mask=live)
            else:
                ua = only(ua, keep, MASK)
                if KEY == VECTOR:
                    tl.store(dla + to_k, ua, mask=of_k)
                if KEY == OUTER:
                    tl.store(dla + t * H + rel * H, tl.sum(ua * a[None, :], 1), mask=live)
                    da += tl.sum(tl.where(ua == 0.0, 0.0, ua * dt[:, None]), 0)
        elif TREE:
            gq, gk, gv, ua, ub, G = vector_backward(
                qt.to(ACC) * scale, kt.to(ACC), vt.to(ACC), dot.to(ACC), S, G, lat, lbt, BK, BV, KEY, VALUE,
                C, STRICT, DOT, PREC, ACC,
            )  # fmt: skip
            tl.store(dq + t * (H * K) + to_k, gq * scale, mask=of_k)
            tl.store(dk + t * (H * K) + to_k, only(gk, keep, MASK), mask=of_k)
            tl.store(dv + t * (H * V) + to_v, only(gv, keep, MASK), mask=of_v)
            if VALUE:
                tl.store(dlb + t * (H * V) + to_v, only(ub, keep, MASK), mask=of_v)
            if KEY != NONE:
                ua = only(ua, keep, MASK)
            if KEY == VECTOR:
                tl.store(dla + t * (H * K) + to_k, ua, mask=of_k)
            if KEY == SCALAR:
                tl.store(dla + t * H + rel * H, tl.sum(ua, 1), mask=live)
            if KEY == OUTER:
                tl.store(dla + t * H + rel * H, tl.sum(ua * a[None, :], 1), mask=live)
                # a reset through dt = inf has gradient 0, which inf * 0 would make NaN
                da += tl.sum(tl.where(ua == 0.0, 0.0, ua * dt[:, None]), 0)
        else:
            # One gradient after the other, each stored before the next: side by side they overflow registers.
            through = 0.0
            if KEY != NONE:
                through = tl.sum(tl.sum(S.to(ACC) * G.to(DOT).to(ACC), 1), 0) * tl.exp2(tl.sum(lat, 0))
            P, gP, ua = scalar_pairs(qt, kt, vt, dot, lat, scale, KEY, C, STRICT, DOT, PREC, ACC)
            gv = scalar_dv(P, dot, kt, G, lat, KEY, C, DOT, PREC, ACC)
            tl.store(dv + t * (H * V) + to_v, only(gv, keep, MASK), mask=of_v)
            gk, more = scalar_dk(gP, qt, kt, vt, G, lat, KEY, C, DOT, PREC, ACC)
            tl.store(dk + t * (H * K) + to_k, only(gk, keep, MASK), mask=of_k)
            ua = through + shifted(ua + more, C, 1)
            gq, more = scalar_dq(gP, qt, kt, dot, S, lat, scale, KEY, C, STRICT, DOT, PREC, ACC)
            tl.store(dq + t * (H * K) + to_k, gq, mask=of_k)
            if KEY != NONE:
                tl.store(dla + t * H + rel * H, tl.where(keep, ua + more, 0.0), mask=live)
            G = scalar_retreat(G, qt, dot, lat, scale, KEY, C, STRICT, DOT, PREC, ACC)
    if KEY == OUTER:
        tl.store(dA + ((iv * tl.num_programs(0) + walk) * H + h) * K + d, da, mask=in_k)
    if FINAL:
        tl.store(ds0 + (n * H + h) * K * V + tile, G, mask=in_s)
