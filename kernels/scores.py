"""Attention maps inside a slice, and their gradients, where several vectors read and several are written.

Of rows x_t that read and columns k_s that are written the map is  P_{t,s} = x_tᵀ (a_{s,t} ∘ k_s),  where
a_{s,t} are the decays between. There are four ways to it, by what the log-decays of the slice are:

- `Folded`: none, or so weak that exp of their sums from the start, E, and 1/E are numbers of the operands'
  dtype. They go into rows and columns once, for all maps, states and gradients: P = (x ∘ E) (k / E)ᵀ.
- `Wide`: one per key, where that holds in float64: so are the maps then.
- `Shared`: one for all keys: the products, times one matrix of weights per head.
- `Levels`: one per key, any: by the `tree`.

In the last two nothing is divided and no sums are subtracted, so a log-decay of -inf is one like any other.
In the first two sums are taken in float64; what they lose is far below the last digit of float32.

Columns are written after the decay of their step, as wherever a step erases; rows read as their order says.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from .decays import WEAK, can_look, exp
from .forms import (
    later,
    prefix,
    prefix_weight,
    segment_sums,
    suffix,
    suffix_weight,
    total,
)
from .gradients import _like, straddling
from .memory import (
    cast,
    copied,
    dtype_of,
    increased,
    into,
    lowered,
    one_batch,
    plus_product,
    scaled,
    times,
    wide,
)
from .order import Order
from .steps import Array
from .tree import Level, Side, descend, from_chunk, leaf, pad_time, power_of_two, tree_map

# exp of this, times the square of anything in float32, is a number of float64.
REPRESENTABLE = 500.0

# The most of a key that a step may erase without reflecting it, and some room for rounding.
GENTLE = 1.001


class Row(NamedTuple):
    """What reads: x [..., C, K]. In a gradient, that of what it reads, g [..., C, V]."""

    name: str
    x: Array
    order: Order
    g: Array = None


class Column(NamedTuple):
    """What is written: v [..., C, V] by the keys w ∘ k, for k [..., C, K] and weights w [..., C, 1] or None.

    Of a system v is the solution, and not there yet."""

    name: str
    k: Array
    v: Array = None
    w: Array = None

    @property
    def key(self) -> Array:
        return times(("key", self.name), self.k, self.w)


Maps = list[list[Array]]  # of each row, with each column: [..., C, C], zero where the column is not before it


class Pulled(NamedTuple):
    """Gradients of rows and columns, and of the log-decays, through the maps."""

    rows: list[Array]
    columns: list[Array]
    la: Array


# ------------------------------------------------------------------ into memory that is there


def dense(name: Hashable, x: Array) -> Array:
    """x, laid out so that products need no copy of it each."""
    strided = isinstance(x, torch.Tensor) and (x.stride(-1) != 1 or 0 in x.stride() or not one_batch(x))
    return into(name, copied, x) if strided else x


def weighed(name: Hashable, x: Array, w: Array) -> Array:
    """x ∘ w, None being 1, for products."""
    return dense(name, x) if w is None else times(name, x, w)


def product(name: Hashable, x: Array, y: Array) -> Array:
    return into(name, torch.matmul, x, y)


def across(name: Hashable, x: Array) -> Array:
    """xᵀ, for several products: to multiply by what lies the other way takes three times as long."""
    return into(("across", name), copied, x.mT)


def plus(name: Hashable, x: Array, y: Array) -> Array:
    """x + y, None being 0. May take the place of either."""
    return y if x is None else x if y is None else into(name, torch.add, x, y)


def lower(P: Array, order: Order) -> Array:
    """P with zeros where the column is not before the row, in its place."""
    return lowered(P, -1 if order.strict else 0)


# ------------------------------------------------------------------ sums over time


def added(x: Array, y: Array) -> Array:
    """The sum, None being zero."""
    return y if x is None else x if y is None else x + y


def sum_of(xs: list[Array]) -> Array:
    first, *rest = xs
    for x in rest:
        first = first + x
    return first


def end_to(x: Array) -> Array:
    """The sum of all steps, as a column: [..., D, 1]."""
    return x[..., -1:, :].mT


# ------------------------------------------------------------------ any decays


class Scores:
    """Maps of rows and columns, by weights that are exp of sums of log-decays; and what passes through the
    state at the start and the end of the slice, or of several that lie side by side, [chunks, ...]."""

    # Whether columns are weighed since the start of the slice: then all of its decays weigh what they write
    # as well as the state that was there.
    fading = False

    def __init__(self, la: Array) -> None:
        self.la = la
        self.known: dict[Hashable, Array] = {}

    def _once(self, name: Hashable, make: Callable[[], Array]) -> Array:
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        raise NotImplementedError

    def pull_maps(self, rows: list[Row], columns: list[Column], maps: Maps) -> Pulled:
        """Gradients of what the maps multiply to, but for the values."""
        raise NotImplementedError

    def since_start(self, order: Order) -> Array:
        """By what a row's read of the state at the start is weighed, [..., C, K or 1], or None."""
        return self._once(("since", order), lambda: prefix_weight(self.la, order.query_decayed))

    def until_end(self) -> Array:
        """By what a column is weighed in the state at the end, [..., C, K or 1], or None."""
        return self._once("until end", lambda: suffix_weight(self.la, False))

    def whole(self) -> Array:
        """By what all decays of the slice weigh a state, [..., 1 or K, 1], or None."""
        return self._once("whole", lambda: None if self.la is None else exp(total(self.la)).mT)

    def system(self, row: Row, column: Column) -> Array:
        """A map in float64, of which only what is below the diagonal counts; or in float32, where no step
        reflects what it erases, and so none hands the errors of earlier ones on as large as they are."""
        if gentle(row, column):
            return self._gentle_system(row, column)
        x, k = wide(("wide", row.name), row.x), wide(("wide", column.name), self.key(column))
        ((P,),) = self.maps([row._replace(x=x)], [column._replace(k=k, w=None)])
        return P

    def _gentle_system(self, row: Row, column: Column) -> Array:
        return self.maps([row], [column])[0][0]

    def key(self, column: Column) -> Array:
        """With its weights."""
        return column.k if column.w is None else self._once(("key", column.name), lambda: column.key)

    def from_start(self, row: Row) -> Array:
        """The row as it reads the state at the start."""
        name = "from start", row.name
        return self._once(name, lambda: weighed(name, row.x, self.since_start(row.order)))

    def to_end(self, column: Column) -> Array:
        """The key as it writes to the state at the end, before that fades, if it does."""
        name = "to end", column.name
        return self._once(name, lambda: weighed(name, self.key(column), self.until_end()))

    def pull(self, rows: list[Row], columns: list[Column], maps: Maps, S: Array, G: Array) -> Pulled:
        """Gradients of rows, columns and log-decays from those of what the rows read, and of the state at the
        end (before that fades, if it does), with the state S at the start."""
        pulled = self.pull_maps(rows, columns, maps)
        dla: Array = pulled.la
        dcolumns, drows = [], []
        for column, d in zip(columns, pulled.columns, strict=True):
            dk = product("of column", column.v, G.mT)
            if self.la is not None:
                ending = times("through end", self.to_end(column), dk)
                dla = dla + prefix(_like(ending, self.la), False)
            dcolumns.append(plus(("of column", column.name), d, times("of column", dk, self.until_end())))
        if self.la is not None:
            pairs = torch.sum(times("states", times("states", G, S), self.whole()), -1)[..., None, :]
            dla = dla + _like(pairs, self.la)
        for row, d in zip(rows, pulled.rows, strict=True):
            dx = product("of row", row.g, S.mT)
            if self.la is not None:
                starting = _like(times("through start", self.from_start(row), dx), self.la)
                dla = dla + suffix(starting, row.order.query_decayed)
            drows.append(plus(("of row", row.name), d, times("of row", dx, self.since_start(row.order))))
        return Pulled(drows, dcolumns, dla)


