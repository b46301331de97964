"""Parts that mixers share: the short convolution, the norm, rotations and slopes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import integer, number, whole
from .base import Tokens, accumulation, cast


class ShortConvolution(nn.Conv1d):
    """Causal depthwise convolution over time: y_t = b + Σ_j w_j x_{t - width + 1 + j}.

    Parameters are those of the depthwise `nn.Conv1d` it is: weight [channels, 1, width], bias. They may be
    of a wider dtype than x.
    """

    def __init__(self, channels: int, width: int, bias: bool = True) -> None:
        super().__init__(channels, channels, width, groups=channels, bias=bias)

    def forward(self, x: Tensor, window: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """x [B, T, channels], window [N, width - 1, channels] (None: zeros): y, and the window after x."""
        past = self.kernel_size[0] - 1
        if tokens.segment is not None:
            return self._packed(x, window, tokens, tokens.segment)
        if window is None:
            window = x.new_zeros(x.shape[0], past, x.shape[2])
        seen = torch.cat([cast(window, x.dtype), x], 1)
        weight, bias = self.weight, self.bias
        if x.shape[1] == 1:  # one token, for which a convolution's set-up is most of its cost
            acc = accumulation(x.dtype)
            y = (cast(seen, acc) * weight.squeeze(1).mT).sum(1, keepdim=True)
            y = y if bias is None else y + bias
        else:
            y = F.conv1d(seen.mT.to(weight.dtype), weight, bias, groups=self.groups).mT
        y = cast(y, x.dtype)
        if tokens.lengths is None:
            return y, seen[:, x.shape[1] :]
        last = tokens.lengths[:, None] + torch.arange(past, device=x.device)
        return y, seen.gather(1, last[..., None].expand(-1, -1, x.shape[2]))

    def _packed(
        self, x: Tensor, window: Tensor | None, tokens: Tokens, segment: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tap by tap, so that a tap which reaches back beyond its sequence finds the window instead."""
        assert tokens.cu_seqlens is not None and tokens.lengths is not None
        T, past = x.shape[1], self.kernel_size[0] - 1
        starts, lengths = tokens.cu_seqlens[:-1].long(), tokens.lengths
        if window is None:
            window = x.new_zeros(lengths.shape[0], past, x.shape[2])
        window = window.to(x.dtype)
        index = torch.arange(T, device=x.device) - starts[segment]  # of a token in its sequence
        y = x * self.weight[:, 0, past]
        for back in range(1, past + 1):
            within = F.pad(x, (0, 0, back, 0))[:, :T]
            before = window[segment, (index + past - back).clamp(max=past - 1)]
            y = y + torch.where(index[:, None] >= back, within, before) * self.weight[:, 0, past - back]
        if self.bias is not None:
            y = y + self.bias
        y = y.to(x.dtype)
        place = lengths[:, None] - past + torch.arange(past, device=x.device)  # of the last inputs, [N, past]
        inside = x[0, (starts[:, None] + place).clamp(0, T - 1)]
        rows = torch.arange(lengths.shape[0], device=x.device)[:, None]
        carried = window[rows, (place + past).clamp(max=past - 1)]
        return y, torch.where(place[..., None] >= 0, inside, carried)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimension, in at least float32."""
    y = cast(x, accumulation(x.dtype))
    return cast(y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps), x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019), with a weight or without. In fp64 it is fp64 throughout."""

    weight: nn.Parameter

    def __init__(self, dim: int, eps: float = 1e-6, weight: bool = True) -> None:
        super().__init__()
        self.eps = number("eps", eps, 0)
        self.register_parameter("weight", nn.Parameter(torch.ones(dim)) if weight else None)

    def forward(self, x: Tensor) -> Tensor:
        y = rms_norm(x, self.eps)
        return y if self.weight is None else self.weight * y


class GatedRMSNorm(RMSNorm):
    """weight ∘ RMSNorm(x) ∘ activation(gate), or with gate_first weight ∘ RMSNorm(x ∘ activation(gate)).

    In at least float32; the norm runs over each of `groups` groups of channels by itself."""

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        activation: Callable[[Tensor], Tensor] = F.silu,
        groups: int = 1,
        gate_first: bool = False,
    ) -> None:
        super().__init__(dim, eps)
        self.activation, self.groups, self.gate_first = activation, groups, gate_first

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        acc = accumulation(x.dtype)
        gate = self.activation(cast(gate, acc))
        y = cast(x, acc) * gate if self.gate_first else cast(x, acc)
        if self.groups > 1:
            y = y.unflatten(-1, (self.groups, -1))
        y = rms_norm(y, self.eps)
        y = cast(self.weight, acc) * (y.flatten(-2) if self.groups > 1 else y)
        return cast(y if self.gate_first else y * gate, x.dtype)


