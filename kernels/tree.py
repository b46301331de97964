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
from .memory import copied, into, kept, plus_scaled, plus_times, reuses, scaled
from .order import Order
from .steps import Array

# ------------------------------------------------------------------ blocks of steps


def cat(*xs: Array, dim: int = -2, out: Array = None) -> Array:
    return torch.cat(xs, dim) if out is None else torch.cat(xs, dim, out=out)


def power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def pad_time(x: Array, n: int) -> Array:
    """Append steps that do nothing (zero keys, no decay)."""
    missing = n - x.shape[-2]
    if missing == 0:
        return x
    return cat(x, torch.zeros_like(x[..., :1, :]).expand(*x.shape[:-2], missing, x.shape[-1]))


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
    x = into(("whole", name), cat, of_left, of_right) if name else cat(of_left, of_right)
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def with_left(x: Array, h: int, halves: Array) -> Array:
    """x with these left halves, which in memory that is reused are x's own."""
    return x if reuses() else whole(halves, right(x, h))


def with_right(x: Array, h: int, halves: Array) -> Array:
    return x if reuses() else whole(left(x, h), halves)


# ------------------------------------------------------------------ decays, level by level


class Level(NamedTuple):
    """Of blocks of 2h steps: what the right halves read by, weighed since their start, and what is written in
    the left ones, weighed until their end, [..., C/2h, h, D]; all decays of left and right halves,
    [..., C/2h, 1, D]. None is 1."""

    h: int
    reads: Array
    writes: Array
    of_left: Array
    of_right: Array


class Side(NamedTuple):
    """Of whole chunks: what reads, weighed since their start, and what is written, weighed until their end,
    [..., C, D]; all their decays, [..., 1, D], and that of each step, [..., C, D]. None is 1."""

    reads: Array
    writes: Array
    total: Array
    each: Array = None


class Climb:
    """What reads and what is written, weighed in blocks of h steps; `up` makes them those of 2h. What is None
    is 1. With `keep` a level stays as it is while the climb goes on."""

    def __init__(
        self, name: Hashable, reads: Array, writes: Array, la: Array, order: Order, keep: bool = False
    ) -> None:
        self.name, self.la, self.keep, self.h = name, la, keep, 1
        self.reads, self.writes = reads, writes
        self.each: Array = None  # the decay of each step
        if la is not None:
            self.each = self.totals = into((name, "decay"), exp, la)  # of blocks: [..., C/h, D]
            self.reads = self._weighed("reads", reads, order.query_decayed)
            self.writes = self._weighed("writes", writes, order.key_decayed)

    def _weighed(self, which: str, x: Array, decayed: bool) -> Array:
        name = self.name, which
        if x is None:
            one = exp(torch.zeros_like(self.la[..., :1, :])).expand(*self.la.shape)
            return into(name, copied, self.totals if decayed else one)
        if decayed:
            return into(name, torch.mul, x, self.totals)
        # Decays may tell heads apart that share what they weigh.
        return into(name, copied, x.expand(*map(max, x.shape, self.la.shape)))

    def level(self) -> Level:
        h = self.h
        reads, writes = (
            None if x is None else half(x, h) for x, half in ((self.reads, right), (self.writes, left))
        )
        if self.la is None:
            return Level(h, reads, writes, None, None)
        if self.keep:
            reads, writes = (
                into((self.name, which, h), copied, x) for which, x in (("reads", reads), ("writes", writes))
            )
        return Level(h, reads, writes, left(self.totals, 1), right(self.totals, 1))

    def up(self) -> None:
        h, self.h = self.h, 2 * self.h
        if self.la is None:
            return
        of_left, of_right = left(self.totals, 1), right(self.totals, 1)
        self.reads = with_right(self.reads, h, scaled(right(self.reads, h), of_left))
        self.writes = with_left(self.writes, h, scaled(left(self.writes, h), of_right))
        totals = into((self.name, "totals", h), torch.mul, of_left, of_right)
        self.totals = totals.reshape(*totals.shape[:-3], totals.shape[-3], totals.shape[-1])

    def side(self) -> Side:
        """At the top. All decays of a chunk are what states go through, again and again: exp of their sum,
        which rounds less than a product of decays close to 1."""
        total = None if self.la is None else exp(torch.sum(self.la, -2, True))
        return Side(self.reads, self.writes, total, self.each)


def until_end(name: Hashable, x: Array, la: Array, order: Order) -> Array:
    """What is written in any number of steps, weighed until the last of them."""
    n = x.shape[-2]
    x, la = (pad_time(z, power_of_two(n)) for z in (x, la))
    climb = Climb(name, None, x, la, order)
    while climb.h < n:
        climb.up()
    return climb.writes[..., :n, :]


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
        self.found = whole(cat(of_left, above, dim=-1), cat(across, of_right, dim=-1))


def own_weight(each: Array, order: Order) -> Array:
    """Of the pair of a step with itself, by the decay of each; None is 1."""
    return each if order.query_decayed and order.key_decayed else None


