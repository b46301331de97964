"""The delta rule: a chunk that erases is a chunk that does not, with other values.

    S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = a_t ∘ S_{t-1}             (beta)
    S_t = (diag(a_t) + x_t y_tᵀ) S_{t-1} + k_t v_tᵀ                      (erase)

What a step writes is known once it is known what it reads: m_t = v_t - S̃ᵀ k_t, or e_t = S_{t-1}ᵀ y_t. Those
reads are the outputs of the core with k (or y) for queries, and depend on the values of earlier steps only, so
inside a chunk they solve one unit triangular system. With its solution the chunk is the canonical one that
writes k β m (or k v and x e): what it reads, and the gradient, follow from the maps of `scores`.

The matrix of the system does not depend on the state: it is inverted once, by forward substitution, and its
inverse serves the values and, transposed, their gradients. Products of powers of the matrix (Neumann) lose all
digits where keys are alike: there the powers grow although the inverse does not. What remains is the rounding
of the system itself, which its solution magnifies by up to the length of a chunk (β = 2: reflections), and each
chunk hands on: so it is formed and inverted in float64, where float32 would leave 1e-5 after one chunk.

Layout and vocabulary as in `forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from .forms import Result, Source, attend, in_blocks, prefix, recurrent_form, suffix
from .gradients import BlockGradient, walk_gradient
from .memory import into, own
from .order import BEFORE, Order
from .scores import (
    Column, Row, Scores, added, cast, dtype_of, like_decay, plus, product, scores_of, times,
)
from .scores import wide as _wide
from .steps import Array, Gradients, Slice

# How the reads that erase see the state: the delta rule after the decay of its step, the general form before.
DECAYED = Order("DRA")


def solve(L: Array, b: Array, transposed: bool = False) -> Array:
    """x with (I + L) x = b, or (I + L)ᵀ x = b, for L strictly lower triangular: forward substitution."""
    how = {"upper": transposed, "unitriangular": True}
    A = L.mT if transposed else L
    b_wide = _wide("right-hand side", b)
    x = into(("solution", transposed), torch.linalg.solve_triangular, A, b_wide, **how)
    return cast(("narrow solution", transposed), x, dtype_of(b))


class Chunk(NamedTuple):
    """What a slice writes and reads, with all that is needed again for its gradient."""

    scores: Scores
    reads: Row  # what it erases by
    maps: list[Array]  # of these, with each column
    L: Array  # the system that they solve, [..., C, C], strictly lower triangular
    columns: list[Column]  # what is written, with the solution
    missing: Array  # of the delta rule: v - S̃ᵀ k


def solution(c: Slice, S: Array, order: Order) -> Chunk:
    """The system of a slice from the state at its start, and what it writes."""
    scores = scores_of(c.la)
    if c.beta is not None:
        reads, k = Row("reads", c.k, DECAYED), Column(c.k)
        ((A,),) = scores.maps([reads._replace(x=_wide("wide reads", c.k))], [k])
        L = times("system", A, c.beta.mT)
        m = solve(L, into("missing", torch.sub, c.v, from_start(scores, reads, S)))
        return Chunk(scores, reads, [A], L, [Column(c.k, times("written", m, c.beta))], m)
    reads = Row("reads", c.y, BEFORE)
    ((A,),) = scores.maps([reads], [Column(c.k)])
    erased = Row("erased", _wide("wide reads", c.y), BEFORE)
    ((M,),) = scores.maps([erased], [Column(c.x)])
    L = into("system", torch.neg, M)
    e = solve(L, plus("read", from_start(scores, reads, S), product("read inside", A, c.v)))
    return Chunk(scores, reads, [A, M], L, [Column(c.k, c.v), Column(c.x, e)], None)


def from_start(scores: Scores, row: Row, S: Array) -> Array:
    """What a row reads of the state at the start of its slice."""
    x = times("row from start", row.x, scores.since_start(row.order))
    return product(("from start", row.name), x, S)


def end_state(found: Chunk, S: Array, name: Hashable) -> Array:
    """The state after a slice, from that at its start. It may take its place, if that has this name."""
    weights = found.scores.until_end()
    written = [
        product(("to end", i), times("column to end", column.k, weights).mT, column.v)
        for i, column in enumerate(found.columns)
    ]
    end = times(name, S, found.scores.whole())
    for w in written:
        end = plus(name, end, w)
    return end


def carry(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    return own(end_state(solution(c, S, order), S, "end"))


def delta_chunk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    found = solution(c, S, order)
    row = Row("query", c.q, order)
    (maps,) = found.scores.maps([row], found.columns)
    inside: Array = None
    for i, (P, column) in enumerate(zip(maps, found.columns, strict=True)):
        inside = plus("inside", inside, product(("inside", i), P, column.v))
    return from_start(found.scores, row, S) + inside, end_state(found, S, "state")


def chunk_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    return in_blocks(steps, S, order, size, delta_chunk)


def parallel_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    """One system for all steps, T·T numbers per head; then attention to what solves it."""
    c = steps.slice(0, len(steps))
    first, *others = solution(c, S, order).columns
    plain = c._replace(beta=None, x=None, y=None)
    outs, end = attend(plain._replace(k=first.k, v=first.v), S, order, size)
    for d in others:
        more, state = attend(plain._replace(k=d.k, v=d.v), torch.zeros_like(S), order, size)
        outs, end = [a + b for a, b in zip(outs, more, strict=True)], end + state
    return outs, end


FORMS: dict[str, Callable[[Source, Array, Order, int], Result]] = {
    "recurrent": recurrent_form,
    "chunk": chunk_form,
    "parallel": parallel_form,
}


# ------------------------------------------------------------------ gradient


def delta_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """Of the outputs and the end to what is written; of the solution, by the transposed system, to the reads;
    of rows and columns, by their maps and through the states at either end."""
    found = solution(c, S, order)
    scores, columns = found.scores, found.columns
    query = Row("query", c.q, order, do)
    (maps,) = scores.maps([query], columns)
    weights = scores.until_end()
    written = [times(("written", i), x.k, weights) for i, x in enumerate(columns)]
    # of what is written, but for what later reads of the same slice make of it
    dv = [
        plus(("of values", i), product(("of values", i), P.mT, do), product("of values, at end", k, G))
        for i, (P, k) in enumerate(zip(maps, written, strict=True))
    ]
    if c.beta is not None:
        dm = solve(found.L, times("weighed", dv[0], c.beta), transposed=True)
        reads = found.reads._replace(g=into("of reads", torch.neg, dm))
        A = cast("narrow reads", found.maps[0], dtype_of(dm))
        du = plus(("of values", 0), dv[0], product("of values, by reads", A.mT, reads.g))
        dbeta = torch.sum(times(("of values", 0), du, found.missing), -1, True)
    else:
        reads = found.reads._replace(g=solve(found.L, dv[1], transposed=True))
        dm = plus(("of values", 0), dv[0], product("of values, by reads", found.maps[0].mT, reads.g))
        dbeta = None
    rows = [query, reads]
    pulled = scores.pull(rows, columns, [maps, found.maps])
    dla: Array = None
    dcolumns, drows = [], []
    for i, (column, k, d) in enumerate(zip(columns, written, pulled.columns, strict=True)):
        dk = product("of column", column.v, G.mT)
        if c.la is not None:
            ending = like_decay(times("through end", k, dk), c.la)
            dla = added(dla, prefix(ending, False))
        dcolumns.append(plus(("of column", i), d, times("of column", dk, weights)))
    G_start = times("G", G, scores.whole())
    if c.la is not None:
        pairs = torch.sum(times("states", G_start, S), -1)[..., None, :]
        dla = dla + pulled.la + like_decay(pairs, c.la)
    for i, (row, d) in enumerate(zip(rows, pulled.rows, strict=True)):
        start = scores.since_start(row.order)
        x, dx = times("row from start", row.x, start), product("of row", row.g, S.mT)
        G_start = plus("G", G_start, product("to start", x.mT, row.g))
        if c.la is not None:
            starting = like_decay(times("through start", x, dx), c.la)
            dla = dla + suffix(starting, row.order.query_decayed)
        drows.append(plus(("of row", i), d, times("of row", dx, start)))
    dq, dreads = drows
    if c.beta is not None:
        return Gradients(own(dq), dreads + dcolumns[0], own(dm), dla, None, dbeta), G_start
    dk, dx = dcolumns
    return Gradients(own(dq), own(dk), own(dm), dla, None, None, own(dx), own(dreads)), G_start


GRADIENTS: dict[str, BlockGradient] = {"chunk": delta_gradient, "recurrent": walk_gradient}
