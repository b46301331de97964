"""The elementwise regime (Mamba-1, HGRN): the core's time over that of the same by hand in C++."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import numba_core, recurrence
from . import yardstick
from .bar import Bar, Call, Effort, Measured, Missing, forward, in_turns
from .references import mamba_inputs, mamba_ours

LENGTH = 2048
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Core:
    """Inputs of so many steps, ours by a backend and the yardstick's outputs [T, D]; limits by backend,
    forward and with gradients."""

    name: str
    shape: str
    inputs: Callable[[int], Inputs]
    ours: Callable[[Inputs, str], Tensor]
    by_hand: Callable[[Inputs], Tensor]
    limits: dict[str, tuple[float, float]]


def flat(x: Tensor) -> Tensor:
    """[1, T, ...] to [T, channels], as a view whose gradient is one."""
    return x.view(x.shape[1], -1)


def mamba(x: Inputs, backend: str) -> Tensor:
    return flat(mamba_ours(x, backend))


def mamba_by_hand(x: Inputs) -> Tensor:
    return yardstick.mamba(flat(x["dt"]), x["A"], flat(x["B"]), flat(x["C"]), flat(x["x"]))[0]


def hgrn_inputs(T: int, channels: int = 1024) -> Inputs:
    g = torch.Generator().manual_seed(0)
    log_forget = torch.nn.functional.logsigmoid(torch.randn(1, T, channels, generator=g) + 3)
    return {"l": log_forget, "v": torch.randn(1, T, channels, generator=g)}


def hgrn_ours(x: Inputs, backend: str) -> Tensor:
    one = x["v"].new_ones(()).expand(1, x["v"].shape[1], 1, 1)
    v, l = (x[n].unsqueeze(2) for n in ("v", "l"))
    return flat(recurrence(one, one, v, None, l, backend=backend)[0])


def hgrn_by_hand(x: Inputs) -> Tensor:
    return yardstick.hgrn(flat(x["l"]), flat(x["v"]))[0]


CORES = (
    Core(
        "mamba",
        "d_inner 1536, N 16",
        mamba_inputs,
        mamba,
        mamba_by_hand,
        {"torch": (5.5, 8.0), "numba": (2.5, 3.0)},
    ),
    Core(
        "hgrn", "width 1024", hgrn_inputs, hgrn_ours, hgrn_by_hand, {"torch": (3.0, 5.5), "numba": (2.0, 2.0)}
    ),
)


def with_gradients(run: Callable[[], Tensor], leaves: list[Tensor]) -> Call:
    """Outputs and the gradients of all leaves, for a gradient of the outputs that differs everywhere."""
    with torch.no_grad():
        given = torch.randn(run().shape, generator=torch.Generator().manual_seed(1))

    def call() -> None:
        with torch.enable_grad():
            torch.autograd.grad(run(), leaves, given)

    return call


def measure(core: Core, backend: str, both: bool, effort: Effort) -> Measured:
    if backend == "numba" and not numba_core.installed():
        raise Missing("numba")
    x = core.inputs(effort.size(LENGTH, 512))
    runs = (lambda: core.ours(x, backend), lambda: core.by_hand(x))
    if not both:
        return in_turns(forward(runs[0]), forward(runs[1]), effort)
    leaves = [y.requires_grad_() for y in x.values()]
    return in_turns(with_gradients(runs[0], leaves), with_gradients(runs[1], leaves), effort)


def bars() -> list[Bar]:
    found = []
    for core in CORES:
        for backend, limits in core.limits.items():
            for both, limit in zip((False, True), limits, strict=True):
                passes = "forward-backward" if both else "forward"
                size = f"{core.shape}, T {LENGTH}, float32"
                text = f"backend {backend!r} over the same by hand in C++: {size}, {passes}"
                call = functools.partial(measure, core, backend, both)
                found.append(Bar("elementwise", f"{core.name}-{backend}-{passes}", text, call, at_most=limit))
    return found
