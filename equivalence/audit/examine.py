"""The verdict: every property of a target, looked at case by case."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .finding import AGREE, DISAGREE, PROPERTIES, UNSUPPORTED, Finding
from .properties import CHECKS
from .properties.common import Wrong
from .properties.gradients import NoGradients
from .subject import Case, Subject, Unsupported

# A target that says no is not wrong. What it raises otherwise, it did not expect.
REFUSALS = (Unsupported, NotImplementedError, ValueError, NoGradients)


@dataclass(frozen=True)
class Target:
    """A name, and for each property the subjects that show it (several configurations of one thing, say).

    `note` is what was guessed of it, for the report.
    """

    name: str
    subjects: Callable[[str], Sequence[Subject]]
    note: str = ""


@dataclass
class _Seen:
    """What the cases of one subject came to."""

    cases: int = 0
    worst: float = 0.0  # of those that agree
    failures: list[float] = field(default_factory=list)  # errors of the others, inf where there is no number
    failed: tuple[Case, str] | None = None  # the first of them
    refused: str = ""

    def fail(self, case: Case, error: float, what: str) -> None:
        self.failures.append(error)
        self.failed = self.failed or (case, what)

    @property
    def difference(self) -> float | None:
        """The largest of the failures that has a number."""
        return max((e for e in self.failures if math.isfinite(e)), default=None)


def _look(subject: Subject, name: str) -> _Seen:
    seen = _Seen()
    if name in subject.unsupported:
        seen.refused = subject.unsupported[name]
        return seen
    cases = iter(CHECKS[name](subject))
    while True:
        case = None
        try:
            case, measure = next(cases)
            error, accepted = measure()
        except StopIteration:
            return seen
        except REFUSALS as e:
            seen.refused = str(e) if isinstance(e, (Unsupported, NoGradients)) else f"raises {_said(e)}"
            if case is None:
                return seen
        except Wrong as e:
            assert case is not None
            seen.cases += 1
            seen.fail(case, e.error, str(e))
        except Exception as e:
            if case is None:
                raise
            seen.cases += 1
            seen.fail(case, math.inf, f"raises {_said(e)}")
        else:
            seen.cases += 1
            if error <= accepted:
                seen.worst = max(seen.worst, error)
            else:
                what = f"{error:.2g}" if math.isfinite(error) else "another shape, or not finite"
                seen.fail(case, error, f"difference {what} (accepted {accepted:.1g})")


def _said(e: BaseException) -> str:
    first = str(e).strip().splitlines()
    return f"{type(e).__name__}: {first[0][:160]}" if first else type(e).__name__


def examine(target: Target, name: str) -> Finding:
    """One property of one target.

    Raises:
        KeyError: there is no such property.
    """
    worst, refused = 0.0, ""
    agreed = 0
    for subject in target.subjects(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen = _look(subject, name)
        if seen.failed is not None:
            case, what = seen.failed
            told = ", ".join(filter(None, (str(case), subject.describe(case))))
            largest = seen.difference
            more = (
                "" if largest is None or seen.cases == 1 else f"; largest of {seen.cases} cases {largest:.2g}"
            )
            return Finding(
                target.name, name, DISAGREE, largest, f"{told}: {what}{more}", subject.snippet(case)
            )
        agreed += seen.cases
        worst = max(worst, seen.worst)
        refused = refused or seen.refused or ("" if seen.cases else "nothing could be compared")
    if not agreed:
        return Finding(target.name, name, UNSUPPORTED, None, refused or "nothing to look at")
    told = f"{agreed} cases" + (f"; others it does not take: {refused}" if refused else "")
    return Finding(target.name, name, AGREE, worst, told)


def audit(
    targets: Iterable[Target],
    properties: Sequence[str] = tuple(PROPERTIES),
    progress: Callable[[str, str], None] | None = None,
) -> list[Finding]:
    """Every property of every target, in this order.

    Args:
        targets: what to look at: see `mixerzoo.equivalence.audit.targets`.
        properties: names out of `PROPERTIES`.
        progress: called before each with the target's name and the property's.

    Raises:
        ValueError: a property has another name.
    """
    for name in properties:
        if name not in PROPERTIES:
            raise ValueError(f"properties: {name!r} is not one; accepted: {', '.join(PROPERTIES)}")
    findings = []
    for target in targets:
        for name in properties:
            if progress is not None:
                progress(target.name, name)
            findings.append(examine(target, name))
    return findings
