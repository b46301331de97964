"""The sides of a theorem are what its evidence runs: spoil one, and the theorem fails."""

from dataclasses import replace
from decimal import Decimal

import pytest
import torch

from mixerzoo.equivalence.algebra import Element
from mixerzoo.equivalence.rounding import Fixed
from mixerzoo.equivalence.theorem import EVIDENCE, Budget, Collection, Counterexample, Side, Tally, Theorem
from mixerzoo.equivalence.theorems import catalogue
from mixerzoo.equivalence.theorems.examples import Expected
from mixerzoo.equivalence.theorems.identities import LATTICE
from mixerzoo.equivalence.theorems.problems import Run

THEOREMS = catalogue()
# Every mixer has the same sides: one with a state stands for them all, and one without; so have kernels.
MANY, FEW = (
    ("mixers/", "lattice/triton-"),
    ("mixers/gla/", "mixers/gla-bidirectional/", "lattice/triton-step"),
)
TOLD = [n for n, t in THEOREMS.items() if t.left and (not n.startswith(MANY) or n.startswith(FEW))]


def spoilt(x):
    """The same with one number changed."""
    if isinstance(x, Fixed):
        return x + 1
    if isinstance(x, Element):
        return type(x)(x.parts[0] + x.parts[0].dtype.type(1), *x.parts[1:])
    if isinstance(x, torch.Tensor):
        return ~x if x.dtype == torch.bool else x + 1
    if isinstance(x, Expected):
        return x._replace(value=spoilt(x.value))
    if isinstance(x, dict):
        numbers = [n for n, y in x.items() if y is not None]
        return {**x, **{n: spoilt(x[n]) for n in numbers}}
    if isinstance(x, tuple):
        y = [None if part is None else spoilt(part) for part in x]
        return type(x)(*y) if hasattr(x, "_fields") else tuple(y)
    if isinstance(x, list):
        return [spoilt(part) for part in x]
    assert isinstance(x, (int, Decimal)), type(x)
    return x + 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", TOLD)
def test_a_side_that_is_wrong_is_seen(name, side):
    theorem = THEOREMS[name]
    real = getattr(theorem, side)
    wrong = replace(theorem, **{side: Side(real.description, lambda *x: spoilt(real(*x)))})
    # The evidence that the theorem was stated with runs its sides; what was added may run others.
    kind = next(iter(theorem.evidence))
    outcome = wrong.run(Budget(), [kind])
    assert not outcome.passed
    assert "spoilt" not in outcome.failure and "Error" not in outcome.failure, outcome.failure


@pytest.mark.parametrize("name", [n for n, t in THEOREMS.items() if t.ranges.get("bitwise") == LATTICE])
def test_a_side_that_is_wrong_is_seen_on_the_lattice(name):
    theorem = THEOREMS[name]
    wrong = replace(theorem, left=Side("wrong", lambda *x: spoilt(theorem.left(*x))))
    failure = wrong.run(Budget(), ["bitwise"]).failure
    assert "both sides differ, for " in failure


def test_what_is_rounded_is_not_on_the_lattice():
    theorem = THEOREMS["links/slope-zero"]
    for factor in (0.5, 2.0**53):
        sides = [
            Side("scaled", lambda *x, side=side, by=factor: Run(*(by * y for y in side(*x))))
            for side in (theorem.left, theorem.right)
        ]
        failure = replace(theorem, left=sides[0], right=sides[1]).run(Budget(), ["bitwise"]).failure
        assert "not whole numbers that float64 holds" in failure


def test_every_theorem_is_written_out():
    for theorem in THEOREMS.values():
        assert theorem.formula and all(len(line) <= 110 for line in theorem.formula.splitlines()), (
            theorem.name
        )
        assert theorem.left and theorem.left.description and theorem.right and theorem.right.description
        assert theorem.evidence.keys() | theorem.lacks.keys() == set(EVIDENCE)
        assert theorem.evidence.keys().isdisjoint(theorem.lacks)


# ------------------------------------------------------------------ further evidence


def holds(budget, tally):
    tally.error(0.0)


def test_evidence_is_added_to_a_theorem():
    theorem = Theorem("a/b", "One.", "T < 9", {"property": holds}).also("text", holds, "prose")
    assert list(theorem.evidence) == ["property", "text"] and theorem.ranges == {"text": "prose"}
    assert theorem.lacks == {"exact": "", "bitwise": "", "bound": "", "coq": ""}
    with pytest.raises(ValueError, match="a/b has text evidence already"):
        theorem.also("text", holds)
    with pytest.raises(ValueError, match="evidence is 'proof'; accepted: exact, bitwise, "):
        theorem.also("proof", holds)


def test_evidence_for_no_theorem_is_refused(monkeypatch):
    from mixerzoo.equivalence.theorems import forms

    further = Collection()
    further.also("forms/none", "coq")(holds)
    monkeypatch.setattr(forms, "THEOREMS", further)
    with pytest.raises(ValueError, match="coq evidence is given for forms/none, which is no theorem"):
        catalogue()


@pytest.mark.parametrize("changed", range(8))
def test_all_that_is_compared_is_in_the_digest(changed):
    def digest(numbers):
        tally = Tally((Side("left", lambda x: x), Side("right", lambda x: x)))
        tally.left(numbers[0])
        tally.right(numbers[1])
        tally.record(numbers[2])
        tally.exact(numbers[3])
        tally.error(float(numbers[4]))
        tally.ratio(numbers[5] / 10)
        tally.lemma(str(numbers[6]))
        tally.left(numbers[7])
        return tally.digest.hex()

    numbers = list(range(8))
    assert digest(numbers) == digest(list(numbers))
    assert digest(numbers) != digest([n + (i == changed) for i, n in enumerate(numbers)])


def test_a_theorem_without_sides_has_none_to_run():
    with pytest.raises(ValueError, match="the theorem has no sides: give left= and right="):
        Tally().left(1)


def test_a_ratio_above_one_is_a_counterexample():
    tally = Tally()
    tally.ratio(0.25)
    tally.ratio(1.0)
    assert (tally.cases, tally.tightness) == (2, 1.0)
    for ratio in (1.01, float("nan")):
        with pytest.raises(Counterexample, match="times its bound"):
            tally.ratio(ratio)
