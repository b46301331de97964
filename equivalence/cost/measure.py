"""Times on the GPU that is there, to be held against the model: medians of CUDA events."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels import OuterDecay, recurrence
from .cards import CARDS, Card
from .operators import Call, Case, call_of

WARM, REPEATS = 3, 20


def gpu() -> str:
    """The name of the GPU in this machine, empty if there is none."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def card_here() -> Card | None:
    """The card of the table that is in this machine."""
    return next((card for card in CARDS.values() if card.name in gpu()), None)


def many(call: Call, copies: int) -> Call:
    """The call on the GPU, with so many times its sequences: copies of them, which share nothing."""
    packed = call.operands.get("cu_seqlens")

    def copy(name: str, x: Any) -> Any:
        if isinstance(x, OuterDecay):
            return OuterDecay(copy(name, x.dt), x.A.detach().cuda().requires_grad_(x.A.requires_grad))
        if x is None:
            return None
        if name == "cu_seqlens":
            steps = torch.arange(copies)[:, None] * x[-1]
            return torch.cat([x[:1], (x[1:] + steps).flatten()]).cuda()
        dim = 1 if packed is not None and name != "initial_state" else 0
        whole = torch.cat([x.detach()] * copies, dim).cuda()
        return whole.requires_grad_(x.requires_grad)

    return Call({name: copy(name, x) for name, x in call.operands.items()}, call.options, call.final)


def median_seconds(call: Callable[[], Any]) -> float:
    """Median time of a call on the GPU, after warming up."""
    for _ in range(WARM):
        call()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measure(case: Case, copies: int) -> dict[str, float]:
    """Seconds of forward and of backward of an operator, with so many sequences."""
    call = many(call_of(case), copies)

    def forward() -> tuple[Tensor, Tensor]:
        return recurrence(**call.operands, **call.options, backend="triton", schedule=case.schedule)

    seconds = {"forward": median_seconds(forward)}
    o, state = forward()
    outputs = [o, state] if call.final else [o]
    gradients = [torch.randn_like(x) for x in outputs]

    def backward() -> Any:
        return torch.autograd.grad(outputs, call.differentiable(), gradients, retain_graph=True)

    return seconds | {"backward": median_seconds(backward)}