class Shared(Scores):
    """One log-decay for all keys: the products, times one matrix of weights per head. Sums of them are given
    in float64 where exp of these and of their negatives are numbers of it."""

    def __init__(self, la: Array, sums: Array = None) -> None:
        super().__init__(la)
        self.sums = sums

    def weights(self, order: Order) -> Array:
        return self._once(("weights", order), lambda: self._weights(order))

    def _weights(self, order: Order) -> Array:
        name = "weights", order
        if self.sums is None:
            return lower(into(name, exp, segment_sums(self.la, 0, order)[..., 0]), order)
        decay = torch.exp(self.sums if order.query_decayed else later(self.sums))
        found = lower(times(name, decay, torch.exp(-self.sums).mT), order)
        return cast(("narrow", *name), found, dtype_of(self.la))  # masked: others may exceed its range

    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        found: Maps = []
        for r in rows:
            found.append([])
            for c in columns:
                P = product(("unweighed", r.name, c.name), r.x, self.key(c).mT)
                found[-1].append(times(("weighed", r.name, c.name), P, self.weights(r.order)))
        return found

    def pull_maps(self, rows: list[Row], columns: list[Column], maps: Maps) -> Pulled:
        dla: Array = None
        drows: list[Array] = []
        dcolumns: list[Array] = [None for _ in columns]
        for row, known in zip(rows, maps, strict=True):
            dx: Array = None
            for i, (column, P) in enumerate(zip(columns, known, strict=True)):
                dP = product("of a map", row.g, column.v.mT)
                W = times("of products", dP, self.weights(row.order))
                dx = plus(("row", row.name), dx, product(("row", row.name, i), W, self.key(column)))
                d = product(("column", row.name, i), W.mT, row.x)
                dcolumns[i] = plus(("column", i), dcolumns[i], d)
                pairs = times("pairs", dP, cast("narrow map", P, dtype_of(dP)))
                dla = added(dla, straddling(pairs, row.order.query_decayed))
            drows.append(dx)
        return Pulled(drows, dcolumns, dla)


