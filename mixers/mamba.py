"""Mamba's selective state space layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import OuterDecay
from .arguments import flag, number, step_sizes, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation
from .parts import RMSNorm, ShortConvolution, inverse_softplus, log_uniform


class GroupedLinear(nn.Linear):
    """Linear maps side by side, each of its own group of channels: x [..., groups, i] to [..., groups, o].

    weight [groups · o, i], bias [groups · o]: with one group, those of an `nn.Linear`.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, groups * out_features, bias)
        self.groups = groups

    def product(self, x: Tensor) -> Tensor:
        """Without the bias."""
        if self.groups == 1:
            return F.linear(x, self.weight)
        return torch.einsum("...gi,goi->...go", x, self.weight.unflatten(0, (self.groups, -1)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias.unflatten(0, (self.groups, -1))


class Mamba(RecurrentMixer):
    """Mamba (S6): a state space model per channel whose step size, input and output maps depend on the input.

        x, z = W_in u        x ← silu(conv(x))        δ, B, C = W_x x        Δ = softplus(W_Δ δ + b_Δ)
        h_t = exp(Δ_t A) ∘ h_{t-1} + Δ_t x_t B_t        o_t = C_t·h_t + D x_t        y = W_out (o ∘ silu(z))

    With `norm_eps`, δ, B and C each pass an RMSNorm of their own. With `num_heads`, the channels are that
    many contiguous groups, and each has its own W_x and W_Δ and sees its own channels of x only.

    Reduction: heads = channels, K = d_state, V = 1; q = C and k = B shared by all channels of a group;
    v = Δx; log_decay = OuterDecay(Δ, A). D x and the gate are outside.

    Args:
        d_model: width of u and y.
        d_state: numbers each channel remembers (N).
        expand: channels are expand · d_model.
        conv_width: of the causal convolution.
        dt_rank: width of δ; d_model / 16, rounded up, by default.
        use_bias: of W_in and W_out.
        use_conv_bias: of the convolution.
        dt_min, dt_max: range of the initial step sizes, log-uniform.
        num_heads: groups of channels; a divisor of expand · d_model.
        norm_eps: of the norms of δ, B and C; None: no norms.
        norm_weights: whether those norms have weights.

    Parameters have the names and shapes of `MambaMixer` in transformers, whose state_dict loads; those of
    the norms have the names of `JambaMambaMixer`. Rows of W_x and W_Δ run [group, row].
    `attention_map` has up to 8 maps, each the mean over a contiguous group of channels.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1; dt_min is not above 0, or above dt_max; num_heads does not divide the
            channels.

    Paper: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"
        (arXiv:2312.00752), algorithm 2, with exp(ΔA) for A and ΔB for B as in its released code (its
        eq. 4 has the exact zero-order hold for B). Norms: Jamba (Lieber et al. 2024, arXiv:2403.19887),
        without weights Falcon Mamba (Zuo et al. 2024, arXiv:2410.05355). Groups: Zamba (Glorioso et al.
        2024, arXiv:2405.16712). Initialisation: A = -(1, …, N), D = 1, W_Δ uniform in ±dt_rank^(-1/2), b_Δ
        such that Δ is log-uniform in [dt_min, dt_max]; the rest as `nn.Linear` and `nn.Conv1d`.
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
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        num_heads: int = 1,
        norm_eps: float | None = None,
        norm_weights: bool = True,
    ) -> None:
        super().__init__(d_model)
        for name, size in (("d_state", d_state), ("expand", expand), ("conv_width", conv_width)):
            whole(name, size)
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else whole("dt_rank", dt_rank, ", or None")
        flag("use_bias", use_bias)
        flag("use_conv_bias", use_conv_bias)
        step_sizes(dt_min, dt_max)
        flag("norm_weights", norm_weights)
        if norm_eps is not None:
            number("norm_eps", norm_eps, 0, also=", or None")
        self.d_state, self.dt_rank, self.d_inner = d_state, dt_rank, expand * d_model
        self.num_heads = whole("num_heads", num_heads)
        if self.d_inner % num_heads:
            raise ValueError(f"num_heads is {num_heads}; accepted: a divisor of the {self.d_inner} channels")
        head_dim = self.d_inner // num_heads
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=use_bias)
        self.conv1d = ShortConvolution(self.d_inner, conv_width, bias=use_conv_bias)
        self.x_proj = GroupedLinear(num_heads, head_dim, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = GroupedLinear(num_heads, dt_rank, head_dim)
        norms = [
            nn.Identity() if norm_eps is None else RMSNorm(size, norm_eps, norm_weights)
            for size in (dt_rank, d_state, d_state)
        ]
        self.dt_layernorm, self.b_layernorm, self.c_layernorm = norms
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=use_bias)
        self.state_shape = (self.d_inner, d_state, 1)
        self.window_shape = (conv_width - 1, self.d_inner)
        self._initialise(dt_min, dt_max)

    @torch.no_grad()
    def _initialise(self, dt_min: float, dt_max: float) -> None:
        self.A_log.copy_(torch.arange(1, self.d_state + 1).log())
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias.copy_(inverse_softplus(log_uniform(self.d_inner, dt_min, dt_max)))

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        x, z = self.in_proj(x).chunk(2, -1)
        x, window = self.conv1d(x, state.window, tokens)
        x = F.silu(x)
        groups = x.unflatten(-1, (self.num_heads, -1))
        dt, B, C = self.x_proj(groups).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
        acc = accumulation(x.dtype)
        dt = self.dt_proj.product(dt).flatten(-2).to(acc) + self.dt_proj.bias.to(acc)
        dt = F.softplus(dt, threshold=40)  # the default, 20, is 2e-9 off in float64
        v = (dt * x).to(x.dtype)
        A = -torch.exp(self.A_log.to(acc))
        return Core(C, B, v[..., None], OuterDecay(dt, A), window=window, rest=(x, z))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        x, z = core.rest
        return self.out_proj((o[..., 0] + self.D * x) * F.silu(z))
