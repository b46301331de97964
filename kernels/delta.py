"""The delta rule: a chunk that erases is a chunk that does not, with other values.

    S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = a_t ∘ S_{t-1}             (beta)
    S_t = (diag(a_t) + x_t y_tᵀ) S_{t-1} + k_t v_tᵀ                      (erase)

What a step writes is known once it is known what it reads: m_t = v_t - S̃ᵀ k_t, or e_t = S_{t-1}ᵀ y_t. Those
reads are the outputs of the core with k (or y) for queries, and depend on the values of earlier steps only,
so inside a chunk they solve one unit triangular system. With its solution the chunk is the canonical one
that writes m by the keys β k (or v by k and e by x): outputs, state and gradient follow from the maps of
`scores`.

The system is solved by forward substitution. Products of powers of the matrix (Neumann) lose all digits
where keys are alike: there the powers grow although the solution does not. What remains is the rounding of
the system itself, which its solution magnifies by up to the length of a chunk (β = 2: reflections), and each
chunk hands on: so it is formed and solved in float64, where float32 would leave 1e-5 after one chunk. (An
inverse from float64 that is applied in float32 leaves as much.) Where no step reflects, β |k|² ≤ 1, nothing
is magnified, and float32 is enough.

Layout and vocabulary as in `forms`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .forms import Result, Source, attend, in_blocks, recurrent_form
from .gradients import BlockGradient, Carry, walk_gradient
from .memory import into, own, times
from .order import BEFORE, Order
from .scores import (
    Column,
    Row,
    Scores,
    cast,
    dense,
    dtype_of,
    plus,
    product,
    scores_of,
)
from .steps import Array, Gradients, Slice

# How the reads that erase see the state: the delta rule after the decay of its step, the general form before.
DECAYED = Order("DRA")


def solve(L: Array, b: Array, transposed: bool = False) -> Array:
    """x with (I + L) x = b, or (I + L)ᵀ x = b, L being what is below the diagonal: forward substitution."""
    how = {"upper": transposed, "unitriangular": True}
    A = L.mT if transposed else L
    dtype = dtype_of(L)
    x = cast("right-hand side", b, dtype)
    x = into(("solution", transposed, dtype), torch.linalg.solve_triangular, A, x, **how)
    return cast(("narrow solution", transposed), x, dtype_of(b))


class Chunk(NamedTuple):
    """What a slice writes and reads, with all that is needed again for its gradient."""

    scores: Scores
    reads: Row  # what it erases by
    maps: list[Array]  # of these, with each column
    L: Array  # the system that they solve, [..., C, C]; what is below the diagonal counts
    columns: list[Column]  # what is written, with the solution


class Solved(NamedTuple):
    """A system and its solution, for the gradient."""

    L: Array
    values: Array


def solution(c: Slice, S: Array, known: Solved | None = None) -> Chunk:
    """The system of a slice from the state at its start, and what it writes."""
    scores = scores_of(c.la)
    if c.beta is not None:
        reads, column = Row("reads", c.k, DECAYED), Column("k", c.k, None, c.beta)
        if known is None:
            L = scores.system(reads, column)
            m = solve(L, into("missing", torch.sub, c.v, scores.read(reads, S)))
            known = Solved(L, m)
        return Chunk(scores, reads, [known.L], known.L, [column._replace(v=known.values)])
    reads, k, x = Row("reads", c.y, BEFORE), Column("k", c.k, c.v), Column("x", c.x)
    ((A,),) = scores.maps([reads], [k])
    if known is None:
        L = into("system", torch.neg, scores.system(reads, x))
        e = solve(L, plus("read", scores.read(reads, S), product("read inside", A, c.v)))
        known = Solved(L, e)
    M = into("map of the system", torch.neg, known.L)
    return Chunk(scores, reads, [A, M], known.L, [k, x._replace(v=known.values)])


def carry(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    found = solution(c, S)
    return found.scores.end(S, found.columns, None)


def delta_chunk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    found = solution(c, S)
    row = Row("query", c.q, order)
    (maps,) = found.scores.maps([row], found.columns)
    inside: Array = None
    for P, column in zip(maps, found.columns, strict=True):
        inside = plus("inside", inside, product(("inside", column.name), P, column.v))
    return found.scores.read(row, S) + inside, found.scores.end(S, found.columns, "state")


def chunk_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    return in_blocks(steps, S, order, size, delta_chunk)


def parallel_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    """One system for all steps, T·T numbers per head; then attention to what solves it."""
    c = steps.slice(0, len(steps))
    first, *others = solution(c, S).columns
    plain = c._replace(beta=None, x=None, y=None)
    outs, end = attend(plain._replace(k=first.key, v=first.v), S, order, size)
    for d in others:
        more, state = attend(plain._replace(k=d.key, v=d.v), torch.zeros_like(S), order, size)
        outs, end = [a + b for a, b in zip(outs, more, strict=True)], end + state
    return outs, end


FORMS: dict[str, Callable[[Source, Array, Order, int], Result]] = {
    "recurrent": recurrent_form,
    "chunk": chunk_form,
    "parallel": parallel_form,
}


# ------------------------------------------------------------------ gradient


def delta_gradient(
    c: Slice, S: Array, G: Array, do: Array, order: Order, known: Solved | None = None
) -> tuple[Gradients, Array]:
    """From outputs and the end to what is written; from the solution, by the transposed system, to the reads;
    from all of these, by the maps and through the states at either end, to rows and columns."""
    found = solution(c, S, known)
    scores, columns = found.scores, found.columns
    do = dense("do", do)
    query = Row("query", c.q, order, do)
    (maps,) = scores.maps([query], columns)
    # of what is written, but for what later reads of the same slice make of it
    dv = scores.of_values(maps, columns, do, G)
    if c.beta is not None:
        dm = solve(found.L, dv[0], transposed=True)
        reads = found.reads._replace(g=into("of reads", torch.neg, dm))
    else:
        reads = found.reads._replace(g=solve(found.L, dv[1], transposed=True))
        dm = plus("of values", dv[0], product("of values, by reads", found.maps[0].mT, reads.g))
    pulled, G_start = scores.pull([query, reads], columns, [maps, found.maps], S, G)
    (dq, dreads), dla = pulled.rows, pulled.la
    if c.beta is not None:
        (dkey,) = pulled.columns
        dbeta = torch.sum(times("of weights", c.k, dkey), -1, True)
        dk = dreads + times("of keys", dkey, c.beta)
        return Gradients(dq, dk, dm, dla, None, dbeta), G_start
    dk, dx = pulled.columns
    return Gradients(dq, dk, dm, dla, None, None, dx, dreads), G_start


def sweeps() -> tuple[BlockGradient, Carry]:
    """`delta_gradient` and `carry` for one sequence: the systems that the first sweep solves are kept for the
    second, with what solves them. They are about as much memory as the states between."""
    kept: list[Solved] = []

    def forward(c: Slice, S: Array, order: Order) -> Array:
        found = solution(c, S)
        kept.append(Solved(own(found.L), own(found.columns[-1].v)))
        return found.scores.end(S, found.columns, None)

    def back(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
        return delta_gradient(c, S, G, do, order, kept.pop())

    return back, forward


GRADIENTS: dict[str, BlockGradient] = {"chunk": delta_gradient, "recurrent": walk_gradient}
