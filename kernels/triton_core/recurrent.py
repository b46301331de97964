"""The elementwise regime: K or V so small that matrix units cannot help (HGRN: K = 1; Mamba-1: V = 1).

Channels (heads * values) lie across lanes. Keys are walked in groups of BK: one at a time where channels
alone fill the lanes. Time is walked in blocks of C steps, whose rows are a tuple of C tensors: all are loaded
at once, each into registers of its own, then taken step by step, without a scan and without a subtraction.
A row is a tile [BK, BH, BV] of keys, heads, values; the state of a program is [GROUPS, BK, BH, BV].

    recurrent_forward    outputs and, if asked, the state at the start of every block (for the backward)
    recurrent_backward   takes the blocks from the end; in each it walks forward from the stored state, for
                         what every decay leaves of it, and back, for the gradient of every state

The gradient of a log-decay is the product (decay * state before) * (gradient of the state): exactly 0 at
decay 0. A masked step loads k, v and decays as zeros, so it leaves the state as it is, whatever they hold.
"""

# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005, SIM109 (Triton neither unpacks tuples nor knows `in`)

import triton
import triton.language as tl

from .decay import NONE, OUTER, SCALAR, VECTOR, base2, slot_of, span


@triton.jit
def lanes(H, V: tl.constexpr, BH: tl.constexpr, BV: tl.constexpr, INDEX: tl.constexpr):
    """The sequence, block of heads and block of values of this program; its heads [1, BH, 1] and values
    [1, 1, BV]."""
    blocks, heads = tl.cdiv(V, BV), tl.cdiv(H, BH)
    pid = tl.program_id(0).to(tl.int64)
    iv, ih = pid % blocks, pid // blocks % heads
    h = (ih * BH).to(INDEX) + tl.arange(0, BH)[None, :, None]
    e = (iv * BV).to(INDEX) + tl.arange(0, BV)[None, None, :]
    return pid // blocks // heads, ih, iv, h, e


