"""A bar: two calls, the ratio of their times, and what it is to be."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

Call = Callable[[], object]


class Missing(Exception):
    """A yardstick that is not here; the message says what would bring it."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds` of both calls in turns, or three once `seconds` are spent on a bar."""

    rounds: int = 7
    seconds: float = 20.0
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True)
class Measured:
    """A ratio, and the medians that it is made of (seconds; other things where a bar says so)."""

    ratio: float
    one: float
    other: float
    rounds: int


@dataclass(frozen=True)
class Bar:
    """`measure` gives `one` over `other`; `at_most` or `at_least` says what is wanted of it."""

    group: str
    name: str
    what: str
    measure: Callable[[Effort], Measured]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def wanted(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"

    def met(self, ratio: float) -> bool:
        above = self.at_least is None or ratio >= self.at_least
        return above and (self.at_most is None or ratio <= self.at_most)


@dataclass(frozen=True)
class Result:
    group: str
    name: str
    what: str
    wanted: str
    ratio: float | None
    met: bool | None
    one: float | None = None
    other: float | None = None
    rounds: int = 0
    missing: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(bar: Bar, effort: Effort) -> Result:
    """Measures a bar, or says what is missing."""
    try:
        m = bar.measure(effort)
    except Missing as e:
        return Result(bar.group, bar.name, bar.what, bar.wanted, None, None, missing=str(e))
    return Result(
        bar.group, bar.name, bar.what, bar.wanted, m.ratio, bar.met(m.ratio), m.one, m.other, m.rounds
    )


def seconds_of(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(one: Call, other: Call, effort: Effort) -> Measured:
    """The median of `one` over that of `other`: on a noisy machine both see the same noise."""
    return timed_in_turns(lambda: seconds_of(one), lambda: seconds_of(other), effort)


def timed_in_turns(one: Callable[[], float], other: Callable[[], float], effort: Effort) -> Measured:
    """The same of calls that return what part of them took."""
    one()
    other()
    times: list[tuple[float, float]] = []
    spent = 0.0
    while len(times) < effort.rounds and (len(times) < 3 or spent < effort.seconds):
        times.append((one(), other()))
        spent += sum(times[-1])
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    return Measured(a / b, a, b, len(times))


def forward_and_backward(run: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Call:
    """A call that runs, and takes gradients of the sum by all leaves."""

    def call() -> None:
        for x in leaves:
            x.requires_grad_()
        with torch.enable_grad():
            torch.autograd.grad(run().sum(), leaves)

    return call


def forward(run: Callable[[], object]) -> Call:
    """A call without gradients."""

    def call() -> None:
        with torch.no_grad():
            run()

    return call
