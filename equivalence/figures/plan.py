"""What the figures are made from, and how large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ...mixers import registry
from ..training import Corpus, Settings, Training

Advance = Callable[[], object]  # called after each unit of work, for the progress bar


def nothing() -> None:
    """An `Advance` for callers without a progress bar."""


# Those that are trained at length and timed: a few of each family.
SELECTION = (
    "linear-attention",
    "transnormer-llm",
    "lightning",
    "gated-deltanet",
    "mamba",
    "mamba2",
    "hgrn",
    "softmax",
)


@dataclass(frozen=True)
class Plan:
    """What is trained, drawn and timed. `mixers` are trained with `settings`, `sketched` with `sketch`."""

    settings: Settings = field(default_factory=Settings)
    mixers: tuple[str, ...] = SELECTION
    sketch: Settings = field(default_factory=lambda: Settings(steps=80, layers=1, batch=8, evaluations=1))
    sketched: tuple[str, ...] = tuple(n for n, entry in registry.REGISTRY.items() if entry.causal)
    error_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    time_lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    time_seconds: float = 50.0  # for all mixers together
    form_lengths: tuple[int, ...] = (16, 64, 256, 1024, 4096)


class Inputs(NamedTuple):
    plan: Plan
    corpus: Corpus | None = None
    trainings: Mapping[str, Training] = {}
    sketches: Mapping[str, Training] = {}
