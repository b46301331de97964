"""The scan: every state of a block of steps at once, by steps that many groups of them take in lockstep.

A block is m groups of L steps. In L compositions, each of one step of all groups, every step becomes one with
those before it in its group; a scan of the m groups, by the same code, gives the state at the start of each;
and one call takes all steps from there. That is 2L + m calls for m·L steps and three times the work, which
pays where a state is so small that a call costs more than its numbers; elsewhere a group is the whole block.

Decays enter as products of numbers in [0, 1]: nothing is divided or subtracted, underflow is harmless, and a
log-decay of -inf is a factor 0. States lie [C, B, K, H, V], so that a step of all of them is one piece of
memory. Where memory is reused, states go where they are told to, which may be the place of what is written.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from .decays import binary, exp
from .memory import copied, into, lent, memory, once, own, reuses
from .order import Order
from .steps import Array, Product, Slice

# A step: what it decays states by, [..., C, B, K or 1, H or 1, V or 1] or None, and what it writes.
Element = tuple[Array, Array]

# Seconds that a call costs whatever its size, and a number of a state in it.
CALL, NUMBER = 1.2e-6, 8e-11


def _added(w: Array, d: None, S: Array, out: Array = None) -> Array:
    return torch.add(S, w, out=out)


def compose(first: Element, then: Element, out: Element = (None, None)) -> Element:
    """Two steps as one: the associative operator of the scan."""
    d = None if first[0] is None else torch.mul(first[0], then[0], out=out[0])
    return d, linear(d is not None).after(then[1], then[0], first[1], out=out[1])


class Algebra(NamedTuple):
    """What a step (d, w) makes of a state S, `after(w, d, S, out=...)`, and how two steps are one: with both,
    either in memory that is given."""

    after: Callable[..., Array]
    compose: Callable[..., Element]


def linear(decays: bool) -> Algebra:
    """w + d ∘ S, or where nothing decays (d is None) w + S."""
    return Algebra(torch.addcmul if decays else _added, compose)


# ------------------------------------------------------------------ two levels


def _time(steps: int, numbers: int, length: int) -> float:
    """Estimated seconds of a scan in groups of this length."""
    groups, rest = divmod(steps, length)
    if groups < 2:
        return steps * (CALL + NUMBER * numbers)
    one_by_one = (groups + rest) * (CALL + NUMBER * numbers)
    # Calls that two threads share cost two; to lay out groups sixteen.
    return one_by_one + (4 * length + 16) * CALL + 3 * steps * NUMBER * numbers


@functools.lru_cache(1 << 12)
def _group_length(steps: int, numbers: int) -> int:
    lengths = [steps, *(1 << i for i in range(1, 12) if 1 << i < steps)]
    return min(lengths, key=lambda length: _time(steps, numbers, length))


def group_length(steps: int, numbers: int) -> int:
    """Steps of a group, where a state has so many numbers (sizes that are traced become those at hand)."""
    return _group_length(int(steps), int(numbers))


def walked(x: Array, dim: int, back: bool) -> list[Array]:
    """What lies along an axis, in the order of walking."""
    found = list(x.unbind(dim))
    return found[::-1] if back else found


class Groups(NamedTuple):
    """Steps as m whole groups [m, L, ...]; of every step of a group those of all groups [m, ...], and the
    steps that are left over [1, ...], both in the order of walking. Of None, Nones."""

    whole: Array
    steps: Iterable[Array]
    rest: Iterable[Array]


def same(x: Array) -> Groups:
    """Of one step [1, ...], or None, which is that of all groups and of what is left over."""
    return Groups(x, itertools.repeat(x), itertools.repeat(x))


def constant(x: Array) -> bool:
    """Whether all steps x [n, ...] are one in memory."""
    return reuses() and x.shape[0] > 1 and x.stride(0) == 0


def groups(x: Array, length: int, back: bool, name: str) -> Groups:
    """(The name tells apart what is kept by `once`.)"""
    rest = x.shape[0] % length
    at = rest if back else x.shape[0] - rest
    some, left = (x[at:], x[:at]) if back else (x[:at], x[at:])
    whole = some.reshape(some.shape[0] // length, length, *x.shape[1:])
    return Groups(whole, walked(whole, 1, back), walked(left[None], 1, back))


def prefixes(
    steps: Iterable[Element], compose: Callable[..., Element], rooms: Iterable[Element]
) -> list[Element]:
    """Each step as one with those before it, in the memory that is given."""
    found: list[Element] = []
    for (d, w), (products, states) in zip(steps, rooms, strict=False):
        if found:
            found.append(compose(found[-1], (d, w), (products, states)))
        else:
            first = None if d is None else copied(d, products)
            found.append((first, w if states is w else copied(w, states)))
    return found


def in_turn(
    S: Array,
    ds: Iterable[Array],
    ws: Iterable[Array],
    after: Callable[..., Array],
    rooms: Iterable[Array],
) -> list[Array]:
    """The states after each step, from that before them, in the memory that is given."""
    states = []
    for d, w, room in zip(ds, ws, rooms, strict=False):
        S = after(w, d, S, out=room)
        states.append(S)
    return states


def _in_time(states: Sequence[Array], back: bool) -> Array:
    """Of every step of a group those of all groups [m, ...], in time: [m, L, ...]."""
    return torch.stack(list(states[::-1] if back else states), 1)


def _starts(
    last: Element, S: Array, numbers: int, back: bool, name: str, algebra: Algebra
) -> tuple[Array, Array]:
    """The states before each of m groups, [m, ...], and after all of them, [1, ...]: of groups as steps."""
    m = last[1].shape[0]
    room = memory("starts" + name, S, m + 1, *S.shape)
    if room is None:
        ends = lockstep(*last, S, numbers, back, name + "+", algebra)
        room = torch.cat([ends, S[None]] if back else [S[None], ends], 0)
    else:
        before, ends = (room[m], room[:m]) if back else (room[0], room[1:])
        before.copy_(S)
        lockstep(*last, before, numbers, back, name + "+", algebra, ends)
    return (room[1:], room[:1]) if back else (room[:-1], room[-1:])


def lockstep(
    d: Array,
    w: Array,
    S: Array,
    numbers: int,
    back: bool = False,
    name: str = "",
    algebra: Algebra | None = None,
    out: Array = None,
) -> Array:
    """The states after each of n steps, from S [...]: d [n, ...] or None, w [n, ...]; back from the last.
    d may be one step [1, ...] for all. `numbers` are those of a state. Where memory is reused states go to
    `out`, which may be w."""
    n, algebra = w.shape[0], algebra or linear(d is not None)
    length = group_length(n, numbers)
    length = length if n >= 2 * length else n
    if d is not None and constant(d):
        d = d[:1]

    def split(kind: str, x: Array) -> Groups:
        return same(x) if x is None or x.shape[0] < n else once(groups, x, length, back, kind + name)

    ds, ws = split("d", d), split("w", w)
    to = ws if out is w else split("to", out)
    if length == n:
        states = in_turn(S[None], ds.steps, ws.steps, algebra.after, to.steps)
        return out if reuses() else _in_time(states, back)[0]
    products = same(None)
    if d is not None:  # of one group, where it is that of all
        room = memory("products" + name, d, max(length, d.shape[0]), *d.shape[1:])
        products = same(None) if room is None else once(groups, room, length, back, "products" + name)
    rooms = zip(products.steps, to.steps, strict=False)
    found = prefixes(zip(ds.steps, ws.steps, strict=False), algebra.compose, rooms)
    start, end = _starts(found[-1], S, numbers, back, name, algebra)
    whole = products.whole, to.whole
    if not reuses():
        products_of, states_of = zip(*found, strict=True)
        whole = None if d is None else _in_time(products_of, back), _in_time(states_of, back)
    states = algebra.after(whole[1], whole[0], start[:, None], out=to.whole)
    rest = in_turn(end, ds.rest, ws.rest, algebra.after, to.rest)
    if reuses():
        return out
    states = states.reshape(n - n % length, *states.shape[2:])
    return torch.cat([*rest[::-1], states] if back else [states, *rest], 0)


# ------------------------------------------------------------------ the layout of lanes


def by_key(x: Array) -> Array:
    """[B, H, C, K] to [C, B, K, H, 1]."""
    return x.permute(2, 0, 3, 1)[..., None]


def by_value(x: Array) -> Array:
    """[B, H, C, V] to [C, B, 1, H, V]."""
    return x.permute(2, 0, 1, 3)[:, :, None]


def from_lanes(x: Array) -> Array:
    """[C, B, H, D] to [B, H, C, D]."""
    return x.permute(1, 2, 0, 3)


def number_one(x: Array) -> bool:
    """Whether queries or keys are the number 1, one in memory for all of them."""
    if x.shape[-1] > 1 or not reuses() or not x.numel():
        return False
    one = all(n == 1 or s == 0 for n, s in zip(x.shape, x.stride(), strict=True))
    return one and bool(x[0, 0, 0, 0] == 1)


def unless_one(x: Array) -> Array:
    """`by_key`, or None of the number 1."""
    return None if number_one(x) else by_key(x)


def _rates(rates: Array) -> Array:
    return binary(rates)[..., None]


def _faded(x: Array, key: bool) -> Array:
    if isinstance(x, Product):
        d = torch.mul(by_key(x.dt), once(_rates, x.rates), out=memory("dt·A", x.dt, *x.lanes))
        return torch.exp2(d, out=d if reuses() else None)
    x = by_key(x) if key else by_value(x)
    if constant(x):
        return exp(x[:1]).expand(x.shape)
    return exp(x, memory(("decay", key), x, *x.shape))


def decays(c: Slice) -> Array:
    """By what each step decays its state."""
    a = None if c.la is None else once(_faded, c.la, True)
    b = None if c.lb is None else once(_faded, c.lb, False)
    if a is None or b is None:
        return b if a is None else a
    if constant(a) and constant(b):
        return (a[:1] * b[:1]).expand(a.shape[0], -1, -1, -1, -1)
    return into("decay", torch.mul, a, b)


def _rest(x: Array) -> Array:
    return x[1:]


def write(k: Array, v: Array, d: Array, room: Array = None) -> Array:
    """What all steps write, after a decay d: keys, or None for 1, times values; v itself if that is it."""
    w = v if k is None else torch.mul(k, v, out=room)
    return w if d is None else torch.mul(w, d, out=room)


def states_after(c: Slice, S: Array, order: Order, room: Array) -> tuple[Array, Array]:
    """The decays of all steps, and the states after each, from S [B, K, H, V], in `room`: [C, B, K, H, V]."""
    d = decays(c)
    w = write(unless_one(c.k), by_value(c.v), d if order.key_decayed else None, room)
    return d, lockstep(d, w, S, math.prod(S.shape), out=room)


def scanned_states(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """The decays of all steps, and the states before, between and after them: [C + 1, B, K, H, V]."""
    S = S.transpose(1, 2)
    room = memory("states", S, c.v.shape[2] + 1, *S.shape)
    if room is None:
        d, states = states_after(c, S, order, None)
        return d, torch.cat([S[None], states], 0)
    room[0] = S
    return states_after(c, room[0], order, once(_rest, room))[0], room


def read(name: str, q: Array, x: Array) -> Array:
    """Sums over keys of q [C, B, K, H or 1, 1], or None for 1, times x [C, B, K, H, V]: [B, H, C, V]."""
    n, b, keys, h, v = x.shape
    room = lent(name)
    room = None if room is None else room.permute(2, 0, 1, 3)
    if q is None:
        o = x[:, :, 0] if room is None else room.copy_(x[:, :, 0])
    elif keys == 1:
        o = (
            into(name, torch.mul, x[:, :, 0], q[:, :, 0])
            if room is None
            else torch.mul(x[:, :, 0], q[:, :, 0], out=room)
        )
    elif q.shape[3] == 1:
        rows, columns = q.reshape(n * b, 1, keys), x.reshape(n * b, keys, h * v)
        if room is not None and b == 1:
            return from_lanes(torch.bmm(rows, columns, out=room.view(n, 1, h * v)).view(n, 1, h, v))
        o = into(name, torch.matmul, rows, columns).reshape(n, b, h, v)
    else:
        o = torch.sum(into("products", torch.mul, x, q), 2)
    return from_lanes(o)


def end(c: Slice, S: Array, order: Order) -> Array:
    """The state after a slice."""
    return own(scanned_states(c, S, order)[1][-1].transpose(1, 2))


def _states_before(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """Of a slice that is read before anything happens, by queries of 1: the states before each step, which
    are its outputs, and the state after it."""
    k, v, d, room = unless_one(c.k), by_value(c.v), decays(c), lent("outputs")
    states = memory("states", v, *v.shape) if room is None else by_value(room)
    states[0] = S

    def at(x: Array, i: int | slice) -> Array:
        return None if x is None else x[i]

    def written(i: int | slice, room: Array = None) -> Array:
        return write(at(k, i), v[i], at(d, i) if order.key_decayed else None, room)

    but_last = slice(-1)
    lockstep(at(d, but_last), written(but_last, states[1:]), S, math.prod(S.shape), out=states[1:])
    S = linear(d is not None).after(written(-1), at(d, -1), states[-1])
    return from_lanes(states[:, :, 0]), S.transpose(1, 2)


def scan(c: Slice, S: Array, order: Order) -> tuple[Array, Array]:
    """All states of a slice, and what is read of them."""
    after = order.events[-1] == "R"
    if after and number_one(c.q):  # outputs are states
        room = lent("outputs")
        x = by_value(c.v)
        room = memory("states", x, *x.shape) if room is None else by_value(room)
        states = states_after(c, S.transpose(1, 2), order, room)[1]
        return from_lanes(states[:, :, 0]), own(states[-1].transpose(1, 2))
    if order.events[0] == "R" and number_one(c.q) and c.v.shape[-2] > 1:  # they are those before
        return _states_before(c, S.transpose(1, 2), order)
    d, states = scanned_states(c, S, order)
    seen = states[1:] if after else states[:-1]
    for event in "" if after else order.events[: order.events.index("R")]:
        if event == "D":
            seen = seen if d is None else d * seen
        else:
            seen = torch.addcmul(seen, by_key(c.k), by_value(c.v))
    return read("outputs", unless_one(c.q), seen), own(states[-1].transpose(1, 2))
