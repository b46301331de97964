"""The four forms of the recurrence, each written once in plain torch vocabulary.

    S_t = (a_t b_tᵀ) ∘ S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t        a = exp(la), b = exp(lb)

Every weight is exp of a sum of log-decays, and the sum is taken directly: nothing is divided
and no cumulative sums are subtracted, so a log-decay of -inf is a number like any other, all
factors lie in [0, 1] and nothing can overflow or turn into NaN. The functions use only
operations that also make sense on field elements, which is how `mixerzoo.equivalence` proves
that they agree: the code that is proved is the code that runs.

Layout: q, k [..., T, K], v [..., T, V], la [..., T, K or 1] or None, lb [..., T, V] or None,
state [..., K, V]. Each form returns the outputs as a list of consecutive pieces, and the final state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from .memory import once
from .order import Order
from .scan import scan
from .steps import Array, Slice

Result = tuple[list[Array], Array]

# Below this width of keys or values, a product with one row costs more to set up than to multiply out.
TINY = 16


class Source(Protocol):
    """Anything that has a length in time and hands out slices of it."""

    def __len__(self) -> int: ...
    def slice(self, i: int, j: int) -> Slice: ...


# ------------------------------------------------------------------ sums over time


def _cat(xs: list[Array], dim: int = -2) -> Array:
    return torch.cat(xs, dim)


def _rows(n: int, like: Array) -> Array:
    return torch.arange(n, device=getattr(like, "device", None))


def _first_zero(x: Array) -> Array:
    """One zero step (for log-decays: one step without decay)."""
    return torch.zeros_like(x[..., :1, :])


def later(x: Array) -> Array:
    """Of the step before: 0 for the first."""
    return _cat([_first_zero(x), x[..., :-1, :]])


def prefix(x: Array, inclusive: bool) -> Array:
    """Sum over (start..t], or over (start..t) when not inclusive."""
    if x is None:
        return None
    return torch.cumsum(x if inclusive else later(x), -2)


def suffix(x: Array, inclusive: bool) -> Array:
    """Sum over [s..end], or over (s..end] when not inclusive."""
    if x is None:
        return None
    if not inclusive:
        x = _cat([x[..., 1:, :], _first_zero(x)])
    return torch.cumsum(x.flip(-2), -2).flip(-2)


def total(x: Array) -> Array:
    """Sum over all steps, [..., 1, D]."""
    return None if x is None else torch.sum(x, -2, True)


def decayed(x: Array, log_weight: Array) -> Array:
    """x ∘ exp(log_weight)."""
    return x if log_weight is None else x * torch.exp(log_weight)


def read_state(q: Array, S: Array) -> Array:
    """qᵀ S for q [..., 1, K]: a matrix product, but where it is tiny."""
    return q @ S if min(S.shape[-2:]) >= TINY else torch.sum(q.mT * S, -2, True)


def decay_state(S: Array, la: Array, lb: Array) -> Array:
    """(exp(la) exp(lb)ᵀ) ∘ S for la [..., 1, K or 1], lb [..., 1, V]."""
    return decayed(S if la is None else torch.exp(la).mT * S, lb)


def _prefix_weight(x: Array, inclusive: bool) -> Array:
    return torch.exp(prefix(x, inclusive))


def _suffix_weight(x: Array, inclusive: bool) -> Array:
    return torch.exp(suffix(x, inclusive))


def prefix_weight(x: Array, inclusive: bool) -> Array:
    """exp of `prefix`."""
    return None if x is None else once(_prefix_weight, x, inclusive)


def suffix_weight(x: Array, inclusive: bool) -> Array:
    """exp of `suffix`."""
    return None if x is None else once(_suffix_weight, x, inclusive)


def weighted(x: Array, w: Array) -> Array:
    """x ∘ w, None being 1."""
    return x if w is None else x * w


def segment_sums(x: Array, i: int, order: Order) -> Array:
    """Sums of x over the steps that weigh the pair (s, t): queries t = i.., all keys s, [..., T-i, T, D]."""
    n = x.shape[-2]
    if i == 0 and x.shape[-1] == 1:  # what each query adds to the sums of those before it
        added = x if order.query_decayed else later(x)
        first = (0 if order.key_decayed else -1) - (0 if order.query_decayed else 1)
        return torch.cumsum(torch.tril(added.expand(*x.shape[:-1], n), first), -2)[..., None]
    r = _rows(n, x)
    t = r[i:, None]
    up_to_t = (r <= t) if order.query_decayed else (r < t)
    y = x[..., None, :, :]
    y = torch.where(up_to_t[:, :, None], y, torch.zeros_like(y))
    return suffix(y, order.key_decayed)


def causal(P: Array, i: int, order: Order) -> Array:
    """A map [..., n-i, n] of queries t = i.. on all keys, with zeros where they do not see the key."""
    return torch.tril(P, i - 1 if order.strict else i)


def cut(c: Slice, i: int, j: int) -> Slice:
    """Steps i..j of a slice."""
    return Slice(*(None if x is None else x[..., i:j, :] for x in c))


# ------------------------------------------------------------------ recurrent


def walk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """The definition: one step at a time."""
    outs = []
    for t in range(c.v.shape[-2]):
        q, k, v, la, lb, beta, x, y = cut(c, t, t + 1)
        for event in order.events:
            if event == "D":
                erased = None if y is None else x.mT * read_state(y, S)
                S = decay_state(S, la, lb)
                S = S if erased is None else S + erased
            elif event == "A":
                S = S + k.mT * (v if beta is None else beta * (v - read_state(k, S)))
            else:
                outs.append(read_state(q, S))
    return _cat(outs), S


# ------------------------------------------------------------------ parallel


def _segment_weights(x: Array, i: int, order: Order) -> Array:
    return torch.exp(segment_sums(x, i, order))[..., 0]


def segment_weights(x: Array, i: int, order: Order) -> Array:
    """exp of `segment_sums` of decays that all channels share: [..., T-i, T]."""
    return once(_segment_weights, x, i, order)


def weights(c: Slice, i: int, order: Order) -> Array:
    """The attention map of queries i.. on all keys, with the key decays in it: [..., T-i, T]."""
    q, k, la = c.q[..., i:, :], c.k, c.la
    if la is None or la.shape[-1] == 1:
        P = q @ k.mT
        if la is not None:
            P = P * segment_weights(la, i, order)
    else:
        P = torch.sum(q[..., :, None, :] * k[..., None, :, :] * torch.exp(segment_sums(la, i, order)), -1)
    return causal(P, i, order)


def attend(c: Slice, S: Array, order: Order, rows: int | None = None) -> Result:
    """Masked attention, `rows` queries at a time (which bounds the memory of the weights)."""
    n = c.v.shape[-2]
    outs = []
    for i in range(0, n, rows or n):
        j = min(i + (rows or n), n)
        part = cut(c, 0, j)
        P = weights(part, i, order)
        if part.lb is None:
            o = P @ part.v
        else:
            o = torch.sum(
                P[..., None] * torch.exp(segment_sums(part.lb, i, order)) * part.v[..., None, :, :], -2
            )
        outs.append(o)
    entry = read_entry(c, S, order)
    S = carry(c, S, order)
    return [_cat(outs) + entry], S


# ------------------------------------------------------------------ chunk


def read_entry(c: Slice, S: Array, order: Order) -> Array:
    """What the state at the start of a slice contributes to its outputs."""
    q = weighted(c.q, prefix_weight(c.la, order.query_decayed))
    return weighted(q @ S, prefix_weight(c.lb, order.query_decayed))


def carry(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    k = weighted(c.k, suffix_weight(c.la, order.key_decayed))
    v = weighted(c.v, suffix_weight(c.lb, order.key_decayed))
    return decay_state(S, total(c.la), total(c.lb)) + k.mT @ v


def power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def pad_time(x: Array, n: int) -> Array:
    """Append steps that do nothing (zero keys, no decay)."""
    missing = n - x.shape[-2]
    if missing == 0:
        return x
    return _cat([x, _first_zero(x).expand(*x.shape[:-2], missing, x.shape[-1])])


def halves(x: Array, h: int) -> tuple[Array, Array]:
    """Left and right halves of every block of 2h steps: two of [..., N/2h, h, D]."""
    x = x.reshape(*x.shape[:-2], x.shape[-2] // (2 * h), 2 * h, x.shape[-1])
    return x[..., :h, :], x[..., h:, :]


def whole(left: Array, right: Array) -> Array:
    """The inverse of `halves`."""
    x = _cat([left, right])
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def diagonal(c: Slice, order: Order) -> Array:
    """What each step's own value contributes to its output."""
    if order.strict:
        return torch.zeros_like(c.v)
    k, v = c.k, c.v
    if order.query_decayed and order.key_decayed:
        k, v = decayed(k, c.la), decayed(v, c.lb)
    return torch.sum(c.q * k, -1, True) * v


