"""Longhorn: a state space model whose decay follows from what it is asked to recall."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation
from .parts import ShortConvolution


class Longhorn(RecurrentMixer):
    """Longhorn: each channel learns online to recall x from k; its step size decides what it forgets.

        x, z = W_in u        x ← silu(conv(x))        δ, k, q = W_x x        β = σ(W_β δ + b_β)
        S_t = (1 - Δ_t k_t²) ∘ S_{t-1} + Δ_t x_t k_t        Δ = β / (1 + β |k|²)
        o_t = S_t·q_t + D x_t        y = W_out (o ∘ silu(z))

    Reduction: heads = channels, K = d_state, V = 1; q and k shared by all channels; v = Δx; log_decay =
    log(1 - Δk²), one for each channel and state. D x and the gate are outside.

    Args:
        d_model: width of u and y.
        d_state: numbers each channel remembers.
        expand: channels are expand · d_model.
        conv_width: of the causal convolution.
        dt_rank: width of δ; d_model / 16, rounded up, by default.
        use_bias: of W_in and W_out.
        use_conv_bias: of the convolution.

    Parameters have the names and shapes of the released module. `attention_map` has up to 8 maps, each the
    mean over a contiguous group of channels.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1.

    Paper: Liu et al. 2024, "Longhorn: State Space Models are Amortized Online Learners" (arXiv:2407.14207),
        section 3, with the diagonal of k kᵀ for k kᵀ as there. Initialisation as released: biases of linear
        maps 0, D = 1, the rest as `nn.Linear` and `nn.Conv1d`.
    """

    map_heads = 8

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        expand: int = 2,
        conv_width: int = 4,
        dt_rank: int | None = None,
        use_bias: bool = False,
        use_conv_bias: bool = True,
    ) -> None:
        super().__init__(d_model)
        for name, size in (("d_state", d_state), ("expand", expand), ("conv_width", conv_width)):
            whole(name, size)
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else whole("dt_rank", dt_rank, ", or None")
        flag("use_bias", use_bias)
        flag("use_conv_bias", use_conv_bias)
        inner = expand * d_model
        self.sizes = (dt_rank, d_state, d_state)
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=use_bias)
        self.conv1d = ShortConvolution(inner, conv_width, bias=use_conv_bias)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_head = nn.Linear(dt_rank, inner)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=use_bias)
        self.state_shape = (inner, d_state, 1)
        self.window_shape = (conv_width - 1, inner)
        for m in (self.in_proj, self.dt_head, self.out_proj):
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        x, z = self.in_proj(x).chunk(2, -1)
        x, window = self.conv1d(x, state.window, tokens)
        x = F.silu(x)
        low, k, q = self.x_proj(x).split(self.sizes, -1)
        acc = accumulation(x.dtype)
        beta = torch.sigmoid(self.dt_head(low).to(acc))[..., None]
        k2 = k.to(acc).square()[:, :, None]
        all_of = torch.log1p(beta * k2.sum(-1, keepdim=True))
        v = (beta[..., 0] * torch.exp(-all_of[..., 0]) * x).to(x.dtype)
        q, k, decay = q[:, :, None], k[:, :, None], log_one_minus(beta, k2, all_of)
        return Core(q, k, v[..., None], decay, window=window, rest=(x, z))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        x, z = core.rest
        return self.out_proj((o[..., 0] + self.D * x) * F.silu(z))


def log_one_minus(beta: Tensor, k2: Tensor, all_of: Tensor) -> Tensor:
    """log(1 - β k² / (1 + β |k|²)), finite however large k is, given all_of = log(1 + β |k|²).

    Where little is forgotten, by way of what is; elsewhere as the quotient of what the other keys leave."""
    forgotten = beta * k2 * torch.exp(-all_of)
    others = k2 @ (1 - torch.eye(k2.shape[-1], dtype=k2.dtype, device=k2.device))
    high = torch.log1p(beta * others) - all_of
    return torch.where(forgotten > 0.5, high, torch.log1p(-forgotten.clamp(max=0.5)))
