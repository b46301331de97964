"""`mixerzoo audit`: which properties of a recurrence other people's code keeps, and where it does not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table

from ..text import check_file, notes_elsewhere
from .examine import Target, audit
from .finding import AGREE, DISAGREE, PROPERTIES, UNSUPPORTED, Finding, as_json

EXAMPLES = """targets:
  transformers                     every linear mixer of the installed transformers, at toy size
  mamba2                           one model type of it
  fla                              the references of flash-linear-attention (with a GPU: its kernels)
  package.module:name              a kernel, a torch module, or a model class of transformers
  path/to/file.py:name             the same

properties:
{properties}

A target is compared with itself, called in another way. Exit status 1: something disagrees.
docs/audit.md shows how to describe a target of your own (--adapter).
"""
MARKS = {AGREE: "[green]·[/]", DISAGREE: "[red]✗[/]", UNSUPPORTED: "[dim]–[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    listed = "\n".join(f"  {name:<17}{text}" for name, text in PROPERTIES.items())
    parser.epilog = EXAMPLES.format(properties=listed)
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="see below")
    parser.add_argument(
        "--property", action="append", choices=PROPERTIES, metavar="NAME", help="only this one; several times"
    )
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="how a target of your own is called")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every finding to FILE")
    parser.add_argument("--snippets", action="store_true", help="code that reproduces each disagreement")


def table(findings: Sequence[Finding]) -> Table:
    """A row for each target, a column for each property: what disagrees with its size."""
    names = list(dict.fromkeys(f.property for f in findings))
    found = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    found.add_column("", no_wrap=True)
    for name in names:
        title = name.replace("_", "\n").replace("interleaved", "inter-\nleaved")
        found.add_column(title, justify="center", vertical="bottom", no_wrap=True)
    rows: dict[str, dict[str, Finding]] = {}
    for f in findings:
        rows.setdefault(f.target, {})[f.property] = f
    for target, row in rows.items():
        found.add_row(escape(target), *(_cell(row[name]) for name in names))
    return found


def _cell(f: Finding) -> str:
    if f.verdict == DISAGREE and f.difference is not None:
        return f"[red]{f.difference:.0e}[/]"
    return MARKS[f.verdict]


def _show(console: Console, findings: Sequence[Finding], snippets: bool) -> None:
    console.print(table(findings))
    console.print()
    for f in findings:
        if f.verdict == DISAGREE:
            console.print(f"[red]✗[/] [bold]{escape(f.target)}[/] {f.property}: {PROPERTIES[f.property]}")
            console.print(f"  but: {escape(f.example)}", soft_wrap=True)
            if snippets and f.snippet:
                console.print(Syntax(f.snippet, "python", background_color="default", word_wrap=True))
                console.print()
    reasons: dict[str, dict[str, list[str]]] = {}
    for f in findings:
        if f.verdict == UNSUPPORTED:
            reasons.setdefault(f.example, {}).setdefault(f.target, []).append(f.property)
    for reason, where in reasons.items():
        console.print(f"[dim]– {escape(_places(where))}: {escape(reason)}[/]")
    count = {v: sum(f.verdict == v for f in findings) for v in (AGREE, DISAGREE, UNSUPPORTED)}
    console.print(
        f"\n· agree ({count[AGREE]})  ✗ or the largest relative difference: disagree ({count[DISAGREE]})  "
        f"– outside the target's contract ({count[UNSUPPORTED]})"
    )


def _places(where: dict[str, list[str]], most: int = 6) -> str:
    """Targets by what of them is meant; of many, the first and how many more."""
    groups: dict[str, list[str]] = {}
    for target, properties in where.items():
        groups.setdefault(", ".join(properties), []).append(target)
    said = []
    for named, targets in groups.items():
        shown = ", ".join(targets[:most])
        more = f" and {len(targets) - most} more" if len(targets) > most else ""
        said.append(f"{named} of {shown}{more}")
    return "; ".join(said)


def run(args: argparse.Namespace) -> int:
    from .targets import find
    from .targets.load import TargetError

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    targets: list[Target] = []
    try:
        if args.json is not None:
            check_file("--json", args.json)
        for text in args.targets:
            targets += find(text, args.adapter)
    except (TargetError, ValueError) as e:
        print(f"mixerzoo audit: {e}", file=sys.stderr)
        return 2
    if "transformers" in args.targets:
        _note(console)
    for target in targets:
        if target.note:
            console.print(f"[dim]{escape(target.name)}, guessed: {escape(target.note)}[/]", soft_wrap=True)
    properties = tuple(p for p in PROPERTIES if not args.property or p in args.property)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small: more threads are slower
    try:
        with (
            notes_elsewhere(),
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        ):
            task = bar.add_task("audit", total=len(targets) * len(properties))

            def report(target: str, name: str) -> None:
                bar.update(task, description=f"{target} {name}")
                bar.advance(task)

            findings = audit(targets, properties, report)
    except TargetError as e:
        print(f"mixerzoo audit: {e}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    _show(console, findings, args.snippets)
    if args.json is not None:
        args.json.write_text(as_json(findings))
    return int(any(f.verdict == DISAGREE for f in findings))


def _note(console: Console) -> None:
    """What of transformers is not among the targets."""
    import transformers

    from .targets.transformers import NOT_LINEAR, not_looked_at

    console.print(f"transformers {transformers.__version__}, torch {torch.__version__}", highlight=False)
    for model_type, reason in NOT_LINEAR.items():
        console.print(f"[dim]not a linear mixer: {model_type} ({reason})[/]")
    if unknown := not_looked_at():
        console.print(f"no profile yet, so not looked at: {', '.join(unknown)}")
