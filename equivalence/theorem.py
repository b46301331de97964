"""What a theorem is here, and what running one returns.

A theorem is a statement with a name, what its arguments range over, and the evidence for it. Four
kinds of evidence, which say different things:

- exact: an identity of polynomials over GF(2^61 - 1), at random points. No rounding is involved, and
  the probability that a false identity passes is bounded (and shown).
- property: the statement on floating point tensors, over examples that hypothesis draws and, on
  failure, shrinks. Sees rounding, overflow and NaN, which exact evidence does not.
- text: the same on the bytes of real text.
- bitwise: inputs for which every intermediate is a small dyadic number: equal means equal bits.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .algebra import MODULUS

EVIDENCE = ("exact", "property", "text", "bitwise")


class Counterexample(Exception):
    """A theorem is false: for which arguments, and where the two sides differ."""


@dataclass(frozen=True)
class Budget:
    """How much to run: `quick` is a sample of what a full run covers."""

    quick: bool = True
    seed: int = 0
    text: Path | None = None
    name: str = ""

    def rng(self) -> np.random.Generator:
        """Random numbers of this theorem, the same whatever else runs."""
        return np.random.default_rng([self.seed, zlib.crc32(self.name.encode())])

    def pick(self, quick: int, full: int) -> int:
        return quick if self.quick else full


@dataclass
class Tally:
    """What a run of a theorem has seen so far."""

    cases: int = 0
    degrees: int = 0  # of all exact identities together
    worst: float | None = None

    def exact(self, degree: int) -> None:
        """One identity between polynomials of at most this degree held."""
        self.cases += 1
        self.degrees += degree

    def error(self, relative: float) -> None:
        """One comparison of floating point numbers held, with this error."""
        self.cases += 1
        self.worst = max(self.worst or 0.0, relative)


@dataclass(frozen=True)
class Outcome:
    """The result of one theorem.

    `bound` (exact evidence) bounds the probability that any of the identities run is false and went
    unseen, over the random points; `worst` (property and text) is the largest relative error seen.
    """

    name: str
    statement: str
    over: str
    evidence: str
    passed: bool
    cases: int
    seconds: float
    bound: float | None = None
    worst: float | None = None
    failure: str | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Theorem:
    """`name`: kebab-case words joined by slashes. `over`: what the arguments range over."""

    name: str
    statement: str
    over: str
    evidence: str
    check: Callable[[Budget, Tally], None]

    def run(self, budget: Budget) -> Outcome:
        budget = Budget(budget.quick, budget.seed, budget.text, self.name)
        tally, failure = Tally(), None
        began = time.perf_counter()
        try:
            self.check(budget, tally)
        except Counterexample as e:
            failure = str(e)
        except Exception as e:  # the code under test may fail in any way, and that too is a finding
            failure = f"{type(e).__name__}: {e}"
        if failure is None and tally.cases == 0:
            failure = "nothing was checked"
        return Outcome(
            self.name,
            self.statement,
            self.over,
            self.evidence,
            failure is None,
            tally.cases,
            time.perf_counter() - began,
            tally.degrees / MODULUS if self.evidence == "exact" else None,
            tally.worst,
            failure,
        )


class Collection:
    """The theorems of one file, in the order they are written in."""

    def __init__(self) -> None:
        self._theorems: dict[str, Theorem] = {}

    def __iter__(self) -> Iterator[Theorem]:
        return iter(self._theorems.values())

    def __len__(self) -> int:
        return len(self._theorems)

    def add(self, theorem: Theorem) -> None:
        if theorem.name in self._theorems:
            raise ValueError(f"there are two theorems named {theorem.name}")
        if theorem.evidence not in EVIDENCE:
            raise ValueError(f"evidence is {theorem.evidence!r}; accepted: {', '.join(EVIDENCE)}")
        self._theorems[theorem.name] = theorem

    def extend(self, theorems: Iterable[Theorem]) -> None:
        for theorem in theorems:
            self.add(theorem)

    def __call__(
        self, name: str, statement: str, over: str, evidence: str
    ) -> Callable[[Callable[[Budget, Tally], None]], Callable[[Budget, Tally], None]]:
        """Decorator: the function below checks this statement."""

        def register(check: Callable[[Budget, Tally], None]) -> Callable[[Budget, Tally], None]:
            self.add(Theorem(name, statement, over, evidence, check))
            return check

        return register


def is_bad(error: float, tolerance: float) -> bool:
    """NaN is bad too."""
    return not error <= tolerance or math.isnan(error)
