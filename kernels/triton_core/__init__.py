"""The recurrence on a GPU: one family of Triton kernels, forward and backward.

    config.py     which regime, block sizes and precision: the one place
    problem.py    the arguments of one call      launch.py  which regime it takes
    chunk.py, chunk_launch.py          matmul regime: kernels and their launches; what happens inside a chunk:
    scalar.py, vector.py               one decay per step, or the tree
    delta.py                           erasure, through a triangular system
    recurrent.py, recurrent_launch.py  elementwise regime
    one_step.py   one step of the recurrence: kernel and launch
    decay.py      what all kernels share
    aot.py        compiles the whole family without a GPU and counts registers, spills and tensor-core
    instructions

Importing this package imports neither Triton nor a GPU driver. Public tensors are [B, T, H, D].
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

__all__ = ["available", "backward", "forward", "most_keys", "saved_shape", "step"]


@functools.cache
def _triton() -> tuple[int, int]:
    """The version of Triton, (0, 0) where there is none."""
    try:
        major, minor = importlib.metadata.version("triton").split(".")[:2]
        found = importlib.util.find_spec("triton") is not None
        return (int(major), int(minor)) if found else (0, 0)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return 0, 0


def _needed(x: Tensor) -> tuple[int, int]:
    """The oldest Triton that compiles these kernels: 3.6 brought bf16x6; on Blackwell, before 3.8, compilers
    fail on the gradients of one decay per step."""
    nvidia = x.is_cuda and torch.version.hip is None and torch.cuda.is_available()
    blackwell = nvidia and torch.cuda.get_device_capability(x.device)[0] >= 10
    return (3, 8) if blackwell else (3, 6)


def available(*tensors: Tensor | None) -> bool:
    """Whether these kernels can run on these tensors: all on one GPU, or on the CPU under TRITON_INTERPRET=1.

    Without tensors: whether they could run on any."""
    given = [x for x in tensors if x is not None]
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if not given:
        return _triton() >= (3, 6) and (interpreted or torch.cuda.is_available())
    if any(x.device != given[0].device for x in given) or _triton() < _needed(given[0]):
        return False
    return given[0].is_cuda or (interpreted and given[0].device.type == "cpu")


def most_keys(*operands: Tensor | None) -> int:
    """How many keys a head may have where beta or erase is given: a program holds them all, in the dtype in
    which these operands are multiplied."""
    dtypes = {x.dtype for x in operands if x is not None}
    return 64 if torch.float64 in dtypes else 128 if dtypes & {torch.float16, torch.float32} else 256


def forward(*operands: Tensor | None, **options: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """o [B, T, H, V] in the dtype of v, the final state [N, H, K, V] in the accumulation dtype and, with
    save=True, what backward can use (or None).

    Arguments are those of problem.Problem, all valid, any strides. regime: "chunk", "recurrent" or None, the
    rule in config.py."""
    from . import launch

    return launch.forward(*operands, **options)


def saved_shape(*operands: Tensor | None, **options: Any) -> tuple[int, ...]:
    """The shape of the third result of forward, (0,) where it is None."""
    from . import launch

    return launch.saved_shape(*operands, **options)


def backward(*operands: Tensor | None, **options: Any) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, log_decay, outer, log_decay_v, beta, erase_x, erase_y and initial_state, in the
    shapes and dtypes of the inputs.

    Arguments: do, the gradient of o (None is zero), dstate, that of the final state (None is zero), what
    forward saved (or None), and then those of forward."""
    from . import launch

    return launch.backward(*operands, **options)


def step(*operands: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """One step: o [B, H, V] in the dtype of v and the new state [B, H, K, V] in the accumulation dtype.

    Arguments are those of one_step.step, all valid, any strides; with inplace=True the new state is the given
    one."""
    from . import one_step

    return one_step.step(*operands, **options)
