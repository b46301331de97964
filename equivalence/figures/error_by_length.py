"""error-by-length: rounding error of every form against the recurrence in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...kernels import recurrence
from ..style import GREY, INK, PALETTE, Drawn, headline, headroom, label_ends, style
from .plan import Advance, Inputs, Plan, nothing

NAME = "error-by-length"
MODELS = ""
FORMS = ("recurrent", "chunk", "scan", "parallel")
COLOURS = dict(zip(FORMS, (INK, *PALETTE[:3]), strict=True))
SHORTCUT = "cumsum shortcut"
LONGEST = {"parallel": 2048, SHORTCUT: 2048}  # quadratic in time
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
CAPTION = (
    "Largest error of any output, relative to the largest output, against the float64 recurrence on "
    "the same (rounded) inputs: vector decays over keys, log-decays from −0.001 to −3. The dotted line "
    "is the unit roundoff of the dtype: what rounding the exact result once may cost. The grey line is "
    "not part of this package. It takes weights exp(c_t − c_s) from cumulative sums c of log-decays, a "
    "common shortcut whose error grows with the sums; the forms here add log-decays and never subtract."
)


def shortcut(q: Tensor, k: Tensor, v: Tensor, la: Tensor, rows: int = 64) -> Tensor:
    """Masked attention with weights exp(c_t - c_s), in the dtype of the inputs but at least float32."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_, k_, v_, la_ = (x[0].transpose(0, 1).to(dtype) for x in (q, k, v, la))
    c = la_.cumsum(1)
    outs = []
    T = q_.shape[1]
    for i in range(0, T, rows):
        j = min(i + rows, T)
        w = torch.exp((c[:, i:j, None] - c[:, None, :j]).clamp(max=0))
        p = torch.einsum("hik,hjk,hijk->hij", q_[:, i:j], k_[:, :j], w)
        p = p.masked_fill(torch.arange(j) > torch.arange(i, j)[:, None], 0)
        outs.append(p @ v_[:, :j])
    return torch.cat(outs, 1).transpose(0, 1)[None].to(v.dtype)


def inputs(length: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [1, T, 2, 16] and log-decays log-uniform in [-3, -0.001], rounded to dtype."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, length, 2, 16, generator=g) for _ in range(3))
    la = -(10 ** (torch.rand(1, length, 2, 16, generator=g) * 3.477 - 3))
    return q.to(dtype), k.to(dtype), v.to(dtype), la.to(dtype)


def measure(lengths: Sequence[int], seed: int = 0, advance: Advance = nothing) -> dict[str, Any]:
    series: dict[str, dict[str, dict[str, list[float]]]] = {
        dtype: {form: {"lengths": [], "errors": []} for form in (*FORMS, SHORTCUT)} for dtype in ROUNDOFF
    }
    for n in lengths:
        for dtype, forms in series.items():
            q, k, v, la = inputs(n, getattr(torch, dtype), seed)
            exact, _ = recurrence(*(x.double() for x in (q, k, v, la)), form="recurrent", backend="torch")
            for form, points in forms.items():
                if n <= LONGEST.get(form, n):
                    if form == SHORTCUT:
                        out = shortcut(q, k, v, la)
                    else:
                        out, _ = recurrence(q, k, v, la, form=form, backend="torch")
                    error = (out.double() - exact).abs().max() / exact.abs().max()
                    points["lengths"].append(n)
                    points["errors"].append(float(error))
                advance()
    return {"seed": seed, "heads": 2, "key_dim": 16, "value_dim": 16, "roundoff": ROUNDOFF, "series": series}


def finding(data: dict[str, Any]) -> str:
    full = data["series"]["float32"]
    units = math.ceil(max(max(full[form]["errors"]) for form in FORMS) / ROUNDOFF["float32"])
    longest = max(full["recurrent"]["lengths"])
    text = f"Every form stays within {units} units of float32 roundoff up to {longest:,} steps"
    last = full[SHORTCUT]["lengths"][-1]
    ours = max(full[form]["errors"][full[form]["lengths"].index(last)] for form in FORMS)
    lost = full[SHORTCUT]["errors"][-1] / ours
    if lost > 2:
        text += f"; at {last:,}, sums that are subtracted err {lost:,.0f} times as much"
    return text


def draw(data: dict[str, Any]) -> Drawn:
    title, subtitle = finding(data), "Error of each form against the float64 recurrence on the same inputs"
    width, left, right, bottom, between, plot = 11.0, 0.8, 1.55, 0.6, 1.85, 3.3
    top = headroom(title, subtitle, width - left) + 0.3
    height = top + plot + bottom
    panel = (width - left - right - between) / 2
    everything = [
        e for forms in data["series"].values() for p in forms.values() for e in p["errors"] if e > 0
    ]
    with style():
        figure = Figure(figsize=(width, height))
        for i, (dtype, forms) in enumerate(data["series"].items()):
            x = left + i * (panel + between)
            axes = figure.add_axes((x / width, bottom / height, panel / width, plot / height))
            ends = []
            for form, p in forms.items():
                foil = form == SHORTCUT
                tint = GREY if foil else COLOURS[form]
                axes.plot(
                    p["lengths"], p["errors"], color=tint, ls=(0, (4, 2)) if foil else "-", marker="o", ms=3
                )
                if p["errors"]:
                    ends.append((p["lengths"][-1], p["errors"][-1], form, tint))
            lengths = forms["recurrent"]["lengths"]
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
            axes.set_xlim(lengths[0], lengths[-1])
            axes.set_ylim(min(*everything, ROUNDOFF["float32"]) / 2, max(everything) * 2)
            axes.axhline(ROUNDOFF[dtype], color=GREY, lw=0.9, ls=":")
            axes.set_xlabel("sequence length, steps")
            if i == 0:
                axes.set_ylabel("largest relative error")
            axes.set_title(dtype, weight="bold", pad=6)
            last = [y for _, y, _, _ in ends]
            if max(last) < 1.5 * min(last):  # one line as far as an eye can tell
                ends = [(ends[0][0], last[0], "all five alike", INK)]
            ends.append((lengths[-1], ROUNDOFF[dtype], "unit roundoff", GREY))
            label_ends(axes, ends)
        headline(figure, title, subtitle, left)
    return Drawn(NAME, title, CAPTION, data, figure)


def units(plan: Plan) -> int:
    return len(plan.error_lengths) * len(ROUNDOFF) * (len(FORMS) + 1)


def make(inputs: Inputs, advance: Advance = nothing) -> Drawn:
    return draw(measure(inputs.plan.error_lengths, inputs.plan.settings.seed, advance))
