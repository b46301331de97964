"""What a theorem is here, and what running one returns.

A theorem is a statement, in words and as a formula, about two sides; what its arguments range over; and
evidence. Six kinds of evidence, which say different things:

- exact: an identity of polynomials over GF(2^61 - 1), at random points. No rounding is involved, and
  the probability that a false identity passes is bounded (and shown).
- bitwise: inputs for which every intermediate is a small dyadic number: equal means equal bits.
- bound: the measured rounding error lies under a bound that was computed beside the value.
- property: the statement on floating point tensors, over examples that hypothesis draws and, on
  failure, shrinks. Sees rounding, overflow and NaN, which exact evidence does not.
- text: the same on the bytes of real text.
- coq: a machine-checked proof of the statement about a model of the code, for all lengths.

Evidence of several kinds may be registered for one theorem, each in the file where it belongs:

    @THEOREMS("forms/chunk", "The chunk form is the recurrence.", "all orders", "exact",
              formula="chunk(q, k, v) = R(q, k, v)", left=Side("the chunk form", chunk), right=...)
    def on_field_elements(budget, tally): ...

    @ELSEWHERE.also("forms/chunk", "bound", over="T = 64, decays to e^-50")
    def within_its_bound(budget, tally): ...

A check runs the sides through the tally, `tally.left(...)` and `tally.right(...)`, which records what they
returned: the digest of a run is one of all the numbers that were compared.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .algebra import MODULUS
from .digest import Digest

EVIDENCE = ("exact", "bitwise", "bound", "property", "text", "coq")


class Counterexample(Exception):
    """A theorem is false: for which arguments, and where the two sides differ."""


class Absent(Exception):
    """Evidence cannot be gathered on this machine, and why: no coqc, no GPU. Neither a failure nor a pass."""


@dataclass(frozen=True)
class Side:
    """One side of a statement: what it is in a line, and the function."""

    description: str
    function: Callable[..., Any]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)


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
    """What one kind of evidence has seen so far. Both sides of the theorem are run through it.

    cases: comparisons that held.
    degree, degrees: the largest of an exact identity, and of all together.
    worst: the largest relative error of floating point numbers.
    tightness: the largest ratio of an error to its bound.
    examples: how many hypothesis drew.
    lemmas: what was checked by machine.
    runs: how often each side was run.
    device: on what, where that is not the CPU as torch has it.
    """

    sides: tuple[Side, Side] | None = None
    cases: int = 0
    degree: int = 0
    degrees: int = 0
    worst: float | None = None
    tightness: float | None = None
    examples: int = 0
    lemmas: list[str] = field(default_factory=list)
    runs: list[int] = field(default_factory=lambda: [0, 0])
    device: str | None = None
    digest: Digest = field(default_factory=Digest)

    def left(self, *arguments: Any) -> Any:
        """What the theorem's left side gives, recorded."""
        return self._run(0, arguments)

    def right(self, *arguments: Any) -> Any:
        """What the theorem's right side gives, recorded."""
        return self._run(1, arguments)

    def _run(self, side: int, arguments: tuple[Any, ...]) -> Any:
        if self.sides is None:
            raise ValueError("the theorem has no sides: give left= and right= where it is stated")
        found = self.sides[side](*arguments)
        self.runs[side] += 1
        self.record(found)
        return found

    def record(self, *values: Any) -> None:
        """Take numbers that are compared, besides those of the two sides, into the digest."""
        self.digest.add(values)

    def exact(self, degree: int) -> None:
        """One identity between polynomials of at most this degree held."""
        self.cases += 1
        self.degree = max(self.degree, degree)
        self.degrees += degree
        self.record("exact", degree)

    def bitwise(self) -> None:
        """One comparison held, bit for bit."""
        self.cases += 1
        self.record("bitwise")

    def error(self, relative: float) -> None:
        """One comparison of floating point numbers held, with this error."""
        self.cases += 1
        self.worst = max(self.worst or 0.0, relative)
        self.record("error", relative)

    def ratio(self, error_over_bound: float) -> None:
        """One measured error lay under its bound: at this part of it.

        Raises:
            Counterexample: it did not.
        """
        if not error_over_bound <= 1:
            raise Counterexample(f"an error is {error_over_bound:.3g} times its bound")
        self.cases += 1
        self.tightness = max(self.tightness or 0.0, error_over_bound)
        self.record("ratio", error_over_bound)

    def lemma(self, name: str) -> None:
        """A lemma of this name was checked by machine, now, here."""
        self.cases += 1
        self.lemmas.append(name)
        self.record("lemma", name)

    def example(self) -> None:
        """hypothesis drew one more example."""
        self.examples += 1


