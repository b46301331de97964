"""The tree inside a chunk: maps whose decays differ between channels, by matrix products, for any decay.

A chunk of C steps has log2 C levels, h = 1, 2, 4, ..; at each the right half of every block of 2h steps reads
what the left half wrote. The weight of such a pair is a product of two factors, the decays since the start of
the right half and those until the end of the left one, so that it goes into queries and keys:

    P_{t,s} = (q_t ∘ since_t)ᵀ (k_s ∘ until_s)

Both are products of decays, numbers in [0, 1], made for blocks of 2h from those of h: nothing is divided and
no sums of logarithms are subtracted, so that a decay of 0 is one like any other. Gradients go down the levels
as maps go up: what a level adds to a block's queries and keys is at last scaled by the block's own decays,
and the gradient of a log-decay collects, block by block, the pairs that it weighs.

Layout: [..., C, D], C a power of two.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch

from .decays import exp
from .memory import copied, increased, into, kept, reuses, scaled
from .order import Order
from .steps import Array

# ------------------------------------------------------------------ blocks of steps


def _cat(*xs: Array, dim: int = -2, out: Array = None) -> Array:
    return torch.cat(xs, dim) if out is None else torch.cat(xs, dim, out=out)


def power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def pad_time(x: Array, n: int) -> Array:
    """Append steps that do nothing (zero keys, no decay)."""
    missing = n - x.shape[-2]
    if missing == 0:
        return x
    return _cat(x, torch.zeros_like(x[..., :1, :]).expand(*x.shape[:-2], missing, x.shape[-1]))


def in_chunks(x: Array, size: int) -> Array:
    """Consecutive steps [..., T, D] as chunks of `size` steps: [chunks, ..., C, D], with C a power of two."""
    if x is None:
        return None
    n = -(-x.shape[-2] // size)
    x = pad_time(x, n * size)
    x = x.reshape(*x.shape[:-2], n, size, x.shape[-1])
    return torch.movedim(pad_time(x, power_of_two(size)), -3, 0)


def _blocked(x: Array, h: int) -> Array:
    return x.reshape(*x.shape[:-2], x.shape[-2] // (2 * h), 2 * h, x.shape[-1])


def left(x: Array, h: int) -> Array:
    """The left halves of all blocks of 2h steps: [..., C/2h, h, D]."""
    return _blocked(x, h)[..., :h, :]


def right(x: Array, h: int) -> Array:
    return _blocked(x, h)[..., h:, :]


def whole(of_left: Array, of_right: Array, name: Any = None) -> Array:
    """Steps from the halves of their blocks."""
    x = into(("whole", name), _cat, of_left, of_right) if name else _cat(of_left, of_right)
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def with_left(x: Array, h: int, halves: Array) -> Array:
    """x with these left halves, which in memory that is reused are x's own."""
    return x if reuses() else whole(halves, right(x, h))


def with_right(x: Array, h: int, halves: Array) -> Array:
    return x if reuses() else whole(left(x, h), halves)


# ------------------------------------------------------------------ decays, level by level


class Weights(NamedTuple):
    """Of a chunk: decays since its start up to each step and from each step until its end, as reads and
    writes are weighed by them [..., C, D], and of all steps [..., 1, D]. None is 1."""

    since: Array = None
    until: Array = None
    total: Array = None


class Climb:
    """`Weights` of blocks of h steps each; `up` makes them those of 2h."""

    def __init__(self, name: Hashable, la: Array, order: Order) -> None:
        self.name, self.h, self.la = name, 1, la
        self.totals = decay = into((name, "decay"), exp, la)  # of blocks: [..., C/h, D]
        one = exp(torch.zeros_like(la[..., :1, :])).expand(*la.shape)
        self.since = into((name, "since"), copied, decay if order.query_decayed else one)
        self.until = into((name, "until"), copied, decay if order.key_decayed else one)

    def halves(self) -> tuple[Array, Array]:
        """Of the left halves until their end; of the right halves since their start."""
        return left(self.until, self.h), right(self.since, self.h)

    def up(self) -> tuple[Array, Array]:
        """All decays of the halves that are joined, left and right, [..., C/2h, 1, D]."""
        h, (until, since) = self.h, self.halves()
        of_left, of_right = left(self.totals, 1), right(self.totals, 1)
        self.until = with_left(self.until, h, scaled(until, of_right))
        self.since = with_right(self.since, h, scaled(since, of_left))
        totals = into((self.name, "totals", h), torch.mul, of_left, of_right)
        self.totals = totals.reshape(*totals.shape[:-3], totals.shape[-3], totals.shape[-1])
        self.h = 2 * h
        return of_left, of_right

    def weights(self) -> Weights:
        """At the top. All decays of a chunk are what states go through, again and again: exp of their sum,
        which rounds less than a product of decays close to 1."""
        return Weights(self.since, self.until, exp(torch.sum(self.la, -2, True)))


