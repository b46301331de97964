"""Inside a chunk, where the decay differs between keys or between values: the tree.

At level h = 1, 2, 4, ... the odd blocks of h steps read from the even block before them. The weight of a pair
is exp2(decay from the boundary to the read) * exp2(decay from the write to the boundary), both at most 1. So
one tile M serves a level: the rows of odd blocks hold q, those of even blocks k, each times its weight;
M Mᵀ has all pairs of the level, and one product with M gives the gradients of both.

The sums of log-decays for a level come from those of the level below by additions alone (`wider`), and their
gradients by the transpose of those additions (`narrower`): only pairs whose weight contains a decay reach its
gradient, which is exactly 0 where the decay is 0.

Shapes: la [C, K], lb [C, V] in base 2; C = 16 or 32 steps (four or five levels), K keys, V values; H steps
per block at a level.
"""

import triton
import triton.language as tl

from .decay import NONE, across, product, times_state


@triton.jit
def odd(level, C: tl.constexpr):
    """[C, 1]: whether a row lies in an odd block of this level: it reads; the others write."""
    return ((tl.arange(0, C)[:, None] >> level) & 1) == 1


@triton.jit
def siblings(level, C: tl.constexpr):
    """[C, C]: row and column lie in the two blocks of one pair."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return ((row >> (level + 1)) == (col >> (level + 1))) & ((row >> level) != (col >> level))


@triton.jit
def wider(start, end, all, H: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """Sums over blocks of 2H from those over blocks of H, [C, D] each: from the start of the block up to the
    row; after the row until its end; of all of it."""
    n: tl.constexpr = C // (2 * H)
    second = (tl.arange(0, 2) == 1)[None, :, None, None]
    x = tl.reshape(all, [n, 2, H, D])
    left = tl.sum(tl.where(second, 0.0, x), 1, keep_dims=True)
    right = tl.sum(tl.where(second, x, 0.0), 1, keep_dims=True)
    start = tl.reshape(start, [n, 2, H, D]) + tl.where(second, left, 0.0)
    end = tl.reshape(end, [n, 2, H, D]) + tl.where(second, 0.0, right)
    both = tl.broadcast_to(left + right, [n, 2, H, D])
    return tl.reshape(start, [C, D]), tl.reshape(end, [C, D]), tl.reshape(both, [C, D])


@triton.jit
def narrower(start, end, all, H: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """The gradient of `all` over blocks of H from the gradients of what `wider` made of it."""
    n: tl.constexpr = C // (2 * H)
    second = (tl.arange(0, 2) == 1)[None, :, None, None]
    reads = tl.sum(tl.reshape(start, [n, 2, H, D]), 2, keep_dims=True)
    writes = tl.sum(tl.reshape(end, [n, 2, H, D]), 2, keep_dims=True)
    left = tl.sum(tl.where(second, reads, 0.0), 1, keep_dims=True)
    right = tl.sum(tl.where(second, 0.0, writes), 1, keep_dims=True)
    return tl.reshape(tl.reshape(all, [n, 2, H, D]) + tl.where(second, right, left), [C, D])


@triton.jit
def first_sums(x, STRICT: tl.constexpr):
    """The sums of `wider` over blocks of one step. A step decays before it reads, unless STRICT."""
    return (tl.zeros_like(x) if STRICT else x), tl.zeros_like(x), x


@triton.jit
def level_weights(start, end, level, C: tl.constexpr):
    """[C, D]: of reads their decay since the boundary, of writes theirs until the boundary."""
    return tl.exp2(tl.where(odd(level, C), start, end))


@triton.jit
def vector_outputs(
    q, k, v, S, la, lb, K: tl.constexpr, V: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Outputs [C, V] of a chunk, and the state after it, from S [K, V] before it. q is scaled already."""
    LEVELS: tl.constexpr = 4 if C == 16 else 5
    r = tl.arange(0, C)
    sa, ea, ta = first_sums(la, STRICT)
    sb, eb, tb = first_sums(lb, STRICT)
    P = tl.zeros([C, C], ACC)
    out = tl.zeros([C, V], ACC)
    if not STRICT:
        P += tl.where(r[:, None] == r[None, :], tl.sum(q * k, 1)[:, None], 0.0)
        if VALUE:
            out += tl.sum(q * k, 1)[:, None] * v
    for level in tl.static_range(0, LEVELS):
        M = tl.where(odd(level, C), q, k)
        if KEY != NONE:
            M *= level_weights(sa, ea, level, C)
            sa, ea, ta = wider(sa, ea, ta, 1 << level, C, K)
        A = product(M, tl.trans(M), DOT, PREC, ACC)
        A = tl.where(siblings(level, C) & (r[:, None] > r[None, :]), A, 0.0)
        if VALUE:
            u = level_weights(sb, eb, level, C)
            out += product(A, v * u, DOT, PREC, ACC) * u
            sb, eb, tb = wider(sb, eb, tb, 1 << level, C, V)
        else:
            P += A
    if not VALUE:
        out += product(P, v, DOT, PREC, ACC)
    if KEY != NONE:
        q *= tl.exp2(sa)
        k *= tl.exp2(ea)
    read = times_state(q, S, DOT, PREC, ACC)
    if VALUE:
        read *= tl.exp2(sb)
        v *= tl.exp2(eb)
    S = decayed(S, la, lb, KEY, VALUE)
    return out + read, S + product(tl.trans(k), v, DOT, PREC, ACC)


