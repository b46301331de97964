"""The operands of a recurrence, handed out in slices of time.

The forms see one canonical layout, [B, H, T, D] in the accumulation dtype. A `Steps` produces it
slice by slice, so that nothing which the caller left small (shared heads, constant decays,
an outer-product decay, half-precision inputs) is ever expanded over the whole sequence.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from .memory import into, lend, memory, new

# A tensor, or anything that takes part in torch functions the way one does (`mixerzoo.equivalence.algebra`).
Array = Any


class Slice(NamedTuple):
    """Consecutive steps. q, k [..., C, K]; v [..., C, V]; la [..., C, K or 1]; lb [..., C, V]; or None.

    The delta rule has beta [..., C, 1], the general erasure x, y [..., C, K]."""

    q: Array
    k: Array
    v: Array
    la: Array = None
    lb: Array = None
    beta: Array = None
    x: Array = None
    y: Array = None


class Product(NamedTuple):
    """The log-decay dt·A of a slice, not multiplied out: dt [B, H, C, 1] and A as [K, H]."""

    dt: Array
    rates: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.dt.shape[:3], self.rates.shape[0]

    @property
    def lanes(self) -> tuple[int, ...]:
        """[C, B, K, H, 1]."""
        b, h, c, k = self.shape
        return c, b, k, h, 1


class Gradients(NamedTuple):
    """Gradients of a slice, shaped like a `Slice`; of a whole sequence, shaped like the operands."""

    q: Array
    k: Array
    v: Array
    la: Array
    lb: Array
    beta: Array = None
    x: Array = None
    y: Array = None
    outer: Array = None


# Names of the gradients that are asked for.
Wanted = frozenset[str]
ALL: Wanted = frozenset(Gradients._fields)


def wants_decays(wanted: Wanted) -> bool:
    return not wanted.isdisjoint(("la", "outer", "lb"))


class Saved(NamedTuple):
    """States [n, B, H, K, V] that forward leaves for the gradient: after `every` steps, and so many again.
    That at the end is none of them. Where steps erase, chunks leave the solutions of their systems too,
    [B, T, H, V], by the order in which time is walked."""

    every: int
    states: Array
    solution: Array = None


def width(x: Any) -> int:
    """Numbers per step of the widest operand of a `Steps`, or of what has the same, with its heads: one of
    queries and keys that all share, if nothing tells heads apart before these read and write."""
    B, _, H, V = x.v.shape
    differ = x.erases or x.outer is not None or (x.log_decay is not None and x.log_decay.ndim == 4)
    shared = x.q.shape[2] == x.k.shape[2] == 1 and not differ
    return B * max((1 if shared else H) * x.k.shape[-1], H * V)


class Steps:
    """Operands in the public layout: q [B,T,Hq,K], k [B,T,Hk,K], v [B,T,H,V].

    log_decay is None, [H], [B,T,H] or [B,T,H,K]; with `outer` (A, [H,K]) it is dt, [B,T,H], and
    the log-decay is dt·A, and where `resets` ([H,K] bool) it is -inf for dt > 0, whatever A. log_decay_v
    is None, [H,V] or [B,T,H,V]; beta is None or [B,T,H]; x and y are None or [B,T,Hx,K]. `dtype` is what
    slices are computed in (None keeps them as they are); `reverse` walks time from the end. Outputs go to
    `out` [B,T,H,V], states and solutions to `saved`, where these are given; a gradient has them from there.
    With `apart` dt·A without resets is handed out as a `Product`.
    """

    def __init__(
        self,
        q: Array,
        k: Array,
        v: Array,
        log_decay: Array = None,
        outer: Array = None,
        log_decay_v: Array = None,
        *,
        beta: Array = None,
        x: Array = None,
        y: Array = None,
        scale: float = 1.0,
        reverse: bool = False,
        dtype: torch.dtype | None = None,
        resets: Array = None,
        out: Array = None,
        saved: Saved | None = None,
        apart: bool = False,
    ) -> None:
        self.q, self.k, self.v = q, k, v
        self.log_decay, self.outer, self.log_decay_v = log_decay, outer, log_decay_v
        self.beta, self.x, self.y = beta, x, y
        self.resets, self.out, self.saved, self.apart = resets, out, saved, apart
        self._constants: dict[tuple[str, int], Array] = {}
        self._transposed: Array = None
        self.scale, self.reverse, self.dtype = scale, reverse, dtype
        self.batch, self.length, self.heads = v.shape[:3]

    def __len__(self) -> int:
        return self.length

    @property
    def width(self) -> int:
        return width(self)

    @property
    def erases(self) -> bool:
        return self.beta is not None or self.x is not None

    def _cast(self, x: Array) -> Array:
        return x if self.dtype is None else x.to(self.dtype)

    def _cut(self, x: Array, i: int, j: int) -> Array:
        """Steps i..j of [B,T,...], in walking order."""
        if self.reverse:
            return self._cast(x[:, self.length - j : self.length - i]).flip(1)
        return self._cast(x[:, i:j])

    def _spread(self, x: Array) -> Array:
        """[B,C,Hx,D] to [B,H,C,D]; a single shared head stays one and broadcasts."""
        x = x.transpose(1, 2)
        b, hx, c, d = x.shape
        if hx in (1, self.heads):
            return x
        return x[:, :, None].expand(b, hx, self.heads // hx, c, d).reshape(b, self.heads, c, d)

    def _over_time(self, name: str, x: Array, n: int) -> Array:
        """Constants [H,D] to [1,H,C,D]: one object for all slices of a length, by which what is made of it is
        known again."""
        if (name, n) not in self._constants:
            h, d = x.shape
            self._constants[name, n] = self._cast(x)[None, :, None].expand(1, h, n, d)
        return self._constants[name, n]

    def _outer(self, dt: Array) -> Array:
        """The log-decay of dt [B,H,C,1] and A."""
        if self.apart and self.resets is None:
            return Product(dt, self._rates())
        la = self._times_outer(dt)
        return la if self.resets is None else la.masked_fill(self.resets[:, None] & (dt > 0), -math.inf)

    def _times_outer(self, dt: Array) -> Array:
        """dt [B,H,C,1] times A [H,K], with heads next to each other in memory (there are few keys)."""
        dt, rates = dt.transpose(1, 2).mT, self._rates()
        room = self._room(dt, *dt.shape[:2], *rates.shape)
        return torch.mul(dt, rates, out=room).mT.transpose(1, 2)

    def _room(self, like: Array, b: int, c: int, k: int, h: int) -> Array:
        """Memory for dt·A [B,C,K,H], where a scan has its decays [C,B,K,H,1]."""
        room = memory("dt·A", like, c, b, k, h, 1)
        return None if room is None else room[..., 0].transpose(0, 1)

    def _rates(self) -> Array:
        """A as [K,H]."""
        if self._transposed is None:
            self._transposed = self._cast(self.outer).mT.contiguous()
        return self._transposed

    def _pull_back_outer(self, dt: Array, g: Array) -> tuple[Array, Array]:
        """Gradients of dt [B,H,C,1] and of A, from those of dt·A."""
        dt, g = dt.transpose(1, 2).mT, g.transpose(1, 2).mT
        room = self._room(g, *g.shape)  # it has been used
        by_time = torch.sum(torch.mul(g, self._rates(), out=room), 2, True)
        by_rate = torch.sum(torch.mul(g, dt, out=room), 1).sum(0)
        return by_time.mT.transpose(1, 2), by_rate.mT

    def slice(self, i: int, j: int) -> Slice:
        q = self._spread(self._cut(self.q, i, j))
        if self.scale != 1.0:
            q = into("scaled", torch.mul, q, self.scale)
        k = self._spread(self._cut(self.k, i, j))
        v = self._cut(self.v, i, j).transpose(1, 2)
        la, lb = self.log_decay, self.log_decay_v
        if la is not None:
            if la.ndim == 1:
                la = self._over_time("la", la[:, None], j - i)
            else:
                la = self._cut(la if la.ndim == 4 else la[..., None], i, j).transpose(1, 2)
            if self.outer is not None:
                la = self._outer(la)
        if lb is not None:
            lb = self._over_time("lb", lb, j - i) if lb.ndim == 2 else self._cut(lb, i, j).transpose(1, 2)
        beta = None if self.beta is None else self._cut(self.beta[..., None], i, j).transpose(1, 2)
        x, y = (None if z is None else self._spread(self._cut(z, i, j)) for z in (self.x, self.y))
        if self.out is not None and self.out.dtype == v.dtype and not self.reverse:
            lend("outputs", self.out[:, i:j].transpose(1, 2))
        if self.saved is not None and self.saved.solution is not None:
            lend("solution", self.saved.solution[:, i:j].transpose(1, 2))
        return Slice(q, k, v, la, lb, beta, x, y)

    def cut_like_values(self, x: Array, i: int, j: int) -> Array:
        """Steps i..j of an output gradient [B,T,H,V], as [B,H,C,V]."""
        return self._cut(x, i, j).transpose(1, 2)

    def keep(self, i: int, o: Array) -> bool:
        """Writes outputs [B,H,C,V] of the steps from i on to `out`; False if there is none."""
        if self.out is None:
            return False
        o = o.transpose(1, 2)
        j = i + o.shape[1]
        if self.reverse:
            self.out[:, self.length - j : self.length - i].copy_(o.flip(1))
        elif o.data_ptr() != (there := self.out[:, i:j]).data_ptr():
            there.copy_(o)
        return True

    def remember(self, i: int, S: Array) -> None:
        """Saves the state before step i, if it is one of those."""
        if self.saved is not None and i and i % self.saved.every == 0:
            self.saved.states[i // self.saved.every - 1].copy_(S)

    def _gather(self, g: Array, heads: int) -> Array:
        """The transpose of `_spread`: [B,H or heads,C,D] to [B,C,heads,D]; None of None."""
        if g is None:
            return None
        b, h, c, d = g.shape
        if h != heads:
            g = g.reshape(b, heads, h // heads, c, d).sum(2)
        g = g.transpose(1, 2)
        return g.flip(1) if self.reverse else g

    def pull_back(self, i: int, j: int, g: Gradients) -> Gradients:
        """Gradients of a slice to gradients of the operands that made it (the transpose of `slice`).

        What varies in time comes back as that piece of time, constants as a sum over it.
        """
        dq = self._gather(g.q, self.q.shape[2])
        if self.scale != 1.0 and dq is not None:
            dq = into("scaled gradient", torch.mul, dq, self.scale)
        dla: Array = None
        dlb: Array = None
        douter: Array = None
        if self.log_decay is not None and g.la is not None:
            la: Array = g.la
            if self.outer is not None:
                dt = self._cut(self.log_decay[..., None], i, j).transpose(1, 2)
                la, douter = self._pull_back_outer(dt, la)
            if self.log_decay.ndim == 1:
                dla = la.sum(2).sum(0)[:, 0]
            else:
                dla = self._gather(la, self.heads)
                dla = dla if self.log_decay.ndim == 4 else dla[..., 0]
        if self.log_decay_v is not None and g.lb is not None:
            lb: Array = g.lb
            dlb = lb.sum(2).sum(0) if self.log_decay_v.ndim == 2 else self._gather(lb, self.heads)
        dbeta = None if self.beta is None else self._gather(g.beta, self.heads)[..., 0]
        dx, dy = (
            None if z is None else self._gather(dz, z.shape[2]) for z, dz in ((self.x, g.x), (self.y, g.y))
        )
        dk, dv = self._gather(g.k, self.k.shape[2]), self._gather(g.v, self.heads)
        return Gradients(dq, dk, dv, dla, dlb, dbeta, dx, dy, douter)

    def lend_places(
        self, i: int, j: int, G: Array, found: Gradients | None, wanted: Wanted
    ) -> Gradients | None:
        """Lends the places of the gradients of values and of their decays in whole gradients, which the first
        piece makes, like those of states."""
        if self.reverse:
            return found
        lb = self.log_decay_v
        varies = lb is not None and lb.ndim == 4 and wants_decays(wanted)
        if found is None:
            v, lb = (new(G, *self.v.shape) if some else None for some in (True, varies))
            found = Gradients(None, None, v, None, lb)
        lend("dv", found.v[:, i:j].transpose(1, 2))
        if varies:
            lend("dlb", found.lb[:, i:j].transpose(1, 2))
        return found

    def place(self, i: int, j: int, piece: Gradients, found: Gradients | None) -> Gradients:
        """`join`, a piece at a time, into whole gradients: the first piece makes room for them."""
        a, b = (self.length - j, self.length - i) if self.reverse else (i, j)

        def placed(constant: bool, x: Array, whole: Array) -> Array:
            if x is None or (constant and whole is None):
                return x
            if constant:
                return whole + x
            if whole is None:
                whole = new(x, x.shape[0], self.length, *x.shape[2:])
            there = whole[:, a:b]
            if x.data_ptr() != there.data_ptr():
                there.copy_(x)
            return whole

        before: Any = found or (None,) * len(piece)
        return Gradients(*map(placed, self._constant(), piece, before))

    def _constant(self) -> tuple[bool, ...]:
        """Which operands do not vary in time, in the order of `Gradients`."""
        la, lb = self.log_decay, self.log_decay_v
        constant_a, constant_b = la is not None and la.ndim == 1, lb is not None and lb.ndim == 2
        return False, False, False, constant_a, constant_b, False, False, False, True

    def join(self, pieces: list[Gradients]) -> Gradients:
        """Pieces from consecutive slices (in walking order) to gradients of the whole operands."""
        if self.reverse:
            pieces = pieces[::-1]

        def in_time(xs: Array) -> Array:
            return torch.cat(list(xs), 1)

        def summed(xs: Array) -> Array:
            first, *rest = xs
            for x in rest:
                first = first + x
            return first

        def joined(constant: bool, xs: Array) -> Array:
            if xs[0] is None:
                return None
            return summed(xs) if constant else in_time(xs)

        return Gradients(*map(joined, self._constant(), zip(*pieces, strict=True)))
