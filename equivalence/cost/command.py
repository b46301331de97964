"""`mixerzoo cost`: what the recurrence costs on a GPU that need not be present."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ...mixers.registry import REGISTRY
from ..text import check_file
from . import table
from .operators import DTYPES, FIXED, OPERATORS, SCHEDULES, VARIANTS, Case

HAVE_TRITON = importlib.util.find_spec("triton") is not None
DEFAULT = ("scalar", "vector", "hgrn", "mamba1")
EXAMPLES = """examples:
  mixerzoo cost                                         six operators, forward and backward, fused and split
  mixerzoo cost --operator vector --head-dim 128 --kernels   one of them, kernel by kernel
  mixerzoo cost --mixer lightning --length 256          the recurrence inside a layer
  mixerzoo cost --operator scalar --with packed --with state --json cost.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...kernels.triton_core.aot import TARGETS

    many = "may be given several times; default "

    def choice(option: str, choices: Any, text: str, **more: Any) -> None:
        parser.add_argument(option, action="append", choices=choices, help=text, **more)

    choice("--operator", OPERATORS, f"{many}the six of the table. {words(OPERATORS)}", metavar="NAME")
    choice(
        "--mixer",
        REGISTRY,
        "a layer of the zoo; of it the recurrence alone: projections, convolutions, norms and gates are not "
        f"counted. {', '.join(name for name in REGISTRY if name != 'softmax')}",
        metavar="NAME",
    )
    parser.add_argument("--length", type=int, default=512, metavar="T", help="steps (512)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="of q, k and v (bfloat16). Decays are float32, or float64 with float64",
    )
    parser.add_argument("--head-dim", action="append", type=int, metavar="D", help=f"{many}64 and 128")
    parser.add_argument("--d-model", type=int, default=64, metavar="D", help="width of a --mixer (64)")
    choice("--schedule", SCHEDULES, f"{many}fused and split")
    choice("--target", TARGETS, f"{many}sm_90: the GPU whose block sizes and precisions are taken")
    choice(
        "--with",
        VARIANTS,
        f"may be given several times, and all apply: {words(VARIANTS)}",
        dest="variants",
        default=[],
        metavar="VARIANT",
    )
    parser.add_argument("--kernels", action="store_true", help="also a table by kernel and torch operation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="cases side by side (2)")


def words(choices: dict[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in choices.items())


def check(args: argparse.Namespace) -> None:
    """Raise ValueError, which names the argument."""
    for dim in args.head_dim or ():
        if not 1 <= dim <= 256:
            raise ValueError(f"--head-dim is {dim}; accepted: 1 to 256")
    for name, value, low in (
        ("--length", args.length, 1),
        ("--d-model", args.d_model, 1),
        ("--processes", args.processes, 1),
    ):
        if value < low:
            raise ValueError(f"{name} is {value}; accepted: at least {low}")
    if "softmax" in (args.mixer or ()):
        raise ValueError("--mixer is softmax, which has no recurrence; accepted: the other mixers")
    if args.mixer and args.variants:
        raise ValueError(f"--with is {args.variants[0]} beside --mixer; accepted: --with beside --operator")
    if args.json is not None:
        check_file("--json", args.json)


def cases(args: argparse.Namespace) -> list[Case]:
    """What the arguments ask for, without repetitions."""
    found: dict[Case, None] = {}
    operators = args.operator or (() if args.mixer else DEFAULT)
    for target in args.target or ["sm_90"]:
        for operator in operators:
            dims = [None] if operator in FIXED else args.head_dim or [64, 128]
            for dim in dims:
                for schedule in args.schedule or ["fused", "split"]:
                    case = Case(
                        operator=operator,
                        length=args.length,
                        head_dim=dim,
                        dtype=args.dtype,
                        schedule=schedule,
                        target=target,
                        variants=tuple(v for v in VARIANTS if v in args.variants),
                    )
                    found[case] = None
        for mixer in args.mixer or ():
            for schedule in args.schedule or ["fused", "split"]:
                case = Case(
                    mixer=mixer,
                    length=args.length,
                    d_model=args.d_model,
                    dtype=args.dtype,
                    schedule=schedule,
                    target=target,
                )
                found[case] = None
    return list(found)


def counted(wanted: list[Case], processes: int) -> Iterator[dict[str, Any]]:
    """Records of all cases, with a progress bar on a terminal."""
    from .counting import count_all

    errors = Console(stderr=True)
    for records in track(
        count_all(wanted, processes),
        "counting",
        len(wanted),
        console=errors,
        disable=not errors.is_terminal,
        transient=True,
    ):
        yield from records


def run(args: argparse.Namespace) -> int:
    """Exit status 2 for bad arguments, 1 if something could not be counted."""
    if not HAVE_TRITON:
        print("mixerzoo cost: triton is not installed here (it exists for Linux only)", file=sys.stderr)
        return 2
    from .counting import CountFailed

    try:
        check(args)
    except ValueError as e:
        print(f"mixerzoo cost: {e}", file=sys.stderr)
        return 2
    try:
        records = list(counted(cases(args), args.processes))
    except CountFailed as e:
        print(f"mixerzoo cost: {e}", file=sys.stderr)
        return 1
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    console.print(table.counts(records))
    if args.kernels:
        console.print(table.kernels(records))
    print(
        f"T = {args.length}, one sequence. moved: bytes that kernels and torch operations ask for; distinct: "
        "with each launch counting\nan address once; least: inputs read once, outputs written once, products "
        "of the cheapest form (docs/cost.md)."
    )
    if args.mixer:
        print("Of a mixer the recurrence alone is counted: no projections, convolutions, norms or gates.")
    if args.json is not None:
        args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0