class Wide(Scores):
    """Log-decays of which exp(sums) and exp(-sums) are numbers of float64: they go into rows and columns."""

    def __init__(self, la: Array, sums: Array) -> None:
        super().__init__(la)
        self.sums = sums
        self.decay = into("decay", torch.exp, sums)
        self.growth = into("growth", torch.exp, into("growth", torch.neg, sums))

    def _decay(self, order: Order) -> Array:
        if order.query_decayed:
            return self.decay
        return self._once("earlier decay", lambda: into("earlier decay", torch.exp, later(self.sums)))

    def since_start(self, order: Order) -> Array:
        name = "since", order
        return self._once(name, lambda: cast(name, self._decay(order), dtype_of(self.la)))

    def until_end(self) -> Array:
        def found() -> Array:
            left = times("until end", self.growth, self.decay[..., -1:, :])
            return cast("narrow until end", left, dtype_of(self.la))

        return self._once("until end", found)

    def whole(self) -> Array:
        return self._once("whole", lambda: end_to(cast("whole", self.decay[..., -1:, :], dtype_of(self.la))))

    def _grown(self, columns: list[Column]) -> list[Array]:
        return [times(("grown", c.name), self.key(c), self.growth) for c in columns]

    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        grown = self._grown(columns)
        found: Maps = []
        for r in rows:
            x = times("decayed", r.x, self._decay(r.order))
            found.append([])
            for c, k in zip(columns, grown, strict=True):
                name = r.name, c.name
                P = lower(product(("product", *name), x, k.mT), r.order)
                found[-1].append(cast(("narrow map", *name), P, dtype_of(r.x)))
        return found

    def pull_maps(self, rows: list[Row], columns: list[Column], maps: Maps) -> Pulled:
        """The gradient of log-decays is a difference of sums over time here, all in float64."""
        grown = self._grown(columns)
        dla: Array = None
        drows: list[Array] = []
        dcolumns: list[Array] = [None for _ in columns]
        for row in rows:
            decay = self._decay(row.order)
            x = times(("decayed", row.name), row.x, decay)
            dx: Array = None
            for i, (column, k) in enumerate(zip(columns, grown, strict=True)):
                dP = product("of a map", row.g, column.v.mT)
                dP = wide("wide of a map", lower(dP, row.order))
                dx = plus(("row", row.name), dx, product(("row", row.name, i), dP, k))
                d = product(("column", row.name, i), dP.mT, x)
                dcolumns[i] = plus(("column", i), dcolumns[i], d)
            reads = suffix(times("reads", x, dx), row.order.query_decayed)
            dla = plus("decays", dla, reads)
            dx = times(("row", row.name), dx, decay)
            drows.append(cast(("narrow row", row.name), dx, dtype_of(self.la)))
        for i, k in enumerate(grown):
            writes = suffix(times("writes", k, dcolumns[i]), True)
            dla = into("decays", torch.sub, dla, writes)
            d = times(("column", i), dcolumns[i], self.growth)
            dcolumns[i] = cast(("narrow column", i), d, dtype_of(self.la))
        return Pulled(drows, dcolumns, cast("narrow decays", dla, dtype_of(self.la)))


