"""form-costs: measured time of each form of the core, and what form="auto" makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ...kernels import recurrence
from ..style import GREY, Drawn, framed, label_ends, style
from ..timing import machine, median_seconds, one_thread
from .error_by_length import COLOURS, FORMS
from .plan import Advance, Inputs, Plan, nothing

NAME = "form-costs"
MODELS = ""
LONGEST = {"parallel": 1024}  # quadratic in time and memory
AUTO = "auto"
CAPTION = (
    "Median time of one forward pass of the core by itself (batch 1, 4 heads, K = V = 32, vector "
    "decays over keys, float32, no gradients). The four forms are the same function, so the choice "
    'between them is one of cost only; open circles are form="auto", which decides from a cost model '
    "without measuring."
)


def measure(lengths: Sequence[int], advance: Advance = nothing) -> dict[str, Any]:
    series: dict[str, dict[str, list[float]]] = {f: {"lengths": [], "seconds": []} for f in (*FORMS, AUTO)}
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, max(lengths), 4, 32, generator=g) for _ in range(3))
    la = -torch.rand(1, max(lengths), 4, 32, generator=g)
    for n in lengths:
        cut = [x[:, :n] for x in (q, k, v, la)]
        for form, points in series.items():
            if n <= LONGEST.get(form, n):
                with torch.no_grad(), one_thread():
                    call = partial(recurrence, *cut, form=form, backend="torch")
                    seconds = median_seconds(call, 5, 0.5)
                points["lengths"].append(n)
                points["seconds"].append(seconds)
            advance()
    return {"machine": machine(), "heads": 4, "key_dim": 32, "value_dim": 32, "series": series}


def finding(data: dict[str, Any]) -> str:
    series = data["series"]
    ratios = []
    for n, auto in zip(series[AUTO]["lengths"], series[AUTO]["seconds"], strict=True):
        best = min(
            s
            for form in FORMS
            for m, s in zip(series[form]["lengths"], series[form]["seconds"], strict=True)
            if m == n
        )
        ratios.append(auto / best)
    longest = max(series[AUTO]["lengths"])
    last = {form: series[form]["seconds"][-1] for form in FORMS if series[form]["lengths"][-1] == longest}
    quick, slow = min(last, key=lambda f: last[f]), max(last, key=lambda f: last[f])
    gain, worst = last[slow] / last[quick], max(ratios)
    text = f"At {longest:,} steps {quick} is {gain:,.{0 if gain >= 10 else 1}f} times as fast as {slow}"
    if worst < 1.05:
        return f'{text}; form="auto" is as fast as the best form at every length'
    return f'{text}; form="auto" takes at most {worst:.1f} times the best form\'s time'


def draw(data: dict[str, Any]) -> Drawn:
    title = finding(data)
    subtitle = f'The core, forward; medians on {data["machine"]}; circles: form="auto"'
    with style():
        figure, axes = framed(title, subtitle, left=0.8, right=1.4, height=3.7)
        ends = []
        for form, p in data["series"].items():
            ms = [1e3 * s for s in p["seconds"]]
            if form == AUTO:
                axes.plot(p["lengths"], ms, "o", mfc="none", mec=GREY, mew=1.4, ms=11, clip_on=False)
                continue
            axes.plot(p["lengths"], ms, color=COLOURS[form], marker="o", ms=3)
            ends.append((p["lengths"][-1], ms[-1], form, COLOURS[form]))
        lengths = data["series"][AUTO]["lengths"]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.set_xlim(lengths[0], lengths[-1])
        axes.set_xlabel("sequence length, steps")
        axes.set_ylabel("time of one forward pass, ms")
        label_ends(axes, ends)
    return Drawn(NAME, title, CAPTION, data, figure)


def units(plan: Plan) -> int:
    return len(plan.form_lengths) * (len(FORMS) + 1)


def make(inputs: Inputs, advance: Advance = nothing) -> Drawn:
    return draw(measure(inputs.plan.form_lengths, advance))
