"""How time grows with the sequence, and what the import adds."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys

import torch

from ...mixers import build
from ...mixers.registry import REGISTRY
from ..timing import exponent, median_seconds
from .bar import Bar, Effort, Measured

WIDTH = 32
IMPORTS = """
import time
import torch
began = time.perf_counter()
import mixerzoo.mixers
print(time.perf_counter() - began)
"""


def growth(name: str, effort: Effort) -> Measured:
    """The exponent of time against T, from 4 k to 256 k (quick: 2 k to 16 k). `one` and `other` are the times
    at the ends."""
    torch.manual_seed(0)
    lengths = [2048, 8192, 16384] if effort.quick else [4096, 16384, 65536, 262144]
    bounded = "max_length" in inspect.signature(REGISTRY[name].factory).parameters
    mixer = build(name, WIDTH, **({"max_length": lengths[-1]} if bounded else {})).eval()
    times = []
    with torch.no_grad():
        for n in lengths:
            x = torch.randn(1, n, WIDTH)
            times.append(median_seconds(lambda x=x: mixer(x), 5, effort.seconds / len(lengths)))  # type: ignore[misc]
    return Measured(exponent(lengths, times), times[-1], times[0], 5)


def importing(effort: Effort) -> Measured:
    """Seconds, not a ratio: the median of processes of their own."""
    found = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    median = sorted(found)[1]
    return Measured(median, median, 1.0, 3)


def bars() -> list[Bar]:
    names = [n for n, entry in REGISTRY.items() if entry.causal and entry.family != "softmax attention"]
    found = [
        Bar(
            "growth",
            name,
            f"exponent of time against T: a layer of width {WIDTH}, forward",
            functools.partial(growth, name),
            at_most=1.05,
        )
        for name in names
    ]
    text = "seconds that importing mixerzoo.mixers adds to importing torch"
    return [*found, Bar("import", "mixers", text, importing, at_most=0.3)]