class Level(NamedTuple):
    """Blocks of 2h steps: queries of the right halves and keys of the left ones with their weights,
    [..., C/2h, h, D], and all decays of left and right halves, [..., C/2h, 1, D]."""

    h: int
    q: Array
    k: Array
    left: Array
    right: Array


# ------------------------------------------------------------------ maps


def _blocks(P: Array, h: int) -> Array:
    """Of a map [..., C, C] the rows of right halves, at the columns of the left: a view [..., C/2h, h, h]."""
    n = P.shape[-1] // (2 * h)
    P = P.reshape(*P.shape[:-2], n, 2 * h, n, 2 * h)
    return torch.movedim(torch.diagonal(P, 0, -4, -2)[..., h:, :h, :], -1, -3)


class _Map:
    """A map with zeros above its diagonal, put together from the diagonal [..., C, 1] and `_blocks`."""

    def __init__(self, name: Hashable, diagonal: Array) -> None:
        self.found = diagonal  # rows hold the columns of their block
        if reuses():
            sizes = *diagonal.shape[:-1], diagonal.shape[-2]
            self.name = name, "map", sizes, diagonal.dtype
            self.found = kept(self.name, lambda: diagonal.new_zeros(sizes))
            torch.diagonal(self.found, 0, -2, -1).copy_(diagonal[..., 0])

    def put(self, h: int, across: Array) -> None:
        if reuses():
            kept((*self.name, h), lambda: _blocks(self.found, h)).copy_(across)
            return
        of_left, of_right = left(self.found, h), right(self.found, h)
        above = torch.zeros_like(of_left)
        self.found = whole(_cat(of_left, above, dim=-1), _cat(across, of_right, dim=-1))


def own_weight(la: Array, order: Order) -> Array:
    """Of the pair of a step with itself, None being 1."""
    return exp(la) if la is not None and order.query_decayed and order.key_decayed else None


def own_pairs(q: Array, k: Array, la: Array, order: Order) -> Array:
    """What of its own write each step reads, [..., C, 1]."""
    pairs, w = into("own pairs", torch.mul, q, k), own_weight(la, order)
    own = torch.sum(pairs if w is None else pairs * w, -1, True)
    return torch.zeros_like(own) if order.strict else own


def _weighed(name: Hashable, x: Array, w: Array) -> Array:
    if x is None:
        return into(name, copied, w)
    return x if w is None else into(name, torch.mul, x, w)


def tree_map(
    name: Hashable, q: Array, k: Array, la: Array, order: Order
) -> tuple[Array, Weights, list[Level]]:
    """The map of queries on keys, [..., C, C], with their decays in it."""
    climb, own, levels, n = Climb(name, la, order), own_pairs(q, k, la, order), [], la.shape[-2]
    # Decays may tell heads apart that share queries and keys.
    own = own.expand(*(max(sizes) for sizes in zip(own.shape[:-1], la.shape[:-1], strict=True)), 1)
    P = _Map(name, own)
    while climb.h < n:
        h, (until, since) = climb.h, climb.halves()
        reads = into((name, "reads", h), torch.mul, right(q, h), since)
        writes = into((name, "writes", h), torch.mul, left(k, h), until)
        if h == 1:
            P.put(h, torch.sum(into("pairs", torch.mul, reads, writes), -1, True))
        else:
            P.put(h, into("across", torch.matmul, reads, writes.mT))
        levels.append(Level(h, reads, writes, *climb.up()))
    return P.found, climb.weights(), levels


