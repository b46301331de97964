"""`mixerzoo report`: proofs, trained models and figures on one page."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from rich.progress import Progress

from .certificate import Settings, as_json, certificate, versions
from .certificate_page import certificate_page
from .figures import FIGURES
from .figures.plan import Inputs
from .page import Report, render
from .plot import add_training_arguments, draw_all, prepare, progress_bars, with_models
from .prove import check_seed, prove
from .style import save
from .text import check_file, check_folder
from .theorem import Outcome, Theorem
from .training import cores

HELP = "run the proofs, train, plot, and write it all to one page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), metavar="DIR")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a sample of each theorem's cases (the default)")
    size.add_argument("--full", action="store_true", help="all cases of each theorem")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of proofs, training and figures (0)"
    )
    add_training_arguments(parser)


def with_proofs(progress: Progress, quick: bool, seed: int, text: Path | None) -> list[Outcome]:
    task = progress.add_task("prove", total=None)

    def advance(done: int, of: int, theorem: Theorem) -> None:
        del theorem
        progress.update(task, completed=done, total=of)

    outcomes = prove(quick=quick, seed=seed, text=text, progress=advance)
    progress.update(task, completed=len(outcomes), total=len(outcomes))
    return outcomes


def environment(seed: int) -> dict[str, str]:
    """Everything that the numbers of a report depend on."""
    found = versions()
    return {
        **found,
        "matplotlib": importlib.metadata.version("matplotlib"),
        "platform": platform.platform(),
        "cores": str(cores()),
        "seed": str(seed),
    }


def command(args: argparse.Namespace) -> str:
    """The command that makes this report again."""
    words = ["mixerzoo", "report", "--output", str(args.output), "--steps", str(args.steps)]
    words += ["--seed", str(args.seed), "--full" if args.full else "--quick"]
    if args.text is not None:
        words += ["--text", str(args.text)]
    return shlex.join(words)


def make(
    inputs: Inputs, outcomes: Sequence[Outcome], args: argparse.Namespace, began: float, progress: Progress
) -> Report:
    """Train and draw everything, write the figures and the page, return what the page shows."""
    inputs = with_models(inputs, progress, list(FIGURES))
    figures = []
    for drawn in draw_all(list(FIGURES), inputs, progress):
        save(drawn, args.output / "figures")
        figures.append(drawn)
    report = Report(
        outcomes,
        figures,
        inputs.trainings,
        environment(args.seed),
        command(args),
        datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        time.perf_counter() - began,
    )
    (args.output / "index.html").write_text(render(report), encoding="utf-8")
    return report


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    try:
        check_seed("--seed", args.seed)
        check_folder("--output", args.output)
        inputs = prepare(args.steps, args.text)
        args.output.mkdir(parents=True, exist_ok=True)
        check_folder("figures of --output", args.output / "figures")
        for name in ("index.html", "proofs.json", "proofs.html"):
            check_file(f"{name} of --output", args.output / name)
    except (OSError, ValueError) as error:
        print(f"mixerzoo report: {error}", file=sys.stderr)
        return 2
    plan = inputs.plan
    inputs = inputs._replace(plan=replace(plan, settings=replace(plan.settings, seed=args.seed)))
    with progress_bars() as progress:
        outcomes = with_proofs(progress, not args.full, args.seed, args.text)
        record = certificate(outcomes, Settings(None, None, not args.full, args.seed, args.text))
        (args.output / "proofs.json").write_text(as_json(record), encoding="utf-8")
        (args.output / "proofs.html").write_text(certificate_page(record), encoding="utf-8")
        report = make(inputs, outcomes, args, began, progress)
    for o in report.failures:
        print(f"✗ {o.name}\n  stated: {o.statement}\n  but: {o.failure}")
    for name in report.disagreeing:
        print(f"✗ {name}: prefill, chunked prefill and decode of the trained model differ")
    held = len(outcomes) - len(report.failures)
    print(f"{held} of {len(outcomes)} theorems hold; {report.seconds:.0f} s; {args.output / 'index.html'}")
    return 0 if report.holds else 1
