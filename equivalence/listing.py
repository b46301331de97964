"""`mixerzoo list`: the mixers, and what tells them apart."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table

from ..mixers.registry import REGISTRY, Entry

COLUMNS = ("name", "family", "decay", "gating", "paper")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def row(entry: Entry) -> dict[str, str]:
    return {f.name: getattr(entry, f.name) for f in fields(entry) if f.name in COLUMNS}


def run(args: argparse.Namespace) -> int:
    rows = [row(entry) for entry in REGISTRY.values()]
    if args.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return 0
    table = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column in ("name", "family"), overflow="fold")
    for r in rows:
        table.add_row(*(r[c] for c in COLUMNS))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    return 0
