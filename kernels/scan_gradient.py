"""The gradient of a block by two scans: all its states, and back from its end all gradients of them.

    dq_t = S_t do_t     dk_t = G_t v_t     dv_t = G_tᵀ k_t     dlog a_t = rowsum(a_t b_tᵀ ∘ S_{t-1} ∘ G_t)

Sums over values and over heads that share a key are taken inside the block, so that nothing as large as the
states leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .memory import into, lent, memory, once, own, reuses
from .order import Order
from .scan import by_value, from_lanes, lockstep, read, scanned_states, unless_one, write
from .steps import ALL, Array, Gradients, Slice, Wanted, wants_decays


def over_values(name: str, x: Array, y: Array, shared: bool) -> Array:
    """Sums over values, and over heads where they share a key, of x [C, B, K, H, V] times y [C, B, 1, H, V]:
    [B, H or 1, C, K]."""
    n, b, keys, h, v = x.shape
    if shared:  # (a matrix times a column takes ten times as long as a row times a matrix)
        dots = into(name, torch.matmul, y.reshape(n * b, 1, h * v), x.reshape(n * b, keys, h * v).mT)
        return from_lanes(dots.reshape(n, b, 1, keys))
    products = into((name, "products"), torch.mul, x, y)
    return _of_keys(products, False)


def _of_keys(pairs: Array, shared: bool) -> Array:
    """Sums over values, and over keys where they share a decay: [B, H, C, K or 1]."""
    of_keys = pairs[..., 0] if pairs.shape[-1] == 1 else torch.sum(pairs, -1)
    return from_lanes(torch.sum(of_keys, 2, True).mT if shared else of_keys.mT)


def _over_keys(pairs: Array) -> Array:
    return pairs[:, :, 0] if pairs.shape[2] == 1 else torch.sum(pairs, 2)


Changes = dict[str, Callable[[Array], Array]]


def _between(at: int, events: str, first: Array, last: Array, changes: Changes) -> Array:
    """A state after so many events, from those before and after all of them; what an event changes is made
    from the first."""
    if not any(e in changes for e in events[at:]):
        return last
    for e in events[:at]:
        first = changes[e](first) if e in changes else first
    return first


def adjoint_states(c: Slice, G: Array, do: Array, d: Array, order: Order) -> tuple[Array, Array]:
    """The gradients of the states before and after each step: two of [C, B, K, H, V]."""
    G = G.transpose(1, 2)
    q, g, n = unless_one(c.q), by_value(do), do.shape[-2]
    room = memory("gradients of states", G, n + 1, *G.shape)
    early = d if order.query_decayed else None
    numbers = math.prod(G.shape)
    if room is None:
        before = lockstep(d, write(q, g, early), G, numbers, True)
        return before, torch.cat([before[1:], G[None]], 0)
    room[n] = G
    before = once(_but_last, room)
    lockstep(d, write(q, g, early, before), room[n], numbers, True, "back", out=before)
    return before, room[1:]


def _but_last(x: Array) -> Array:
    return x[:-1]


def scan_gradient(
    c: Slice, S: Array, G: Array, do: Array, order: Order, wanted: Wanted = ALL
) -> tuple[Gradients, Array]:
    """The gradient of a block: from the state before it, and the gradient of that after it. Those of queries,
    keys and decays are None where they are not wanted."""
    d, states = scanned_states(c, S, order)
    before, after = adjoint_states(c, G, do, d, order)
    q, k, v, g = unless_one(c.q), unless_one(c.k), by_value(c.v), by_value(do)

    def fading(name: str) -> Callable[[Array], Array]:
        return lambda x: x if d is None else into(name, torch.mul, x, d)

    def adding(a: Array, b: Array, room: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def added(x: Array) -> Array:
            return torch.add(x, b, out=room(x)) if a is None else torch.addcmul(x, a, b, out=room(x))

        return added

    def apart(x: Array) -> Array:
        return memory("added", x, *x.shape)

    def in_place(x: Array) -> Array:
        return x if reuses() else None

    changes: Changes = {"D": fading("faded"), "A": adding(k, v, apart)}

    def state(at: int) -> Array:
        return _between(at, order.events, states[:-1], states[1:], changes)

    def gradient(at: int, room: Callable[[Array], Array]) -> Array:
        back: Changes = {"D": fading("faded back"), "R": adding(q, g, room)}
        return _between(3 - at, order.events[::-1], after, before, back)

    start = own(before[0].transpose(1, 2))
    dq: Array = None
    if "q" in wanted:
        dq = over_values("dq", state(order.events.index("R")), g, c.q.shape[1] == 1)
    dla: Array = None
    dlb: Array = None
    if d is not None and wants_decays(wanted):
        at = order.events.index("D")
        # A state times its gradient is the same before a decay and after it: where both are there already.
        at = 3 if at == 2 else at
        x = state(at)
        place = lent("dlb") if x.shape[2] == 1 and c.la is None else None
        pairs = torch.mul(x, gradient(at, apart), out=in_place(x) if place is None else by_value(place))
        dla = None if c.la is None else _of_keys(pairs, c.la.shape[-1] == 1)
        dlb = None if c.lb is None else from_lanes(_over_keys(pairs))
    place = lent("dv") if k is None else None
    # The last that the gradients of states are for.
    written = gradient(order.events.index("A"), in_place if place is None else lambda x: by_value(place))
    dk = over_values("dk", written, v, c.k.shape[1] == 1) if "k" in wanted else None
    dv = read("dv", k, written)
    return Gradients(dq, dk, dv, dla, dlb), start
