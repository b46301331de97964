"""learning-curves: the same budget for every mixer, softmax attention as the yardstick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..style import Drawn, colour, dashes, framed, label_ends, style
from ..training import Training
from .plan import Advance, Inputs, Plan, nothing

NAME = "learning-curves"
MODELS = "trainings"
CAPTION = (
    "Validation loss of byte-level language models that differ in nothing but the mixer: same width, "
    "depth, data, order of batches, learning rate and number of steps. Lower is better; a uniform "
    "guess costs 8 bits. A few hundred steps of a tiny model from one seed: differences of a few "
    "hundredths mean nothing."
)


def measure(trainings: Mapping[str, Training], advance: Advance = nothing) -> dict[str, Any]:
    advance()
    first = next(iter(trainings.values()))
    return {
        "settings": asdict(first.settings),
        "mixers": {
            name: {
                "steps": t.steps,
                "validation_bits_per_byte": t.validation_bits,
                "train_bits_per_byte": [None, *t.train_bits[1:]],  # nothing was trained before step 0
                "parameters": t.parameters,
                "seconds": t.seconds,
            }
            for name, t in trainings.items()
        },
    }


def finding(data: dict[str, Any]) -> str:
    last = {name: m["validation_bits_per_byte"][-1] for name, m in data["mixers"].items()}
    best = min(last, key=lambda name: last[name])
    text = (
        f"After {data['settings']['steps']:,} steps {best} predicts best, at {last[best]:.2f} bits per byte"
    )
    if "softmax" in last and best != "softmax":
        ahead = sum(last[name] < last["softmax"] for name in last)
        text += f"; {ahead} of {len(last) - 1} recurrences beat softmax attention ({last['softmax']:.2f})"
    return text


def draw(data: dict[str, Any]) -> Drawn:
    title, s = finding(data), data["settings"]
    subtitle = (
        f"{s['layers']} layers of width {s['d_model']}, "
        f"batches of {s['batch']} × {s['length']} bytes, seed {s['seed']}"
    )
    with style():
        figure, axes = framed(title, subtitle, left=0.7, right=2.3, height=4.0)
        ends = []
        for name, m in data["mixers"].items():
            steps, loss = m["steps"], m["validation_bits_per_byte"]
            yardstick = "softmax" in name
            axes.plot(steps, loss, color=colour(name), ls=dashes(name), lw=2.6 if yardstick else 1.6)
            ends.append((steps[-1], loss[-1], f"{name}  {loss[-1]:.2f}", colour(name)))
        # Every curve starts near 8 bits and falls fast: show where they differ.
        values = [v for m in data["mixers"].values() for v in m["validation_bits_per_byte"]]
        final = [m["validation_bits_per_byte"][-1] for m in data["mixers"].values()]
        late = [v for m in data["mixers"].values() for v in m["validation_bits_per_byte"][2:]] or values
        room = max(late) - min(final)
        axes.set_ylim(min(final) - 0.06 * room, max(late) + 0.03 * room)
        axes.set_xlim(0, data["settings"]["steps"])
        axes.set_xlabel("training steps")
        axes.set_ylabel("validation loss, bits per byte")
        label_ends(axes, ends)
    return Drawn(NAME, title, CAPTION, data, figure)


def units(plan: Plan) -> int:
    del plan
    return 1


def make(inputs: Inputs, advance: Advance = nothing) -> Drawn:
    return draw(measure(inputs.trainings, advance))
