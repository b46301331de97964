"""attention-maps: what each mixer attends to, although most of them never form an attention map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ..style import GREY, Drawn, colour, headline, headroom, style
from ..training import Corpus, Training
from .plan import Advance, Inputs, Plan, nothing

NAME = "attention-maps"
MODELS = "trainings"
CAPTION = (
    "Unrolled over time, each mixer's output at byte t is a weighted sum of the values at bytes s ≤ "
    "t. A pixel is the share |w(t,s)| / Σ|w(t,·)| of that weight, in the last layer of the trained "
    "model, averaged over heads. Rows are outputs, columns inputs; every panel has the same colour "
    "scale. Mixers may weigh negatively and need not sum to one, hence the absolute share."
)


def shares(maps: torch.Tensor) -> torch.Tensor:
    """[..., T, T] weights to shares of each row's absolute weight."""
    maps = maps.double().abs()
    return maps / maps.sum(-1, keepdim=True).clamp_min(1e-300)


def measure(
    trainings: Mapping[str, Training],
    corpus: Corpus,
    advance: Advance = nothing,
    length: int = 32,
) -> dict[str, Any]:
    sentence = corpus.sentence(length)
    tokens = torch.tensor([list(sentence)])
    mixers = {}
    for name, training in trainings.items():
        share = shares(training.model.attention_maps(tokens)[-1][0]).mean(0)
        mixers[name] = {
            "map": [[round(float(w), 5) for w in row] for row in share],
            "self_share": float(share.diagonal().mean()),  # what an output takes from its own byte
        }
        advance()
    return {"sentence": sentence.decode("latin-1"), "mixers": mixers}


def finding(data: dict[str, Any]) -> str:
    own = {name: m["self_share"] for name, m in data["mixers"].items()}
    low, high = min(own, key=lambda name: own[name]), max(own, key=lambda name: own[name])
    text = f"{high} gives {own[high]:.0%} of its attention to the byte at hand"
    return text if low == high else f"{text}, {low} {own[low]:.0%}"


def draw(data: dict[str, Any]) -> Drawn:
    names = list(data["mixers"])
    characters = [c if c.isprintable() else "·" for c in data["sentence"]]
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    title = finding(data)
    subtitle = (
        "Implicit attention maps of trained byte models on words they have not seen "
        "(rows: outputs; columns: inputs; share of each row's weight)"
    )
    panel, left, gap, between = 2.95, 0.45, 0.5, 0.35
    width = left + columns * (panel + between) + 0.75
    top = headroom(title, subtitle, width - left) + 0.2
    height = top + rows * (panel + gap)
    # The first rows have few bytes to share between and would use up the scale.
    weights = sorted(w for name in names for row in data["mixers"][name]["map"] for w in row if w > 0)
    top_share = weights[int(0.98 * (len(weights) - 1))]
    with style():
        figure = Figure(figsize=(width, height))
        image = None
        for i, name in enumerate(names):
            row, column = divmod(i, columns)
            x = left + column * (panel + between)
            y = height - top - row * (panel + gap) - panel
            axes = figure.add_axes((x / width, y / height, panel / width, panel / height))
            image = axes.imshow(
                data["mixers"][name]["map"],
                norm=PowerNorm(0.5, 0, top_share),
                cmap="Blues",
                interpolation="nearest",
            )
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_linewidth(0.4)
            axes.tick_params(length=0, pad=1)
            size = 72 * panel / len(characters) * 0.95
            letters: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": min(size, 8)}
            axes.set_xticks(range(len(characters)), characters, **letters)
            axes.set_yticks(range(len(characters)), characters, **letters)
            axes.set_title(name, color=colour(name), weight="bold", pad=4)
            axes.set_title(
                f"own byte {data['mixers'][name]['self_share']:.0%}",
                loc="right",
                color=GREY,
                size=8.5,
                pad=4,
            )
        if image is not None:
            bar = figure.add_axes(
                ((width - 0.72) / width, (height - top - panel) / height, 0.12 / width, panel / height)
            )
            figure.colorbar(image, cax=bar, extend="max")
            bar.tick_params(labelsize=8, length=2)
            bar.grid(False)
            bar.set_title("share", size=8.5, color=GREY)
        headline(figure, title, subtitle, left)
    return Drawn(NAME, title, CAPTION, data, figure)


def units(plan: Plan) -> int:
    return len(plan.mixers)


def make(inputs: Inputs, advance: Advance = nothing) -> Drawn:
    assert inputs.corpus is not None
    return draw(measure(inputs.trainings, inputs.corpus, advance))
