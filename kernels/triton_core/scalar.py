"""Inside a chunk, where there is at most one decay per step and head.

The C x C matrix of weights is the exponential of masked sums of log-decays, so the chunk is masked attention
plus what the state brings: FLOPs as in Mamba-2 (Dao & Gu 2024, section 6), without its difference of sums.
Shapes: la [C] in base 2; C steps, K keys, V values.
"""

import triton
import triton.language as tl

from .decay import NONE, product


@triton.jit
def upto(la, C: tl.constexpr, STRICT: tl.constexpr):
    """[C]: the sum of la over steps r <= t (r < t if STRICT)."""
    r = tl.arange(0, C)
    return tl.sum(tl.where(r[None, :] + STRICT <= r[:, None], la[None, :], 0.0), 1)


@triton.jit
def after(la, C: tl.constexpr):
    """[C]: the sum of la over steps r > s."""
    r = tl.arange(0, C)
    return tl.sum(tl.where(r[None, :] > r[:, None], la[None, :], 0.0), 1)


@triton.jit
def shifted(x, C: tl.constexpr, BY: tl.constexpr):
    """[C]: the x of BY steps before, 0 where there is none."""
    r = tl.arange(0, C)
    return tl.sum(tl.where(r[None, :] + BY == r[:, None], x[None, :], 0.0), 1)


@triton.jit
def weights(la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, ACC: tl.constexpr):
    """[C, C]: scale times the decay between a write s and a read t, 0 where t does not see s."""
    r = tl.arange(0, C)
    sees = r[:, None] >= r[None, :] + STRICT
    if KEY == NONE:
        return tl.where(sees, scale, 0.0).to(ACC)
    if STRICT:  # a pair decays over s < r < t: row t takes the decay of t - 1
        la = shifted(la, C, 1)
    between = tl.cumsum(tl.where(r[:, None] > r[None, :] + STRICT, la[:, None], 0.0), 0)
    return tl.where(sees, tl.exp2(between) * scale, 0.0)


@triton.jit
def scalar_outputs(
    q, k, v, S, la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Outputs [C, V] of a chunk which starts from S [K, V]."""
    w = tl.zeros([C], ACC) + scale
    if KEY != NONE:
        w *= tl.exp2(upto(la, C, STRICT))
    out = product(q, S, DOT, PREC, ACC) * w[:, None]
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
def scalar_through(
    q, k, v, do, S, G, la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr,
    DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k [C, K], v [C, V] and la [C] through the states at both ends: S [K, V] before the
    chunk, G [K, V] the gradient of the state after it."""
    r = tl.arange(0, C)
    x = tl.zeros([C], ACC)
    w = tl.zeros([C], ACC) + scale
    if KEY != NONE:
        w *= tl.exp2(upto(la, C, STRICT))
        x += tl.sum(tl.sum(S.to(ACC) * G.to(DOT).to(ACC), 1), 0) * tl.exp2(tl.sum(la, 0))
    gq = product(do, tl.trans(S), DOT, PREC, ACC) * w[:, None]
    gk = product(v, tl.trans(G), DOT, PREC, ACC)
    gv = product(k, G, DOT, PREC, ACC)
    if KEY != NONE:
        w = tl.exp2(after(la, C))
        gk *= w[:, None]
        gv *= w[:, None]
        # a decay lies between what later steps read and the state, and between it and what earlier ones wrote
        reads = tl.sum(q.to(ACC) * gq, 1)
        writes = tl.sum(k.to(ACC) * gk, 1)
        x += tl.sum(tl.where(r[None, :] >= r[:, None] + STRICT, reads[None, :], 0.0), 1)
        x += tl.sum(tl.where(r[None, :] < r[:, None], writes[None, :], 0.0), 1)
    return gq, gk, gv, x


@triton.jit
def scalar_within(
    q, k, v, do, la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, DOT: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k, v and la through the pairs inside the chunk."""
    r = tl.arange(0, C)
    x = tl.zeros([C], ACC)
    W = weights(la, scale, KEY, C, STRICT, ACC)
    P = product(q, tl.trans(k), DOT, PREC, ACC)
    gP = product(do, tl.trans(v), DOT, PREC, ACC) * W
    if KEY != NONE:
        # pairs with s < r <= t (r < t if STRICT): sum over t by a scan, over s by a masked sum
        U = tl.cumsum(P * gP, 0, reverse=True)
        x += tl.sum(tl.where(r[None, :] + STRICT < r[:, None], U, 0.0), 1)
        if STRICT:  # what stands at t is of the step before
            x = shifted(x, C, -1)
    P *= W
    gv = product(tl.trans(P), do, DOT, PREC, ACC)
    return product(gP, k, DOT, PREC, ACC), product(tl.trans(gP), q, DOT, PREC, ACC), gv, x