def l2_normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(Σx² + eps) over the last dimension, in at least float32; 0, with a gradient, where x is 0."""
    y = cast(x, accumulation(x.dtype))
    return cast(y * torch.rsqrt(y.square().sum(-1, keepdim=True) + eps), x.dtype)


def softplus_decay(z: Tensor, bias: Tensor, A_log: Tensor) -> Tensor:
    """The log-decay -exp(A_log) softplus(z + bias) of Mamba-2 (Dao & Gu 2024), in at least float32."""
    acc = accumulation(z.dtype)
    return -A_log.to(acc).exp() * F.softplus(z.to(acc) + bias.to(acc), threshold=40)  # as in Mamba


@torch.no_grad()
def init_softplus_decay(
    A_log: Tensor,
    dt_bias: Tensor,
    low: float = 1.0,
    high: float = 16.0,
    dt_min: float = 1e-3,
    dt_max: float = 0.1,
) -> None:
    """exp(A_log) uniform in [low, high], softplus(dt_bias) log-uniform in [dt_min, dt_max], as in Mamba-2."""
    A_log.uniform_(low, high).log_()
    dt_bias.copy_(inverse_softplus(log_uniform(len(dt_bias), dt_min, dt_max)))


def log_uniform(n: int, low: float, high: float) -> Tensor:
    """n numbers in [low, high], uniform in their logarithms."""
    return torch.empty(n).uniform_(math.log(low), math.log(high)).exp()


def inverse_softplus(y: Tensor) -> Tensor:
    """x with log(1 + e^x) = y, for y > 0."""
    return y + torch.log(-torch.expm1(-y))


def zero_order_hold(dt: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    """(e^{Δλ} - 1) / λ for λ = re + i im with re < 0, real and imaginary part, without cancellation."""
    size, angle = dt * re, dt * im
    above = torch.expm1(size) * angle.cos() - 2 * torch.sin(angle / 2).square()
    beside = size.exp() * angle.sin()
    square = re.square() + im.square()
    return (above * re + beside * im) / square, (beside * re - above * im) / square


def block_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., H D] through a block-diagonal matrix: weight [H, D, D], in rows of inputs, and bias [H, D]."""
    blocks = x.reshape(-1, *bias.shape).transpose(0, 1)
    return torch.baddbmm(bias[:, None], blocks, weight).transpose(0, 1).reshape(x.shape)


def low_rank(
    channels: int, rank: int, out: int, activation: nn.Module | None = None, bias: bool = False
) -> nn.Sequential:
    """A linear map of this rank, with an activation in the middle; the bias is that of the output."""
    middle = [] if activation is None else [activation]
    return nn.Sequential(nn.Linear(channels, rank, bias=False), *middle, nn.Linear(rank, out, bias=bias))


class HeadLayerNorm(nn.Module):
    """LayerNorm over the channels of every head [..., H, D], with a weight for every channel: [..., H D]."""

    def __init__(self, num_heads: int, head_dim: int, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__()
        self.eps = number("eps", eps, 0)
        self.weight = nn.Parameter(torch.ones(num_heads * head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads * head_dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = cast(x, accumulation(x.dtype))
        y = cast(F.layer_norm(y, y.shape[-1:], eps=self.eps), x.dtype).flatten(-2) * self.weight
        return y if self.bias is None else y + self.bias


def angles(position: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position · theta [B, T, *theta.shape], in float64.

    The product loses its digits to its size: at position 10⁶ a float32 angle is off by 0.03.
    """
    a = position.double().reshape(*position.shape, *(1 for _ in theta.shape)) * theta.double()
    return a.cos(), a.sin()


def rotary_frequencies(dim: int, base: float, device: torch.device) -> Tensor:
    """base^(-2i/dim) for i = 0 … dim/2 - 1 (Su et al. 2021), float64."""
    i = torch.arange(dim // 2, device=device, dtype=torch.float64)
    return base ** (-2.0 * i / dim)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + n}) of x's first 2n channels, cos and sin having n; the rest stays."""
    n = cos.shape[-1]
    acc = accumulation(x.dtype)
    cos, sin = cos.to(acc), sin.to(acc)
    a, b, rest = x[..., :n].to(acc), x[..., n : 2 * n].to(acc), x[..., 2 * n :].to(acc)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1).to(x.dtype)


def slopes(num_heads: int, factor: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """factor · 2^(-8h/H) for h = 1 … H (the slopes of ALiBi, Press et al. 2021), computed in float64."""
    if device.type == "cpu" and not torch.compiler.is_compiling():  # one call instead of seven
        rates = [factor * 2.0 ** (-8.0 * h / num_heads) for h in range(1, num_heads + 1)]
        return torch.tensor(rates, device=device, dtype=dtype)
    h = torch.arange(1, num_heads + 1, device=device, dtype=torch.float64)
    return (factor * torch.exp2(-8.0 * h / num_heads)).to(dtype)


def layer_factor(layer_idx: int, num_layers: int) -> float:
    """1 - l/(L - 1) + 1e-5: decay fades towards the last layer, which all but keeps everything.

    The denominator has 1e-5 added, as in the released MiniMax code, so that L = 1 is defined.
    """
    layer_of(layer_idx, num_layers)
    return 1 - layer_idx / (num_layers - 1 + 1e-5) + 1e-5


def layer_of(layer_idx: int, num_layers: int) -> None:
    last = whole("num_layers", num_layers) - 1
    accepted = f"from 0 to num_layers - 1 = {last}"
    if not 0 <= integer("layer_idx", layer_idx, f"a whole number {accepted}") <= last:
        raise ValueError(f"layer_idx is {layer_idx}; accepted: {accepted}")


@torch.no_grad()
def init_linears(module: nn.Module, std: float) -> None:
    """Normal weights of this deviation and zero biases in every linear map of the module."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=std)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def ones(v: Tensor) -> Tensor:
    """Queries or keys of 1 for values v [B, T, H, V]: [B, T, 1, 1], one number in memory, which the core then
    does not multiply by."""
    return v.new_ones(1, 1, 1, 1).expand(v.shape[0], v.shape[1], 1, 1)


def zeroed(valid: Tensor, y: Tensor) -> Tensor:
    """y [B, T, H, D] where valid [B, T], 0 elsewhere, whatever y holds there."""
    return torch.where(valid[..., None, None], y, torch.zeros_like(y))
