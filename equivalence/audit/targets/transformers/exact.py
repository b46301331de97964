"""Float64 that is meant: the casts to float32 inside transformers' models, taken out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class ExactFloat64(TorchFunctionMode):
    """Within it, code that says float32 gets float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {k: _wide(v) for k, v in (kwargs or {}).items()}
        return func(*map(_wide, args), **named)


def _wide(x: Any) -> Any:
    return torch.float64 if x is torch.float32 else x
