"""The recurrence on a GPU: one family of Triton kernels, forward and backward.

    config.py     which regime, block sizes and precision: the one place
    launch.py     from tensors to launches
    chunk.py      matmul regime      recurrent.py  elementwise regime      decay.py  what both share
    aot.py        compiles the whole family without a GPU and counts registers, spills and tensor-core
    instructions

Importing this package imports neither Triton nor a GPU driver. Public tensors are [B, T, H, D].
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os

import torch
from torch import Tensor

__all__ = ["available", "backward", "forward"]


@functools.cache
def _triton_is_new_enough() -> bool:
    """Triton 3.5 brought the loop annotation without which some kernels run out of registers."""
    try:
        major, minor = importlib.metadata.version("triton").split(".")[:2]
        return (int(major), int(minor)) >= (3, 5) and importlib.util.find_spec("triton") is not None
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


def available(*tensors: Tensor | None) -> bool:
    """Whether these kernels can run on these tensors: all on one GPU, or on the CPU under TRITON_INTERPRET=1.

    Without tensors: whether they could run on any."""
    if not _triton_is_new_enough():
        return False
    given = [x for x in tensors if x is not None]
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if not given:
        return interpreted or torch.cuda.is_available()
    if any(x.device != given[0].device for x in given):
        return False
    return given[0].is_cuda or (interpreted and given[0].device.type == "cpu")


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    outer: Tensor | None,
    log_decay_v: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    scale: float,
    read: str,
    reverse: bool,
    precision: str | None,
    schedule: str,
    chunk_size: int | None,
    regime: str | None = None,
) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] in the dtype of v, and the final state [N, H, K, V] in the accumulation dtype.

    q [B, T, Hq, K], k [B, T, Hk, K], v [B, T, H, V]; log_decay None, [H], [B, T, H] or [B, T, H, K], or, with
    outer [H, K], the dt [B, T, H] of log-decays dt * outer; log_decay_v None, [H, V] or [B, T, H, V];
    initial_state [N, H, K, V] or None. Any strides. regime: "chunk", "recurrent" or None, the rule in
    config.py. Arguments are taken to be valid."""
    from . import launch

    return launch.forward(
        q, k, v, log_decay, outer, log_decay_v, initial_state, cu_seqlens, scale=scale, read=read,
        reverse=reverse, precision=precision, schedule=schedule, chunk_size=chunk_size,
        regime=regime,
    )  # fmt: skip


def backward(
    do: Tensor | None,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    outer: Tensor | None,
    log_decay_v: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    scale: float,
    read: str,
    reverse: bool,
    precision: str | None,
    schedule: str,
    chunk_size: int | None,
    regime: str | None = None,
) -> tuple[Tensor | None, ...]:
    """(dq, dk, dv, dlog_decay, douter, dlog_decay_v, dinitial_state) in the shapes and dtypes of the inputs.

    do: gradient of o (None is zero). dstate: gradient of the final state (None is zero)."""
    from . import launch

    return launch.backward(
        do, dstate, q, k, v, log_decay, outer, log_decay_v, initial_state, cu_seqlens, scale=scale, read=read,
        reverse=reverse, precision=precision, schedule=schedule, chunk_size=chunk_size,
        regime=regime,
    )  # fmt: skip
