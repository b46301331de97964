"""Attention maps inside a slice, and their gradients, where several vectors read and several are written.

Of rows x_t that read and columns k_s that are written the map is  P_{t,s} = x_tᵀ (a_{s,t} ∘ k_s),  a_{s,t} the
decays between. Three ways to it, by what the decays are:

- `Shared`: none, or one for all keys: the products, times one weight matrix per head.
- `Folded`: one per key, where exp of their sums over the slice and its reciprocal are numbers of float64: then
  both go into the operands, P = (x ∘ E) (k / E)ᵀ. In float64 that keeps more digits than float32 has.
- `Levels`: one per key, any: log2(C) levels, at each of which the right half of every block reads the left half
  (as `forms.tree`).

Columns are written after the decay of their step (as in every order that erases), rows read as their order says.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch

from .forms import (
    _cat,
    _first_zero,
    decayed,
    halves,
    pad_time,
    power_of_two,
    prefix,
    suffix,
    total,
    whole,
)
from .memory import into
from .order import Order
from .steps import Array

# exp of this, times the square of anything in float32, is a number of float64.
REPRESENTABLE = 500.0


class Row(NamedTuple):
    """What reads: x [..., C, K]. In a gradient, that of what it reads, g [..., C, V]."""

    name: str
    x: Array
    order: Order
    g: Array = None


class Column(NamedTuple):
    """What is written: v [..., C, V] by the keys k [..., C, K]."""

    k: Array
    v: Array = None


Maps = list[list[Array]]  # of each row, with each column: [..., C, C], zero where the column is not before it


class Pulled(NamedTuple):
    """Gradients of rows and columns, and of the log-decays, through the maps."""

    rows: list[Array]
    columns: list[Array]
    la: Array


# ------------------------------------------------------------------ into memory that is there


def _to(x: Array, dtype: torch.dtype, out: Array = None) -> Array:
    return x.to(dtype) if out is None else out.copy_(x)


def cast(name: Hashable, x: Array, dtype: Any) -> Array:
    """x in another dtype (field elements have none)."""
    return x if dtype is None or x.dtype == dtype else into(name, _to, x, dtype)


def dtype_of(x: Array) -> Any:
    return getattr(x, "dtype", None)


def wide(name: Hashable, x: Array) -> Array:
    """x in float64."""
    return cast(name, x, None if dtype_of(x) is None else torch.float64)


def times(name: Hashable, x: Array, y: Array) -> Array:
    """x ∘ y, None being 1. May take the place of either."""
    return x if y is None else into(name, torch.mul, x, y)


def product(name: Hashable, x: Array, y: Array) -> Array:
    return into(name, torch.matmul, x, y)


def plus(name: Hashable, x: Array, y: Array) -> Array:
    """x + y, None being 0. May take the place of either."""
    return y if x is None else x if y is None else into(name, torch.add, x, y)


def lower(name: Hashable, P: Array, order: Order) -> Array:
    """With zeros where the column is not before the row."""
    return into(name, torch.tril, P, -1 if order.strict else 0)


# ------------------------------------------------------------------ sums over time


def later(x: Array) -> Array:
    """Of the step before: 0 for the first."""
    return _cat([_first_zero(x), x[..., :-1, :]])


def straddling(pairs: Array, order: Order) -> Array:
    """Of each step the sum over the pairs of a row and a column whose decays contain its own, [..., C, 1]."""
    before = into("pairs before", torch.cumsum, pairs, -1)
    seen = into("straddling", torch.tril, before, -1 if order.query_decayed else -2)
    return later(torch.sum(seen, -2)[..., None])


def added(x: Array, y: Array) -> Array:
    """The sum, None being zero."""
    return y if x is None else x if y is None else x + y


def like_decay(x: Array, la: Array) -> Array:
    """Summed over channels where the decay is shared by them."""
    return torch.sum(x, -1, True) if la.shape[-1] == 1 else x


# ------------------------------------------------------------------ the three ways


class Scores:
    """What is common to the three ways: the decays from the start of the slice and to its end."""

    def __init__(self, la: Array) -> None:
        self.la = la

    def since_start(self, order: Order) -> Array:
        """By what a row's read of the state at the start is weighed, [..., C, K or 1], or None."""
        return None if self.la is None else torch.exp(prefix(self.la, order.query_decayed))

    def until_end(self) -> Array:
        """By what a column is weighed in the state at the end, [..., C, K or 1], or None."""
        return None if self.la is None else torch.exp(suffix(self.la, False))

    def whole(self) -> Array:
        """By what all decays of the slice weigh a state, [..., 1 or K, 1], or None."""
        return None if self.la is None else torch.exp(total(self.la)).mT


