"""time-by-length: measured cost against the length of the sequence, with the exponent of its growth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ...mixers import registry
from ..style import Drawn, colour, dashes, framed, label_ends, powers, style
from ..timing import exponent, machine, median_seconds, one_thread
from .plan import Advance, Inputs, Plan, nothing

NAME = "time-by-length"
MODELS = ""
FITTED = 3  # the exponent is fitted to this many of the longest lengths, where fixed costs no longer count
CAPTION = (
    'Median time of one forward pass of a layer (float32, batch 1, no gradients, form="auto") on the '
    "machine that made this page. The exponents are least-squares slopes over the longest lengths. "
    "They describe this machine and these sizes; a mixer that comes out faster here need not be so "
    "elsewhere."
)


def measure(
    names: Sequence[str],
    lengths: Sequence[int],
    seconds: float,
    advance: Advance = nothing,
    d_model: int = 64,
) -> dict[str, Any]:
    """All mixers at a length before the next: what would overrun `seconds` in all is left out."""
    mixers: dict[str, dict[str, Any]] = {}
    built = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(1, max(lengths), d_model)
        for name in names:
            built[name] = registry.build(name, d_model).eval()
            mixers[name] = {"lengths": [], "seconds": []}
    stopped: set[str] = set()
    start = time.perf_counter()
    for n in lengths:
        for name, m in mixers.items():
            if m["seconds"] and name not in stopped:
                # A warm-up and three calls are the least worth a median, and each may grow quadratically.
                expected = 4 * m["seconds"][-1] * (n / m["lengths"][-1]) ** 2
                if time.perf_counter() - start + expected > seconds:
                    stopped.add(name)
            if name not in stopped:
                with torch.no_grad(), one_thread():
                    m["seconds"].append(median_seconds(partial(built[name], x[:, :n]), 7, seconds / 60))
                m["lengths"].append(n)
            advance()
    for m in mixers.values():
        last = slice(-FITTED, None)
        m["exponent"] = exponent(m["lengths"][last], m["seconds"][last]) if len(m["lengths"]) > 1 else None
    return {"machine": machine(), "d_model": d_model, "batch": 1, "dtype": "float32", "mixers": mixers}


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return f"N^{low}" if low == high else f"N^{low} to N^{high}"


def finding(data: dict[str, Any]) -> str:
    fitted = {n: m["exponent"] for n, m in data["mixers"].items() if m["exponent"] is not None}
    softmax = [e for n, e in fitted.items() if "softmax" in registry.REGISTRY[n].family]
    others = [e for n, e in fitted.items() if "softmax" not in registry.REGISTRY[n].family]
    parts = []
    if others:
        parts.append(f"as {_range(others)} for the recurrences")
    if softmax:
        parts.append(f"as {_range(softmax)} for softmax attention")
    return "Measured time grows " + " and ".join(parts) if parts else "Measured time by length"


def draw(data: dict[str, Any]) -> Drawn:
    title = finding(data)
    subtitle = (
        f"One layer of width {data['d_model']}, batch 1, {data['dtype']}; medians on {data['machine']}; "
        f"exponents fitted to the {FITTED} longest lengths"
    )
    with style():
        figure, axes = framed(title, subtitle, left=0.8, right=2.4, height=4.3)
        ends = []
        for name, m in data["mixers"].items():
            ms = [1e3 * s for s in m["seconds"]]
            yardstick = "softmax" in registry.REGISTRY[name].family
            axes.plot(
                m["lengths"],
                ms,
                color=colour(name),
                ls=dashes(name),
                lw=2.6 if yardstick else 1.6,
                marker="o",
                ms=3,
            )
            slope = "" if m["exponent"] is None else f"  N^{m['exponent']:.2f}"
            ends.append((m["lengths"][-1], ms[-1], powers(name + slope), colour(name)))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        lengths = sorted({n for m in data["mixers"].values() for n in m["lengths"]})
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.set_xlim(lengths[0], lengths[-1])
        axes.set_xlabel("sequence length N, steps")
        axes.set_ylabel("time of one forward pass, ms")
        label_ends(axes, ends)
    return Drawn(NAME, title, CAPTION, data, figure)


def units(plan: Plan) -> int:
    return len(plan.mixers) * len(plan.time_lengths)


def make(inputs: Inputs, advance: Advance = nothing) -> Drawn:
    plan = inputs.plan
    return draw(measure(plan.mixers, plan.time_lengths, plan.time_seconds, advance))
