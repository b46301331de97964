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

from collections.abc import Callable
from typing import NamedTuple

import torch

from .forms import Result, Source, attend, in_blocks, prefix, recurrent_form, suffix
from .gradients import BlockGradient, walk_gradient
from .order import BEFORE, Order
from .scores import Column, Row, Scores, added, cast, like_decay, scores_of
from .scores import wide as _wide
from .steps import Array, Gradients, Slice

# How the reads that erase see the state: the delta rule after the decay of its step, the general form before.
DECAYED = Order("DRA")


def solve(L: Array, b: Array) -> Array:
    """x with (I + L) x = b for L strictly lower triangular: forward substitution."""
    return torch.linalg.solve_triangular(L, b, upper=False, unitriangular=True)


def inverse(L: Array) -> Array:
    """N, strictly lower triangular, with (I + L) (I + N) = I."""
    return solve(L, L) * -1


def solved(N: Array, b: Array, transposed: bool = False) -> Array:
    """(I + N) b or (I + N)ᵀ b."""
    x = _wide(b)
    return cast(x + (N.mT if transposed else N) @ x, b)


class Chunk(NamedTuple):
    """What a slice writes and reads, with all that is needed again for its gradient."""

    scores: Scores
    reads: Row  # what it erases by
    maps: list[Array]  # of these, with each column
    N: Array  # of their system
    columns: list[Column]  # what is written, with the solution
    missing: Array  # of the delta rule: v - S̃ᵀ k


def solution(c: Slice, S: Array, order: Order) -> Chunk:
    """The system of a slice from the state at its start, and what it writes."""
    scores = scores_of(c.la)
    if c.beta is not None:
        reads, k = Row(c.k, DECAYED), Column(c.k)
        ((A,),) = scores.maps([reads._replace(x=_wide(c.k))], [k])
        N = inverse(A * c.beta.mT)
        m = solved(N, c.v - from_start(scores, reads, S))
        return Chunk(scores, reads, [A], N, [Column(c.k, c.beta * m)], m)
    reads = Row(c.y, BEFORE)
    ((A,),) = scores.maps([reads], [Column(c.k)])
    ((M,),) = scores.maps([reads._replace(x=_wide(c.y))], [Column(c.x)])
    N = inverse(M * -1)
    e = solved(N, from_start(scores, reads, S) + A @ c.v)
    return Chunk(scores, reads, [A, M], N, [Column(c.k, c.v), Column(c.x, e)], None)


def weighed(x: Array, weights: Array) -> Array:
    return x if weights is None else x * weights


def from_start(scores: Scores, row: Row, S: Array) -> Array:
    """What a row reads of the state at the start of its slice."""
    return weighed(row.x, scores.since_start(row.order)) @ S


def end_state(found: Chunk, S: Array) -> Array:
    """The state after a slice, from that at its start."""
    end, weights = found.scores.faded(S), found.scores.until_end()
    for column in found.columns:
        end = end + weighed(column.k, weights).mT @ column.v
    return end


def carry(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    return end_state(solution(c, S, order), S)


def delta_chunk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    found = solution(c, S, order)
    row = Row(c.q, order)
    o = from_start(found.scores, row, S)
    (maps,) = found.scores.maps([row], found.columns)
    for P, column in zip(maps, found.columns, strict=True):
        o = o + P @ column.v
    return o, end_state(found, S)


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
    query = Row(c.q, order, do)
    (maps,) = scores.maps([query], columns)
    end = scores.until_end()
    written = [weighed(column.k, end) for column in columns]
    # of what is written, but for what later reads of the same slice make of it
    dv = [P.mT @ do + k @ G for P, k in zip(maps, written, strict=True)]
    if c.beta is not None:
        dm = solved(found.N, c.beta * dv[0], transposed=True)
        reads = found.reads._replace(g=dm * -1)
        du = dv[0] + cast(found.maps[0], dm).mT @ reads.g
        dbeta = torch.sum(du * found.missing, -1, True)
    else:
        reads = found.reads._replace(g=solved(found.N, dv[1], transposed=True))
        dm = dv[0] + found.maps[0].mT @ reads.g
        dbeta = None
    rows = [query, reads]
    pulled = scores.pull(rows, columns, [maps, found.maps])
    G_start = scores.faded(G)
    dla: Array = None
    if c.la is not None:
        pairs = torch.sum(G_start * S, -1)[..., None, :]
        dla = added(pulled.la, like_decay(pairs, c.la))
    drows, dcolumns = [], []
    for row, d in zip(rows, pulled.rows, strict=True):
        start = scores.since_start(row.order)
        x, dx = weighed(row.x, start), row.g @ S.mT
        G_start = G_start + x.mT @ row.g
        if c.la is not None:
            dla = dla + suffix(like_decay(x * dx, c.la), row.order.query_decayed)
        drows.append(d + weighed(dx, start))
    for column, k, d in zip(columns, written, pulled.columns, strict=True):
        dk = column.v @ G.mT
        if c.la is not None:
            dla = dla + prefix(like_decay(k * dk, c.la), False)
        dcolumns.append(d + weighed(dk, end))
    if c.beta is not None:
        return Gradients(drows[0], drows[1] + dcolumns[0], dm, dla, None, dbeta), G_start
    return Gradients(drows[0], dcolumns[0], dm, dla, None, None, dcolumns[1], drows[1]), G_start


GRADIENTS: dict[str, BlockGradient] = {"chunk": delta_gradient, "recurrent": walk_gradient}
