"""The scan: every state of a block of steps at once, by steps that many groups of them take in lockstep.

A block is m groups of L steps. L compositions, each of one step of all groups, make every group one step; a
scan of these m, by the same code, gives the state at the start of each; and L steps from there, again of all
groups at once, give the states of all steps. That is 3L + m calls for m·L steps and twice the work, which
pays where a state is so small that a call costs more than its numbers; elsewhere a group is the whole block.

Decays enter as products of numbers in [0, 1]: nothing is divided or subtracted, underflow is harmless, and a
log-decay of -inf is a factor 0. States lie [C, B, K, H, V], so that a step of all of them is one piece of
memory. Where memory is reused, states take the place of what is written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from .decays import exp
from .memory import into, lent, memory, once, own, reuses
from .order import Order
from .steps import Array, Slice

# A step: what it decays states by, [..., C, B, K or 1, H or 1, V or 1] or None, and what it writes.
Element = tuple[Array, Array]

# Seconds that a call costs whatever its size, and a number of a state in it.
CALL, NUMBER = 1.2e-6, 6e-11


def after(S: Array, step: Element, out: Array = None) -> Array:
    """The state after a step."""
    d, w = step
    return torch.add(S, w, out=out) if d is None else torch.addcmul(w, d, S, out=out)


def compose(first: Element, then: Element, out: Element = (None, None)) -> Element:
    """Two steps as one: the associative operator of the scan."""
    d = None if first[0] is None else torch.mul(first[0], then[0], out=out[0])
    return d, after(first[1], then, out[1])


class Algebra(NamedTuple):
    """What a step does to a state, and how two steps are one: with both, either in memory that is given."""

    after: Callable[..., Array]
    compose: Callable[..., Element]


def linear() -> Algebra:
    return Algebra(after, compose)


# ------------------------------------------------------------------ two levels


def _time(steps: int, numbers: int, length: int) -> float:
    """Estimated seconds of a scan in groups of this length."""
    groups = -(-steps // length)
    call = CALL + NUMBER * numbers * groups
    return length * call * (1 if groups == 1 else 3) + (
        0 if groups == 1 else groups * (CALL + NUMBER * numbers)
    )


@functools.lru_cache(1 << 12)
def _group_length(steps: int, numbers: int) -> int:
    lengths = [steps, *(1 << i for i in range(1, 12) if 1 << i < steps)]
    return min(lengths, key=lambda length: _time(steps, numbers, length))


def group_length(steps: int, numbers: int) -> int:
    """Steps of a group, where a state has so many numbers (sizes that are traced become those at hand)."""
    return _group_length(int(steps), int(numbers))


def by_step(x: Array, length: int, back: bool, name: str) -> tuple[list[Array], list[Array]]:
    """Of every step of a group, those of all groups [m, ...], in the order of walking; and the same without
    the last group to be walked, which may be shorter (the name tells apart what is kept by `once`)."""
    n = x.shape[0]
    full = -(-n // length) - 1
    firsts = [(n - 1 - l) % length for l in range(length)] if back else range(length)
    steps = [x[first::length] for first in firsts]
    return steps, [y[y.shape[0] - full :] if back else y[:full] for y in steps]


def _in_time(states: list[Array], n: int, back: bool) -> Array:
    """The states of all groups, of each step of a group, in order of time."""
    length = len(states)
    firsts = [(n - 1 - l) % length for l in range(length)] if back else range(length)
    at = [t for first in firsts for t in range(first, n, length)]
    return torch.cat(states, 0)[sorted(range(n), key=at.__getitem__)]


def folded(steps: Iterable[Element], compose: Callable[..., Element]) -> Element:
    """Steps as one: two at least."""
    first, second, *rest = steps
    whole = compose(first, second)
    for step in rest:
        whole = compose(whole, step, whole if reuses() else (None, None))
    return whole


def in_turn(start: Array, steps: Iterable[Element], after: Callable[..., Array]) -> list[Array]:
    """The states after each step, from that before them; where memory is reused, in place of the writes."""
    states = []
    for step in steps:
        start = after(start, step, step[1] if reuses() else None)
        states.append(start)
    return states


def lockstep(
    d: Array,
    w: Array,
    S: Array,
    numbers: int,
    back: bool = False,
    name: str = "",
    algebra: Algebra | None = None,
) -> Array:
    """The states after each of n steps, from S [...]: d [n, ...] or None, w [n, ...]; back from the last.
    `numbers` are those of a state. Where memory is reused they take the place of w."""
    n = w.shape[0]
    length = group_length(n, numbers)
    algebra = algebra or linear()
    ws, ws_full = once(by_step, w, length, back, "w" + name)
    nothing = [None] * length
    ds, ds_full = (nothing, nothing) if d is None else once(by_step, d, length, back, "d" + name)
    start = S[None]
    if length < n:
        whole = folded(zip(ds_full, ws_full, strict=True), algebra.compose)
        starts = lockstep(*whole, S, numbers, back, name + "+", algebra)
        start = torch.cat([starts, start] if back else [start, starts], 0)
    steps = list(zip(ds, ws, strict=True))
    all_groups = n - (start.shape[0] - 1) * length  # after so many steps the last group has ended
    states = in_turn(start, steps[:all_groups], algebra.after)
    if all_groups < length:
        start = states[-1][1:] if back else states[-1][:-1]
        states += in_turn(start, steps[all_groups:], algebra.after)
    return w if reuses() else _in_time(states, n, back)


# ------------------------------------------------------------------ the layout of lanes


def _first(x: Array) -> Array:
    """[B, H, C, D] to [C, B, H, D]."""
    return x.transpose(1, 2).transpose(0, 1)


def by_key(x: Array) -> Array:
    """[B, H, C, K] to [C, B, K, H, 1]."""
    return _first(x).mT[..., None]


def by_value(x: Array) -> Array:
    """[B, H, C, V] to [C, B, 1, H, V]."""
    return _first(x)[:, :, None]


def _faded(x: Array, key: bool) -> Array:
    x = by_key(x) if key else by_value(x)
    return exp(x, memory(("decay", key), x, *x.shape))


def decays(c: Slice) -> Array:
    """By what each step decays its state."""
    a = None if c.la is None else once(_faded, c.la, True)
    b = None if c.lb is None else once(_faded, c.lb, False)
    return b if a is None else a if b is None else into("decay", torch.mul, a, b)


def _rest(x: Array) -> Array:
    return x[1:]


def write(k: Array, v: Array, d: Array, room: Array = None) -> Array:
    """What all steps write, after a decay d."""
    w = torch.mul(k, v, out=room)
    return w if d is None else torch.mul(w, d, out=room)


def scanned_states(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """The decays of all steps, and the states before, between and after them: [C + 1, B, K, H, V]."""
    k, v, d = by_key(c.k), by_value(c.v), decays(c)
    S = S.transpose(1, 2)
    room = memory("states", S, v.shape[0] + 1, *S.shape)
    numbers = math.prod(S.shape)
    early = d if order.key_decayed else None
    if room is None:
        return d, torch.cat([S[None], lockstep(d, write(k, v, early), S, numbers)], 0)
    room[0] = S
    w = write(k, v, early, once(_rest, room))
    lockstep(d, w, room[0], numbers)
    return d, room


def read(name: str, q: Array, x: Array) -> Array:
    """Sums over keys of q [C, B, K, H or 1, 1] times x [C, B, K, H, V]: [B, H, C, V]."""
    n, b, keys, h, v = x.shape
    if keys == 1:
        room = lent(name)
        if room is None:
            o = into(name, torch.mul, x, q)[:, :, 0]
        else:
            o = torch.mul(x[:, :, 0], q[:, :, 0], out=_first(room))
    elif q.shape[3] == 1:
        o = into(name, torch.matmul, q.reshape(n, b, 1, keys), x.reshape(n, b, keys, h * v)).reshape(
            n, b, h, v
        )
    else:
        o = torch.sum(into("products", torch.mul, x, q), 2)
    return o.transpose(0, 1).transpose(1, 2)


def end(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    return own(scanned_states(c, S, order)[1][-1].transpose(1, 2))


def scan(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """All states of a slice, and what is read of them."""
    d, states = scanned_states(c, S, order)
    if order.events[-1] == "R":
        seen = states[1:]
    else:
        seen = states[:-1]
        for event in order.events[: order.events.index("R")]:
            if event == "D":
                seen = seen if d is None else d * seen
            else:
                seen = torch.addcmul(seen, by_key(c.k), by_value(c.v))
    return read("outputs", by_key(c.q), seen), own(states[-1].transpose(1, 2))
