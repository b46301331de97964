"""What theorems state and what came out, in the terminal: a table of all, an entry for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from .theorem import EVIDENCE, EvidenceOutcome, Outcome, Theorem

UNWRITTEN = "none has been written"


def found(e: EvidenceOutcome) -> str:
    """What one kind of evidence found, in a few words: what can still be wrong, or how far off it was."""
    if e.passed is None:
        return f"not here: {e.absent}"
    if not e.passed:
        return "FAILS"
    if e.kind == "exact":
        return f"degree ≤ {e.degree}, p ≤ {e.bound:.0e}" if e.bound else "no numbers: p = 0"
    if e.kind == "bitwise":
        return "all bits equal" + (f", {e.device}" if e.device else "")
    if e.kind == "coq":
        return ", ".join(e.lemmas)
    parts = [f"{e.examples:,} examples"] if e.examples else []
    if e.ratio is not None:
        parts.append(f"error ≤ {e.ratio:.2g} of its bound")
    if e.worst is not None:
        parts.append(f"error ≤ {e.worst:.0e}" if e.worst else "error 0")
    return ", ".join(parts)


def error_of(e: EvidenceOutcome) -> str:
    """`found`, as short as it can be said."""
    if e.passed is None:
        return "not here"
    if not e.passed:
        return ""
    if e.kind == "exact":
        return f"p ≤ {e.bound:.0e}" if e.bound else "p = 0"
    if e.kind == "bound":
        return f"{e.ratio:.2g} of bound"
    if e.kind == "coq":
        return f"{len(e.lemmas)} lemma{'s' * (len(e.lemmas) > 1)}"
    if e.worst is not None:
        return f"{e.worst:.0e}" if e.worst else "0"
    return "none"


def rows(outcomes: Sequence[Outcome], fold: bool) -> dict[str, list[Outcome]]:
    """The outcomes of each row: one each, or if folded one row for all that hold of a mixer."""
    found: dict[str, list[Outcome]] = {}
    for o in outcomes:
        group = o.name.rpartition("/")[0]
        together = fold and "/" in group and o.passed
        found.setdefault(f"{group}/*" if together else o.name, []).append(o)
    return found


def together(several: Sequence[EvidenceOutcome]) -> EvidenceOutcome:
    """Evidence of one kind for several theorems, as one: the sums of what adds up, the worst of the rest."""

    def most(attribute: str) -> Any:
        return max((x for e in several if (x := getattr(e, attribute)) is not None), default=None)

    bounds = [e.bound for e in several if e.bound is not None]
    here = [e.passed for e in several if e.passed is not None]
    return EvidenceOutcome(
        several[0].kind,
        all(here) if here else None,
        sum(e.cases for e in several),
        sum(e.seconds for e in several),
        degree=most("degree"),
        bound=sum(bounds) if bounds else None,
        worst=most("worst"),
        ratio=most("ratio"),
        examples=sum(e.examples or 0 for e in several) or None,
        lemmas=tuple(dict.fromkeys(lemma for e in several for lemma in e.lemmas)),
        absent="; ".join(dict.fromkeys(e.absent for e in several if e.absent)) or None,
    )


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, list[EvidenceOutcome]]:
    """All the evidence of these theorems, by its kind."""
    kinds = {kind: [e for o in outcomes for e in o.evidence if e.kind == kind] for kind in EVIDENCE}
    return {kind: several for kind, several in kinds.items() if several}


def table(outcomes: Sequence[Outcome], fold: bool = False) -> Table:
    """A line for each kind of evidence. With `fold`, the theorems of a mixer that hold share their lines."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("theorem", "evidence"):
        made.add_column(title, no_wrap=True)
    made.add_column("cases", justify="right", no_wrap=True)
    made.add_column("found")
    made.add_column("seconds", justify="right", no_wrap=True)
    previous = None
    for name, several in rows(outcomes, fold).items():
        section = name.partition("/")[0] if fold else name.rpartition("/")[0]
        if previous not in (None, section):
            made.add_row()
        previous = section
        title = f"{'[green]✓[/]' if all(o.passed for o in several) else '[red]✗[/]'} {escape(name)}"
        for kind, evidence in by_kind(several).items():
            e = together(evidence)
            words = escape(found(e))
            if e.passed is not True:
                words = f"[{'red' if e.passed is False else 'yellow'}]{words}[/]"
            made.add_row(title, kind, f"{e.cases:,}", words, f"{e.seconds:.2f}")
            title = ""
    return made


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    failed = sum(not o.passed for o in outcomes)
    cases = sum(o.cases for o in outcomes)
    held = len(outcomes) - failed
    verdict = f"[red]{failed} fail[/], {held} hold" if failed else "[green]all hold[/]"
    absent = sum(e.passed is None for o in outcomes for e in o.evidence)
    if absent:
        verdict += f", but for evidence that could not be gathered here ([yellow]{absent}[/])"
    count = "1 theorem" if len(outcomes) == 1 else f"{len(outcomes)} theorems"
    return f"{count}, {cases:,} cases, {seconds:.1f} s: {verdict}"


