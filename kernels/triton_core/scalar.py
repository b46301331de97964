"""Inside a chunk, where there is at most one decay per step and head.

The C x C matrix of weights is the exponential of masked sums of log-decays, so the chunk is masked attention
plus what the state brings: FLOPs as in Mamba-2 (Dao & Gu 2024, section 6), without its difference of sums.
Shapes: la [C] in base 2; C steps, K keys, V values.
"""

import triton
import triton.language as tl

from .decay import NONE, across, product, times_state


@triton.jit
def shifted(x, C: tl.constexpr, BY: tl.constexpr):
    """[C]: the x of BY steps before, 0 where there is none. (Exclusive sums as differences would cancel.)"""
    r = tl.arange(0, C) - BY
    inside = (r >= 0) & (r < C)
    return tl.where(inside, tl.gather(x, tl.where(inside, r, 0), 0), 0.0)


@triton.jit
def upto(la, C: tl.constexpr, STRICT: tl.constexpr):
    """[C]: the sum of la over steps r <= t (r < t if STRICT)."""
    return tl.cumsum(shifted(la, C, 1) if STRICT else la, 0)


@triton.jit
def after(la, C: tl.constexpr):
    """[C]: the sum of la over steps r > s."""
    return tl.cumsum(shifted(la, C, -1), 0, reverse=True)


@triton.jit
def weights(la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, ACC: tl.constexpr):
    """[C, C]: scale times the decay between a write s and a read t, 0 where t does not see s."""
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    if KEY == NONE:
        return tl.where(t >= s + STRICT, scale, 0.0).to(ACC)
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        # s < r <= t (r < t if STRICT), a sum along each row
        between = tl.cumsum(tl.where(s + STRICT < t, shifted(la, C, -1)[None, :], 0.0), 1, reverse=True)
        return tl.where(t >= s + STRICT, tl.exp2(between) * scale, 0.0)


@triton.jit
def scalar_outputs(
    q, k, v, S, la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Outputs [C, V] of a chunk which starts from S [K, V]."""
    w = tl.zeros([C], ACC) + scale
    if KEY != NONE:
        w *= tl.exp2(upto(la, C, STRICT))
    out = times_state(q, S, DOT, PREC, ACC) * w[:, None]
    P = product(q, tl.trans(k), DOT, PREC, ACC) * weights(la, scale, KEY, C, STRICT, ACC)
    return out + product(P, v, DOT, PREC, ACC)


@triton.jit
def scalar_advance(
    S, k, v, la, KEY: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr
):
    """The state [K, V] after one more chunk."""
    if KEY != NONE:
        S *= tl.exp2(tl.sum(la, 0))
        k = k.to(ACC) * tl.exp2(after(la, C))[:, None]
    return S + product(tl.trans(k), v, DOT, PREC, ACC)


@triton.jit
def scalar_retreat(
    G, q, do, la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient [K, V] of the state before a chunk, from that after it."""
    w = tl.zeros([C], ACC) + scale
    if KEY != NONE:
        G *= tl.exp2(tl.sum(la, 0))
        w *= tl.exp2(upto(la, C, STRICT))
    return G + product(tl.trans(q.to(ACC) * w[:, None]), do, DOT, PREC, ACC)


@triton.jit
def scalar_pairs(
    q, k, v, do, la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of the pairs inside a chunk: their weights P [C, C], the gradients gP of the products of q and k, both
    in DOT, and at s the gradient of the la of step s + 1 [C]."""
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    x = tl.zeros([C], ACC)
    W = weights(la, scale, KEY, C, STRICT, ACC)
    P = (product(q, tl.trans(k), DOT, PREC, ACC) * W).to(DOT)
    gP = product(do, tl.trans(v), DOT, PREC, ACC)
    if KEY != NONE:
        # la_r is in the weight of pairs with s < r <= t (r < t if STRICT): at column r - 1 the sum over the
        # columns up to it, then over the rows t
        x += tl.sum(tl.where(t > s + STRICT, tl.cumsum(P.to(ACC) * gP, 1), 0.0), 0)
    return P, (gP * W).to(DOT), x


@triton.jit
def seen(la, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, SELF: tl.constexpr, ACC: tl.constexpr):
    """[C, C]: the decay between a write and a read. SELF: a step sees its own write."""
    W = weights(la, 1.0, KEY, C, STRICT, ACC)
    if not SELF:
        W = tl.where(tl.arange(0, C)[:, None] > tl.arange(0, C)[None, :], W, 0.0)
    return W


@triton.jit
def scalar_scores(
    q, k, la, K: tl.constexpr, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, SELF: tl.constexpr,
    DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[C, C]: what a step (row) reads with q of what one (column) writes with k."""
    W = seen(la, KEY, C, STRICT, SELF, ACC)
    if tl.bfloat16 == DOT:
        return product(q, tl.trans(k), DOT, PREC, ACC) * W
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        return across(q, k, C, K, DOT, PREC, ACC) * W


@triton.jit
def scalar_gradients(
    q, k, P, g, la, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, SELF: tl.constexpr,
    DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k [C, K] and la [C] from g, that of P, the `scalar_scores`, where they are not 0."""
    u = tl.zeros([C], ACC)
    if KEY != NONE:
        t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
        # as in scalar_pairs
        u += shifted(tl.sum(tl.where(t > s + STRICT, tl.cumsum(P * g, 1), 0.0), 0), C, 1)
    g *= seen(la, KEY, C, STRICT, SELF, ACC)
    return product(g, k, DOT, PREC, ACC), product(tl.trans(g), q, DOT, PREC, ACC), u


@triton.jit
def times_pairs(P, x, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """P [C, C] @ x [C, D], in long chunks as the transpose of xᵀ Pᵀ: which takes fewer registers is the
    compiler's secret, found by compiling."""
    if C >= 64:
        return tl.trans(product(tl.trans(x), tl.trans(P), DOT, PREC, ACC))
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        return product(P, x, DOT, PREC, ACC)


@triton.jit
def scalar_dv(
    P, do, k, G, la, KEY: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """[C, V]. G [K, V]: the gradient of the state after the chunk."""
    g = product(k, G, DOT, PREC, ACC)
    if KEY != NONE:
        g *= tl.exp2(after(la, C))[:, None]
    return g + product(tl.trans(P), do, DOT, PREC, ACC)


@triton.jit
def scalar_dk(
    gP, q, k, v, G, la, KEY: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """[C, K], and at s the gradient of the la of step s + 1 [C], between what the chunk writes and the state
    after it."""
    x = tl.zeros([C], ACC)
    g = times_state(v, tl.trans(G), DOT, PREC, ACC)
    if KEY != NONE:
        g *= tl.exp2(after(la, C))[:, None]
        x += tl.cumsum(tl.sum(k.to(ACC) * g, 1), 0)
    return g + times_pairs(tl.trans(gP), q, C, DOT, PREC, ACC), x


@triton.jit
def scalar_dq(
    gP, q, k, do, S, la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr,
    DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[C, K], and the gradient of la between the state S [K, V] before the chunk and what the chunk reads."""
    x = tl.zeros([C], ACC)
    w = tl.zeros([C], ACC) + scale
    g = times_state(do, tl.trans(S), DOT, PREC, ACC)
    if KEY != NONE:
        w *= tl.exp2(upto(la, C, STRICT))
    g *= w[:, None]
    if KEY != NONE:
        reads = tl.cumsum(tl.sum(q.to(ACC) * g, 1), 0, reverse=True)
        x += shifted(reads, C, -1) if STRICT else reads
    return g + times_pairs(gP, k, C, DOT, PREC, ACC), x
