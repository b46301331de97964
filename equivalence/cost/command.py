"""`mixerzoo cost`: what the recurrence costs on a GPU that need not be present.

Three steps, each kept apart in what is printed: what was *counted* (always), what was *compiled* (--compile)
and what is *modelled* from the two (--model), beside what was *measured* where a GPU is present.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from ...mixers.registry import REGISTRY
from ..text import check_file
from . import model, table
from .cards import CARDS, Card
from .operators import FIXED, OPERATORS, VARIANTS, Case
from .record import from_json

HAVE_TRITON = importlib.util.find_spec("triton") is not None
DEFAULT = ("scalar", "vector", "gated_delta", "kda", "hgrn", "mamba1")
FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "tf32", "float64": "fp64"}  # of least products
EXAMPLES = """examples:
  mixerzoo cost                                         ten operators, forward and backward, fused and split
  mixerzoo cost --operator vector --head-dim 128 --kernels   one of them, kernel by kernel
  mixerzoo cost --mixer lightning --length 256          the recurrence inside a layer
  mixerzoo cost --operator scalar --model --sequences 1 --sequences 64 --card H100 --card B200
  mixerzoo cost --operator scalar --with packed --with state --json cost.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...kernels.triton_core.aot import DTYPES, SCHEDULES, TARGETS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    many = "may be given several times; default "

    def choice(option: str, choices: Any, text: str, **more: Any) -> None:
        parser.add_argument(option, action="append", choices=choices, help=text, **more)

    choice("--operator", OPERATORS, f"{many}the ten of the table. {words(OPERATORS)}", metavar="NAME")
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
    choice("--card", CARDS, f"{many}H100, or the cards of --target: whose occupancy and rates are taken")
    parser.add_argument(
        "--sequences",
        action="append",
        type=int,
        metavar="N",
        help=f"{many}1 and 128: of the model, which multiplies with it what was counted of one sequence",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also registers, spills, shared memory and instructions"
    )
    parser.add_argument(
        "--model",
        action="store_true",
        help="also modelled times, and measured ones where there is a GPU; implies --compile",
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
    for n in args.sequences or ():
        if n < 1:
            raise ValueError(f"--sequences is {n}; accepted: at least 1")
    for card in args.card or ():
        if args.target and CARDS[card].target not in args.target:
            raise ValueError(
                f"--card is {card}, which takes {CARDS[card].target}, beside --target {args.target[0]}; "
                "accepted: cards of the targets, or one of the two options"
            )
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
    for target in dict.fromkeys(args.target or [CARDS[card].target for card in args.card or ["H100"]]):
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


def follow(work: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """With a progress bar, on a terminal."""
    errors = Console(stderr=True)
    return iter(track(work, what, total, console=errors, disable=not errors.is_terminal, transient=True))


def counted(wanted: list[Case], processes: int) -> list[dict[str, Any]]:
    """A record for each call of each case."""
    from .counting import count_all

    return [r for some in follow(count_all(wanted, processes), "counting", len(wanted)) for r in some]


def add_compiled(
    records: list[dict[str, Any]], wanted: list[Case], cards: list[Card], processes: int
) -> None:
    """Gives each record what its kernels compile to, and how many programs fit on a processor of the card."""
    from .compiled import compile_all

    rows = follow(compile_all(wanted, processes), "compiling", len(wanted))
    by_case = dict(zip(wanted, rows, strict=True))
    for record in records:
        card = next(card for card in cards if card.target == record["case"]["target"])
        record["compiled"] = [
            row for row in by_case[Case.of(record["case"])] if row["call"] == record["call"]
        ]
        for row in record["compiled"]:
            fit = model.occupancy(card, row["warps"], row["registers"], row["shared"])
            row["occupancy"] = {"card": card.name, "programs": fit.programs, "limit": fit.limit}


def add_model(records: list[dict[str, Any]], cards: list[Card], sequences: list[int]) -> None:
    """Gives each pass its modelled times."""
    for record in records:
        case, shape = record["case"], record["shape"]
        double = case["dtype"] == "float64"
        format = FORMATS[case["dtype"]]
        if min(shape["K"], shape["V"]) < 16:
            format = "vector fp64" if double else "vector fp32"
        for one in record["passes"].values():
            one["model"] = []
            for card in cards:
                for n in sequences if card.target == case["target"] else ():
                    time = model.pass_time(card, from_json(one["cost"]), n, double)
                    least = one["least"]
                    lowest = model.least_time(card, least["bytes"], least["flops"], format, n)
                    one["model"].append(
                        {
                            "card": card.name,
                            "sequences": n,
                            "seconds": time.seconds,
                            "least_seconds": lowest,
                            "bound": time.bound,
                            "share": time.share,
                            "torch_seconds": time.torch,
                            "kernels": {
                                name: {**asdict(t), "bound": t.bound} for name, t in time.kernels.items()
                            },
                        }
                    )


def add_measured(records: list[dict[str, Any]]) -> str:
    """Gives the modelled times of the card that is here the measured ones. Returns what to say about it."""
    from . import measure

    card = measure.card_here()
    if card is None:
        return "No GPU of the table here: not measured." if measure.gpu() else "No GPU here: not measured."
    for record in records:
        if record["case"]["mixer"]:
            continue
        for i, m in enumerate(record["passes"]["forward"]["model"]):
            if m["card"] == card.name:
                seconds = measure.measure(Case.of(record["case"]), m["sequences"])
                for name, one in record["passes"].items():
                    one["model"][i]["measured_seconds"] = seconds[name]
    return f"Measured on {measure.gpu()}: medians of {measure.REPEATS} calls, launches included."


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
    wanted = cases(args)
    cards = [CARDS[name] for name in dict.fromkeys(args.card or ())]
    if not cards:
        cards = [card for card in CARDS.values() if card.target in (args.target or ())] or [CARDS["H100"]]
    try:
        records = counted(wanted, args.processes)
    except CountFailed as e:
        print(f"mixerzoo cost: {e}", file=sys.stderr)
        return 1
    measured = ""
    if args.compile or args.model:
        add_compiled(records, wanted, cards, args.processes)
    if args.model:
        add_model(records, cards, args.sequences or [1, 128])
        measured = add_measured(records)
    report(args, records, measured)
    if args.json is not None:
        args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0


def report(args: argparse.Namespace, records: list[dict[str, Any]], measured: str) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(table.counts(records))
    if args.kernels:
        console.print(table.kernels(records))
    if args.compile or args.model:
        console.print(table.machine(records))
    if args.model:
        console.print(table.modelled(records, measured.startswith("Measured")))
        print(measured)
    print(
        f"T = {args.length}, one sequence. moved: bytes that kernels and torch operations ask for; distinct: "
        "with each launch counting\nan address once; least: inputs read once, outputs written once, products "
        "of the cheapest form; launches:\nof kernels + of torch operations (docs/cost.md)."
    )
    if args.compile or args.model:
        print(
            "fit: programs on one processor at a time, and what allows no more. Instructions: in the code, "
            "each once."
        )
    if args.mixer:
        print("Of a mixer the recurrence alone is counted: no projections, convolutions, norms or gates.")