class Shared(Scores):
    def __init__(self, la: Array) -> None:
        super().__init__(la)
        self.known: dict[Order, Array] = {}
        if la is not None:
            n = la.shape[-2]
            spread = into("spread", torch.tril, la.expand(*la.shape[:-1], n), -1)
            self.sums = into("sums", torch.cumsum, spread, -2)

    def weights(self, order: Order) -> Array:
        if order not in self.known:
            weights = into("weights", torch.exp, self.sums if order.query_decayed else later(self.sums))
            self.known[order] = lower(("weights", order), weights, order)
        return self.known[order]

    def weighed(self, name: Hashable, P: Array, order: Order) -> Array:
        return lower(name, P, order) if self.la is None else times(name, P, self.weights(order))

    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        found: Maps = []
        for r in rows:
            found.append([])
            for i, c in enumerate(columns):
                k = cast("wide key", c.k, dtype_of(r.x))
                P = product(("product", r.name, i), r.x, k.mT)
                found[-1].append(self.weighed(("map", r.name, i), P, r.order))
        return found

    def pull(self, rows: list[Row], columns: list[Column], maps: Maps) -> Pulled:
        dla: Array = None
        drows: list[Array] = []
        dcolumns: list[Array] = [None for _ in columns]
        for row, known in zip(rows, maps, strict=True):
            dx: Array = None
            pairs: Array = None
            for i, (column, P) in enumerate(zip(columns, known, strict=True)):
                dP = product("of a map", row.g, column.v.mT)
                W = self.weighed("of products", dP, row.order)
                dx = plus(("row", row.name), dx, product(("row", row.name, i), W, column.k))
                d = product(("column", row.name, i), W.mT, row.x)
                dcolumns[i] = plus(("column", i), dcolumns[i], d)
                if self.la is not None:
                    found = times(("pairs", i), dP, cast("narrow map", P, dtype_of(dP)))
                    pairs = plus("pairs", pairs, found)
            drows.append(dx)
            if pairs is not None:
                dla = added(dla, straddling(pairs, row.order))
        return Pulled(drows, dcolumns, dla)


class Folded(Scores):
    def __init__(self, la: Array, sums: Array) -> None:
        super().__init__(la)
        self.sums = sums
        self.decay = into("decay", torch.exp, sums)
        self.growth = into("growth", torch.exp, into("growth", torch.neg, sums))

    def _decay(self, order: Order) -> Array:
        if order.query_decayed:
            return self.decay
        return into("earlier decay", torch.exp, later(self.sums))

    def since_start(self, order: Order) -> Array:
        return cast(("since start", order), self._decay(order), dtype_of(self.la))

    def until_end(self) -> Array:
        left = times("until end", self.growth, self.decay[..., -1:, :])
        return cast("narrow until end", left, dtype_of(self.la))

    def whole(self) -> Array:
        return cast("whole", self.decay[..., -1:, :], dtype_of(self.la)).mT

    def _grown(self, columns: list[Column]) -> list[Array]:
        return [times(("grown", i), c.k, self.growth) for i, c in enumerate(columns)]

    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        grown = self._grown(columns)
        found: Maps = []
        for r in rows:
            x = times("decayed", r.x, self._decay(r.order))
            found.append([])
            for i, k in enumerate(grown):
                P = lower(("map", r.name, i), product(("product", r.name, i), x, k.mT), r.order)
                found[-1].append(cast(("narrow map", r.name, i), P, dtype_of(r.x)))
        return found

    def pull(self, rows: list[Row], columns: list[Column], maps: Maps) -> Pulled:
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
                dP = wide("wide of a map", lower("of products", dP, row.order))
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


