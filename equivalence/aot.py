"""`mixerzoo aot`: what the Triton kernels compile to, for GPUs that need not be present."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .code_lines import of_kernels
from .text import check_file

if TYPE_CHECKING:
    from ..kernels.triton_core.aot import Row

HAVE_TRITON = importlib.util.find_spec("triton") is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    targets: list[str] = []
    dtypes: list[str] = []
    decays: list[str] = []
    schedules: list[str] = []
    variants: dict[str, str] = {}
    if HAVE_TRITON:
        from ..kernels.triton_core import aot

        targets, dtypes, decays = list(aot.TARGETS), list(aot.DTYPES), [*aot.DECAYS, *aot.ERASING, "none"]
        schedules, variants = list(aot.SCHEDULES), aot.VARIANTS
    many = "may be given several times; default "
    parser.add_argument("--target", action="append", choices=targets, help=f"{many}all")
    parser.add_argument("--dtype", action="append", choices=dtypes, help=f"{many}bfloat16 and float32")
    parser.add_argument("--head-dim", action="append", type=int, metavar="D", help=f"{many}64 and 128")
    parser.add_argument("--decay", action="append", choices=decays, help=f"{many}all")
    parser.add_argument("--schedule", action="append", choices=schedules, help=f"{many}fused")
    parser.add_argument(
        "--with",
        dest="variants",
        action="append",
        default=[],
        choices=variants,
        metavar="VARIANT",
        help="may be given several times, and all apply: "
        + "; ".join(f"{name}: {what}" for name, what in variants.items()),
    )
    parser.add_argument(
        "--instructions", action="store_true", help="also count the other instructions, by kind"
    )
    parser.add_argument(
        "--lines", action="store_true", help="instead, count the lines of code of the kernels and launches"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="compilers side by side (2)")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if a kernel spills, does not fit or uses no matrix instruction."""
    if args.lines:
        counts = of_kernels()
        for name, count in counts.items():
            print(f"{count:6,}  {name}")
        print(f"{sum(counts.values()):6,}  lines of code, without blanks, comments and docstrings")
        return 0
    if not HAVE_TRITON:
        print("mixerzoo aot: triton is not installed here (it exists for Linux only)", file=sys.stderr)
        return 2
    from ..kernels.triton_core import aot

    for dim in args.head_dim or ():
        if not 1 <= dim <= 256:
            print(f"mixerzoo aot: --head-dim is {dim}; accepted: 1 to 256", file=sys.stderr)
            return 2
    if args.processes < 1:
        print(f"mixerzoo aot: --processes is {args.processes}; accepted: at least 1", file=sys.stderr)
        return 2
    if args.json is not None:
        try:
            check_file("--json", args.json)
        except ValueError as e:
            print(f"mixerzoo aot: {e}", file=sys.stderr)
            return 2
    matrix = aot.cases(
        args.target or list(aot.TARGETS),
        args.dtype or ["bfloat16", "float32"],
        args.head_dim or [64, 128],
        args.decay or (*aot.DECAYS, *aot.ERASING),
        args.schedule or ["fused"],
        tuple(v for v in aot.VARIANTS if v in args.variants),
    )
    errors = Console(stderr=True)
    compiled = track(
        aot.compile_all(matrix, args.processes),
        "compiling",
        len(matrix),
        console=errors,
        disable=not errors.is_terminal,
    )
    rows = [row for some in compiled for row in some]
    console = Console()
    (console if console.is_terminal else Console(width=170)).print(table(rows))
    if args.instructions:
        (console if console.is_terminal else Console(width=170)).print(instructions(rows))
    if args.json is not None:
        record = [asdict(row) | {"problems": row.problems} for row in rows]
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    bad = [row for row in rows if row.problems]
    for row in bad:
        print(f"{row.target} {row.kernel} {row.decay} {row.dtype} {row.head_dim}: {'; '.join(row.problems)}")
    print(f"{len(rows)} kernels: {f'{len(bad)} with problems' if bad else 'no spills, all fit'}")
    return bool(bad)


def _table() -> Table:
    """An empty table, with columns that say which kernel a row is of."""
    found = Table(box=box.SIMPLE_HEAD)
    for title in ("target", "kernel", "decay", "dtype", "schedule"):
        found.add_column(title, no_wrap=True)
    found.add_column("D", justify="right")
    return found


def _which(row: Row) -> tuple[str, ...]:
    schedule = " ".join((row.schedule, *(f"+{v}" for v in row.variants)))
    return row.target, row.kernel, row.decay, row.dtype, schedule, str(row.head_dim)


def table(rows: list[Row]) -> Table:
    found = _table()
    for title in ("block", "warps", "registers", "spilled bytes", "shared / limit, bytes"):
        found.add_column(title, justify="right")
    found.add_column("matrix instructions")
    for row in rows:
        found.add_row(
            *_which(row),
            row.block,
            str(row.warps),
            str(row.registers),
            str(row.spills),
            f"{row.shared:,} / {row.shared_limit:,}",
            ", ".join(f"{n} {name}" for name, n in row.matrix.items()) or "-",
            style="red" if row.problems else None,
        )
    return found


def instructions(rows: list[Row]) -> Table:
    """Instructions of each kernel by kind, as they stand in the machine code: a loop's body counts once."""
    found = _table()
    kinds = list(rows[0].kinds) if rows else []
    for title in kinds:
        found.add_column(title, justify="right")
    for row in rows:
        found.add_row(
            *_which(row),
            *(str(row.kinds[kind]) for kind in kinds),
        )
    return found