@triton.jit
def decayed(S, la, lb, KEY: tl.constexpr, VALUE: tl.constexpr):
    """A state [K, V] after all decays of a chunk."""
    if KEY != NONE:
        S *= tl.exp2(tl.sum(la, 0))[:, None]
    if VALUE:
        S *= tl.exp2(tl.sum(lb, 0))[None, :]
    return S


@triton.jit
def ends(x, C: tl.constexpr, D: tl.constexpr, STRICT: tl.constexpr):
    """[C, D] twice: sums of x from the start of the chunk up to a row, and after the row until the end."""
    LEVELS: tl.constexpr = 4 if C == 16 else 5
    start, end, all = first_sums(x, STRICT)
    for level in tl.static_range(0, LEVELS):
        start, end, all = wider(start, end, all, 1 << level, C, D)
    return start, end


@triton.jit
def vector_advance(
    S, k, v, la, lb, K: tl.constexpr, V: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The state [K, V] after one more chunk."""
    if KEY != NONE:
        _, end = ends(la, C, K, False)
        k *= tl.exp2(end)
    if VALUE:
        _, end = ends(lb, C, V, False)
        v *= tl.exp2(end)
    return decayed(S, la, lb, KEY, VALUE) + product(tl.trans(k), v, DOT, PREC, ACC)


@triton.jit
def to_decays(start, end, all, LEVEL: tl.constexpr, C: tl.constexpr, D: tl.constexpr, STRICT: tl.constexpr):
    """The gradient of log-decays [C, D], from those of their sums over blocks of 2^LEVEL steps."""
    for i in tl.static_range(0, LEVEL):
        all = narrower(start, end, all, 1 << (LEVEL - 1 - i), C, D)
    return all if STRICT else all + start


@triton.jit
def vector_backward(
    q, k, v, do, S, G, la, lb, K: tl.constexpr, V: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k [C, K], v [C, V], la [C, K], lb [C, V], and of the state before the chunk.

    q is scaled already; S [K, V] is the state before the chunk, G the gradient of that after it."""
    LEVELS: tl.constexpr = 4 if C == 16 else 5
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    gq, gk, gv = tl.zeros_like(q), tl.zeros_like(k), tl.zeros_like(v)
    sa, ea, ta = first_sums(la, STRICT)
    sb, eb, tb = first_sums(lb, STRICT)
    ua, ub = tl.zeros_like(la), tl.zeros_like(lb)
    P = tl.zeros([C, C], ACC)
    gP = tl.zeros([C, C], ACC)
    if not VALUE:
        gP = product(do, tl.trans(v), DOT, PREC, ACC)
        gP = tl.where(row > col, gP, tl.trans(gP))
    if not STRICT:
        gd = tl.sum(do * v, 1)[:, None]
        gq += gd * k
        gk += gd * q
        gv += tl.sum(q * k, 1)[:, None] * do
    for level in tl.static_range(0, LEVELS):
        reads = odd(level, C)
        pairs = siblings(level, C)
        x = tl.where(reads, q, k)
        M = x
        if KEY != NONE:
            w = level_weights(sa, ea, level, C)
            M = x * w
            sa, ea, ta = wider(sa, ea, ta, 1 << level, C, K)
        A = tl.where(pairs, product(M, tl.trans(M), DOT, PREC, ACC), 0.0)
        if VALUE:
            y = tl.where(reads, do, v)
            u = level_weights(sb, eb, level, C)
            sb, eb, tb = wider(sb, eb, tb, 1 << level, C, V)
            gA = tl.where(pairs, product(y * u, tl.trans(y * u), DOT, PREC, ACC), 0.0)
            gN = product(A, y * u, DOT, PREC, ACC) * u
            gv += tl.where(reads, 0.0, gN)
            gN *= y
            ub += to_decays(
                tl.where(reads, gN, 0.0), tl.where(reads, 0.0, gN), tl.zeros_like(lb), level, C, V, STRICT
            )
        else:
            P += A
            gA = tl.where(pairs, gP, 0.0)
        gM = tl.trans(product(tl.trans(M), gA, DOT, PREC, ACC))
        if KEY != NONE:
            gM *= w
        gq += tl.where(reads, gM, 0.0)
        gk += tl.where(reads, 0.0, gM)
        if KEY != NONE:
            gM *= x
            ua += to_decays(
                tl.where(reads, gM, 0.0), tl.where(reads, 0.0, gM), tl.zeros_like(la), level, C, K, STRICT
            )
    if not VALUE:
        gv += tl.trans(product(tl.trans(do), tl.where(row > col, P, 0.0), DOT, PREC, ACC))  # P is symmetric

    # through the states at both ends
    qw, kw, vw, dw = q, k, v, do
    if KEY != NONE:
        qw, kw = q * tl.exp2(sa), k * tl.exp2(ea)
    if VALUE:
        vw, dw = v * tl.exp2(eb), do * tl.exp2(sb)
    sq = times_state(dw, tl.trans(S), DOT, PREC, ACC)
    sk = times_state(vw, tl.trans(G), DOT, PREC, ACC)
    sv = product(kw, G, DOT, PREC, ACC)
    both = decayed(S.to(ACC) * G.to(DOT).to(ACC), la, lb, KEY, VALUE)
    if KEY != NONE:
        sq *= tl.exp2(sa)
        sk *= tl.exp2(ea)
        ua += to_decays(q * sq, k * sk, tl.zeros_like(la) + tl.sum(both, 1)[None, :], LEVELS, C, K, STRICT)
    if VALUE:
        sv *= tl.exp2(eb)
        so = times_state(qw, S, DOT, PREC, ACC) * tl.exp2(sb)
        ub += to_decays(do * so, v * sv, tl.zeros_like(lb) + tl.sum(both, 0)[None, :], LEVELS, C, V, STRICT)
    G = decayed(G, la, lb, KEY, VALUE) + product(tl.trans(qw), dw, DOT, PREC, ACC)
    return gq + sq, gk + sk, gv + sv, ua, ub, G


@triton.jit
def vector_retreat(
    G, q, do, la, lb, K: tl.constexpr, V: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The gradient [K, V] of the state before a chunk, from that after it. q is scaled already."""
    if KEY != NONE:
        start, _ = ends(la, C, K, STRICT)
        q *= tl.exp2(start)
    if VALUE:
        start, _ = ends(lb, C, V, STRICT)
        do *= tl.exp2(start)
    return decayed(G, la, lb, KEY, VALUE) + product(tl.trans(q), do, DOT, PREC, ACC)


@triton.jit
def vector_scores(
    q, k, la, K: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, SELF: tl.constexpr, DOT: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[C, C]: what a step with q reads of the one with k. SELF: of its own too."""
    LEVELS: tl.constexpr = 4 if C == 16 else 5
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    start, end, all = first_sums(la, STRICT)
    P = tl.zeros([C, C], ACC)
    if SELF:
        P += tl.where(row == col, tl.sum(q * k, 1)[:, None], 0.0)
    for level in tl.static_range(0, LEVELS):
        M = tl.where(odd(level, C), q, k) * level_weights(start, end, level, C)
        start, end, all = wider(start, end, all, 1 << level, C, K)
        P += tl.where(siblings(level, C) & (row > col), across(M, M, C, K, DOT, PREC, ACC), 0.0)
    return P


@triton.jit
def through_level(
    q, k, w, g, level, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr
):
    """Gradients [C, D] at one level, of q in the rows that read and of k in those that write, from g [C, C],
    that of their scores; and that of the logarithm of w."""
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    M = tl.where(odd(level, C), q, k)
    pairs = tl.where(siblings(level, C), tl.where(row > col, g, tl.trans(g)), 0.0)
    gM = product(pairs, M * w, DOT, PREC, ACC) * w
    return gM, gM * M


@triton.jit
def vector_gradients(
    q, y, x, gqx, gyx, gq, gy, gx, la, K: tl.constexpr, C: tl.constexpr, ONE: tl.constexpr,
    STRICT: tl.constexpr, EARLY: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """gq, gy, gx [C, K] with what comes to q, y (which read) and x (which is written) from gqx, gyx [C, C],
    the gradients of their `vector_scores` where those are not zero; and the gradient of la.

    STRICT is of q, EARLY of y, which does not see its own step's write. ONE: y is x, and gx has all of it."""
    LEVELS: tl.constexpr = 4 if C == 16 else 5
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    start, end, all = first_sums(la, STRICT)
    early, late, sum = first_sums(la, EARLY)
    u = tl.zeros_like(la)
    if not STRICT:
        own = tl.sum(tl.where(row == col, gqx, 0.0), 1)[:, None]
        gq += own * x
        gx += own * q
    for level in tl.static_range(0, LEVELS):
        reads = odd(level, C)
        w = level_weights(start, end, level, C)
        gM, of_q = through_level(q, x, w, gqx, level, C, DOT, PREC, ACC)
        gq += tl.where(reads, gM, 0.0)
        gx += tl.where(reads, 0.0, gM)
        start, end, all = wider(start, end, all, 1 << level, C, K)
        if STRICT != EARLY:
            w = level_weights(early, late, level, C)
            early, late, sum = wider(early, late, sum, 1 << level, C, K)
        gM, of_y = through_level(y, x, w, gyx, level, C, DOT, PREC, ACC)
        if ONE:
            gx += gM
        else:
            gy += tl.where(reads, gM, 0.0)
            gx += tl.where(reads, 0.0, gM)
        both = of_q + of_y
        u += to_decays(
            tl.where(reads, both, 0.0), tl.where(reads, 0.0, both), tl.zeros_like(la), level, C, K, True
        )
        if not STRICT:
            u += tl.where(reads, of_q, 0.0)
        if not EARLY:
            u += tl.where(reads, of_y, 0.0)
    return gq, gy, gx, u