@triton.jit
def heads_of(h, ih, in_h, group, SHARE: tl.constexpr, BH: tl.constexpr, INDEX: tl.constexpr):
    """The heads of q or k which the heads h read, and which of them are there; one if they SHARE it."""
    if SHARE:
        return (ih * BH // group).to(INDEX), ih >= 0
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        return h // group, in_h


@triton.jit
def keys_of(g, BK: tl.constexpr, INDEX: tl.constexpr):
    """The keys [BK, 1, 1] of group g."""
    return (g * BK + tl.arange(0, BK)[:, None, None]).to(INDEX)


@triton.jit
def pick(x, g):
    """Group g of x [GROUPS, ...]."""
    here = tl.arange(0, x.shape[0])[:, None, None, None] == g
    return tl.sum(tl.where(here, x, 0.0), 0)


@triton.jit
def put(x, g, y):
    """x [GROUPS, ...] with y for group g."""
    here = tl.arange(0, x.shape[0])[:, None, None, None] == g
    return tl.where(here, y[None, :, :, :], x)


@triton.jit
def load_groups(
    p, start, h, e, inside, sh, sk, sv, K: tl.constexpr, GROUPS: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr, BV: tl.constexpr, THERE: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[GROUPS, BK, BH, BV] from p + start, zeros where nothing is there. Group by group, like every other
    access: a tile of all keys would be spread over lanes by keys. So would one whose keys are known to be
    contiguous: hence the strides that kernels do not specialize, and `cols`, which is V."""
    x = tl.zeros([GROUPS, BK, BH, BV], ACC)
    if THERE:
        p += start + (h * sh + keys_of(0, BK, INDEX) * sk + e * sv)
        for g in range(GROUPS):
            y = tl.load(p, mask=inside & (keys_of(g, BK, INDEX) < K), other=0.0)
            x = put(x, g, y.to(ACC))
            p += BK * sk
    return x


@triton.jit
def store_groups(
    p, h, e, inside, x, sh, sk, K: tl.constexpr, SUM: tl.constexpr, GROUPS: tl.constexpr, BK: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """The inverse, where values are contiguous; SUM: sums over them."""
    for g in range(GROUPS):
        d = keys_of(g, BK, INDEX)
        y = pick(x, g)
        if SUM:
            y = tl.sum(y, 2)[:, :, None]
        tl.store(p + (h * sh + d * sk + e), y, mask=inside & (d < K))


@triton.jit
def first_token(start, length, first, REVERSE: tl.constexpr):
    """The token of the step `start` (int64). Steps after it are at +1, +2, ..., or -1, -2, ... if REVERSE."""
    if REVERSE:
        return first + (length - 1 - start)
    return first + start


@triton.jit
def steps_there(mask, t, smt, left, MASK: tl.constexpr, STEP: tl.constexpr, C: tl.constexpr):
    """For each of C steps, of which `left` exist: whether it does; and whether it also is not masked."""
    live, own = (), ()
    for i in tl.static_range(C):
        there = i < left
        live = live + (there,)
        if MASK:
            own = own + (tl.load(mask + (t + i * STEP) * smt, mask=there, other=0) != 0,)
        else:
            own = own + (there,)
    return live, own


@triton.jit
def rows(
    p, t, st, at, live, inside, STEP: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr,
    FIRST: tl.constexpr = 0,
):  # fmt: skip
    """C rows from base pointer p, of tokens t, t + STEP, ..., which are the steps FIRST, ... of `live`;
    offsets `at` in a row, 0 where nothing is."""
    p += t * st + at
    found = ()
    for i in tl.static_range(C):
        found = found + (tl.load(p, mask=inside & live[FIRST + i], other=0.0).to(ACC),)
        p += STEP * st  # step by step: i * st would be kept in registers for every i
    return found


@triton.jit
def decay_rows(
    p, t, st, at, own, inside, FIXED: tl.constexpr, STEP: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr
):
    """As `rows`; FIXED: the same for all steps, so loaded once."""
    if FIXED:
        x = tl.load(p + at, mask=inside, other=0.0).to(ACC)
        found = ()
        for i in tl.static_range(C):
            found = found + (tl.where(own[i], x, 0.0),)
        return found
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        return rows(p, t, st, at, own, inside, STEP, C, ACC)


@triton.jit
def step_decays(
    la, lb, t, h, e, own, in_h, in_s, sat, sah, sbt, sbh, sbd, STEP: tl.constexpr, C: tl.constexpr,
    KEY: tl.constexpr, VALUE: tl.constexpr, FIXED_A: tl.constexpr, FIXED_B: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """For each step: dt (OUTER), and the factor in [0, 1] of its decay which is the same for all keys."""
    w = ()
    for _ in tl.static_range(C):
        w = w + (tl.full([1, 1, 1], 1.0, ACC),)
    x = w
    if KEY == SCALAR or KEY == OUTER:
        x = decay_rows(la, t, sat, h * sah, own, in_h, FIXED_A, STEP, C, ACC)
    if KEY == SCALAR:
        w = times_decays(w, x, C)
    if VALUE:
        y = decay_rows(lb, t, sbt, h * sbh + e * sbd, own, in_s, FIXED_B, STEP, C, ACC)
        w = times_decays(w, y, C)
    return x, w


@triton.jit
def times_decays(w, x, C: tl.constexpr):
    found = ()
    for i in tl.static_range(C):
        found = found + (w[i] * tl.exp2(base2(x[i])),)
    return found


@triton.jit
def key_decay(w, x, a, KEY: tl.constexpr):
    """A step's decay for a group of keys: w for all of them, x its log-decays (VECTOR) or dt (OUTER)."""
    if KEY == VECTOR:
        w = w * tl.exp2(base2(x))
    if KEY == OUTER:
        # a == 0 also covers the padding: inf * 0 (a reset through dt) must not become NaN there
        w = w * tl.exp2(base2(tl.where(a == 0.0, 0.0, x * a)))
    return w


@triton.jit
def zero_rows(C: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr, BV: tl.constexpr, ACC: tl.constexpr):
    found = ()
    for _ in tl.static_range(C):
        found = found + (tl.zeros([BK, BH, BV], ACC),)
    return found


@triton.jit
def eight(x, FIRST: tl.constexpr):
    """Eight rows, from FIRST, as one tile [8, BK, BH, BV]: so that lanes wait for each other once per sum,
    not eight times. Rows stay in the registers where they are: the comparisons are known at compile time."""
    r = tl.arange(0, 8)[:, None, None, None]
    tile = tl.zeros([8, x[0].shape[0], x[0].shape[1], x[0].shape[2]], x[0].dtype)
    for i in tl.static_range(8):
        tile = tl.where(r == i, x[FIRST + i][None, :, :, :], tile)
    return tile


@triton.jit
def store_eight(p, st, at, inside, left, x, STEP: tl.constexpr):
    """x [8, ...] to the tokens p, p + STEP * st, ..., of which `left` exist; offsets `at` [1, ...] in one."""
    r = tl.arange(0, 8)[:, None, None]
    tl.store(p + ((r * STEP).to(at.dtype) * st + at), x, mask=inside & (r < left))


@triton.jit
def store_channels(p, t, H, V: tl.constexpr, h, e, inside, left, x, scale, STEP: tl.constexpr,
                   C: tl.constexpr):  # fmt: skip
    """Sums over keys of C rows to p [tokens, H, V]."""
    for b in tl.static_range(0, C, 8):
        y = tl.sum(eight(x, b), 1) * scale
        store_eight(p + (t + b * STEP) * H * V, H * V, h * V + e, inside, left - b, y, STEP)


@triton.jit
def store_keys(p, t, heads, ih, h, d, inside, left, x, K: tl.constexpr, SHARE: tl.constexpr,
               STEP: tl.constexpr):  # fmt: skip
    """Sums over values of eight rows, and over heads if they SHARE an input, to p [tokens, heads, K]."""
    x = tl.sum(eight(x, 0), 3)
    p += t * heads * K
    if SHARE:
        at = tl.trans(d, 2, 0, 1)
        store_eight(p + ih * K, heads * K, at, at < K, left, tl.sum(x, 2)[:, :, None], STEP)
    else:
        at, inside = tl.trans(h * K + d, 2, 0, 1), tl.trans(inside & (d < K), 2, 0, 1)
        store_eight(p, heads * K, at, inside, left, x, STEP)


@triton.jit
def walk(
    S, a, q, k, v, la, lb, mask, states, slot, start, length, first, h, e, hq, hk, in_h, in_q, in_k, in_s, H,
    sqt, sqh, sqd, skt, skh, skd, svt, svh, svd, sat, sah, sad, sbt, sbh, sbd, smt,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    SUB: tl.constexpr, GROUPS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, FIXED_A: tl.constexpr,
    FIXED_B: tl.constexpr, MASK: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr,
    STORE: tl.constexpr, OUTPUT: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The block of C steps from `start`, beginning with the state S: the state after it, the block's rows of
    outputs if OUTPUT. STORE: S to states [slots, K, H, V], if its turn comes."""
    STEP: tl.constexpr = -1 if REVERSE else 1
    t = first_token(start, length, first, REVERSE)
    live, own = steps_there(mask, t, smt, tl.minimum(length - start, C).to(tl.int32), MASK, STEP, C)
    vs = rows(v, t, svt, h * svh + e * svd, own, in_s, STEP, C, ACC)
    xs, ws = step_decays(la, lb, t, h, e, own, in_h, in_s, sat, sah, sbt, sbh, sbd, STEP, C, KEY, VALUE,
                         FIXED_A, FIXED_B, ACC)  # fmt: skip
    outs = zero_rows(C, BK, BH, BV, ACC)
    for g in range(GROUPS):
        d = keys_of(g, BK, INDEX)
        ks = rows(k, t, skt, hk * skh + d * skd, own, in_k & (d < K), STEP, C, ACC)
        qs = rows(q, t, sqt, hq * sqh + d * sqd, live, in_q & (d < K), STEP, C, ACC) if OUTPUT else ks
        ls = rows(la, t, sat, h * sah + d * sad, own, in_h & (d < K), STEP, C, ACC) if KEY == VECTOR else xs
        s = pick(S, g)
        if STORE:
            turn = start % (C * SUB) == 0
            at = states + (slot + start // (C * SUB)) * K * H * V + ((d * H + h) * V + e)
            tl.store(at, s, mask=in_s & (d < K) & turn)
        a_g = pick(a, g)
        found = ()
        for i in tl.static_range(C):
            before = s
            s = key_decay(ws[i], ls[i], a_g, KEY) * s + ks[i] * vs[i]
            found = found + (outs[i] + qs[i] * (before if STRICT else s),)
        if OUTPUT:
            outs = found
        S = put(S, g, s)
    return S, outs


@triton.jit(do_not_specialize=["T", "cols", "sik", "sAd", "lab", "smb", "sqb", "skb"])
def recurrent_forward(
    q, k, v, la, A, lb, mask, initial, states, o, final, cu_seqlens, scale: tl.float64,
    T, H, cols, group_q, group_k,
    sqb, sqt, sqh, sqd, skb, skt, skh, skd, svb, svt, svh, svd, sab, lab, sat, sah, sad, sAh, sAd, sbb, sbt,
    sbh,
    sbd, smb, smt, sib, sih, sik, siv,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    SUB: tl.constexpr, GROUPS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, FIXED_A: tl.constexpr,
    FIXED_B: tl.constexpr, MASK: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr,
    STORE: tl.constexpr, OUTPUT: tl.constexpr, INITIAL: tl.constexpr, SHARE_Q: tl.constexpr,
    SHARE_K: tl.constexpr, VARLEN: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """OUTPUT: o [B, T, H, V] and final [N, H, K, V]. STORE: states [slots, K, H, V] before every block of C.

    SHARE_Q, SHARE_K: all heads of a program read one head of q, k. Grid: N * blocks of H * blocks of V."""
    STEP: tl.constexpr = -1 if REVERSE else 1
    scale = tl.full([], scale, ACC)
    n, ih, _, h, e = lanes(H, V, BH, BV, INDEX)
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    in_h, in_v = h < H, e < V
    hq, in_q = heads_of(h, ih, in_h, group_q, SHARE_Q, BH, INDEX)
    hk, in_k = heads_of(h, ih, in_h, group_k, SHARE_K, BH, INDEX)
    in_s = in_h & in_v
    q += row * sqb
    k += row * skb
    v += row * svb
    if KEY != NONE:
        la += row * (sab + lab)
    if VALUE:
        lb += row * sbb
    if MASK:
        mask += row * smb
    a = load_groups(A, 0, h, h * 0, in_h, sAh, sAd, 0, K, GROUPS, BK, BH, 1, KEY == OUTER, INDEX, ACC)
    S = load_groups(initial, n * sib, h, e, in_s, sih, sik, siv, K, GROUPS, BK, BH, BV, INITIAL, INDEX,
                    ACC)  # fmt: skip
    slot = slot_of(n, first, T, C * SUB, VARLEN)
    for c in range(((length + C - 1) // C).to(tl.int32)):
        S, outs = walk(
            S, a, q, k, v, la, lb, mask, states, slot, c * C, length, first, h, e, hq, hk, in_h, in_q,
            in_k, in_s, H, sqt, sqh, sqd, skt, skh, skd, svt, svh, svd, sat, sah, sad, sbt, sbh, sbd, smt, K,
            V, BK, BH, BV, C, SUB, GROUPS, KEY, VALUE, FIXED_A, FIXED_B, MASK, STRICT, REVERSE, STORE, OUTPUT,
            ACC, INDEX,
        )  # fmt: skip
        if OUTPUT:
            token = row * T + first_token(c * C, length, first, REVERSE)
            store_channels(o, token, H, V, h, e, in_s, length - c * C, outs, scale, STEP, C)
    if OUTPUT:
        store_groups(final + n * H * K * V, h, e, in_s, S, K * V, cols, K, False, GROUPS, BK, INDEX)


@triton.jit(do_not_specialize=["T", "tokens", "cols", "sik", "sAd", "lab", "smb", "sqb", "skb"])
def recurrent_backward(
    q, k, v, la, A, lb, mask, do, dstate, states, dq, dk, dv, dla, dA, dlb, ds0, cu_seqlens,
    scale: tl.float64, T, H, tokens, cols, group_q, group_k,
    sqb, sqt, sqh, sqd, skb, skt, skh, skd, svb, svt, svh, svd, sab, lab, sat, sah, sad, sAh, sAd, sbb, sbt,
    sbh,
    sbd, smb, smt, sob, sot, soh, sod, sib, sih, sik, siv,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    SUB: tl.constexpr, GROUPS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, FIXED_A: tl.constexpr,
    FIXED_B: tl.constexpr, MASK: tl.constexpr, STRICT: tl.constexpr, REVERSE: tl.constexpr,
    INITIAL: tl.constexpr, FINAL: tl.constexpr, SHARE_Q: tl.constexpr, SHARE_K: tl.constexpr,
    VARLEN: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Gradients. dq, dk [blocks of V, tokens, H or (SHARE) blocks of H, K] are sums over one program's values
    and (SHARE) heads, added by the caller; dla [blocks of V, tokens, H(, K)], or (FIXED_A)
    [blocks of V, N, H], and dA [blocks of V, N, K, H] likewise; dv, dlb [tokens, H, V], or (FIXED_B)
    dlb [N, H, V]; ds0 [N, H, K, V] if FINAL. INITIAL: dstate [N, H, K, V] is given."""
    STEP: tl.constexpr = -1 if REVERSE else 1
    SUMS: tl.constexpr = VALUE or KEY == SCALAR  # gradients of decays which are the same for all keys
    scale = tl.full([], scale, ACC)
    n, ih, iv, h, e = lanes(H, V, BH, BV, INDEX)
    row, first, length = span(cu_seqlens, n, T, VARLEN)
    in_h, in_v = h < H, e < V
    heads = tl.cdiv(H, BH)
    nq, nk = (heads if SHARE_Q else H), (heads if SHARE_K else H)
    hq, in_q = heads_of(h, ih, in_h, group_q, SHARE_Q, BH, INDEX)
    hk, in_k = heads_of(h, ih, in_h, group_k, SHARE_K, BH, INDEX)
    in_s = in_h & in_v
    q += row * sqb
    k += row * skb
    v += row * svb
    if KEY != NONE:
        la += row * (sab + lab)
    if VALUE:
        lb += row * sbb
    if MASK:
        mask += row * smb
    a = load_groups(A, 0, h, h * 0, in_h, sAh, sAd, 0, K, GROUPS, BK, BH, 1, KEY == OUTER, INDEX, ACC)
    F = load_groups(dstate, n * sib, h, e, in_s, sih, sik, siv, K, GROUPS, BK, BH, BV, INITIAL, INDEX,
                    ACC)  # fmt: skip
    da = tl.zeros([GROUPS, BK, BH, BV], ACC)
    constant = tl.zeros([BK, BH, BV], ACC)
    slot = slot_of(n, first, T, C * SUB, VARLEN)
    chunks = ((length + C - 1) // C).to(tl.int32)
    for j in range(chunks):
        c = chunks - 1 - j
        t = first_token(c * C, length, first, REVERSE)
        token = row * T + t
        if SUB > 1:
            stored = states + (slot + c // SUB) * K * H * V
            S = load_groups(stored, 0, h, e, in_s, V, H * V, 1, K, GROUPS, BK, BH, BV, True, INDEX, ACC)
            for m in range(c // SUB * SUB, c):
                S, _ = walk(
                    S, a, q, k, v, la, lb, mask, states, slot, m * C, length, first, h, e, hq, hk, in_h, in_q,
                    in_k, in_s, H, sqt, sqh, sqd, skt, skh, skd, svt, svh, svd, sat, sah, sad, sbt, sbh, sbd,
                    smt, K, V, BK, BH, BV, C, SUB, GROUPS, KEY, VALUE, FIXED_A, FIXED_B, MASK, STRICT,
                    REVERSE, False, False, ACC, INDEX,
                )  # fmt: skip
        left = tl.minimum(length - c * C, C).to(tl.int32)
        live, own = steps_there(mask, t, smt, left, MASK, STEP, C)
        vs = rows(v, t, svt, h * svh + e * svd, own, in_s, STEP, C, ACC)
        dos = rows(do + row * sob, t, sot, h * soh + e * sod, live, in_s, STEP, C, ACC)
        xs, ws = step_decays(la, lb, t, h, e, own, in_h, in_s, sat, sah, sbt, sbh, sbd, STEP, C, KEY, VALUE,
                             FIXED_A, FIXED_B, ACC)  # fmt: skip
        dvs = zero_rows(C, BK, BH, BV, ACC)
        dxs = zero_rows(C, BK, BH, BV, ACC)  # OUTER: of dt
        dws = zero_rows(C, BK, BH, BV, ACC)  # SUMS
        for g in range(GROUPS):
            d = keys_of(g, BK, INDEX)
            ks = rows(k, t, skt, hk * skh + d * skd, own, in_k & (d < K), STEP, C, ACC)
            ls = (
                rows(la, t, sat, h * sah + d * sad, own, in_h & (d < K), STEP, C, ACC)
                if KEY == VECTOR
                else xs
            )
            a_g = pick(a, g)
            if SUB > 1:
                s = pick(S, g)
            else:
                at = (d * H + h) * V + e
                s = tl.load(states + (slot + c) * K * H * V + at, mask=in_s & (d < K), other=0.0)
            decayed = ()
            for b in tl.static_range(0, C, 8):
                reads = ()
                for i in tl.static_range(b, b + 8):
                    x = key_decay(ws[i], ls[i], a_g, KEY) * s
                    decayed = decayed + (x,)
                    x += ks[i] * vs[i]
                    reads = reads + ((s if STRICT else x) * (dos[i] * scale),)
                    s = x
                store_keys(dq + iv * tokens * nq * K, token + b * STEP, nq, ih, h, d, in_h, left - b, reads,
                           K, SHARE_Q, STEP)  # fmt: skip
            f = pick(F, g)  # the gradient of the state after a step, as far as later steps give it
            sum_a = tl.zeros([BK, BH, BV], ACC)
            dvs_new, dxs_new, dws_new = (), (), ()
            for b in tl.static_range(C - 8, -1, -8):
                q8 = rows(q, t + b * STEP, sqt, hq * sqh + d * sqd, live, in_q & (d < K), STEP, 8, ACC, b)
                writes, us = (), ()
                for i in tl.static_range(b + 7, b - 1, -1):
                    y = q8[i - b] * (dos[i] * scale)
                    G = f if STRICT else f + y
                    writes = (G * vs[i],) + writes
                    dvs_new = (dvs[i] + G * ks[i],) + dvs_new
                    u = tl.where(own[i], G * decayed[i], 0.0)
                    f = key_decay(ws[i], ls[i], a_g, KEY) * G
                    if STRICT:
                        f += y
                    if SUMS:
                        dws_new = (dws[i] + u,) + dws_new
                    if KEY == VECTOR:
                        us = (u,) + us
                    if KEY == OUTER:
                        # A = -inf (here -1e30) decays no faster where dt is 0 than where it is not
                        dxs_new = (dxs[i] + tl.where(a_g > -1e29, u * a_g, 0.0),) + dxs_new
                        # a reset through dt = inf has gradient 0, which inf * 0 would make NaN
                        sum_a += tl.where(u == 0.0, 0.0, u * xs[i])
                store_keys(dk + iv * tokens * nk * K, token + b * STEP, nk, ih, h, d, in_h, left - b, writes,
                           K, SHARE_K, STEP)  # fmt: skip
                if KEY == VECTOR:
                    store_keys(dla + iv * tokens * H * K, token + b * STEP, H, ih, h, d, in_h, left - b, us,
                               K, False, STEP)  # fmt: skip
            F = put(F, g, f)
            dvs = dvs_new
            if SUMS:
                dws = dws_new
            if KEY == OUTER:
                dxs = dxs_new
                da = put(da, g, pick(da, g) + sum_a)
        store_channels(dv, token, H, V, h, e, in_s, left, dvs, 1.0, STEP, C)
        if SUMS:
            for i in tl.static_range(C):
                constant += dws[i]
        if VALUE and not FIXED_B:
            store_channels(dlb, token, H, V, h, e, in_s, left, dws, 1.0, STEP, C)
        if KEY == OUTER or (KEY == SCALAR and not FIXED_A):
            for b in tl.static_range(0, C, 8):
                y = tl.sum(tl.sum(eight(dxs if KEY == OUTER else dws, b), 1), 2)[:, :, None]
                at = dla + (iv * tokens + token + b * STEP) * H
                store_eight(at, H, h, in_h, left - b, y, STEP)
    walks = tl.num_programs(0).to(tl.int64) // tl.cdiv(V, BV) // heads
    if KEY == SCALAR and FIXED_A:
        total = tl.sum(tl.sum(constant, 0), 1)[None, :, None]
        tl.store(dla + (iv * walks + n) * H + h, total, mask=in_h)
    if FIXED_B:
        tl.store(dlb + n * H * V + (h * V + e), tl.sum(constant, 0)[None, :, :], mask=in_s)
    if KEY == OUTER:
        store_groups(dA + (iv * walks + n) * K * H, h, h * 0, in_h, da, 1, H, K, True, GROUPS, BK, INDEX)
    if FINAL:
        store_groups(ds0 + n * H * K * V, h, e, in_s, F, K * V, cols, K, False, GROUPS, BK, INDEX)
