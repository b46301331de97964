"""The elementwise regime on a CPU, compiled by Numba (an optional extra: `pip install mixerzoo[numba]`).

    problem.py    the arguments of one call      launch.py  threads, memory and sums
    walk.py       the two kernels                rows.py    rows between memory and scratch
    vectors.py    vectors of lanes as a type, with an exp of their own

One family for every decay, as in triton_core. Importing this package imports no Numba: that happens at the
first call. A kernel is compiled at its first use, in about two seconds, and kept on disk.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

__all__ = ["available", "backward", "forward", "installed", "saved_shape"]


FOUND = importlib.util.find_spec("numba") is not None


def installed() -> bool:
    """Whether Numba is here, and compiles (NUMBA_DISABLE_JIT is not set)."""
    return FOUND and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


def available(x: Tensor) -> bool:
    """Whether these kernels can run on this tensor."""
    return installed() and x.device.type == "cpu"


def _problem(operands: tuple[Any, ...], **options: Any) -> Any:
    from .problem import Problem

    *floating, offsets = operands
    wide = any(x is not None and x.dtype == torch.float64 for x in floating)
    acc = torch.float64 if wide else torch.float32
    given = (None if x is None else x.detach().to(acc) for x in floating)
    return Problem(*given, offsets, **options)  # type: ignore[arg-type, call-arg]


def forward(*operands: Any, save: bool, **options: Any) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """o [B, T, H, V] and the final state [N, H, K, V] in the accumulation dtype; with save=True, the states
    that backward walks from, [slots, K, H V]; and whether log-decays other than dt · A were neither NaN nor
    positive.

    Arguments: q, k, v, log_decay, outer, log_decay_v, initial_state, any strides, no step masked; offsets,
    those of packed sequences or None; scale, read, reverse."""
    from . import launch

    return launch.forward(_problem(operands, **options), save)


def saved_shape(values: torch.Size, keys: int, sequences: int | None) -> tuple[int, int, int]:
    """The shape of the third result of forward: of v's shape, keys, and packed sequences."""
    from .problem import slots

    B, T, H, V = values
    return slots(B, T, sequences), keys, H * V


def backward(
    do: Tensor, dstate: Tensor | None, saved: Tensor | None, *operands: Any, **options: Any
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, log_decay, outer, log_decay_v and initial_state, in the accumulation dtype.

    Arguments: do, the gradient of o; dstate, that of the final state (None is zero); what forward saved
    (None: it is made again); then those of forward."""
    from . import launch

    x = _problem(operands, **options)
    x.do = do.detach().to(x.acc)
    return launch.backward(x, saved, dstate)
