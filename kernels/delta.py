"""The delta rule: a chunk that erases is a chunk that does not, with other values.

    S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = a_t ∘ S_{t-1}             (beta)
    S_t = (diag(a_t) + x_t y_tᵀ) S_{t-1} + k_t v_tᵀ                      (erase)

What a step writes is known once it is known what it reads: u_t = β_t (v_t - S̃ᵀ k_t), or e_t = S_{t-1}ᵀ y_t.
Those reads are the outputs of the core with k (or y) for queries, and depend on the values of earlier steps
only, so inside a chunk they solve one unit triangular system. With its solution the chunk is the canonical
one that writes k u (or k v and x e): outputs, state and gradient are those of `forms` and `gradients`.

The system is solved by forward substitution. Products of powers of the matrix (Neumann) lose all digits
where keys are alike: there the powers grow although the solution does not. What remains is the rounding of
the system itself, which its solution magnifies by up to the length of a chunk (β = 2: reflections), and each
chunk hands on: so it is formed and solved in float64, where float32 would leave 1e-5 after one chunk.

Layout and vocabulary as in `forms`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import forms
from .forms import (
    Result,
    Source,
    _cat,
    attend,
    chunk,
    decayed,
    halves,
    in_blocks,
    pad_time,
    power_of_two,
    prefix,
    read_entry,
    recurrent_form,
    suffix,
    weights,
    whole,
)
from .gradients import BlockGradient, chunk_gradient, plus, walk_gradient
from .order import BEFORE, Order
from .steps import Array, Gradients, Slice

# How the reads that erase see the state: the delta rule after the decay of its step, the general form before.
DECAYED = Order("DRA")


def scores(c: Slice, order: Order) -> Array:
    """The attention map inside a slice, [..., C, C], where reads precede writes (the order is strict): from
    segment sums or, for decays per key, the tree."""
    if c.la is None or c.la.shape[-1] == 1:
        return weights(c, 0, order)
    n = c.k.shape[-2]
    padded = power_of_two(n)
    q, k, la = (pad_time(x, padded) for x in (c.q, c.k, c.la))
    # Of blocks of one step, which read nothing of their own; rows of later levels hold those of their block.
    P = torch.zeros_like(torch.sum(q * k, -1, True))
    h = 1
    while h < padded:
        (_, q_r), (k_l, _), (la_l, la_r), (P_l, P_r) = (halves(x, h) for x in (q, k, la, P))
        reads = decayed(q_r, prefix(la_r, order.query_decayed))
        writes = decayed(k_l, suffix(la_l, order.key_decayed))
        across = reads @ writes.mT
        # Decays may tell heads apart that share queries and keys.
        P_l, P_r = P_l.expand(*across.shape), P_r.expand(*across.shape)
        P = whole(_cat([P_l, torch.zeros_like(P_l)], -1), _cat([across, P_r], -1))
        h *= 2
    return P[..., :n, :n]


def _wide(x: Array) -> Array:
    return x.double() if hasattr(x, "dtype") else x  # field elements have none


def solve(L: Array, b: Array, transposed: bool = False) -> Array:
    """x with (I + L) x = b, or (I + L)ᵀ x = b, for L strictly lower triangular: forward substitution."""
    if transposed:
        x = torch.linalg.solve_triangular(L.mT, _wide(b), upper=True, unitriangular=True)
    else:
        x = torch.linalg.solve_triangular(L, _wide(b), upper=False, unitriangular=True)
    return x.to(b.dtype) if hasattr(b, "dtype") else x


def _reads(c: Slice) -> tuple[Slice, Order]:
    """The slice whose queries are what this one erases by, and their order."""
    if c.beta is not None:
        return Slice(c.k, c.k, c.v, c.la), DECAYED
    return Slice(c.y, c.k, c.v, c.la), BEFORE


def _system(c: Slice) -> Array:
    """L [..., C, C], strictly lower triangular, of the system that a slice's reads solve."""
    k, beta, x, y = (None if z is None else _wide(z) for z in (c.k, c.beta, c.x, c.y))
    c = c._replace(k=k, beta=beta, x=x, y=y)  # decays damp errors: theirs need not be so small
    reads, order = _reads(c)
    if c.beta is not None:
        return c.beta * scores(reads, order)
    return scores(reads._replace(k=c.x), order) * -1


def writes(c: Slice, S: Array, L: Array) -> list[Slice]:
    """Slices that do not erase: their states and outputs, of the first from S and of others from zero, add up
    to those of c, whose system is L."""
    reads, order = _reads(c)
    plain = c._replace(beta=None, x=None, y=None)
    entry = read_entry(reads, S, order)
    if c.beta is not None:
        return [plain._replace(v=solve(L, c.beta * (c.v - entry)))]
    e = solve(L, entry + scores(reads, order) @ c.v)
    return [plain, plain._replace(k=c.x, v=e)]


def carry(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    first, *others = writes(c, S, _system(c))
    end = forms.carry(first, S, order)
    for d in others:
        end = end + forms.carry(d, torch.zeros_like(S), order)
    return end


def delta_chunk(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    first, *others = writes(c, S, _system(c))
    o, end = chunk(first, S, order)
    for d in others:
        more, state = chunk(d, torch.zeros_like(S), order)
        o, end = o + more, end + state
    return o, end


def chunk_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    return in_blocks(steps, S, order, size, delta_chunk)


def parallel_form(steps: Source, S: Array, order: Order, size: int) -> Result:
    """One system for all steps, T·T numbers per head; then attention to the values that solve it."""
    c = steps.slice(0, len(steps))
    first, *others = writes(c, S, _system(c))
    outs, end = attend(first, S, order, size)
    for d in others:
        more, state = attend(d, torch.zeros_like(S), order, size)
        outs, end = [a + b for a, b in zip(outs, more, strict=True)], end + state
    return outs, end


FORMS: dict[str, Callable[[Source, Array, Order, int], Result]] = {
    "recurrent": recurrent_form,
    "chunk": chunk_form,
    "parallel": parallel_form,
}


# ------------------------------------------------------------------ gradient


def delta_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """Canonical gradients of what is written; of the solution, by the transposed system, to the reads; of
    these, canonical gradients again."""
    reads, read_order = _reads(c)
    none, zero = torch.zeros_like(G), torch.zeros_like(S)
    L = _system(c)
    first, *others = writes(c, S, L)
    g, G_start = chunk_gradient(first, S, G, do, order)
    if c.beta is not None:
        reads = reads._replace(v=first.v)
        missing = c.v - chunk(reads, S, read_order)[0]
        t = solve(L, g.v, transposed=True)
        dv = c.beta * t
        r, into_start = chunk_gradient(reads, S, none, dv * -1, read_order)
        dbeta = torch.sum(t * missing, -1, True)
        # t holds already what later reads take from a step's value: r.v is not added
        more = Gradients(None, r.q + r.k, dv, r.la, None, dbeta)
        return plus(g._replace(v=None), more), G_start + into_start
    (second,) = others
    h, _ = chunk_gradient(second, zero, G, do, order)
    t = solve(L, h.v, transposed=True)
    r, into_start = chunk_gradient(reads, S, none, t, read_order)
    e, _ = chunk_gradient(reads._replace(k=c.x, v=second.v), zero, none, t, read_order)
    found = plus(g, Gradients(h.q, r.k, r.v, h.la, None, None, h.k + e.k, r.q + e.q))
    return plus(found, Gradients(None, None, None, plus(r, e).la, None)), G_start + into_start


GRADIENTS: dict[str, BlockGradient] = {"chunk": delta_gradient, "recurrent": walk_gradient}
