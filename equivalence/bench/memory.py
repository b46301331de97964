"""What a call needs beside its operands and results: the most that is resident, in a process of its own."""

from __future__ import annotations

import ctypes
import functools
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...kernels import OuterDecay, numba_core, recurrence, step
from ...mixers import build
from . import decoding
from .bar import Bar, Effort, Measured, Missing
from .products import operands
from .references import mamba_inputs

MAMBA, MATMUL, STREAM, DECODE, PIECE = 2048, 8192, 131072, 4000, 8192
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(what: str) -> int:
    """VmRSS (now) or VmHWM (the most since the last reset), in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def most(call: Callable[[], list[Tensor]]) -> int:
    """Bytes that were resident at the most during the call, beyond those before it and its results'.

    Memory that was freed before goes back to the system first: else the call would find it there, unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    RESET.write_text("5")
    before = _resident("VmRSS")
    results = call()
    return _resident("VmHWM") - before - sum(y.nbytes for y in results)


def _both(run: Callable[..., Tensor], leaves: list[Tensor], both: bool) -> list[Tensor]:
    with torch.set_grad_enabled(both):
        o = run(*leaves)
        return [o.detach(), *(torch.autograd.grad(o, leaves, o.detach()) if both else ())]


def mamba(T: int, backend: str, both: bool) -> tuple[int, int]:
    """Bytes beside operands and results, and B·T·D·N in bytes."""

    def at(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
        x = mamba_inputs(length)
        xs = [x["C"][:, :, None], x["B"][:, :, None], x["x"][..., None], x["dt"], x["A"]]

        def run(C: Tensor, B: Tensor, v: Tensor, dt: Tensor, A: Tensor) -> Tensor:
            return recurrence(C, B, v, OuterDecay(dt, A), backend=backend)[0]

        return run, [y.requires_grad_(both) for y in xs]

    _both(*at(256), both)  # what is loaded or compiled once
    run, leaves = at(T)
    return most(lambda: _both(run, leaves, both)), 4 * leaves[2].numel() * leaves[0].shape[-1]


def matmul(T: int, decay: str, both: bool) -> tuple[int, int]:
    """Bytes beside operands and results, and those of the operands."""

    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        return recurrence(q, k, v, log_decay)[0]

    _both(run, [y.requires_grad_(both) for y in operands(256, decay).values()], both)
    leaves = [y.requires_grad_(both) for y in operands(T, decay).values()]
    return most(lambda: _both(run, leaves, both)), sum(y.nbytes for y in leaves)


def stream(T: int, name: str) -> tuple[int, int]:
    """Bytes that a prefill of T tokens needs, read in pieces; and those of one a quarter as long."""
    mixer = build(name, 256).eval()

    def run(length: int) -> list[Tensor]:
        state = None
        with torch.no_grad():
            for _ in range(0, length, PIECE):
                y, state = mixer(torch.randn(1, PIECE, 256), state)
        del y
        return []

    run(T // 4)
    short = most(lambda: run(T // 4))
    return most(lambda: run(T)), short


def decode(T: int) -> tuple[int, int]:
    """Bytes that T steps need, in place, and those that a hundred do."""
    q, k, v, la, S = decoding.operands(64)

    def run(steps: int) -> list[Tensor]:
        with torch.no_grad():
            for _ in range(steps):
                step(q, k, v, la, state=S, inplace=True)
        return []

    run(100)
    short = most(lambda: run(100))
    return most(lambda: run(T)), short


def measure(task: str, *arguments: object, effort: Effort, T: int) -> Measured:
    """Runs `task` of this module in a process of its own; `one` and `other` are bytes."""
    if not RESET.exists():
        raise Missing("Linux, where a process can forget the most memory it had")
    if "numba" in arguments and not numba_core.installed():
        raise Missing("numba")
    given = ", ".join(map(repr, (effort.size(T, T // 4), *arguments)))
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    code += f"from {__name__} import {task}; print(*{task}({given}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    one, other = (float(y) for y in done.stdout.split())
    return Measured(one / other, one, other, 1)


def bars() -> list[Bar]:
    def bar(name: str, text: str, limit: float, T: int, task: str, *arguments: object) -> Bar:
        def call(effort: Effort) -> Measured:
            return measure(task, *arguments, effort=effort, T=T)

        return Bar("memory", name, f"{text}, T {T}", call, at_most=limit)

    found = []
    for backend in ("torch", "numba"):
        for both, passes in ((False, "forward"), (True, "forward-backward")):
            text = f"bytes beside operands and results over those of B·T·D·N: Mamba-1, backend {backend!r}"
            of = functools.partial(bar, f"mamba-{backend}-{passes}", f"{text}, {passes}", 1 / 16, MAMBA)
            found.append(of("mamba", backend, both))
    for decay in ("scalar", "vector"):
        for both, limit in ((False, 0.1), (True, 1.0)):
            passes = "forward-backward" if both else "forward"
            text = (
                f"bytes beside operands and results over those of operands: 8 heads × 128, {decay}, {passes}"
            )
            found.append(bar(f"{decay}-{passes}", text, limit, MATMUL, "matmul", decay, both))
    text = f"bytes of a prefill in pieces of {PIECE} over those of one a quarter as long: lightning"
    found.append(bar("stream", text, 1.25, STREAM, "stream", "lightning"))
    text = "bytes that steps in place need over those of a hundred steps: B 64"
    found.append(bar("decode", text, 1.1, DECODE, "decode"))
    return found
