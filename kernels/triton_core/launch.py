"""From tensors to launches: which regime a call takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import chunk_launch, recurrent_launch
from .config import regime_of
from .problem import NONE, Problem


def _regime(x: Problem, regime: str | None) -> Any:
    """Erasure has the matmul regime alone: each step's system couples all keys."""
    if x.erase != NONE:
        return chunk_launch
    return chunk_launch if (regime or regime_of(x.K, x.V)) == "chunk" else recurrent_launch


def forward(
    *operands: Tensor | None, save: bool = False, regime: str | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs [B, T, H, V] in the dtype of v; final state [N, H, K, V] in the accumulation dtype; and, where
    asked for (`save`) and of use, what backward can do without recomputing."""
    x = Problem(*operands, **options)  # type: ignore[arg-type]
    return _regime(x, regime).forward(x, save)


def saved_shape(*operands: Tensor | None, regime: str | None = None, **options: Any) -> tuple[int, ...]:
    """Shape of the third result of forward under `save`, (0,) if there is none."""
    x = Problem(*operands, **options)  # type: ignore[arg-type]
    return _regime(x, regime).saved_shape(x)


def backward(
    do: Tensor | None,
    dstate: Tensor | None,
    saved: Tensor | None,
    *operands: Tensor | None,
    regime: str | None = None,
    **options: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of the first ten operands of Problem, None for inputs which are not there."""
    if do is None:
        v = operands[2]
        assert v is not None
        do = v.new_zeros(()).expand(v.shape)
    x = Problem(*operands, do=do, dstate=dstate, **options)  # type: ignore[arg-type]
    return _regime(x, regime).backward(x, saved)
