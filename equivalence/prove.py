"""`mixerzoo prove`: run the theorems and say what held, on what evidence.

From Python:

    from mixerzoo.equivalence.prove import prove
    for outcome in prove(["forms", "mixers/hgrn/padding"], quick=True):
        print(outcome.name, outcome.passed, outcome.cases, outcome.bound)

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

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .text import check_file, english, notes_elsewhere
from .theorem import Budget, Outcome, Theorem
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


def prove(
    names: Sequence[str] | None = None,
    quick: bool = True,
    seed: int = 0,
    text: str | Path | None = None,
    progress: Reporter | None = None,
) -> list[Outcome]:
    """Run theorems and return what came out, one outcome each; a failure is an outcome too.

    Args:
        names: which theorems (see `select`); None is all of them.
        quick: a sample of each theorem's cases instead of all of them.
        seed: of the random points and of the examples. A run is determined by it.
        text: a file to take real text from, instead of Python's own documentation.
        progress: called before each theorem.

    Raises:
        UnknownTheorem: a name matches nothing.
        OSError, ValueError: the text cannot be read, or is too short.
    """
    theorems = catalogue()
    chosen = list(theorems.values()) if not names else select(names, theorems)
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
                outcomes.append(theorem.run(budget))
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


def error_of(outcome: Outcome) -> str:
    """What can still be wrong: the probability of an unseen difference, or the largest error seen."""
    if not outcome.passed:
        return ""
    if outcome.evidence == "exact":
        return f"p ≤ {outcome.bound:.0e}" if outcome.bound else "none"
    if outcome.evidence == "bitwise":
        return "none"
    return "0" if not outcome.worst else f"{outcome.worst:.0e}"


def rows(outcomes: Sequence[Outcome], fold: bool) -> dict[str, list[Outcome]]:
    """The outcomes of each row: one each, or if folded one row for all that hold of a mixer."""
    found: dict[str, list[Outcome]] = {}
    for o in outcomes:
        group = o.name.rpartition("/")[0]
        together = fold and "/" in group and o.passed
        found.setdefault(f"{group}/*" if together else o.name, []).append(o)
    return found


def table(outcomes: Sequence[Outcome], fold: bool = False) -> Table:
    """What came out, in groups. With `fold`, the theorems of a mixer share a row, but for failures."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("theorem", "evidence"):
        found.add_column(title, no_wrap=True)
    for title in ("cases", "error", "seconds"):
        found.add_column(title, justify="right", no_wrap=True)
    previous = None
    for name, several in rows(outcomes, fold).items():
        section = name.partition("/")[0] if fold else name.rpartition("/")[0]
        if previous not in (None, section):
            found.add_row()
        previous = section
        mark = "[green]✓[/]" if all(o.passed for o in several) else "[red]✗[/]"
        kinds = {o.evidence: "" for o in several}
        for kind in kinds:
            errors = (o for o in several if o.evidence == kind)
            kinds[kind] = error_of(max(errors, key=lambda o: (not o.passed, o.worst or o.bound or 0.0)))
        found.add_row(
            f"{mark} {escape(name)}",
            ", ".join(kinds),
            f"{sum(o.cases for o in several):,}",
            ", ".join(filter(None, kinds.values())),
            f"{sum(o.seconds for o in several):.2f}",
        )
    return found


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
            f"[bold]{escape(t.name)}[/] ({t.evidence})\n  {escape(t.statement)}\n  over: {escape(t.over)}"
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