class Levels(Scores):
    def maps(self, rows: list[Row], columns: list[Column]) -> Maps:
        return [[self._map(r, c) for c in columns] for r in rows]

    def _map(self, row: Row, column: Column) -> Array:
        n = self.la.shape[-2]
        padded = power_of_two(n)
        x, k, la = (pad_time(z, padded) for z in (row.x, column.k, self.la))
        # Of blocks of one step; rows of later levels hold those of their block.
        P = torch.sum(x * k, -1, True)
        P = torch.zeros_like(P) if row.order.strict else P
        h = 1
        while h < padded:
            (_, x_r), (k_l, _), (la_l, la_r), (P_l, P_r) = (halves(z, h) for z in (x, k, la, P))
            reads = decayed(x_r, prefix(la_r, row.order.query_decayed))
            writes = cast("level keys", decayed(k_l, suffix(la_l, False)), dtype_of(reads))
            across = reads @ writes.mT
            # Decays may tell heads apart that share rows and columns.
            P_l, P_r = P_l.expand(*across.shape), P_r.expand(*across.shape)
            P = whole(_cat([P_l, torch.zeros_like(P_l)], -1), _cat([across, P_r], -1))
            h *= 2
        return P[..., :n, :n]

    def pull(self, rows: list[Row], columns: list[Column], maps: Maps) -> Pulled:
        n = self.la.shape[-2]
        padded = power_of_two(n)
        la = pad_time(self.la, padded)
        rows = [r._replace(x=pad_time(r.x, padded), g=pad_time(r.g, padded)) for r in rows]
        columns = [Column(pad_time(c.k, padded), pad_time(c.v, padded)) for c in columns]
        drows: list[Array] = [None for _ in rows]
        dcolumns: list[Array] = [None for _ in columns]
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                dw = torch.sum(row.g * column.v, -1, True)
                dw = torch.zeros_like(dw) if row.order.strict else dw
                drows[i] = added(drows[i], column.k * dw)
                dcolumns[j] = added(dcolumns[j], row.x * dw)
        dla = torch.zeros_like(drows[0])
        h = 1
        while h < padded:
            la_l, la_r = halves(la, h)
            weight = torch.exp(suffix(la_l, False))
            l, r = halves(dla, h)
            ks, vs = zip(*((halves(c.k, h)[0] * weight, halves(c.v, h)[0]) for c in columns), strict=True)
            dks: list[Array] = [None for _ in columns]
            for i, row in enumerate(rows):
                decay = torch.exp(prefix(la_r, row.order.query_decayed))
                x, g = halves(row.x, h)[1] * decay, halves(row.g, h)[1]
                dx: Array = None
                for j, (k, v) in enumerate(zip(ks, vs, strict=True)):
                    dP = g @ v.mT
                    dx, dks[j] = added(dx, dP @ k), added(dks[j], dP.mT @ x)
                r = r + suffix(x * dx, row.order.query_decayed)
                left, right = halves(drows[i], h)
                drows[i] = whole(left, right + dx * decay)
            for j, k in enumerate(ks):
                l = l + prefix(k * dks[j], False)
                left, right = halves(dcolumns[j], h)
                dcolumns[j] = whole(left + dks[j] * weight, right)
            dla = whole(l, r)
            h *= 2
        return Pulled([z[..., :n, :] for z in drows], [z[..., :n, :] for z in dcolumns], dla[..., :n, :])


def scores_of(la: Array) -> Scores:
    """The way that the log-decays of a slice admit: [..., C, K or 1] or None."""
    if la is None or la.shape[-1] == 1:
        return Shared(la)
    sums = into("sums", torch.cumsum, wide("wide decays", la), -2)
    if torch.amin(sums[..., -1:, :]) > -REPRESENTABLE:
        return Folded(la, sums)
    return Levels(la)
