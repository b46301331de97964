"""Coq: lemmas about a model of the code, for every length, each cited by the theorems that it supports.

What is cited is what `coq/Statements.v` names; docs/proofs.md says what ties the model to the code.
"""

from __future__ import annotations

from .. import machine_checked
from ..theorem import Absent, Budget, Check, Collection, Counterexample, Tally

THEOREMS = Collection()

OVER = "every length; any transitions that compose and act on states that can be added"
# Where the lemmas say less than the theorem that cites them, what they say it of.
PARTS = {
    "gradients/closure": "dk, dv and dS_0",
    "gradients/chunk": "k vᵀ and q dOᵀ as wholes, the decays, and the initial state",
    "gradients/chunk-body": "k vᵀ and q dOᵀ as wholes, the decays, and the initial state",
    "gradients/scan": "k vᵀ and q dOᵀ as wholes, the decays, and the initial state",
    "delta/recurrent": "the loop, and the states",
    "delta/gradient-chunk": "the gradient of the values, with beta",
}


def _by(lemmas: list[machine_checked.Lemma]) -> Check:
    def check(budget: Budget, tally: Tally) -> None:
        try:
            found = machine_checked.checked()
        except machine_checked.NotInstalled as e:
            raise Absent(str(e)) from e
        except machine_checked.DoesNotCompile as e:
            raise Counterexample(f"the proofs do not compile: {e}") from e
        for lemma in lemmas:
            if problem := found.problems[lemma.name]:
                raise Counterexample(f"{lemma.name} is not what is cited: {problem}")
            tally.lemma(lemma.name)

    return check


def _cited() -> dict[str, list[machine_checked.Lemma]]:
    """The lemmas that each theorem cites."""
    found: dict[str, list[machine_checked.Lemma]] = {}
    for lemma in machine_checked.cited():
        for theorem in lemma.theorems:
            found.setdefault(theorem, []).append(lemma)
    return found


for _theorem, _lemmas in _cited().items():
    _over = f"{PARTS[_theorem]}; {OVER}" if _theorem in PARTS else OVER
    THEOREMS.also(_theorem, "coq", _over)(_by(_lemmas))