def tree(c: Slice, order: Order) -> Array:
    """Outputs of a slice that starts from zero, for any decay.

    log2(C) levels; at each, the right half of every block attends to the left half, with
    weights exp(prefix of the right) · exp(suffix of the left): all matrix products.
    """
    n = c.v.shape[-2]
    padded = power_of_two(n)
    c = Slice(*(None if x is None else pad_time(x, padded) for x in c))
    o = diagonal(c, order)
    h = 1
    while h < padded:
        (_, q), (k, _), (v, _) = halves(c.q, h), halves(c.k, h), halves(c.v, h)
        la_l, la_r = (None, None) if c.la is None else halves(c.la, h)
        lb_l, lb_r = (None, None) if c.lb is None else halves(c.lb, h)
        q = decayed(q, prefix(la_r, order.query_decayed))
        k = decayed(k, suffix(la_l, order.key_decayed))
        v = decayed(v, suffix(lb_l, order.key_decayed))
        o_l, o_r = halves(o, h)
        o = whole(o_l, o_r + decayed((q @ k.mT) @ v, prefix(lb_r, order.query_decayed)))
        h *= 2
    return o[..., :n, :]


def is_scalar(c: Slice) -> bool:
    return c.lb is None and (c.la is None or c.la.shape[-1] == 1)


