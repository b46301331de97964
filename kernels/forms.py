"""The four forms of the recurrence, each written once in plain torch vocabulary.

    S_t = (a_t b_tᵀ) ∘ S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t        a = exp(la), b = exp(lb)

Every weight is exp of a sum of log-decays, and the sum is taken directly, or in `tree` and `scan` a
product of decays: no cumulative sums are subtracted, and nothing is divided but where decays are weak
(`fold`), so a log-decay of -inf is a number like any other, all other factors lie in [0, 1] and nothing
can overflow or turn into NaN. The functions use only operations that also make sense on field elements,
which is how `mixerzoo.equivalence` proves that they agree: the code that is proved is the code that runs.

Layout: q, k [..., T, K], v [..., T, V], la [..., T, K or 1] or None, lb [..., T, V] or None,
state [..., K, V]. Each form returns the outputs as a list of consecutive pieces, and the final state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import torch

from .decays import exp
from .fold import folded, weak
from .memory import (
    copied,
    increased,
    into,
    lowered,
    matmul,
    memory,
    once,
    plus_product,
    scaled,
    times,
)
from .order import Order
from .scan import scan
from .steps import Array, Slice
from .tree import Level, Side, in_chunks, tree, tree_map, until_end

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
    return x if log_weight is None else x * exp(log_weight)


def tiny(S: Array) -> bool:
    """Whether what is read of S [..., K, V] is summed."""
    return S.shape[-2] < TINY or S.shape[-1] < TINY


def read_state(q: Array, S: Array) -> Array:
    """qᵀ S for q [..., 1, K]: a matrix product, but where it is tiny."""
    return torch.sum(q.mT * S, -2, True) if tiny(S) else q @ S


def decay_state(S: Array, la: Array, lb: Array) -> Array:
    """(exp(la) exp(lb)ᵀ) ∘ S for la [..., 1, K or 1], lb [..., 1, V]."""
    return decayed(S if la is None else exp(la).mT * S, lb)


def prefix_weight(x: Array, inclusive: bool) -> Array:
    """exp of `prefix`."""
    return None if x is None else exp(prefix(x, inclusive))


def suffix_weight(x: Array, inclusive: bool) -> Array:
    """exp of `suffix`."""
    return None if x is None else exp(suffix(x, inclusive))


def weighted(x: Array, w: Array) -> Array:
    """x ∘ w, None being 1."""
    return x if w is None else x * w


def segment_sums(x: Array, i: int, order: Order) -> Array:
    """Sums of x over the steps that weigh the pair (s, t): queries t = i.., all keys s, [..., T-i, T, D]."""
    n = x.shape[-2]
    if i == 0 and x.shape[-1] == 1:  # what each query adds to the sums of those before it
        added = x if order.query_decayed else later(x)
        first = (0 if order.key_decayed else -1) - (0 if order.query_decayed else 1)
        added = into("added", copied, added.expand(*x.shape[:-1], n))
        below = lowered(added, first)
        return into("segment sums", torch.cumsum, below, -2)[..., None]
    r = _rows(n, x)
    t = r[i:, None]
    up_to_t = (r <= t) if order.query_decayed else (r < t)
    y = x[..., None, :, :]
    y = torch.where(up_to_t[:, :, None], y, torch.zeros_like(y))
    return suffix(y, order.key_decayed)


def causal(P: Array, i: int, order: Order) -> Array:
    """A map [..., n-i, n] of queries t = i.. on all keys, with zeros where they do not see the key; in its
    place."""
    return lowered(P, i - 1 if order.strict else i)


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


def weights(c: Slice, i: int, order: Order) -> Array:
    """The attention map of queries i.. on all keys, with the key decays in it: [..., T-i, T]."""
    q, k, la = c.q[..., i:, :], c.k, c.la
    if la is None or la.shape[-1] == 1:
        P = q @ k.mT
        if la is not None:
            P = P * exp(segment_sums(la, i, order))[..., 0]
    else:
        P = torch.sum(q[..., :, None, :] * k[..., None, :, :] * exp(segment_sums(la, i, order)), -1)
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
            o = torch.sum(P[..., None] * exp(segment_sums(part.lb, i, order)) * part.v[..., None, :, :], -2)
        outs.append(o)
    entry = read_entry(c, S, order)
    S = carry(c, S, order)
    return [_cat(outs) + entry], S


# ------------------------------------------------------------------ chunk


def read_entry(c: Slice, S: Array, order: Order) -> Array:
    """What the state at the start of a slice contributes to its outputs."""
    q = weighted(c.q, prefix_weight(c.la, order.query_decayed))
    return weighted(q @ S, prefix_weight(c.lb, order.query_decayed))


def _until_end(name: str, x: Array, lb: Array, order: Order) -> Array:
    if lb is None or lb.shape[-1] == 1:
        return weighted(x, suffix_weight(lb, order.key_decayed))
    return until_end((name, "until end"), x, lb, order)


def carry(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    la, lb = sides(c)
    k, v = _until_end("keys", c.k, la, order), _until_end("values", c.v, lb, order)
    return decay_state(S, total(la), total(lb)) + k.mT @ v


class Map(NamedTuple):
    """The attention map of every chunk where values do not decay, or all alike, [chunks, ..., C, C]:
    `products` of queries and keys times `weights`, or None where decays of keys are in the products; the
    decays of values since the start of a chunk and until its end, [chunks, ..., C, 1], and all of them."""

    map: Array
    products: Array
    weights: Array
    since: Array
    until: Array
    keys: Side
    total: Array
    levels: list[Level]


def sides(c: Slice) -> tuple[Array, Array]:
    """Log-decays over keys and over values. One that all keys share is as well one that all values share, and
    the other way round."""
    la, lb = c.la, c.lb
    if la is not None and la.shape[-1] == 1:
        return None, la if lb is None else lb + la
    if la is not None and lb is not None and lb.shape[-1] == 1:
        return la + lb, None
    return la, lb


def values_differ(lb: Array) -> bool:
    return lb is not None and lb.shape[-1] > 1


def _shared_weights(lb: Array, size: int, order: Order) -> tuple[Array, Array, Array, Array]:
    """Of decays that all channels share: of all pairs, since the start, until the end, and all."""
    lb = in_chunks(lb, size)
    since, until = prefix_weight(lb, order.query_decayed), suffix_weight(lb, order.key_decayed)
    W = causal(into("weights of pairs", exp, segment_sums(lb, 0, order)[..., 0]), 0, order)
    return W, since, until, exp(total(lb))


def chunk_map(q: Array, k: Array, la: Array, lb: Array, order: Order, size: int, keep: bool = False) -> Map:
    """Of chunks q, k [chunks, ..., C, K] with their log-decays [..., T, D], of which one is None at least; to
    `keep` levels for a gradient."""
    if la is not None:
        la = in_chunks(la, size)
        if not keep and weak(every := total(la)):
            P, keys = folded(q, k, la, every, order)
            P = causal(P, 0, order)
            return Map(P, P, None, None, None, keys, None, [])
        P, keys, levels = tree_map("keys", q, k, la, order, keep)
        return Map(P, P, None, None, None, keys, None, levels)
    products, keys = matmul("products", q, k.mT), Side(q, k, None)
    if lb is None:
        P = causal(products, 0, order)
        return Map(P, P, None, None, None, keys, None, [])
    W, since, until, every = once(_shared_weights, lb, size, order)
    return Map(into("map", torch.mul, products, W), products, W, since, until, keys, every, [])


def joins_heads(keys: Side, v: Array) -> bool:
    """Whether heads share queries and keys, so that values [..., H, C, V] of all go through one state
    [..., 1, K, H V], side by side."""
    return keys.reads.shape[-3] == keys.writes.shape[-3] == 1 < v.shape[-3]


def _heads_last(x: Array) -> Array:
    return None if x is None else x.transpose(-3, -2)


def joined(x: Array) -> Array:
    """Values or states of heads [..., H, C, V] as one, [..., 1, C, H V]."""
    x = _heads_last(x)
    return x.reshape(*x.shape[:-3], 1, x.shape[-3], x.shape[-2] * x.shape[-1])


def parted(x: Array, heads: int) -> Array:
    """`joined` the other way round."""
    return _heads_last(x.reshape(*x.shape[:-3], x.shape[-2], heads, x.shape[-1] // heads))


def of_values(name: Hashable, x: Array, w: Array, join: bool) -> Array:
    """x ∘ w, of all heads as one if they join."""
    if not join:
        return times(name, x, w)
    return joined(_heads_last(times(name, _heads_last(x), _heads_last(w))))


def side_of_values(m: Map, reads: Array, v: Array, join: bool) -> Side:
    """Of values, by what reads them: what is written, and all decays."""
    total = m.total
    if join and total is not None:
        total = joined(total.expand(*total.shape[:-1], v.shape[-1]))
    return Side(reads, of_values("written", v, m.until, join), total)


def at(x: Array, i: int) -> Array:
    """Of one chunk; None of None."""
    return None if x is None else x[i]


def next_state(S: Array, keys: Array, values: Array, k: Array, v: Array, room: Array) -> Array:
    """The state after a chunk: all its decays [..., 1, K] and [..., 1, V], and what it writes; in this room,
    or with None in memory of its own."""
    if keys is not None:
        S = torch.mul(S, keys.mT, out=room)
    elif values is not None:
        S, values = torch.mul(S, values, out=room), None
    else:
        S = copied(S, room)
    return plus_product(scaled(S, values), k.mT, v)


def chunks(c: Slice, S: Array, order: Order, size: int) -> Result:
    """Consecutive chunks of `size` steps: inside by their maps or the tree, all of them at once; from before
    through the state, one after the other."""
    la, lb = sides(c)
    q, k, v = (in_chunks(x, size) for x in (c.q, c.k, c.v))
    inside: Array = None
    P: Array = None
    join = False
    if values_differ(lb):
        inside, keys, values = tree(q, k, v, in_chunks(la, size), in_chunks(lb, size), order)
    else:
        m = chunk_map(q, k, la, lb, order, size)
        P, keys, join = m.map, m.keys, joins_heads(m.keys, v)
        values = side_of_values(m, m.since, v, join)
    S = joined(S) if join else S
    outs, n, heads, room = [], c.v.shape[-2], v.shape[-3], memory("state", S, *S.shape)
    for i in range(v.shape[0]):
        o = into(("o", i), torch.matmul, keys.reads[i], S)
        o = scaled(parted(o, heads) if join else o, at(values.reads, i))
        o = plus_product(o, P[i], v[i]) if inside is None else increased(o, inside[i])
        totals = at(keys.total, i), at(values.total, i)
        S = next_state(S, *totals, keys.writes[i], values.writes[i], room)
        outs.append(o[..., : min(size, n - i * size), :])
    return outs, parted(S, heads) if join else S


def chunk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """One chunk."""
    (o,), S = chunks(c, S, order, c.v.shape[-2])
    return o, S


# ------------------------------------------------------------------ drivers

# (slice, state before it, order) -> outputs, or a list of consecutive pieces of them, and the state after it
Body = Callable[[Slice, Array, Order], tuple[Array, Array]]

# The numbers of an operand that a block of several chunks has: enough to be worth the calls, few enough for a
# cache. And the most chunks.
TOGETHER, MOST_TOGETHER = 9 << 15, 4


def in_blocks(steps: Source, S: Array, order: Order, size: int, body: Body) -> Result:
    """Blocks of `size` steps one after the other, the state handed from each to the next. A source that has
    `keep` takes the outputs of each at once, while they are in a cache, and one that has `remember` the state
    before it."""
    outs = []
    keep, remember = getattr(steps, "keep", None), getattr(steps, "remember", None)
    for i in range(0, len(steps), size):
        if remember is not None:
            remember(i, S)
        found, S = body(steps.slice(i, min(i + size, len(steps))), S, order)
        if isinstance(found, list):
            starts = range(i, len(steps), found[0].shape[-2])
        else:
            starts, found = range(i, i + 1), [found]
        outs += [o for start, o in zip(starts, found, strict=False) if keep is None or not keep(start, o)]
    return outs, S


def together(width: int, size: int, numbers: int = TOGETHER, most: int = MOST_TOGETHER) -> int:
    """The steps of as many chunks of this size as are taken at a time, of operands that have so many numbers
    in a step."""
    return size * max(1, min(most, numbers // max(1, width * size)))


def width_of(steps: Source) -> int:
    return getattr(steps, "width", 1)


def recurrent_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    return in_blocks(steps, S, order, size, walk)


def chunk_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    return in_blocks(steps, S, order, together(width_of(steps), size), functools.partial(chunks, size=size))


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
