"""What the loops of all papers are written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# (module, x [T, d_model]) -> y [T, d_model]
Paper = Callable[[Any, Tensor], Tensor]


def linear(layer: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def heads(x: Tensor, count: int) -> Tensor:
    """[T, H D] to [T, H, D]."""
    return x.reshape(x.shape[0], count, -1)


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def head_norm(layer: Any, x: Tensor) -> Tensor:
    """LayerNorm of every head of x [T, H, D], side by side."""
    x = x - x.mean(-1, keepdim=True)
    normed = rms(x, layer.eps).flatten(1) * layer.weight
    return normed if layer.bias is None else normed + layer.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def convolved(layer: Any, x: Tensor) -> Tensor:
    """Causal depthwise convolution of x [T, channels]."""
    width = layer.weight.shape[-1]
    padded = torch.cat([x.new_zeros(width - 1, x.shape[1]), x])
    y = torch.stack([(padded[t : t + width] * layer.weight[:, 0].T).sum(0) for t in range(len(x))])
    return y if layer.bias is None else y + layer.bias
