"""The cost of a long text: measured, by the law of hybrids, and with softmax attention beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track

from ...mixers import HybridConfig, HybridLM
from ..style import GREY, INK, PALETTE, framed, label_ends, style
from ..timing import median_seconds
from .reading import Plan, Reader

LENGTHS = (512, 1024, 2048, 4096, 8192)
PERIOD = 8  # of the hybrid whose law is drawn: one layer in eight is softmax attention over all tokens


def _models(plan: Plan) -> dict[str, HybridLM]:
    """As deep as a period, of the plan's width: all linear, all softmax attention, and one in PERIOD."""
    sizes: dict[str, Any] = {"vocab_size": 256, "d_model": plan.d_model, "num_layers": PERIOD, "tied": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return {
            "linear": HybridLM(HybridConfig(**sizes, period=PERIOD + 1)).eval(),
            "hybrid": HybridLM(HybridConfig(**sizes, period=PERIOD)).eval(),
            "softmax": HybridLM(HybridConfig(**sizes, period=1)).eval(),
        }


def measure(
    plan: Plan, text: bytes, tokens: int, marks: list[dict[str, float]], console: Console
) -> dict[str, Any]:
    """Medians of one prefill at each length, for three models and for torch's attention alone, by layer."""
    models, reader = _models(plan), Reader(plan, text)
    heads, width = max(plan.d_model // 64, 1), min(plan.d_model, 64)
    calls: list[tuple[str, int, Callable[[], Any]]] = []
    for n in LENGTHS:
        ids = reader.ids(0, n)
        calls += [(name, n, lambda m=m, ids=ids: m.prefill(ids)) for name, m in models.items()]  # type: ignore[misc]
        q = torch.randn(1, heads, n, width)
        calls.append(("sdpa", n, lambda q=q: F.scaled_dot_product_attention(q, q, q, is_causal=True)))  # type: ignore[misc]
    found: dict[str, Any] = {name: [] for name in (*models, "sdpa")}
    with torch.no_grad():
        for name, _, call in track(calls, "comparison", console=console, transient=True):
            found[name].append(median_seconds(call, 5, 2.0) / (1 if name == "sdpa" else PERIOD))
    law = {"share": 1 / PERIOD, **costs(found)}
    stream = [{"tokens": m["tokens"], "seconds": m["seconds"] / plan.layers} for m in marks]
    return {"lengths": list(LENGTHS), "seconds": found, "law": law, "stream": stream, "tokens": tokens}


def costs(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Seconds for each token of the linear model, and for each pair of tokens of softmax attention, whose
    time has a linear part as well: fitted to the longest lengths."""
    n1, n2 = LENGTHS[-2], LENGTHS[-1]
    a, b = seconds["softmax"][-2], seconds["softmax"][-1]
    pair = max((b / n2 - a / n1) / (n2 - n1), 0.0)
    s1, s2 = seconds["sdpa"][-2], seconds["sdpa"][-1]
    return {
        "token": seconds["linear"][-1] / n2,
        "softmax_token": max(b / n2 - pair * n2, 0.0),
        "pair": pair,
        "sdpa_pair": max((s2 / n2 - s1 / n1) / (n2 - n1), 0.0),
    }


def law(n: float, share: float, token: float, softmax_token: float, pair: float) -> float:
    """(1 - P) · N + P · N², in seconds: each part with its measured cost."""
    return (1 - share) * token * n + share * (softmax_token * n + pair * n * n)


def draw(found: dict[str, Any], file: Path) -> None:
    """Times relative to the linear model's at the shortest length."""
    curves = found["curves"]
    lengths, seconds, fitted = curves["lengths"], curves["seconds"], curves["law"]
    unit = seconds["linear"][0]
    longest = max(curves["tokens"], 2 * lengths[-1])
    beyond = [lengths[-1] * (longest / lengths[-1]) ** (i / 40) for i in range(41)]
    every = [lengths[0] * (longest / lengths[0]) ** (i / 60) for i in range(61)]
    parts = {n: fitted[n] for n in ("token", "softmax_token", "pair")}
    at = law(longest, 1.0, **parts) / (fitted["token"] * longest)
    title = f"At {longest:,.0f} tokens softmax attention would take {at:,.0f} × the time of linear mixers"
    subtitle = (
        f"Prefill: time of a layer of width {found['plan']['d_model']}, one thread, relative to the linear "
        f"one's at {lengths[0]:,} tokens. Dots were measured; lines are (1 − P) N + P N² with the costs of a "
        f"token and of a pair from {lengths[-2]:,} and {lengths[-1]:,} tokens"
    )
    with style():
        figure, axes = framed(title, subtitle, left=0.9, right=2.6, height=4.4)
        ends = []
        shares = {
            "linear": (0.0, PALETTE[0], "linear"),
            "hybrid": (1 / PERIOD, PALETTE[1], f"hybrid, P = 1/{PERIOD}"),
            "softmax": (1.0, INK, "softmax attention"),
        }
        for name, (share, colour, label) in shares.items():
            axes.plot(lengths, [s / unit for s in seconds[name]], "o", color=colour, ms=4)
            axes.plot(every, [law(n, share, **parts) / unit for n in every], color=colour, lw=1.4)
            ends.append((longest, law(longest, share, **parts) / unit, label, colour))
        axes.plot(lengths, [s / unit for s in seconds["sdpa"]], "s", color=GREY, ms=3.5)
        axes.plot(beyond, [fitted["sdpa_pair"] * n * n / unit for n in beyond], color=GREY, ls=":", lw=1.4)
        ends.append((longest, fitted["sdpa_pair"] * longest**2 / unit, "torch's attention alone", GREY))
        stream = curves["stream"]
        axes.plot(
            [m["tokens"] for m in stream], [m["seconds"] / unit for m in stream], color=PALETTE[2], lw=2.4
        )
        ends.append(
            (
                longest,
                stream[-1]["seconds"] / unit,
                f"this stream, {found['plan']['mixer']}",
                PALETTE[2],
            )
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(lengths[0], longest)
        axes.set_xlabel("tokens N")
        axes.set_ylabel("time of a layer, relative")
        label_ends(axes, ends)
        figure.savefig(file, dpi=150)