Check = Callable[[Budget, Tally], None]
C = TypeVar("C", bound=Check)


@dataclass(frozen=True)
class EvidenceOutcome:
    """What came out of one kind of evidence.

    passed: None where it could not be gathered here; `absent` says why.
    cases: comparisons that held.
    degree, bound (exact): the largest degree of an identity; a bound on the probability that any of those
        run is false and went unseen, over the random points.
    worst (property, text): the largest relative error.
    ratio (bound): the largest error as a part of its bound.
    examples (property): how many hypothesis drew; None if the cases are a fixed list.
    lemmas (coq): the names of what was checked.
    device: on what, where that is not the CPU as torch has it.
    digest: SHA-256 of all numbers that were compared.
    """

    kind: str
    passed: bool | None
    cases: int
    seconds: float
    digest: str = ""
    degree: int | None = None
    bound: float | None = None
    worst: float | None = None
    ratio: float | None = None
    examples: int | None = None
    lemmas: tuple[str, ...] = ()
    failure: str | None = None
    absent: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of one theorem, with what it states.

    lacks: why there is none of a kind of evidence.
    ranges: what a kind of evidence ranges over, where that is not `over`.
    """

    name: str
    statement: str
    over: str
    evidence: tuple[EvidenceOutcome, ...]
    formula: str = ""
    left: str = ""
    right: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """All evidence that could be gathered here holds, and there is some."""
        here = [e.passed for e in self.evidence if e.passed is not None]
        return bool(here) and all(here)

    @property
    def failure(self) -> str | None:
        if self.passed:
            return None
        failed = [f"{e.kind}: {e.failure}" for e in self.evidence if e.passed is False]
        none = [f"no {e.kind} evidence here: {e.absent}" for e in self.evidence]
        return "; ".join(failed or none)

    @property
    def cases(self) -> int:
        return sum(e.cases for e in self.evidence)

    @property
    def seconds(self) -> float:
        return sum(e.seconds for e in self.evidence)

    def of(self, kind: str) -> EvidenceOutcome:
        """The evidence of one kind.

        Raises:
            KeyError: it has none.
        """
        for e in self.evidence:
            if e.kind == kind:
                return e
        raise KeyError(f"{self.name} has no {kind} evidence")

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Theorem:
    """A statement and the evidence for it.

    name: kebab-case words joined by slashes.
    statement, formula: the same in words and in mathematics.
    over: what the arguments range over.
    left, right: the two sides.
    evidence: checks by kind; each raises Counterexample, or Absent.
    ranges: what a kind of evidence ranges over, where that is not `over`.
    reasons: why a kind of evidence that there is none of cannot be had.
    """

    name: str
    statement: str
    over: str
    evidence: Mapping[str, Check]
    formula: str = ""
    left: Side | None = None
    right: Side | None = None
    ranges: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in (*self.evidence, *self.ranges, *self.reasons):
            if kind not in EVIDENCE:
                raise ValueError(f"evidence is {kind!r}; accepted: {', '.join(EVIDENCE)}")

    @property
    def lacks(self) -> dict[str, str]:
        """The kinds of evidence that it has no check for, and why ("" if nobody has written one)."""
        return {kind: self.reasons.get(kind, "") for kind in EVIDENCE if kind not in self.evidence}

    def also(self, kind: str, check: Check, over: str = "") -> Theorem:
        """The same with evidence of one more kind.

        Raises:
            ValueError: it has evidence of that kind.
        """
        if kind in self.evidence:
            raise ValueError(f"{self.name} has {kind} evidence already")
        ranges = {**self.ranges, kind: over} if over else self.ranges
        return replace(self, evidence={**self.evidence, kind: check}, ranges=ranges)

    def run(self, budget: Budget, kinds: Iterable[str] = EVIDENCE) -> Outcome:
        """Gather the evidence that there is of these kinds."""
        budget, kinds = replace(budget, name=self.name), set(kinds)
        return Outcome(
            self.name,
            self.statement,
            self.over,
            tuple(self._gather(kind, budget) for kind in EVIDENCE if kind in kinds & self.evidence.keys()),
            self.formula,
            self.left.description if self.left else "",
            self.right.description if self.right else "",
            self.lacks,
            self.ranges,
        )

    def _gather(self, kind: str, budget: Budget) -> EvidenceOutcome:
        sides = (self.left, self.right) if self.left and self.right else None
        tally, failure = Tally(sides), None
        began = time.perf_counter()
        try:
            self.evidence[kind](budget, tally)
        except Absent as e:
            return EvidenceOutcome(kind, None, 0, time.perf_counter() - began, absent=str(e))
        except Counterexample as e:
            failure = str(e)
        except Exception as e:  # the code under test may fail in any way, and that too is a finding
            failure = f"{type(e).__name__}: {e}"
        if failure is None and tally.cases == 0:
            failure = "nothing was checked"
        exact = kind == "exact"
        return EvidenceOutcome(
            kind,
            failure is None,
            tally.cases,
            time.perf_counter() - began,
            tally.digest.hex(),
            tally.degree if exact else None,
            tally.degrees / MODULUS if exact else None,
            tally.worst,
            tally.tightness,
            tally.examples or None,
            tuple(tally.lemmas),
            failure,
            device=tally.device,
        )


class Collection:
    """The theorems of one file, in the order they are written in, and further evidence for others.

    reasons: why they cannot have a kind of evidence, unless one of them says otherwise.
    """

    def __init__(self, reasons: Mapping[str, str] | None = None) -> None:
        self.reasons = dict(reasons or {})
        self._theorems: dict[str, Theorem] = {}
        self.further: list[tuple[str, str, Check, str]] = []

    def __iter__(self) -> Iterator[Theorem]:
        return iter(self._theorems.values())

    def __len__(self) -> int:
        return len(self._theorems)

    def add(self, theorem: Theorem) -> None:
        if theorem.name in self._theorems:
            raise ValueError(f"there are two theorems named {theorem.name}")
        self._theorems[theorem.name] = theorem

    def extend(self, theorems: Iterable[Theorem]) -> None:
        for theorem in theorems:
            self.add(theorem)

    def __call__(
        self,
        name: str,
        statement: str,
        over: str,
        kind: str,
        *,
        formula: str = "",
        left: Side | None = None,
        right: Side | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> Callable[[C], C]:
        """Decorator: the function below checks this statement, and is evidence of this kind for it."""

        def register(check: C) -> C:
            why = {**self.reasons, **(reasons or {})}
            self.add(Theorem(name, statement, over, {kind: check}, formula, left, right, {}, why))
            return check

        return register

    def also(self, name: str, kind: str, over: str = "") -> Callable[[C], C]:
        """Decorator: the function below is further evidence for a theorem, of this file or another.

        `over` is what it ranges over, where that is not what the theorem says.
        """

        def register(check: C) -> C:
            self.further.append((name, kind, check, over))
            return check

        return register


def is_bad(error: float, tolerance: float) -> bool:
    """NaN is bad too."""
    return not error <= tolerance or math.isnan(error)