def own_pairs(q: Array, k: Array, each: Array, order: Order) -> Array:
    """What of its own write each step reads, [..., C, 1]."""
    pairs, w = into("own pairs", torch.mul, q, k), own_weight(each, order)
    own = torch.sum(pairs if w is None else pairs * w, -1, True)
    return torch.zeros_like(own) if order.strict else own


def tree_map(
    name: Hashable, q: Array, k: Array, la: Array, order: Order, keep: bool = False
) -> tuple[Array, Side, list[Level]]:
    """The map of queries on keys, [..., C, C], with their decays in it; with `keep`, its levels."""
    climb, n = Climb(name, q, k, la, order, keep), la.shape[-2]
    levels: list[Level] = []
    own = own_pairs(q, k, climb.each, order)
    P = _Map(name, own.expand(*map(max, own.shape[:-1], la.shape[:-1]), 1))
    while climb.h < n:
        level = climb.level()
        h, reads, writes = level[:3]
        if h == 1:
            P.put(h, torch.sum(into("pairs", torch.mul, reads, writes), -1, True))
        else:
            P.put(h, into("across", torch.matmul, reads, writes.mT))
        if keep:
            levels.append(level)
        climb.up()
    return P.found, climb.side(), levels


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
    reads, writes, la = right(given.reads, h), left(given.writes, h), given.la
    if la is not None:
        # A decay in the left half weighs all that the right one reads from further back; one in the right
        # half all that the left one hands on.
        for_left, for_right = (
            la + into((name, side), _over_steps, into((name, "products"), torch.mul, x, y)) * between
            for side, x, y, between in (("left", q, reads, of_left), ("right", k, writes, of_right))
        )
        la = whole(for_left, for_right, (name, "la"))[..., None, :]
    # For matrices with one entry `matmul` costs ten times as much.
    product = torch.mul if h == 1 else torch.matmul
    reads = plus_scaled(into((name, "to reads"), product, block, k), reads, of_left)
    writes = plus_scaled(into((name, "to writes"), product, block.mT, q), writes, of_right)
    return Handed(with_right(given.reads, h, reads), with_left(given.writes, h, writes), la)


def descend(name: Hashable, levels: list[Level], dP: Array, given: Handed) -> Handed:
    """Gradients through `tree_map`, from that of the map [..., C, C]."""
    for level in reversed(levels):
        block = into((name, "block"), copied, _blocks(dP, level.h))
        given = down(name, level, block, given)
    return given


def leaf(
    handed: Handed, each: Array, order: Order, x: Array, y: Array, dw: Array
) -> tuple[Array, Array, Array]:
    """Gradients of what reads and what is written, x and y, and of the log-decay, from what arrives at single
    steps, by the decay of each, and from that of the pair of each with itself, dw [..., C, 1]; None where
    those of decays are."""
    dx, dy, dla = handed
    if each is not None:
        dla = None if dla is None else dla[..., 0, :]
        if order.query_decayed:
            dx = scaled(dx, each)
            dla = None if dla is None else plus_times(dla, x, dx)
        if order.key_decayed:
            dy = scaled(dy, each)
            dla = None if dla is None else plus_times(dla, y, dy)
    if order.strict:
        return dx, dy, dla
    own = own_weight(each, order)
    if own is not None:
        dw = own * dw
        dla = None if dla is None else plus_times(dla, x * y, dw)
    return plus_times(dx, y, dw), plus_times(dy, x, dw), dla


# ------------------------------------------------------------------ where values decay


class Both(NamedTuple):
    """Levels of keys and of values, whose reads are the weights of outputs, or with a gradient of outputs
    that, weighed; and of whole chunks."""

    levels: list[tuple[Level, Level]]
    keys: Side
    values: Side


def climb_both(q: Array, k: Array, v: Array, la: Array, lb: Array, order: Order, do: Array = None) -> Both:
    climbs, levels = [Climb("keys", q, k, la, order, True), Climb("values", do, v, lb, order, True)], []
    while climbs[0].h < lb.shape[-2]:
        levels.append((climbs[0].level(), climbs[1].level()))
        for climb in climbs:
            climb.up()
    return Both(levels, climbs[0].side(), climbs[1].side())


def tree(q: Array, k: Array, v: Array, la: Array, lb: Array, order: Order) -> tuple[Array, Side, Side]:
    """Outputs [..., C, V] of chunks that start from zero, where values decay; keys may (else la is None)."""
    both = climb_both(q, k, v, la, lb, order)
    w = own_weight(both.values.each, order)
    o = own_pairs(q, k, both.keys.each, order) * (v if w is None else v * w)
    for keys, values in both.levels:
        seen = ((keys.reads @ keys.writes.mT) @ values.writes) * values.reads
        o = whole(left(o, keys.h), right(o, keys.h) + seen)
    return o, both.keys, both.values


def descend_both(levels: list[tuple[Level, Level]], keys: Handed, values: Handed) -> tuple[Handed, Handed]:
    """Gradients through `tree`: of queries and keys, and of outputs' weights and values."""
    for a, b in reversed(levels):
        P = into("P", torch.matmul, a.reads, a.writes.mT)
        dP = into("dP", torch.matmul, b.reads, b.writes.mT)
        keys, values = down("keys", a, dP, keys), down("values", b, P, values)
    return keys, values