# ------------------------------------------------------------------ decays that fold into rows and columns


class Folded(Scores):
    """No log-decays, or such that exp(sums) and exp(-sums) are numbers of the operands' dtype: rounded once,
    from sums in float64."""

    fading = True

    def __init__(self, la: Array, sums: Array) -> None:
        super().__init__(la)
        self.sums = sums
        self.decay = self.growth = self.wide_decay = self.wide_growth = None
        if la is not None:
            self.wide_decay = into("decay", torch.exp, sums)
            self.wide_growth = into("growth", torch.exp, into("growth", torch.neg, sums))
            self.decay = cast("narrow decay", self.wide_decay, dtype_of(la))
            self.growth = cast("narrow growth", self.wide_growth, dtype_of(la))

    def _wide_decay(self, order: Order) -> Array:
        if self.la is None or order.query_decayed:
            return self.wide_decay
        return self._once("earlier decay", lambda: into("earlier decay", torch.exp, later(self.sums)))

    def since_start(self, order: Order) -> Array:
        if self.la is None or order.query_decayed:
            return self.decay
        name = "since", order
        return self._once(name, lambda: cast(name, self._wide_decay(order), dtype_of(self.la)))

    def whole(self) -> Array:
        return None if self.la is None else end_to(self.decay)

    def to_end(self, column: Column) -> Array:
        def grown() -> Array:
            weights = self.growth if column.w is None else times("grown weight", column.w, self.growth)
            return weighed(name, column.k, weights)

        name = "grown", column.name
        return self._once(name, grown)

    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        return [[self._map(r, c) for c in columns] for r in rows]

    def _across(self, c: Column) -> Array:
        name = "across", c.name
        return self._once(name, lambda: across(name, self.to_end(c)))

    def _map(self, r: Row, c: Column) -> Array:
        P = product(("product", r.name, c.name), self.from_start(r), self._across(c))
        return lower(P, r.order)

    def _gentle_system(self, row: Row, column: Column) -> Array:
        return product(("narrow system", column.name), self.from_start(row), self._across(column))

    def system(self, row: Row, column: Column) -> Array:
        if gentle(row, column):
            return self._gentle_system(row, column)
        name = "system", column.name
        x = wide(("wide", row.name), row.x)
        k = x if column.k is row.x else wide(("wide", column.name), column.k)
        decay, growth = self._wide_decay(row.order), self.wide_growth
        if column.w is not None:
            w = wide("wide weight", column.w)
            growth = w if growth is None else times("wide grown weight", growth, w)
        if self.la is None or self.la.shape[-1] == 1:
            P = product(("unweighed", *name), x, k.mT)
            if growth is None:
                return P
            return times(("weighed", *name), P, growth.mT if decay is None else decay * growth.mT)
        rows = times("wide decayed", x, decay)
        return product(name, rows, times("wide grown", k, growth).mT)

    def pull(self, rows: list[Row], columns: list[Column], maps: Maps, S: Array, G: Array) -> Pulled:
        la = self.la
        values = [across(("values", c.name), c.v) for c in columns]
        dP = [[self._of_map(r, c, v) for c, v in zip(columns, values, strict=True)] for r in rows]
        reads: dict[bool, Array] = {}
        drows = []
        for row, of_maps in zip(rows, dP, strict=True):
            dx = product(("of row", row.name), row.g, S.mT)
            if la is not None:
                through = _like(times(("through start", row.name), self.from_start(row), dx), la)
                decayed = row.order.query_decayed
                reads[decayed] = added(reads.get(decayed), through)
            for column, d in zip(columns, of_maps, strict=True):
                dx = plus_product(dx, d, self.to_end(column))
            drows.append(times(("of row", row.name), dx, self.since_start(row.order)))
        dcolumns = []
        writes: Array = None
        for i, column in enumerate(columns):
            dk = product(("of column", column.name), column.v, G.mT)
            if la is not None:
                through = _like(times(("through end", column.name), self.to_end(column), dk), la)
                writes = added(writes, through)
            for row, of_maps in zip(rows, dP, strict=True):
                dk = plus_product(dk, of_maps[i].mT, self.from_start(row))
            dcolumns.append(times(("of column", column.name), dk, self.growth))
        dla: Array = None
        if la is not None:
            pairs = torch.sum(times("states", G, S), -1)[..., None, :]
            dla = _like(pairs, la) + prefix(writes, False)
            for decayed, through in reads.items():
                dla = dla + suffix(through, decayed)
            dla = dla + self._of_decays(rows, columns, maps, dP)
        return Pulled(drows, dcolumns, dla)

    def _of_map(self, row: Row, column: Column, values: Array) -> Array:
        return lower(product(("of map", row.name, column.name), row.g, values), row.order)

    def _of_decays(self, rows: list[Row], columns: list[Column], maps: Maps, dP: Maps) -> Array:
        """Of the log-decays, through the maps: of one for all keys the sum of the pairs that it weighs, which
        take the place of dP; of one per key a difference of sums over time, in float64."""
        if self.la.shape[-1] > 1:
            return Wide(self.la, self.sums).pull_maps(rows, columns, maps).la
        found: dict[bool, Array] = {}
        for row, known, of_maps in zip(rows, maps, dP, strict=True):
            decayed = row.order.query_decayed
            for P, d in zip(known, of_maps, strict=True):
                pairs = scaled(d, cast("narrow map", P, dtype_of(d)))
                found[decayed] = increased(found[decayed], pairs) if decayed in found else pairs
        return sum_of([straddling(pairs, decayed) for decayed, pairs in found.items()])


