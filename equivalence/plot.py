"""`mixerzoo plot`: the figures, by name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .figures import FIGURES
from .figures.plan import Inputs, Plan
from .style import Drawn, save
from .text import check_folder, english
from .timing import one_thread
from .training import Corpus, Settings, Training, cores, train_all

HELP = "draw figures: " + ", ".join(FIGURES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"figures (default: all): {', '.join(FIGURES)}"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report/figures"), metavar="DIR")
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=int, default=Plan().settings.steps, help="training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="text to train on (default: Python's reference documentation)",
    )


def progress_bars(console: Console | None = None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console or Console(stderr=True),
    )


def prepare(steps: int, text: Path | None, training: bool = True) -> Inputs:
    """A plan, and the text to train on where a figure needs it.

    Raises:
        ValueError, OSError: the number of steps or the text will not do.
    """
    plan = Plan()
    if steps < 1:
        raise ValueError(f"--steps is {steps}; accepted: at least 1")
    plan = replace(plan, settings=replace(plan.settings, steps=steps))
    if not training:
        return Inputs(plan, None)
    read = english(text)
    try:
        return Inputs(plan, Corpus(read, plan.settings.length))
    except ValueError as e:
        raise e if text is None else ValueError(f"--text is {text}: {e}") from e


def with_models(inputs: Inputs, progress: Progress, names: Sequence[str]) -> Inputs:
    """Inputs with the trained models that the named figures look at."""
    assert inputs.corpus is not None
    corpus, plan = inputs.corpus, inputs.plan
    wanted = {FIGURES[name].MODELS for name in names}

    def trained(mixers: Sequence[str], settings: Settings, word: str) -> dict[str, Training]:
        total = len(mixers) * settings.steps
        task = progress.add_task(f"{word} {len(mixers)} mixers", total=total)
        workers = min(cores(), 4)
        return train_all(mixers, corpus, settings, lambda name: progress.advance(task), workers)

    if "trainings" in wanted:
        inputs = inputs._replace(trainings=trained(plan.mixers, plan.settings, "train"))
    if "sketches" in wanted:
        inputs = inputs._replace(sketches=trained(plan.sketched, plan.sketch, "briefly train"))
    return inputs


def draw_all(names: Sequence[str], inputs: Inputs, progress: Progress) -> Iterator[Drawn]:
    """The named figures, in the order of FIGURES."""
    for name, module in FIGURES.items():
        if name in names:
            task = progress.add_task(f"plot {name}", total=module.units(inputs.plan))
            with one_thread():
                drawn = module.make(inputs, partial(progress.advance, task))
            yield drawn


def run(args: argparse.Namespace) -> int:
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        print(f"mixerzoo plot: no figure {unknown[0]!r}; known: {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    names = args.names or list(FIGURES)
    training = any(FIGURES[name].MODELS for name in names)
    try:
        check_folder("--output", args.output)
        inputs = prepare(args.steps, args.text, training)
    except (OSError, ValueError) as error:
        print(f"mixerzoo plot: {error}", file=sys.stderr)
        return 2
    with progress_bars() as progress:
        if training:
            inputs = with_models(inputs, progress, names)
        for drawn in draw_all(names, inputs, progress):
            files = save(drawn, args.output)
            progress.console.print(
                f"{drawn.title}\n  {files[0]}", highlight=False, markup=False, soft_wrap=True
            )
    return 0