class Handed(NamedTuple):
    """Gradients on their way down: of reads, each weighed since the start of its block, and of writes, each
    weighed until its end, [..., C, D]; of log-decays, from all that passes through whole blocks,
    [..., blocks, 1, D]. At the leaves, single steps, what is left to weigh by is each step's own decay."""

    reads: Array
    writes: Array
    la: Array


def from_chunk(reads: Array, writes: Array, la: Array) -> Handed:
    """What whole chunks hand down; la [..., 1, D] or None."""
    return Handed(reads, writes, None if la is None else la[..., None, :])


def _over_steps(x: Array, out: Array = None) -> Array:
    return torch.sum(x, -2, True) if out is None else torch.sum(x, -2, True, out=out)


def down(name: Hashable, level: Level, block: Array, given: Handed) -> Handed:
    """From blocks of 2h to those of h, where the map between their halves has the gradient `block`
    [..., C/2h, h, h]. In reused memory it takes the place of what is given."""
    h, q, k, of_left, of_right = level
    reads, writes = scaled(right(given.reads, h), of_left), scaled(left(given.writes, h), of_right)
    la = given.la
    if la is not None:
        # A decay in the left half weighs all that the right one reads from further back; one in the right
        # half all that the left one hands on.
        for_left, for_right = (
            la + into((name, side), _over_steps, into((name, "products"), torch.mul, x, y))
            for side, x, y in (("left", q, reads), ("right", k, writes))
        )
        la = whole(for_left, for_right, (name, "la"))[..., None, :]
    reads = increased(reads, into((name, "to reads"), torch.matmul, block, k))
    writes = increased(writes, into((name, "to writes"), torch.matmul, block.mT, q))
    return Handed(with_right(given.reads, h, reads), with_left(given.writes, h, writes), la)


def descend(name: Hashable, levels: list[Level], dP: Array, given: Handed) -> Handed:
    """Gradients through `tree_map`, from that of the map [..., C, C]."""
    for level in reversed(levels):
        block = into((name, "block"), copied, _blocks(dP, level.h))
        given = down(name, level, block, given)
    return given


# ------------------------------------------------------------------ where values decay


class Both(NamedTuple):
    """The levels of keys and of values: `q` of the latter are what outputs are weighed by, or with a gradient
    of outputs that, weighed; `k` are weighed values."""

    levels: list[tuple[Level, Level]]
    keys: Weights
    values: Weights


def climb_both(q: Array, k: Array, v: Array, la: Array, lb: Array, order: Order, do: Array = None) -> Both:
    a, b = None if la is None else Climb("keys", la, order), Climb("values", lb, order)
    levels, n = [], lb.shape[-2]
    while b.h < n:
        h, pair = b.h, []
        for name, climb, reads, writes in (("keys", a, q, k), ("values", b, do, v)):
            until, since = (None, None) if climb is None else climb.halves()
            reads = _weighed((name, "reads", h), None if reads is None else right(reads, h), since)
            writes = _weighed((name, "writes", h), left(writes, h), until)
            pair.append(Level(h, reads, writes, *((None, None) if climb is None else climb.up())))
        levels.append((pair[0], pair[1]))
    return Both(levels, Weights() if a is None else a.weights(), b.weights())


def tree(q: Array, k: Array, v: Array, la: Array, lb: Array, order: Order) -> tuple[Array, Weights, Weights]:
    """Outputs [..., C, V] of chunks that start from zero, where values decay; keys may (else la is None)."""
    both = climb_both(q, k, v, la, lb, order)
    w = own_weight(lb, order)
    o = own_pairs(q, k, la, order) * (v if w is None else v * w)
    for keys, values in both.levels:
        seen = ((keys.q @ keys.k.mT) @ values.k) * values.q
        o = whole(left(o, keys.h), right(o, keys.h) + seen)
    return o, both.keys, both.values


def descend_both(levels: list[tuple[Level, Level]], keys: Handed, values: Handed) -> tuple[Handed, Handed]:
    """Gradients through `tree`: of queries and keys, and of outputs' weights and values."""
    for a, b in reversed(levels):
        P, dP = into("P", torch.matmul, a.q, a.k.mT), into("dP", torch.matmul, b.q, b.k.mT)
        keys, values = down("keys", a, dP, keys), down("values", b, P, values)
    return keys, values
