"""memory-horizon: how far back each trained mixer, and each of its heads, reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from ..style import GREY, Drawn, colour, headline, headroom, style
from ..training import Corpus, Training
from .attention_maps import shares
from .plan import Advance, Inputs, Plan, nothing

NAME = "memory-horizon"
MODELS = "trainings"
CAPTION = (
    "From the implicit attention maps on validation text: the distance back in time within which 10, "
    "50 and 90 percent of the absolute weight lies, in the last layer, averaged over heads and over "
    "the later half of the outputs. The bar spans 10 to 90 percent, the large dot is the median, "
    "small dots are the medians of single heads. Distance 1 is the byte itself."
)


def distances(share: torch.Tensor, quantiles: tuple[float, ...]) -> list[list[float]]:
    """[H, T, T] shares to the bytes back, by head, that hold each quantile of the weight on average."""
    T = share.shape[-1]
    # by_distance[h, d]: mean share at distance d, over rows that have all T/2 distances.
    rows = range(T // 2, T)
    by_distance = torch.stack([share[:, t, t - T // 2 + 1 : t + 1].flip(-1) for t in rows]).mean(0)
    held = by_distance.cumsum(-1) / by_distance.sum(-1, keepdim=True).clamp_min(1e-300)
    return [[int((h < q).sum()) + 1 for q in quantiles] for h in held]


def measure(
    trainings: Mapping[str, Training],
    corpus: Corpus,
    advance: Advance = nothing,
    length: int = 256,
) -> dict[str, Any]:
    tokens = corpus.validation[None, :length]
    mixers = {}
    for name, training in trainings.items():
        share = shares(training.model.attention_maps(tokens)[-1][0])
        ((low, middle, high),) = distances(share.mean(0, keepdim=True), (0.1, 0.5, 0.9))
        mixers[name] = {
            "p10": low,
            "median": middle,
            "p90": high,
            "heads": [m for (m,) in distances(share, (0.5,))],
        }
        advance()
    return {"bytes": int(tokens.shape[1]), "longest_distance": int(tokens.shape[1]) // 2, "mixers": mixers}


def finding(data: dict[str, Any]) -> str:
    ranked = sorted(data["mixers"], key=lambda name: data["mixers"][name]["median"])
    near, far = ranked[0], ranked[-1]
    a, b = data["mixers"][near]["median"], data["mixers"][far]["median"]
    last = "the byte at hand" if a == 1 else f"the last {a} bytes"
    if a == b:
        return f"After training, every mixer puts half of its weight on {last}"
    return f"After training, {near} puts half of its weight on {last}, {far} on the last {b}"


def draw(data: dict[str, Any]) -> Drawn:
    names = sorted(data["mixers"], key=lambda name: data["mixers"][name]["median"], reverse=True)
    title = finding(data)
    subtitle = (
        "Where the absolute weight of the implicit attention lies, last layer, "
        f"{data['bytes']} bytes of validation text"
    )
    width, left, right, bottom = 9.6, 1.75, 0.3, 0.6
    top = headroom(title, subtitle, width - 0.3)
    height = top + bottom + 0.42 * len(names)
    longest = data["longest_distance"]
    with style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes(
            (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        )
        for y, name in enumerate(names):
            m, tint = data["mixers"][name], colour(name)
            axes.plot([m["p10"], m["p90"]], [y, y], color=tint, lw=7, alpha=0.25, solid_capstyle="butt")
            axes.plot(m["heads"], [y] * len(m["heads"]), "o", color=tint, ms=3.5, alpha=0.7, mew=0)
            axes.plot(m["median"], y, "o", color=tint, ms=8.5, mec="white", mew=1.2)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.85, longest * 1.15)
        ticks = [2**i for i in range(longest.bit_length()) if 2**i <= longest]
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), names)
        for text, name in zip(axes.get_yticklabels(), names, strict=True):
            text.set_color(colour(name))
            text.set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("distance back in time, bytes")
        if names:
            m = data["mixers"][names[-1]]
            axes.annotate(
                "10 to 90 percent",
                (m["p90"], len(names) - 1),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=GREY,
                size=8.5,
            )
        headline(figure, title, subtitle, 0.3)
    return Drawn(NAME, title, CAPTION, data, figure)


def units(plan: Plan) -> int:
    return len(plan.mixers)


def make(inputs: Inputs, advance: Advance = nothing) -> Drawn:
    assert inputs.corpus is not None
    return draw(measure(inputs.trainings, inputs.corpus, advance))
