"""gallery: the implicit attention map of every mixer of the registry, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ...mixers import REGISTRY
from ..language_model import language_model
from ..style import GREY, Drawn, colour, headline, headroom, style
from ..training import Corpus, Training
from .attention_maps import shares
from .plan import Advance, Inputs, Plan, nothing

NAME = "gallery"
MODELS = "sketches"
CAPTION = (
    "Every mixer of the registry in a model of one layer that was trained briefly on the same bytes: the "
    "share |w(t,s)| / Σ|w(t,·)| of the weight that its output at byte t (row) gives to the value at byte s "
    "(column), averaged over heads; each panel has its own colour scale. What looks at later bytes cannot be "
    "trained to predict them: the bidirectional mixers are shown as they are made."
)


def measure(
    sketches: Mapping[str, Training], corpus: Corpus, advance: Advance = nothing, length: int = 48
) -> dict[str, Any]:
    tokens = corpus.validation[None, :length]
    mixers = {}
    for name, entry in REGISTRY.items():
        if name in sketches:
            model = sketches[name].model
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = language_model(name, 64, 1)
        share = shares(model.attention_maps(tokens)[-1][0]).mean(0)
        mixers[name] = {
            "family": entry.family,
            "trained": name in sketches,
            "map": [[round(float(w), 5) for w in row] for row in share],
        }
        advance()
    return {"text": bytes(tokens[0].tolist()).decode("latin-1"), "mixers": mixers}


def finding(data: dict[str, Any]) -> str:
    families = {m["family"] for m in data["mixers"].values()}
    count = len(data["mixers"])
    return f"{count} mixers of {len(families)} families, each as the attention it amounts to"


def draw(data: dict[str, Any]) -> Drawn:
    # Families together, in the order of their first member.
    families = list(dict.fromkeys(m["family"] for m in data["mixers"].values()))
    names = sorted(data["mixers"], key=lambda name: families.index(data["mixers"][name]["family"]))
    columns = min(6, len(names))
    rows = math.ceil(len(names) / columns)
    title = finding(data)
    subtitle = (
        f"{len(data['text'])} bytes of text: rows are outputs, columns inputs, colours of names families; "
        "darker is a larger share. *: not trained"
    )
    panel, left, across, down = 1.62, 0.25, 0.12, 0.3
    width = 2 * left + columns * (panel + across)
    top = headroom(title, subtitle, width - left) + 0.15
    height = top + rows * (panel + down) + 0.1
    with style():
        figure = Figure(figsize=(width, height))
        for i, name in enumerate(names):
            row, column = divmod(i, columns)
            x = left + column * (panel + across)
            y = height - top - row * (panel + down) - panel
            axes = figure.add_axes((x / width, y / height, panel / width, panel / height))
            weights = data["mixers"][name]["map"]
            # The first rows have few bytes to share between and would use up the scale.
            later = sorted(w for r in weights[len(weights) // 4 :] for w in r)
            most = max(later[int(0.995 * (len(later) - 1))], 1e-6)
            axes.imshow(weights, norm=PowerNorm(0.5, 0, most), cmap="Blues", interpolation="nearest")
            axes.grid(False)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_linewidth(0.4)
                spine.set_color(GREY)
            note = "" if data["mixers"][name]["trained"] else "*"
            axes.set_title(name + note, color=colour(name), weight="bold", size=8, pad=3)
        headline(figure, title, subtitle, left)
    return Drawn(NAME, title, CAPTION, data, figure)


def units(plan: Plan) -> int:
    del plan
    return len(REGISTRY)


def make(inputs: Inputs, advance: Advance = nothing) -> Drawn:
    assert inputs.corpus is not None
    return draw(measure(inputs.sketches, inputs.corpus, advance))
