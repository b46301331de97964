"""What was measured as tables of Markdown: layers by model type, everything else bar by bar."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version

from .bar import Result
from .layers import KINDS

TITLES = {"forward": "forward", "forward-backward": "forward and backward", "decode": "token by token"}


def _rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (titles, ["---"] * len(titles), *rows)]


def ratio(r: Result | None) -> str:
    """To three digits, bold where it is not what is wanted; a dash where nothing was measured."""
    if r is None or r.ratio is None:
        return "–"
    return f"{r.ratio:.3g}" if r.met else f"**{r.ratio:.3g}**"


def of_layers(results: Sequence[Result]) -> list[str]:
    """A row for each model type, a column for each kind of call."""
    found: dict[str, dict[str, Result]] = {}
    for r in results:
        kind = next(k for k in KINDS if r.name.endswith(f"-{k}"))
        found.setdefault(r.name.removesuffix(f"-{kind}"), {})[kind] = r
    rows = [[f"`{name}`", *(ratio(kinds.get(k)) for k in KINDS)] for name, kinds in found.items()]
    return _rows(["model type", *(TITLES[k] for k in KINDS)], rows)


def of_bars(results: Sequence[Result]) -> list[str]:
    return _rows(["bar", "ratio", "wanted"], [[f"{r.group}/{r.name}", ratio(r), r.wanted] for r in results])


def page(results: Sequence[Result], machine: str, torch: str) -> str:
    """Tables of everything, under a line that says of what machine and versions."""
    layers = [r for r in results if r.group == "layers"]
    others = [r for r in results if r.group != "layers"]
    lines = [f"{machine}, torch {torch}. Bold: not as wanted.", ""]
    if layers:
        by = version("transformers") if importlib.util.find_spec("transformers") else "missing"
        lines += [f"Layers: times of transformers' ({by}) over ours, wanted {layers[0].wanted}.", ""]
        lines += [*of_layers(layers), ""]
    if others:
        lines += [*of_bars(others), ""]
    return "\n".join(lines)
