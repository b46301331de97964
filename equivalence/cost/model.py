"""How long counted work would take at least, on a card whose rates are known: a model, not a measurement.

A kernel takes as long as the slowest of four things: its bytes through memory, its products through matrix
units, its arithmetic through vector units, its exponentials through special-function units; each at the
card's peak rate, all of them overlapping, and each at the share of the card that the grid can use:

    memory      min(1, programs / processors)
    the others  programs / (processors * rounds), rounds = ceil(programs / processors): the last is not full

Bytes are distinct ones (what a program reads again is taken to come from a cache); torch operations move
theirs with the whole card. Launches follow one another, and cost nothing themselves. Not in the model:
latencies (a walk along a sequence waits for each of its steps), bank conflicts, spills, conversions, integer
arithmetic. Real times are longer; the order of two schedules, and what binds them, is what it is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cards import Card
from .count import Cost, KernelCost


@dataclass(frozen=True)
class Occupancy:
    """programs: how many fit on one processor at a time (0: not one). limit: what allows no more."""

    programs: int
    limit: str


def occupancy(card: Card, warps: int, registers: int, shared: int) -> Occupancy:
    """Of programs of so many warps, registers per thread, and bytes of shared memory."""
    p = card.processor

    def up(n: int, unit: int) -> int:
        return -(-n // unit) * unit

    per_warp = max(up(registers * p.warp, p.register_unit), p.register_unit)
    per_program = max(up(shared + p.shared_own, p.shared_unit), 1)
    limits = {
        "registers": p.parts * (p.registers // per_warp) // warps,
        "shared memory": p.shared // per_program,
        "warps": p.warps // warps,
        "programs": p.programs,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limit)


@dataclass(frozen=True)
class Time:
    """Seconds that each kind of work would take by itself, and the share of the processors in use."""

    memory: float
    matrix: float
    arithmetic: float
    special: float
    share: float = 1.0

    @property
    def seconds(self) -> float:
        return max(self.memory, self.matrix, self.arithmetic, self.special)

    @property
    def bound(self) -> str:
        """What takes longest."""
        names = ("memory", "matrix", "arithmetic", "special")
        return max(names, key=lambda name: getattr(self, name))


def kernel_time(card: Card, cost: KernelCost, copies: int = 1, double: bool = False) -> Time:
    """Of all launches of a kernel, with `copies` times its programs and its work in each launch.

    double: whether its arithmetic is float64."""
    if not cost.launches or not cost.programs:
        return Time(0.0, 0.0, 0.0, 0.0)
    programs = cost.programs * copies / cost.launches
    memory = min(1.0, programs / card.processors)
    share = programs / (card.processors * math.ceil(programs / card.processors))
    matrix = sum(n * p.times / card.rates.get(p.format, card.rates["fp32"]) for p, n in cost.flops.items())
    vector = card.rates["vector fp64" if double else "vector fp32"]
    return Time(
        copies * cost.distinct / (card.bandwidth * memory),
        copies * matrix / share,
        copies * cost.arithmetic / (vector * share),
        copies * cost.special / (card.special * share),
        share,
    )


@dataclass(frozen=True)
class Modelled:
    """A pass: its kernels' times by name, and that of all its torch operations together."""

    kernels: dict[str, Time]
    torch: float

    @property
    def seconds(self) -> float:
        return sum(t.seconds for t in self.kernels.values()) + self.torch

    @property
    def bound(self) -> str:
        """What most of the time goes to: a kind of work, or "torch"."""
        totals = {"torch": self.torch}
        for t in self.kernels.values():
            totals[t.bound] = totals.get(t.bound, 0.0) + t.seconds
        return max(totals, key=lambda name: totals[name])

    @property
    def share(self) -> float:
        """Of the card, over the time of the kernels."""
        total = sum(t.seconds for t in self.kernels.values())
        return sum(t.share * t.seconds for t in self.kernels.values()) / total if total else 1.0


def pass_time(card: Card, cost: Cost, copies: int = 1, double: bool = False) -> Modelled:
    kernels = {name: kernel_time(card, x, copies, double) for name, x in cost.kernels.items()}
    moved = sum(x.moved for x in cost.operations.values())
    return Modelled(kernels, copies * moved / card.bandwidth)


def least_time(card: Card, bytes: int, flops: int, format: str, copies: int = 1) -> float:
    """Seconds of the least bytes and products on the whole card; format: of the products."""
    return copies * max(bytes / card.bandwidth, flops / card.rates[format])