def chunk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """One chunk: inside by the weight matrix (scalar decay) or the tree, from before through the state."""
    inside = weights(c, 0, order) @ c.v if is_scalar(c) else tree(c, order)
    return inside + read_entry(c, S, order), carry(c, S, order)


# ------------------------------------------------------------------ drivers

Body = Callable[[Slice, Array, Order], tuple[Array, Array]]


def in_blocks(steps: Source, S: Array, order: Order, size: int, body: Body) -> Result:
    """Blocks of `size` steps one after the other, the state handed from each to the next. A source that has
    `keep` takes the outputs of each at once, while they are in a cache."""
    outs = []
    keep = getattr(steps, "keep", None)
    for i in range(0, len(steps), size):
        o, S = body(steps.slice(i, min(i + size, len(steps))), S, order)
        if keep is None or not keep(i, o):
            outs.append(o)
    return outs, S


def recurrent_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    return in_blocks(steps, S, order, size, walk)


def chunk_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    return in_blocks(steps, S, order, size, chunk)


def parallel_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    """`size` queries at a time against all keys before them."""
    return attend(steps.slice(0, len(steps)), S, order, size)


def scan_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    """A scan of `size` steps at a time (which bounds the memory of the states)."""
    return in_blocks(steps, S, order, size, scan)


FORMS: dict[str, Callable[[Source, Array, Order, int], Result]] = {
    "recurrent": recurrent_form,
    "chunk": chunk_form,
    "parallel": parallel_form,
    "scan": scan_form,
}
