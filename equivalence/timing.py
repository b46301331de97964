"""Measuring time: medians of repeated calls, and the exponent with which it grows."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread. Threads that wait for each other measure whatever else the machine is doing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def median_seconds(call: Callable[[], object], repeats: int = 5, seconds: float = 1.0) -> float:
    """Median time of a call after one warm-up: `repeats` calls, or three once `seconds` are spent."""
    call()
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The slope of log(time) on log(size), by least squares: 1 is linear, 2 is quadratic."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in times]
    mx, my = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def machine() -> str:
    """What `one_thread` timings were measured on, in a few words."""
    return f"{platform.system()} {platform.machine()} CPU, one thread"