# ------------------------------------------------------------------ one theorem


def lacking(lacks: Mapping[str, str]) -> list[tuple[str, str]]:
    """(kinds of evidence, why there is none of them), those without a reason together."""
    given = [(kind, why) for kind, why in lacks.items() if why]
    rest = ", ".join(kind for kind, why in lacks.items() if not why)
    return [*given, *([(rest, UNWRITTEN)] if rest else [])]


def entry(theorem: Theorem, outcome: Outcome | None = None) -> Table:
    """All that a theorem says of itself and, if it was run, what came out."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column()
    made.add_row("stated", escape(theorem.statement))
    if theorem.formula:
        made.add_row("formula", escape(theorem.formula))
    for name, side in (("left", theorem.left), ("right", theorem.right)):
        if side is not None:
            made.add_row(name, escape(side.description))
    made.add_row("over", escape(theorem.over))
    for kind in (k for k in EVIDENCE if k in theorem.evidence):
        words = []
        if outcome is not None and kind in {e.kind for e in outcome.evidence}:
            e = outcome.of(kind)
            colour = {True: "green", False: "red", None: "yellow"}[e.passed]
            words.append(f"[{colour}]{escape(found(e))}[/] [dim]({e.cases:,} cases, {e.seconds:.2f} s)[/]")
            if e.failure:
                words.append(f"[red]{escape(e.failure)}[/]")
        if kind in theorem.ranges:
            words.append(f"over {escape(theorem.ranges[kind])}")
        made.add_row(kind, "\n".join(words) or "yes")
    for kinds, why in lacking(theorem.lacks):
        made.add_row("lacks", f"{kinds}: {escape(why)}")
    return made


def show_entry(console: Console, theorem: Theorem, outcome: Outcome | None = None) -> None:
    mark = "" if outcome is None else "[green]✓[/] " if outcome.passed else "[red]✗[/] "
    console.print(f"{mark}[bold]{escape(theorem.name)}[/]")
    console.print(Padding(entry(theorem, outcome), (0, 0, 1, 2)))


def show_outcomes(console: Console, outcomes: Sequence[Outcome], seconds: float, fold: bool) -> None:
    console.print(table(outcomes, fold))
    console.print()
    for o in outcomes:
        if not o.passed:
            console.print(f"[red]✗ {escape(o.name)}[/]\n  stated: {escape(o.statement)}")
            console.print(f"  but: {escape(o.failure or '')}\n", soft_wrap=True)
    console.print(
        "p: the probability that a false identity went unseen. error: the largest relative one seen. "
        "All that a theorem says: mixerzoo prove NAME",
        style="dim",
    )
    console.print(summary(outcomes, seconds))