# ------------------------------------------------------------------ any decays per key


class Levels(Scores):
    """By the tree, as one chunk each."""

    def _padded(self, *xs: Array) -> tuple[Array, ...]:
        n = power_of_two(self.la.shape[-2])
        return tuple(pad_time(x, n) for x in xs)

    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        n = self.la.shape[-2]
        return [[self._tree(r, c)[0][..., :n, :n] for c in columns] for r in rows]

    def _tree(self, row: Row, column: Column, keep: bool = False) -> tuple[Array, Side, list[Level]]:
        x, k, la = self._padded(row.x, column.key, self.la)
        la = cast("decays of map", la, dtype_of(x))
        return tree_map((row.name, column.name), x, k, la, row.order, keep)

    def pull_maps(self, rows: list[Row], columns: list[Column], maps: Maps) -> Pulled:
        n = self.la.shape[-2]
        dla: Array = None
        drows: list[Array] = [None for _ in rows]
        dcolumns: list[Array] = [None for _ in columns]
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                x, k, g, v, la = self._padded(row.x, column.key, row.g, column.v, self.la)
                dP = product("of a map", g, v.mT)
                nothing = [torch.zeros_like(x * exp(la)) for _ in range(3)]
                start = from_chunk(nothing[0], nothing[1], nothing[2][..., :1, :])
                _, side, levels = self._tree(row, column, keep=True)
                handed = descend((row.name, column.name), levels, dP, start)
                own = torch.diagonal(dP, 0, -2, -1)[..., None]
                dx, dk, d = leaf(handed, side.each, row.order, x, k, own)
                drows[i], dcolumns[j], dla = added(drows[i], dx), added(dcolumns[j], dk), added(dla, d)
        return Pulled([z[..., :n, :] for z in drows], [z[..., :n, :] for z in dcolumns], dla[..., :n, :])


def gentle(row: Row, column: Column) -> bool:
    """Whether no step reflects what it erases: 1 - w |k|² is what one leaves of its key. Of what is computed
    in float32; float64 has digits enough."""
    if column.k is not row.x or column.w is None or dtype_of(row.x) != torch.float32 or not can_look(row.x):
        return False
    squares = torch.sum(times("squares", column.k, column.k), -1, True)
    return bool(torch.amax(squares * column.w) <= GENTLE)


def scores_of(la: Array) -> Scores:
    """The way that the log-decays of a slice admit: [..., C, K or 1] or None."""
    if la is None:
        return Folded(None, None)
    if can_look(la):
        sums = into("sums", torch.cumsum, wide("wide decays", la), -2)
        lowest = torch.amin(sums[..., -1:, :])
        if lowest > -(REPRESENTABLE if dtype_of(la) in (torch.float64, None) else WEAK):
            return Folded(la, sums)
        if lowest > -REPRESENTABLE:
            return Wide(la, sums) if la.shape[-1] > 1 else Shared(la, sums)
    return Shared(la) if la.shape[-1] == 1 else Levels(la)
