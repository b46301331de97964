"""`mixerzoo stream`: millions of tokens of real text through a small model, in constant memory."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..language_model import numbers
from ..text import check_file, english
from .reading import HYBRID, MIXERS, Plan, Reader, difference, resume, save

EXAMPLES = f"""examples:
  mixerzoo stream --tokens 4000000 --mixer lightning
  mixerzoo stream --tokens 4000000 --mixer {HYBRID} --window 256 --plot stream.png
  mixerzoo stream --tokens 4000000 --state here.safetensors     interrupt it, and run it again

A text is read from the beginning again when it ends. The state after the last token is compared with that of
pieces of another size. Memory: of the process, and of the state.
"""
DEFAULT = Plan()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    counts = {
        "--tokens": (1_000_000, "how many to read"),
        "--piece": (DEFAULT.piece, "tokens at a time"),
        "--other-piece": (1000, "tokens at a time of the second reading; 0: none"),
        "--d-model": (DEFAULT.d_model, "width of the model"),
        "--layers": (DEFAULT.layers, f"of the model; of {HYBRID}, the last of them is softmax attention"),
        "--window": (DEFAULT.window, "tokens that softmax attention looks back"),
        "--seed": (DEFAULT.seed, "of the weights"),
    }
    parser.add_argument(
        "--mixer", default=DEFAULT.mixer, choices=MIXERS, metavar="NAME", help=", ".join(MIXERS)
    )
    for option, (default, text) in counts.items():
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{text} ({default})")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what to read (Python's documentation)")
    parser.add_argument("--state", type=Path, metavar="FILE", help="where to go on from, and to stop at")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="times and the hybrid law, as PNG or SVG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to FILE")


def check(args: argparse.Namespace) -> bytes:
    """The text.

    Raises:
        OSError, ValueError: naming an option that will not do.
    """
    least = {"tokens": 1, "piece": 1, "other_piece": 0, "d_model": 1, "layers": 1, "window": 1, "seed": 0}
    for name, smallest in least.items():
        value = getattr(args, name)
        if value < smallest:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is {value}; accepted: a whole number from {smallest}")
    if args.mixer == HYBRID and args.layers < 2:
        raise ValueError(f"--layers is {args.layers}; accepted with --mixer {HYBRID}: 2 or more")
    for option in ("plot", "json", "state"):
        if getattr(args, option) is not None:
            check_file(f"--{option}", getattr(args, option))
    if args.plot is not None and args.plot.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot is {args.plot}; accepted: a file that ends in .png or .svg")
    return english(args.text)


def resident() -> float:
    """Memory of the process in MB: now, where the system says so, else its largest."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1000
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def read(
    reader: Reader, tokens: int, console: Console, label: str, state: Path | None = None
) -> dict[str, Any]:
    """Reads up to a number of tokens in all, in pieces; what comes last is shorter where it has to be.

    The state is saved after the last whole piece: a later run goes on in the same pieces.

    Returns:
        times and memory at sixteenths of the way. "stopped" is whether it was interrupted.
    """
    piece, began, first = reader.plan.piece, time.perf_counter(), reader.position
    marks: list[dict[str, float]] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]} tokens/s, {task.fields[memory]} MB"),
        TimeRemainingColumn(),
    )
    stopped = False
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=tokens, completed=first, rate="–", memory="–")
        try:
            while reader.position < tokens:
                size = min(piece, tokens - reader.position)
                if size < piece and state is not None:
                    save(reader, state)
                reader.advance(size)
                spent = time.perf_counter() - began
                rate = (reader.position - first) / spent
                bar.update(task, completed=reader.position, rate=f"{rate:,.0f}", memory=f"{resident():,.0f}")
                if reader.position * 16 // tokens > len(marks) or reader.position >= tokens:
                    marks.append({"tokens": reader.position, "seconds": spent, "megabytes": resident()})
        except KeyboardInterrupt:
            stopped = True
    if state is not None and reader.position % piece == 0:
        save(reader, state)
    return {"from": first, "to": reader.position, "marks": marks, "stopped": stopped}


def run(args: argparse.Namespace) -> int:
    console = Console() if Console().is_terminal else Console(width=120)
    try:
        text = check(args)
        plan = Plan(args.mixer, args.piece, args.d_model, args.layers, args.window, args.seed)
        reader = Reader(plan, text)
        if args.state is not None and args.state.exists():
            resume(reader, args.state)
            console.print(f"going on at token {reader.position:,}")
        if reader.position > args.tokens:
            read_so_far = f"the {reader.position} that {args.state} has read"
            raise ValueError(f"--tokens is {args.tokens}; accepted: at least {read_so_far}")
    except (OSError, ValueError) as e:
        print(f"mixerzoo stream: {e}", file=sys.stderr)
        return 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(args, console, reader, plan, text)
    finally:
        torch.set_num_threads(threads)


def _run(args: argparse.Namespace, console: Console, reader: Reader, plan: Plan, text: bytes) -> int:
    found: dict[str, Any] = {"plan": asdict(reader.plan), "text_bytes": len(text)}
    found |= read(reader, args.tokens, console, args.mixer, args.state)
    if found["stopped"]:
        where = f"; {args.state} goes on from there" if args.state is not None else ""
        console.print(f"stopped at token {reader.position:,}{where}")
        return 130
    found |= {"state_numbers": numbers(reader.state), "fingerprint": reader.fingerprint()}
    _say(console, found)
    if args.other_piece:
        other = Reader(Plan(**{**asdict(plan), "piece": args.other_piece}), text)
        again = read(other, args.tokens, console, f"pieces of {args.other_piece}")
        if again["stopped"]:
            return 130
        found["difference"] = difference(reader, other)
        sizes = f"{args.piece:,} and of {args.other_piece:,}"
        console.print(f"pieces of {sizes}: states differ by {found['difference']:.1e}")
    if args.plot is not None:
        from .figure import draw, measure

        found["curves"] = measure(plan, text, args.tokens, found["marks"], console)
        draw(found, args.plot)
        console.print(f"wrote {args.plot}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _say(console: Console, found: dict[str, Any]) -> None:
    marks = found["marks"]
    console.print(
        f"read tokens {found['from']:,} to {found['to']:,} ({found['text_bytes']:,} bytes of text, again and "
        f"again); state: {found['state_numbers']:,} numbers, fingerprint {found['fingerprint']}"
    )
    if len(marks) > 1:
        later = marks[len(marks) // 2 :]
        early = marks[len(marks) // 8 : len(marks) // 2] or marks[:1]
        growth = statistics.median(m["megabytes"] for m in later) - statistics.median(
            m["megabytes"] for m in early
        )
        speeds = [
            (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]) for a, b in itertools.pairwise(marks)
        ]
        console.print(
            f"memory of the process in the second half over that in the first: {growth:+.1f} MB (medians); "
            f"speed at the end over the median: {speeds[-1] / statistics.median(speeds):.2f}"
        )
