"""`mixerzoo prove`: run the theorems and say what held, on what evidence.

From Python:

    from mixerzoo.equivalence.prove import prove
    for outcome in prove(["forms", "mixers/hgrn/padding"], quick=True):
        print(outcome.name, outcome.passed, [(e.kind, e.cases) for e in outcome.evidence])

To compare a function of your own with the recurrence: `mixerzoo.equivalence.theorems.operator.check_kernel`.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .text import check_file, english, notes_elsewhere
from .theorem import EVIDENCE, Budget, EvidenceOutcome, Outcome, Theorem
from .theorems import catalogue

HELP = "prove that all ways of computing the zoo are the same functions"

# Called before each theorem: how many are done, of how many, and which is next.
Reporter = Callable[[int, int, Theorem], None]


class UnknownTheorem(ValueError):
    """A name that matches no theorem."""


def select(names: Iterable[str], theorems: dict[str, Theorem]) -> list[Theorem]:
    """The theorems that the names mean: exactly, by prefix ("forms") or by pattern ("*/padding").

    Raises:
        UnknownTheorem: a name matches nothing; the message lists names that are close.
    """
    chosen: dict[str, Theorem] = {}
    for name in names:
        found = [name] if name in theorems else [t for t in theorems if name and t.startswith(name)]
        found = found or fnmatch.filter(theorems, name)
        if not found:
            groups = {t.rpartition("/")[0] for t in theorems}
            near = difflib.get_close_matches(name, [*theorems, *groups], n=5, cutoff=0.4)
            hint = f"near it: {', '.join(near)}" if near else "`mixerzoo prove --list` shows all names"
            raise UnknownTheorem(f"no theorem is named {name!r}; {hint}")
        chosen.update((t, theorems[t]) for t in found)
    return [t for name, t in theorems.items() if name in chosen]


def choose(names: Sequence[str] | None, kinds: Sequence[str] | None) -> tuple[list[Theorem], tuple[str, ...]]:
    """The theorems of these names that have evidence of these kinds, and the kinds.

    Raises:
        UnknownTheorem: there are none.
        ValueError: a kind is not one of `EVIDENCE`.
    """
    for kind in kinds or ():
        if kind not in EVIDENCE:
            raise ValueError(f"evidence is {kind!r}; accepted: {', '.join(EVIDENCE)}")
    theorems = catalogue()
    named = list(theorems.values()) if not names else select(names, theorems)
    wanted = tuple(kinds or EVIDENCE)
    chosen = [t for t in named if not t.evidence.keys().isdisjoint(wanted)]
    if not chosen:
        raise UnknownTheorem(f"none of these theorems has {' or '.join(wanted)} evidence")
    return chosen, wanted


SEEDS = 2**32


def check_seed(argument: str, seed: int) -> None:
    """Raise ValueError, which names the argument, unless random numbers can be made from this seed."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"{argument} is {seed}; accepted: from 0 to {SEEDS - 1}")


def prove(
    names: Sequence[str] | None = None,
    quick: bool = True,
    seed: int = 0,
    text: str | Path | None = None,
    progress: Reporter | None = None,
    kinds: Sequence[str] | None = None,
) -> list[Outcome]:
    """Run theorems and return what came out, one outcome each; a failure is an outcome too.

    Args:
        names: which theorems (see `select`); None is all of them.
        quick: a sample of each theorem's cases instead of all of them.
        seed: of the random points and of the examples. A run is determined by it.
        text: a file to take real text from, instead of Python's own documentation.
        progress: called before each theorem.
        kinds: of evidence (`EVIDENCE`); None is all that there is. Theorems without any are left out.

    Raises:
        UnknownTheorem: a name matches nothing, or no theorem of these names has such evidence.
        OSError, ValueError: the text cannot be read, or is too short; the seed or a kind is not accepted.
    """
    chosen, kinds = choose(names, kinds)
    check_seed("seed", seed)
    if text is not None:
        english(text)
    budget = Budget(quick, seed, None if text is None else Path(text))
    outcomes = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small: more threads are slower
    try:
        with notes_elsewhere():
            for i, theorem in enumerate(chosen):
                if progress is not None:
                    progress(i, len(chosen), theorem)
                outcomes.append(theorem.run(budget, kinds))
    finally:
        torch.set_num_threads(threads)
    return outcomes


# ------------------------------------------------------------------ the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="theorems by name, prefix or pattern (all)",
    )
    parser.add_argument("--quick", action="store_true", help="a sample of the cases, in less than a minute")
    parser.add_argument("--list", action="store_true", help="only list the theorems and what they state")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write versions, seed and every outcome to FILE"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="read the real text from FILE")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random points and examples (0)")


def versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("mixerzoo")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "mixerzoo": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hypothesis": importlib.metadata.version("hypothesis"),
    }


def as_json(outcomes: Sequence[Outcome], quick: bool, seed: int) -> str:
    record = {
        "versions": versions(),
        "seed": seed,
        "quick": quick,
        "passed": all(o.passed for o in outcomes),
        "seconds": sum(o.seconds for o in outcomes),
        "outcomes": [o.as_dict() for o in outcomes],
    }
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def found(e: EvidenceOutcome) -> str:
    """What one kind of evidence found, in a few words: what can still be wrong, or how far off it was."""
    if e.passed is None:
        return f"not here: {e.absent}"
    if not e.passed:
        return "FAILS"
    if e.kind == "exact":
        return f"degree ≤ {e.degree}, p ≤ {e.bound:.0e}" if e.bound else "no numbers: p = 0"
    if e.kind == "bitwise":
        return "all bits equal"
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
    if not e.passed:
        return ""
    if e.kind == "exact":
        return f"p ≤ {e.bound:.0e}" if e.bound else "p = 0"
    if e.kind == "bound":
        return f"{e.ratio:.2g} of bound"
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
    return f"{len(outcomes)} theorems, {cases:,} cases, {seconds:.1f} s: {verdict}"


def _show(console: Console, outcomes: Sequence[Outcome], seconds: float, fold: bool) -> None:
    console.print(table(outcomes, fold))
    console.print()
    for o in outcomes:
        if not o.passed:
            console.print(f"[red]✗ {escape(o.name)}[/]\n  stated: {escape(o.statement)}")
            console.print(f"  but: {escape(o.failure or '')}\n", soft_wrap=True)
    console.print(
        "error: of exact evidence, the probability that a false identity went unseen; of property and text, "
        "the largest relative error seen. Statements: mixerzoo prove --list",
        style="dim",
    )
    console.print(summary(outcomes, seconds))


def _list(console: Console) -> int:
    for t in catalogue().values():
        console.print(
            f"[bold]{escape(t.name)}[/] ({', '.join(t.evidence)})\n  {escape(t.statement)}\n"
            f"  over: {escape(t.over)}"
        )
    return 0


def run(args: argparse.Namespace) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    if args.list:
        return _list(console)
    try:
        select(args.names, catalogue())
        if args.json is not None:
            check_file("--json", args.json)
        if args.text is not None:
            english(args.text)
    except (OSError, ValueError) as e:
        print(f"mixerzoo prove: {e}", file=sys.stderr)
        return 2
    began = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("theorems")

        def report(done: int, of: int, theorem: Theorem) -> None:
            bar.update(task, completed=done, total=of, description=theorem.name)

        outcomes = prove(args.names, args.quick, args.seed, args.text, report)
    _show(console, outcomes, time.perf_counter() - began, fold=not args.names)
    if args.json is not None:
        args.json.write_text(as_json(outcomes, args.quick, args.seed), encoding="utf-8")
    return 0 if all(o.passed for o in outcomes) else 1
