"""The gradient of a block by two scans: all its states, and back from its end all gradients of them.

    dq_t = S_t do_t     dk_t = G_t v_t     dv_t = G_tᵀ k_t     dlog a_t = rowsum(a_t b_tᵀ ∘ S_{t-1} ∘ G_t)

Sums over values and over heads that share a key are taken inside the block, so that nothing as large as the
states leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .memory import into, memory, own
from .order import Order
from .scan import by_key, by_value, lockstep, read, scanned_states, write
from .steps import Array, Gradients, Slice


def over_values(name: str, x: Array, y: Array, shared: bool) -> Array:
    """Sums over values, and over heads where they share a key, of x [C, B, K, H, V] times y [C, B, 1, H, V]:
    [B, H or 1, C, K]."""
    n, b, keys, h, v = x.shape
    if shared:
        dots = into(name, torch.matmul, x.reshape(n, b, keys, h * v), y.reshape(n, b, h * v, 1))
        return dots.reshape(n, b, 1, keys).transpose(0, 1).transpose(1, 2)
    return _from_lanes(torch.sum(into("products", torch.mul, x, y), -1).mT)


def _from_lanes(x: Array) -> Array:
    """[C, B, H, D] to [B, H, C, D]."""
    return x.transpose(0, 1).transpose(1, 2)


def _between(at: int, events: str, ends: tuple[Array, Array], changes: dict[str, Callable[[Array], Array]]) -> Array:
    """A state between events, `at` of which are before it, from those before and after all of them. Changes
    are made in the order of the events, from the first end."""
    first, last = ends
    if not any(e in changes for e in events[at:]):
        return last
    for e in events[:at]:
        first = changes[e](first) if e in changes else first
    return first


def scan_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """The gradient of a block: from the state before it, and the gradient of that after it."""
    d, states = scanned_states(c, S, order)
    q, k, v, g = by_key(c.q), by_key(c.k), by_value(c.v), by_value(do)
    n, numbers = v.shape[0], math.prod(S.shape)
    room = memory("gradients of states", S, n, *S.transpose(1, 2).shape)
    early = d if order.query_decayed else None
    G = G.transpose(1, 2)
    before = lockstep(d, write("gradients of states", q, g, early, room), G, numbers, True, "back")
    after = torch.cat([before[1:], G[None]], 0)

    def fading(x: Array) -> Array:
        return x if d is None else into("fading", torch.mul, x, d)

    def at(event: str) -> tuple[Array, Array]:
        """The state before an event, and the gradient of the state after it."""
        i = order.events.index(event)
        state = _between(
            i, order.events, (states[:-1], states[1:]), {"D": fading, "A": lambda x: x + k * v}
        )
        later = _between(
            2 - i, order.events[::-1], (after, before), {"D": fading, "R": lambda x: x + q * g}
        )
        return state, later

    dla: Array = None
    dlb: Array = None
    if d is not None:
        state, later = at("D")
        pairs = fading(into("pairs", torch.mul, state, later))
        if c.la is not None:
            dla = _from_lanes((torch.sum(pairs, -1)).mT)
            dla = dla.sum(-1, True) if c.la.shape[-1] == 1 else dla
        dlb = None if c.lb is None else _from_lanes(torch.sum(pairs, 2))
    _, written = at("A")
    seen, _ = at("R")
    dq = over_values("dq", seen, g, c.q.shape[1] == 1)
    dk = over_values("dk", written, v, c.k.shape[1] == 1)
    dv = read("dv", k, written)
    return Gradients(dq, dk, dv, dla, dlb), own(before[0].transpose(1, 2))
