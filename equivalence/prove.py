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
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .certificate import (
    InvalidCertificate,
    Settings,
    as_json,
    certificate,
    compare,
    read,
    settings_of,
)
from .certificate_page import certificate_page
from .proof_table import show_entry, show_outcomes, summary
from .text import check_file, english, notes_elsewhere
from .theorem import EVIDENCE, Budget, Outcome, Theorem
from .theorems import catalogue
from .theorems_page import theorems_page

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
        help="theorems by name, prefix or pattern (all); of a single one, everything is shown",
    )
    parser.add_argument("--quick", action="store_true", help="a sample of the cases, in a few minutes")
    parser.add_argument(
        "--evidence",
        action="append",
        metavar="KIND",
        help=f"evidence of this kind alone: {', '.join(EVIDENCE)}; may be repeated",
    )
    parser.add_argument(
        "--list", action="store_true", help="only list the theorems: what they say, have and lack"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a certificate to FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the certificate to FILE as a page")
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="run what the certificate in FILE records, and compare bit by bit; exit status 1 if they differ",
    )
    parser.add_argument("--docs", type=Path, metavar="FILE", help="only write the list of theorems to FILE")
    parser.add_argument("--text", type=Path, metavar="FILE", help="read the real text from FILE")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of random points and examples, from 0 to 4294967295 (0)",
    )


def _with_bar(console: Console, settings: Settings) -> list[Outcome]:
    """The outcomes, with a progress bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("theorems")

        def report(done: int, of: int, theorem: Theorem) -> None:
            bar.update(task, completed=done, total=of, description=theorem.name)

        return prove(settings.names, settings.quick, settings.seed, settings.text, report, settings.kinds)


def _replay(console: Console, path: Path, text: Path | None) -> int:
    """Run again what a certificate records, and say what differs."""
    recorded = read(path)
    settings = settings_of(recorded)
    if text is not None:
        settings = settings._replace(text=text)
    known = catalogue()
    gone = [name for name in settings.names or () if name not in known]
    settings = settings._replace(names=[name for name in settings.names or () if name in known])
    if not settings.names:
        raise InvalidCertificate(f"{path} has no theorem that there is here")
    comparison = compare(recorded, certificate(_with_bar(console, settings), settings))
    for name in gone:
        console.print(f"[red]✗[/] {escape(name)}: there is no such theorem here")
    shown = comparison.run + comparison.results
    for difference in shown:
        console.print(f"[red]✗[/] {escape(str(difference))}", soft_wrap=True)
    count = len(recorded["theorems"])
    theorems = "1 theorem" if count == 1 else f"{count} theorems"
    for difference in comparison.made_with:
        console.print(f"[yellow]made with other[/] {escape(str(difference))}", soft_wrap=True)
    if comparison.same:
        console.print(f"{theorems}: [green]the same results, bit for bit[/]")
        return 0
    fields = f"{len(shown)} fields" if len(shown) > 1 else "a field"
    console.print(f"{theorems}: [red]the results differ, in {fields}[/]")
    return 1


def run(args: argparse.Namespace) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    settings = Settings(args.names or None, args.evidence, args.quick, args.seed, args.text)
    try:
        check_seed("--seed", args.seed)
        chosen, _ = choose(settings.names, settings.kinds)
        for option in ("json", "html", "docs"):
            if getattr(args, option) is not None:
                check_file(f"--{option}", getattr(args, option))
        if args.text is not None:
            english(args.text)
        if args.replay is not None:
            return _replay(console, args.replay, args.text)
    except (OSError, ValueError) as e:
        print(f"mixerzoo prove: {e}", file=sys.stderr)
        return 2
    if args.docs is not None:
        args.docs.write_text(theorems_page(catalogue().values()), encoding="utf-8")
        return 0
    if args.list:
        for theorem in chosen:
            show_entry(console, theorem)
        return 0
    began = time.perf_counter()
    outcomes = _with_bar(console, settings)
    seconds = time.perf_counter() - began
    if len(outcomes) == 1:
        show_entry(console, chosen[0], outcomes[0])
        console.print(summary(outcomes, seconds))
    else:
        show_outcomes(console, outcomes, seconds, fold=not args.names)
    for path, written in ((args.json, as_json), (args.html, certificate_page)):
        if path is not None:
            path.write_text(written(certificate(outcomes, settings)), encoding="utf-8")
    return 0 if all(o.passed for o in outcomes) else 1
