"""The map inside a chunk whose decays per channel are weak: they go into queries and keys.

    P_{t,s} = (q_t ∘ E_t)ᵀ (k_s / E_s),   E_t the decays since the start of the chunk,

is one product instead of one for each level of the `tree`, where E and 1/E are numbers of the operands'
dtype. E is made of products of decays, block by block, so that what two steps have in common, and its
rounding, cancels in the quotient: the weight of a pair is as exact as in the tree. No sums of logarithms are
subtracted.

Gradients keep to the tree: that of a log-decay would be a difference of two sums over time here.

Layout: [..., C, D], C a power of two.
"""

from __future__ import annotations

import torch

from .decays import WEAK, above, exp
from .memory import into, scaled, times
from .order import Order
from .steps import Array
from .tree import Side, cat, left, right, with_right


def weak(total: Array) -> bool:
    """Whether the log-decays of all chunks, in all, are known to fold. On a GPU to know would be to wait."""
    device = getattr(total, "device", None)
    return (device is None or device.type == "cpu") and above(total, -WEAK)


def since_start(la: Array) -> Array:
    """The decays of all steps up to each."""
    E, h = into("fold", exp, la), 1
    while h < la.shape[-2]:
        E = with_right(E, h, scaled(right(E, h), left(E, h)[..., -1:, :]))
        h *= 2
    return E


def folded(q: Array, k: Array, la: Array, total: Array, order: Order) -> tuple[Array, Side]:
    """The map of queries on keys [..., C, C], of which what is above the diagonal means nothing, with their
    decays in it; and what passes to and from the states. total: the sum of la, [..., 1, D]."""
    E = since_start(la)
    before = E
    if order.key_decayed or not order.query_decayed:
        before = into("fold before", cat, exp(torch.zeros_like(la[..., :1, :])), E[..., :-1, :])
    reads = times("folded queries", q, E if order.query_decayed else before)
    growth = into("growth", torch.reciprocal, before if order.key_decayed else E)
    writes = times("folded keys", k, growth)
    P = into("folded", torch.matmul, reads, writes.mT)
    return P, Side(reads, times("until end", writes, E[..., -1:, :]), exp(total))
