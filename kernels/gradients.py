"""The gradient of the recurrence: two sweeps over blocks, in plain torch vocabulary.

With G_t = dL/dS_t, which obeys the same recurrence in reversed time,

    dq_t = S_t do_t     dk_t = G_t v_t     dv_t = G_tᵀ k_t     dlog a_t = rowsum(a_t b_tᵀ ∘ S_{t-1} ∘ G_t)

The decay gradient is taken in its *straddle* form: it sums exactly the pairs (s, t) whose
weight contains a_t. The usual formula, a difference of two cumulative sums of q∘dq and k∘dk,
is the same number in exact arithmetic and loses all digits where decays are strong; this one
has no subtraction, a relative error of rounding size, and is exactly 0 where a_t = 0.

Memory: the state at the start of every block, which is up to four chunks; never a state per token
(the recurrent form keeps them inside one block at a time). Everything here is differentiable again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from .forms import (
    Map,
    Source,
    _cat,
    at,
    carry,
    causal,
    chunk_map,
    cut,
    decay_state,
    joined,
    joins_heads,
    later,
    next_state,
    of_values,
    parted,
    prefix,
    read_state,
    side_of_values,
    sides,
    suffix,
    together,
    values_differ,
    weighted,
)
from .memory import copied, into, lowered, matmul, memory, plus_product, reuses, scaled
from .order import Order
from .scan import end
from .scan_gradient import scan_gradient
from .steps import ALL, Array, Gradients, Saved, Slice, Steps, Wanted, wants_decays
from .tree import (
    Both,
    Side,
    climb_both,
    descend,
    descend_both,
    from_chunk,
    in_chunks,
    leaf,
    own_pairs,
)

# (slice, S at its start, G at its end, dO) -> gradients of the slice, G at its start
BlockGradient = Callable[[Slice, Array, Array, Array, Order], tuple[Gradients, Array]]


def _like(g: Array, l: Array) -> Array:
    """Sum over channels where the decay is shared by them."""
    return g.sum(-1, True) if l.shape[-1] == 1 and g.shape[-1] > 1 else g


# ------------------------------------------------------------------ block by block, in matrices


class Chunks(NamedTuple):
    """Operands of chunks [chunks, ..., C, D], a and b being log-decays, and the gradient of outputs."""

    q: Array
    k: Array
    v: Array
    a: Array
    b: Array
    do: Array
    decays: bool  # whether their gradients are wanted


class Outside(NamedTuple):
    """Gradients through the states at both ends of chunks, as chunks hand them down: of queries, outputs'
    weights, keys, values and log-decays. Where all values decay alike also the sums of queries and keys over
    their gradients, for each head, [..., C, 1]."""

    q: Array
    out: Array
    k: Array
    v: Array
    a: Array
    b: Array
    reads: Array
    writes: Array


# Gradients of q, k, v and log-decays of chunks.
Found = tuple[Array, Array, Array, Array, Array]


def _summed(x: Array, y: Array) -> Array:
    """The sum of products over channels."""
    return torch.sum(into("x dx", torch.mul, x, y), -1, True)


def _outside(x: Chunks, S: Array, G: Array, keys: Side, values: Side) -> tuple[Outside, Array]:
    """And the gradient of the state before the first chunk, in memory that the next call takes.
    values.reads: gradients of outputs, weighed."""
    q, k, do, v, (n, *_, heads, _, _) = keys.reads, keys.writes, values.reads, values.writes, x.v.shape
    join = do.shape[-3] < heads
    if join:
        S, G = joined(S), joined(G)
    totals = [(at(keys.total, i), at(values.total, i)) for i in range(n)]
    rooms = [memory(name, like, n, *like.shape) for name, like in (("before", S), ("after", G))]
    before, after = (list[Array]([None] * n if room is None else room) for room in rooms)
    before[0], after[-1] = copied(S, before[0]), copied(G, after[-1])
    for i in range(1, n):
        before[i] = next_state(before[i - 1], *totals[i - 1], k[i - 1], v[i - 1], before[i])
    for i in reversed(range(1, n)):
        after[i - 1] = next_state(after[i], *totals[i], q[i], do[i], after[i - 1])
    start = next_state(after[0], *totals[0], q[0], do[0], memory("start", G, *G.shape))
    S, G = (
        torch.stack(xs) if room is None else room for room, xs in zip(rooms, (before, after), strict=True)
    )
    if join:  # many columns: faster the other way round
        dq, dk = matmul("dq", S, do.mT).mT, matmul("dk", G, v.mT).mT
    else:
        dq, dk = matmul("dq", do, S.mT), matmul("dk", v, G.mT)
    dv = matmul("dv", k, G)
    of_a: Array = None
    of_b: Array = None
    out: Array = None
    reads: Array = None
    writes: Array = None
    if values_differ(x.b) or (join and x.decays and x.b is not None):
        out = matmul("read", q, S)
    if x.decays and (x.a is not None or x.b is not None):
        pairs = into("passing", torch.mul, S, G)
    if x.decays and x.a is not None:
        of_a = weighted(torch.sum(weighted(pairs, values.total), -1)[..., None, :], keys.total)
    if x.decays and x.b is not None:
        of_b = torch.sum(pairs if keys.total is None else pairs * keys.total.mT, -2, True)
        of_b = _like(parted(of_b * values.total, heads), x.b) if join else _like(of_b, x.b) * values.total
        if not values_differ(x.b):
            # A query times its gradient is the output's times what it read, a key times its own a value
            # times its own.
            reads = _summed(*(parted(z, heads) for z in (do, out))) if join else _summed(x.q, dq)
            writes = _summed(*(parted(z, heads) for z in (v, dv))) if join else _summed(x.k, dk)
    if join:
        dv, start = parted(dv, heads), parted(start, heads)
    return Outside(dq, out, dk, dv, of_a, of_b, reads, writes), start


def straddling(pairs: Array, query_decayed: bool, key_decayed: bool = False) -> Array:
    """Of each step the sum over the pairs [..., C, C], of a query and a key, that are weighed by its decay:
    keys before it (or up to it), queries from it on (or after it); [..., C, 1]."""
    keys = into("pairs before", torch.cumsum, pairs, -1)
    first = (0 if query_decayed else -1) - (0 if key_decayed else 1)
    found = torch.sum(lowered(keys, first), -2)[..., None]
    return found if key_decayed else later(found)


def _where_keys_decay(x: Chunks, m: Map, outside: Outside, order: Order) -> Found:
    dP = matmul("of map", x.do, x.v.mT)
    handed = descend("keys", m.levels, dP, from_chunk(outside.q, outside.k, outside.a))
    dq, dk, da = leaf(handed, m.keys.each, order, x.q, x.k, torch.diagonal(dP, 0, -2, -1)[..., None])
    return dq, dk, plus_product(outside.v, m.map.mT, x.do), da, None


def _where_all_decay_alike(x: Chunks, m: Map, outside: Outside, order: Order) -> Found:
    """Or none do."""
    dP = matmul("of map", x.do, x.v.mT)
    dq, dk, dv = outside.q, outside.k, outside.v
    db: Array = None
    if x.b is None:
        dP = causal(dP, 0, order)
    else:
        dP, dv = into("of products", torch.mul, dP, m.weights), scaled(dv, m.until)
    if x.decays and x.b is not None:
        pairs = into("pairs", torch.mul, dP, m.products)
        db = (
            outside.b
            + suffix(outside.reads, order.query_decayed)
            + prefix(outside.writes, order.key_decayed)
            + straddling(pairs, order.query_decayed, order.key_decayed)
        )
    if dq.shape[-3] < dP.shape[-3]:  # heads that share queries and keys: one product for all
        dP = torch.sum(dP, -3, True)
    dq, dk = plus_product(dq, dP, x.k), plus_product(dk, dP.mT, x.q)
    return dq, dk, plus_product(dv, m.map.mT, x.do), None, db


def _where_values_differ(x: Chunks, both: Both, outside: Outside, order: Order) -> Found:
    keys = from_chunk(outside.q, outside.k, outside.a)
    values = from_chunk(outside.out, outside.v, outside.b)
    keys, values = descend_both(both.levels, keys, values)
    a, b = both.keys.each, both.values.each
    w, dw = own_pairs(x.q, x.k, a, order), own_pairs(x.do, x.v, b, order)
    dq, dk, da = leaf(keys, a, order, x.q, x.k, dw)
    _, dv, db = leaf(values, b, order, x.do, x.v, w)
    return dq, dk, dv, da, db


def chunk_gradients(
    c: Slice, S: Array, G: Array, do: Array, order: Order, size: int, wanted: Wanted = ALL
) -> tuple[list[Gradients], Array]:
    """Of consecutive chunks of `size` steps, and of the state before them: all chunks at once, but for the
    states, which lead from the first to the last, and their gradients, from the last to the first. Those of
    decays are None where none is wanted."""
    la, lb = sides(c)
    decays = wants_decays(wanted)
    q, k, v, a, b, do = (in_chunks(z, size) for z in (c.q, c.k, c.v, la, lb, do))
    x = Chunks(q, k, v, a, b, do, decays)
    if values_differ(lb):
        both = climb_both(*x[:5], order, x.do)
        outside, start = _outside(x, S, G, both.keys, both.values)
        found = _where_values_differ(x, both, outside, order)
    else:
        m = chunk_map(x.q, x.k, la, lb, order, size, keep=True)
        join = joins_heads(m.keys, x.v)
        values = side_of_values(m, of_values("asked", x.do, m.since, join), x.v, join)
        outside, start = _outside(x, S, G, m.keys, values)
        found = (_where_all_decay_alike if la is None else _where_keys_decay)(x, m, outside, order)
    pieces, n = [], c.v.shape[-2]
    for i in range(x.v.shape[0]):
        steps = min(size, n - i * size)
        dq, dk, dv, da, db = (None if z is None else z[i][..., :steps, :] for z in found)
        # One that all share may be in the other.
        da, db = (
            None if l is None or not decays else _like(own if own is not None else other, l)
            for l, own, other in ((c.la, da, db), (c.lb, db, da))
        )
        pieces.append(Gradients(dq, dk, dv, da, db))
    return pieces, start


def chunk_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """Of one chunk."""
    (g,), start = chunk_gradients(c, S, G, do, order, c.v.shape[-2])
    return g, start


# ------------------------------------------------------------------ block by block, step by step


def walk_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """The definition, differentiated: forward through the block keeping its states, then back."""
    n = c.v.shape[-2]
    read: list[Array] = []
    before: list[Array] = []
    faded: list[Array] = []
    overwritten: list[Array] = []
    for t in range(n):
        _, k, v, la, lb, beta, x, y = cut(c, t, t + 1)
        for event in order.events:
            if event == "D":
                before.append(S)
                S = decay_state(S, la, lb)
                faded.append(S)
                S = S if y is None else S + x.mT * read_state(y, before[t])
            elif event == "A":
                overwritten.append(S)
                S = S + k.mT * (v if beta is None else beta * (v - read_state(k, S)))
            else:
                read.append(S)
    grads: list[Gradients] = []
    for t in range(n - 1, -1, -1):
        q, k, v, la, lb, beta, x, y = cut(c, t, t + 1)
        g = do[..., t : t + 1, :]
        dq: Array = None
        dk: Array = None
        dv: Array = None
        dla: Array = None
        dlb: Array = None
        dbeta: Array = None
        dx: Array = None
        dy: Array = None
        for event in order.events[::-1]:
            if event == "R":
                dq = read_state(g, read[t].mT)
                G = G + q.mT * g
            elif event == "A" and beta is None:
                dk, dv = read_state(v, G.mT), read_state(k, G)
            elif event == "A":
                missing = v - read_state(k, overwritten[t])
                dw = read_state(k, G)
                dv = beta * dw
                dbeta = torch.sum(dw * missing, -1, True)
                dk = read_state(beta * missing, G.mT) - read_state(dv, overwritten[t].mT)
                G = G - k.mT * dv
            else:
                if la is not None or lb is not None:
                    pairs = faded[t] * G
                    dla = None if la is None else _like(pairs.sum(-1)[..., None, :], la)
                    dlb = None if lb is None else pairs.sum(-2)[..., None, :]
                erasing: Array = None
                if y is not None:
                    dx, de = read_state(read_state(y, before[t]), G.mT), read_state(x, G)
                    dy, erasing = read_state(de, before[t].mT), y.mT * de
                G = decay_state(G, la, lb)
                G = G if erasing is None else G + erasing
        grads.append(Gradients(dq, dk, dv, dla, dlb, dbeta, dx, dy))
    joined = (None if xs[0] is None else _cat(list(xs)) for xs in zip(*grads[::-1], strict=True))
    return Gradients(*joined), G


# ------------------------------------------------------------------ the two sweeps

GRADIENTS: dict[str, BlockGradient] = {
    "chunk": chunk_gradient,
    "recurrent": walk_gradient,
    "scan": scan_gradient,
}
# (slice, state before it) -> state after it
Carry = Callable[[Slice, Array, Order], Array]
CARRIES: dict[str, Carry] = {"chunk": carry, "recurrent": carry, "scan": end}

# Blocks whose states are all kept; of more than these, some are, and the others are made again.
MANY = 32


def states_at(steps: Source, S: Array, order: Order, size: int, carry: Carry = carry) -> list[Array]:
    """The state at the start of every block, and at the end: length T/size + 1."""
    states = [S]
    for i in range(0, len(steps), size):
        S = carry(steps.slice(i, min(i + size, len(steps))), S, order)
        states.append(S)
    return states


def states_back(
    steps: Source, S: Array, order: Order, size: int, carry: Carry, saved: Saved | None = None
) -> Iterator[tuple[int, Array]]:
    """The start of every block and the state there, the last first. Where none are saved, of many blocks only
    about the root of their number is kept, of states and of those between two of them: a second sweep for
    less memory."""
    starts = range(0, len(steps), size)
    kept = [S]
    if saved is not None:
        apart, rest = divmod(saved.every, size)
        assert not (rest and len(saved.states)), "states were saved inside a block"
        kept += saved.states.unbind()
    else:
        apart = 1 if len(starts) <= MANY else math.isqrt(len(starts))
        for i in starts[:-1]:
            S = carry(steps.slice(i, i + size), S, order)
            if (i // size + 1) % apart == 0:
                kept.append(S)
    for n in reversed(range(len(kept))):
        between = [kept.pop()]
        blocks = starts[n * apart : (n + 1) * apart]
        for i in blocks[:-1]:
            between.append(carry(steps.slice(i, i + size), between[-1], order))
        yield from zip(reversed(blocks), reversed(between), strict=True)


def vjp(
    steps: Steps,
    S: Array,
    do: Array,
    dS: Array,
    order: Order,
    size: int,
    block: BlockGradient = chunk_gradient,
    carry: Carry = carry,
    saved: Saved | None = None,
    wanted: Wanted = ALL,
) -> tuple[Gradients, Array]:
    """Gradients of all operands, and of the initial state, given dO [B,T,H,V] and that of the final state;
    from the states that forward has saved, if it has. Those that are not wanted may be None."""
    run: Any = block
    part = size
    if block is chunk_gradient:
        run, size = functools.partial(chunk_gradients, size=size, wanted=wanted), together(steps.width, size)
    elif block is scan_gradient:
        run = functools.partial(scan_gradient, wanted=wanted)
    if carry is end or saved is not None:
        states = states_back(steps, S, order, size, carry, saved)
    else:
        every = states_at(steps, S, order, size, carry)[:-1]
        states = zip(reversed(range(0, len(steps), size)), reversed(every), strict=True)
    pieces, found, G = [], None, dS
    for i, S_start in states:
        j = min(i + size, len(steps))
        if block is scan_gradient and reuses():
            found = steps.lend_places(i, j, G, found, wanted)
        gs, G = run(steps.slice(i, j), S_start, G, steps.cut_like_values(do, i, j), order)
        gs = gs if isinstance(gs, list) else [gs]
        for start, g in reversed(list(zip(range(i, j, part), gs, strict=True))):
            piece = steps.pull_back(start, min(start + part, j), g)
            if reuses():
                found = steps.place(start, min(start + part, j), piece, found)
            else:
                pieces.append(piece)
    return found or steps.join(pieces[::-1]), G
