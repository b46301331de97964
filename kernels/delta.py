"""The delta rule: a chunk that erases is a chunk that does not, with other values.

    S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = a_t ∘ S_{t-1}             (beta)
    S_t = (diag(a_t) + x_t y_tᵀ) S_{t-1} + k_t v_tᵀ                      (erase)

What a step writes is known once it is known what it reads: m_t = v_t - S̃ᵀ k_t, or e_t = S_{t-1}ᵀ y_t. Those
reads are the outputs of the core with k (or y) for queries, and depend on the values of earlier steps only,
so inside a chunk they solve one unit triangular system. With its solution the chunk is the canonical one
that writes m by the keys β k (or v by k and e by x): outputs, state and gradient follow from the maps of
`scores`. Of several chunks all systems and maps are made at once; only what they solve and the states between
them (`passing`) follow one from the other, and in the gradient from the last to the first.

The system is solved by forward substitution. Products of powers of the matrix (Neumann) lose all digits
where keys are alike: there the powers grow although the solution does not. What remains is the rounding of
the system itself, which its solution magnifies by up to the length of a chunk (β = 2: reflections), and each
chunk hands on: so it is formed and solved in float64, where float32 would leave 1e-5 after one chunk. (An
inverse from float64 that is applied in float32 leaves as much.) Where no step reflects, β |k|² ≤ 1, nothing
is magnified, and float32 is enough.

Layout and vocabulary as in `forms`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from . import forms, gradients
from .forms import Result, Source, attend, in_blocks, recurrent_form, width_of
from .gradients import BlockGradient, Carry, walk_gradient
from .memory import (
    cast,
    copied,
    dtype_of,
    into,
    lent,
    memory,
    own,
    places,
    plus_product,
    reuses,
    side_by_side,
    times,
    with_product,
)
from .order import BEFORE, Order
from .passing import Passing, flat
from .scores import Column, Row, Scores, dense, plus, product, scores_of
from .steps import Array, Gradients, Saved, Slice, Steps
from .tree import in_chunks

# Steps of a chunk: fewer than where nothing is erased, as there is more to do for each pair of them; as many
# where heads are so few and tiny that it is calls that take the time.
CHUNK, CHUNK_OF_TINY, TINY = 32, 64, 256

# Numbers of an operand in a block of several chunks, and the most chunks, as in `forms`.
TOGETHER, MOST_TOGETHER = 1 << 17, 8

# How the reads that erase see the state: the delta rule after the decay of its step, the general form before.
DECAYED = Order("DRA")


def solve(L: Array, b: Array, transposed: bool = False, out: Array = None) -> Array:
    """x with (I + L) x = b, or (I + L)ᵀ x = b, L being what is below the diagonal: forward substitution. In
    this room, or (None) in memory of its own."""
    how = {"upper": transposed, "unitriangular": True}
    A = L.mT if transposed else L
    dtype = dtype_of(b)
    if dtype == dtype_of(L):
        return torch.linalg.solve_triangular(A, b, out=out, **how)
    b = cast("right-hand side", b, dtype_of(L))
    x = into(("solution", transposed), torch.linalg.solve_triangular, A, b, **how)
    return x.to(dtype) if out is None else out.copy_(x)


def solved(columns: list[Column], values: Array) -> list[Column]:
    """With the solution as what it is."""
    *others, last = columns
    return [*others, last._replace(v=values)]


class Erasing(NamedTuple):
    """What chunks [chunks, ..., C, D] erase by and what they write, but for what depends on a state."""

    scores: Scores
    reads: Row  # what it erases by
    maps: list[Array]  # of these, with each column
    L: Array  # the system that they solve, [chunks, ..., C, C]; what is below the diagonal counts
    columns: list[Column]  # what is written


def chunked(c: Slice, size: int) -> Slice:
    """Consecutive chunks [chunks, ..., C, D] of a slice."""
    return Slice(*(in_chunks(x, size) for x in c))


def written(c: Slice) -> list[Column]:
    """What chunks write; the values of the last are the solution."""
    if c.beta is not None:
        return [Column("k", c.k, None, c.beta)]
    return [Column("k", c.k, c.v), Column("x", c.x)]


def erasing(c: Slice) -> Erasing:
    """Of chunks."""
    scores, columns = scores_of(c.la), written(c)
    if c.beta is not None:
        reads = Row("reads", c.k, DECAYED)
        L = scores.system(reads, *columns)
        return Erasing(scores, reads, [L], L, columns)
    reads, (k, x) = Row("reads", c.y, BEFORE), columns
    ((A,),) = scores.maps([reads], [k])
    L = into("system", torch.neg, scores.system(reads, x))
    return Erasing(scores, reads, [A, into("map of the system", torch.neg, L)], L, columns)


def solution(c: Slice, e: Erasing, S: Array, query: Row | None = None) -> tuple[Array, Array, Array]:
    """What one chunk after the other writes, from the state that the one before leaves; what a row reads of
    the states before chunks, if it is given; and the last state."""
    n, lead = c.v.shape[0], c.v.shape[1:-2]
    if c.beta is not None:  # what is missing, v - Sᵀ k
        sign, known = -1, into("missing", copied, c.v)
    else:
        sign, known = 1, product("read", e.maps[0], c.v)
    known, reads, L = (list(flat(x, lead)) for x in (known, e.scores.from_start(e.reads), e.L))
    values = [list(flat(x.v, lead)) for x in e.columns[:-1]]
    states = Passing(e.scores, e.columns, lead)
    shape, state, S = c.v.shape, S.shape, S.reshape(-1, *S.shape[-2:])
    rooms = [memory(x, S, n, *known[0].shape) for x in ("solutions", "outputs")]
    found, outs = (places(x, n) for x in rooms)
    (there,) = places(memory("state", S, 1, *S.shape), 1)
    S = copied(S, there)
    asks = [] if query is None else list(flat(e.scores.from_start(query), lead))
    for i in range(n):
        b = with_product(known[i], reads[i], S, known[i] if reuses() else None, sign)
        found[i] = solve(L[i], b, out=found[i])
        if query is not None:
            outs[i] = torch.matmul(asks[i], S, out=outs[i])
        S = states.after(i, S, [*(v[i] for v in values), found[i]], there)
    o = None if query is None else side_by_side(rooms[1], outs).reshape(*shape)
    return side_by_side(rooms[0], found).reshape(*shape), o, S.reshape(*state)


def states_until(scores: Scores, columns: list[Column], S: Array, n: int) -> Array:
    """The state before the first chunk, and those after the next n."""
    lead = columns[0].v.shape[1:-2]
    shape, S = S.shape, S.reshape(-1, *S.shape[-2:])
    states, values = Passing(scores, columns, lead), [list(flat(x.v, lead)) for x in columns]
    room = memory("states", S, n + 1, *S.shape)
    found = places(room, n + 1)
    found[0] = copied(S, found[0])
    for i in range(n):
        found[i + 1] = states.after(i, found[i], [v[i] for v in values], found[i + 1])
    return side_by_side(room, found).reshape(n + 1, *shape)


def chunks(c: Slice, S: Array, order: Order, size: int) -> Result:
    """Consecutive chunks of `size` steps: their systems, outputs and maps all at once; states and solutions
    one after the other."""
    n = c.v.shape[-2]
    size = min(size, n)
    c = chunked(c, size)
    e, row = erasing(c), Row("query", c.q, order)
    values, o, S = solution(c, e, S, row)
    leave(values, size, n)
    columns = solved(e.columns, values)
    (maps,) = e.scores.maps([row], columns)
    for P, column in zip(maps, columns, strict=True):
        o = plus_product(o, P, column.v)
    return [in_time("outputs", o, size, n)], S


def leave(solution: Array, size: int, n: int) -> None:
    """Of chunks, where the gradient is to find it (`steps.Saved`), if anywhere."""
    room = lent("solution")
    if room is not None:
        for i, x in enumerate(solution):
            there = room[..., i * size : (i + 1) * size, :]
            there.copy_(x[..., : there.shape[-2], :])


def left(size: int) -> Array:
    """What forward has left of the solution of a slice, in chunks of `size` steps."""
    return dense("left", in_chunks(lent("solution"), size))


def in_time(name: Hashable, x: Array, size: int, n: int) -> Array:
    """n steps [..., n, D] of chunks [chunks, ..., C, D] of so many of them each."""
    x = into(("in time", name), copied, torch.movedim(x[..., :size, :], 0, -3))
    return x.reshape(*x.shape[:-3], x.shape[-3] * size, x.shape[-1])[..., :n, :]


def delta_chunk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """One chunk."""
    (o,), S = chunks(c, S, order, c.v.shape[-2])
    return o, S


def carry(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    c = chunked(c, c.v.shape[-2])
    return own(solution(c, erasing(c), S)[2])


def carry_solved(c: Slice, S: Array, order: Order, size: int) -> Array:
    """The state after consecutive chunks of `size` steps whose solution forward has left."""
    values, c = left(size), chunked(c, size)
    return own(states_until(scores_of(c.la), solved(written(c), values), S, values.shape[0])[-1])


def chunk_length(heads: int, width: int) -> int:
    """Steps of a chunk, for so many heads (of all batches) of keys or values that are so wide."""
    return CHUNK_OF_TINY if heads * (width + 16) <= TINY else CHUNK


def together(width: int, size: int) -> int:
    """The steps of as many chunks of this size as are taken at a time, of operands that have so many numbers
    in a step."""
    return forms.together(width, size, TOGETHER, MOST_TOGETHER)


def _block(steps: Source, size: int) -> int:
    """Steps to take at a time."""
    return min(together(width_of(steps), size), -(-len(steps) // size) * size)


def chunk_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    body = functools.partial(chunks, size=size)
    return in_blocks(steps, S, order, _block(steps, size), body)


def parallel_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    """One system for all steps, T·T numbers per head; then attention to what solves it."""
    c = steps.slice(0, len(steps))
    one = Slice(*(None if x is None else x[None] for x in c))
    e = erasing(one)
    columns = solved(e.columns, solution(one, e, S)[0])
    first, *others = (x._replace(k=x.key[0], v=x.v[0]) for x in columns)
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


class Back(NamedTuple):
    """Gradients through the states between chunks, [chunks, ...]."""

    values: list[Array]  # of what each column writes, but for what later reads of the same chunk make of it
    reads: Array  # of what is read to be erased
    after: Array  # of what chunks write to the states after them
    start: Array  # of the state before the first


def back(e: Erasing, query: Row, of_values: list[Array], G: Array, sign: int) -> Back:
    """From the last chunk to the first, given the gradients of values by outputs alone, and of the last
    state."""
    n, *lead = query.g.shape[:-2]
    shape, state, G = query.g.shape, G.shape, G.reshape(-1, *G.shape[-2:])
    asks, do, reads, L = (
        list(flat(x, lead)) for x in (e.scores.from_start(query), query.g, e.scores.from_start(e.reads), e.L)
    )
    states, found = Passing(e.scores, e.columns, lead), [list(flat(x, lead)) for x in of_values]
    rooms = memory("of states", G, n, *G.shape), memory("of what is read", G, n, *do[0].shape)
    after, of_reads = (places(x, n) for x in rooms)
    (start,) = places(memory("of the state", G, 1, *G.shape), 1)
    for i in reversed(range(n)):
        after[i] = states.written(i, G, after[i])
        for d, k in zip(found, states.keys, strict=True):
            d[i] = with_product(d[i], k[i], after[i], d[i] if reuses() else None)
        of_reads[i] = solve(L[i], found[-1][i], transposed=True, out=of_reads[i])
        G = states.passed(i, after[i], start)
        G = with_product(G, asks[i].mT, do[i], start)
        G = with_product(G, reads[i].mT, of_reads[i], start, sign)
    of_values = [side_by_side(x if reuses() else None, d) for x, d in zip(of_values, found, strict=True)]
    return Back(
        [x.reshape(*shape) for x in of_values],
        side_by_side(rooms[1], of_reads).reshape(*shape),
        side_by_side(rooms[0], after).reshape(n, *state),
        G.reshape(*state),
    )


def delta_gradients(
    c: Slice, S: Array, G: Array, do: Array, order: Order, size: int, known: Array = None
) -> tuple[Gradients, Array]:
    """Of consecutive chunks of `size` steps: from outputs and the end to what is written; from the solution,
    by the transposed system, to the reads; from all of these, by the maps and through the states at either
    end, to rows and columns. The solution may be known."""
    n = c.v.shape[-2]
    size = min(size, n)
    c, do = chunked(c, size), dense("do", in_chunks(do, size))
    e = erasing(c)
    known = solution(c, e, S)[0] if known is None else known
    scores, columns = e.scores, solved(e.columns, known)
    states = states_until(scores, columns, S, known.shape[0] - 1)
    query = Row("query", c.q, order, do)
    (maps,) = scores.maps([query], columns)
    of_values = [product(("of values", x.name), P.mT, do) for P, x in zip(maps, columns, strict=True)]
    sign = 1 if c.beta is None else -1
    through = back(e, query, of_values, G, sign)
    g = through.reads
    reads = e.reads._replace(g=g if sign > 0 else into("of reads", torch.neg, g))
    pulled = scores.pull([query, reads], columns, [maps, e.maps], states, through.after)
    (dq, dreads), dla = pulled.rows, pulled.la
    if c.beta is not None:
        (dkey,) = pulled.columns
        dbeta = torch.sum(times("of weights", c.k, dkey), -1, True)
        dk = plus("of keys", dreads, times("of keys", dkey, c.beta))
        found = Gradients(dq, dk, g, dla, None, dbeta)
    else:
        dk, dx = pulled.columns
        dv = plus_product(through.values[0], e.maps[0].mT, g)
        found = Gradients(dq, dk, dv, dla, None, None, dx, dreads)
    in_steps = (None if x is None else in_time(name, x, size, n) for name, x in found._asdict().items())
    return Gradients(*in_steps), through.start


def delta_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """Of one chunk."""
    return delta_gradients(c, S, G, do, order, c.v.shape[-2])


def sweeps(size: int) -> tuple[BlockGradient, Carry]:
    """The gradient and the state after consecutive chunks of `size` steps, for one sequence: what solves the
    systems is kept from the first sweep for the second."""
    kept: list[Array] = []

    def forward(c: Slice, S: Array, order: Order) -> Array:
        c = chunked(c, min(size, c.v.shape[-2]))
        values, _, S = solution(c, erasing(c), S)
        kept.append(own(values))
        return own(S)

    def gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
        return delta_gradients(c, S, G, do, order, size, kept.pop())

    return gradient, forward


def from_saved(size: int) -> tuple[BlockGradient, Carry]:
    """The same from what forward has left."""

    def gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
        return delta_gradients(c, S, G, do, order, size, left(min(size, c.v.shape[-2])))

    return gradient, functools.partial(carry_solved, size=size)


def vjp(
    steps: Steps, S: Array, do: Array, dS: Array, order: Order, size: int, saved: Saved | None = None
) -> tuple[Gradients, Array]:
    """`gradients.vjp` in chunks of this size."""
    block, carry = sweeps(size) if saved is None else from_saved(size)
    return gradients.vjp(steps, S, do, dS, order, _block(steps, size), block, carry, saved)


GRADIENTS: dict[str, BlockGradient] = {"chunk": delta_gradient, "recurrent": walk_gradient}
