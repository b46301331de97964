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


@dataclass(frozen=True)
class Plan:
    settings: Settings = field(default_factory=Settings)
    mixers: tuple[str, ...] = tuple(registry.REGISTRY)
    error_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    time_lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    time_seconds: float = 50.0  # for all mixers together
    form_lengths: tuple[int, ...] = (16, 64, 256, 1024, 4096)


class Inputs(NamedTuple):
    plan: Plan
    corpus: Corpus | None = None
    trainings: Mapping[str, Training] = {}
