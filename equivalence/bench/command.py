"""`mixerzoo bench`: the torch backend on this CPU, as ratios to yardsticks."""

from __future__ import annotations

import argparse
import fnmatch
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..text import check_file
from . import decoding, elementwise, growth, layers, memory, products, references
from .bar import Bar, Effort, Result, look
from .markdown import page

EXAMPLES = """examples:
  mixerzoo bench                          all bars, in groups
  mixerzoo bench products attention       groups, or single bars: references/kda-forward, "growth/*"
  mixerzoo bench --quick --json bench.json

A ratio is that of the medians of two calls measured in turns in one process. Machines are noisy: a bar that
is missed by less than a quarter may be met on a quiet one. References from transformers need it installed.
"""


GROUPS = (products, references, elementwise, layers, decoding, growth, memory)


def bars() -> dict[str, Bar]:
    every = [b for module in GROUPS for b in module.bars()]
    return {f"{b.group}/{b.name}": b for b in every}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("names", nargs="*", metavar="NAME", help="groups, bars or patterns (all)")
    parser.add_argument("--quick", action="store_true", help="shorter sequences, fewer rounds")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of torch (0: as it comes)")
    parser.add_argument("--list", action="store_true", help="only list the bars")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every ratio to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write them as tables to FILE")


def select(names: Sequence[str], every: dict[str, Bar]) -> dict[str, Bar]:
    """The bars that the names mean.

    Raises:
        ValueError: one means none.
    """
    if not names:
        return every
    chosen = set()
    for name in names:
        found = [b for b in every if b == name or b.startswith(f"{name}/") or fnmatch.fnmatch(b, name)]
        if not found:
            groups = ", ".join(dict.fromkeys(b.partition("/")[0] for b in every))
            raise ValueError(f"{name!r} is no bar; accepted: {groups}, or names that --list shows")
        chosen.update(found)
    return {n: b for n, b in every.items() if n in chosen}


def table(results: Sequence[Result]) -> Table:
    found = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("bar", "ratio", "wanted", "what"):
        found.add_column(title, justify="right" if title == "ratio" else "left", no_wrap=title != "what")
    for r in results:
        name = f"{r.group}/{r.name}"
        if r.ratio is None:
            found.add_row(f"[dim]– {name}[/]", "", r.wanted, f"[dim]missing: {r.missing}[/]")
        else:
            mark = "[green]✓[/]" if r.met else "[red]✗[/]"
            found.add_row(f"{mark} {name}", f"{r.ratio:.3g}", r.wanted, r.what)
    return found


def run(args: argparse.Namespace) -> int:
    console = Console() if Console().is_terminal else Console(width=140)
    try:
        for option, file in (("--json", args.json), ("--markdown", args.markdown)):
            if file is not None:
                check_file(option, file)
        if args.threads < 0:
            raise ValueError(f"--threads is {args.threads}; accepted: a whole number from 0")
        chosen = select(args.names, bars())
    except ValueError as e:
        print(f"mixerzoo bench: {e}", file=sys.stderr)
        return 2
    if args.list:
        for name, bar in chosen.items():
            console.print(f"[bold]{name}[/] {bar.wanted}\n  {bar.what}")
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    effort = Effort(3, 4.0, True) if args.quick else Effort()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("bars", total=len(chosen))
        for name, bar in chosen.items():
            progress.update(task, description=name)
            results.append(look(bar, effort))
            progress.advance(task)
    console.print(table(results))
    met = sum(bool(r.met) for r in results)
    measured = sum(r.ratio is not None for r in results)
    console.print(f"\n{met} of {measured} bars met, {len(results) - measured} missing a yardstick")
    machine = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    if args.markdown is not None:
        args.markdown.write_text(page(results, machine, torch.__version__), encoding="utf-8")
    if args.json is not None:
        record = {
            "machine": machine,
            "torch": torch.__version__,
            "quick": args.quick,
            "results": [r.as_dict() for r in results],
        }
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return 0
