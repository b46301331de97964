"""Mamba-2's state space layer: one decay for each head and step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import divides, flag, interval, step_sizes, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import GatedRMSNorm, ShortConvolution, init_softplus_decay


class Mamba2(RecurrentMixer):
    """Mamba-2 (SSD): a state space model whose decay is one number for each head and step.

        z, x, B, C, δ = W_in u        x, B, C ← silu(conv(x, B, C))        Δ = softplus(δ + b_Δ)
        h_t = e^{Δ_t A} h_{t-1} + Δ_t B_t x_tᵀ        o_t = h_tᵀ C_t + D x_t
        y = W_out RMSNorm(o ∘ silu(z))

    Reduction: q = C and k = B, shared by the heads of a group; v = Δx; log_decay = ΔA, one for each head and
    step. D x, the gate and the norm are outside.

    Args:
        d_model: width of u and y.
        num_heads: heads; by default the most that divide n = expand · d_model up to max(4, n / 64).
        head_dim: channels of a head, expand · d_model / num_heads by default.
        d_state: numbers each channel remembers (N).
        expand: num_heads · head_dim is expand · d_model, unless head_dim is given.
        n_groups: groups of heads that share B and C, and groups of channels that the norm runs over.
        conv_width: of the causal convolution over x, B and C.
        use_bias: of W_in. use_out_bias: of W_out, as use_bias by default. use_conv_bias: of the convolution.
        use_norm: False leaves the gate alone: W_out (o ∘ silu(z)).
        norm_before_gate: W_out (RMSNorm(o) ∘ silu(z)) instead.
        time_step_limit: (lowest, highest) that Δ is clamped to.
        dt_min, dt_max: range of the initial step sizes, log-uniform.
        eps: of the norm.

    Parameters have the names and shapes of `Mamba2Mixer` in transformers, whose state_dict loads, as do those
    of Bamba, Granite 4, Nemotron-H and Zamba2. Falcon-H1's multipliers are factors of the rows of W_in.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide expand · d_model and no head_dim was given; n_groups does not
            divide num_heads; the limits or the range do not rise; another option out of range.

    Paper: Dao & Gu 2024, "Transformers are SSMs" (arXiv:2405.21060), sections 7 and 8. Clamping of Δ, the
        norm in groups and the initialisation follow the released code: A = -a, a uniform in [1, 16], D = 1,
        b_Δ such that Δ is log-uniform in [dt_min, dt_max]; the rest as `nn.Linear` and `nn.Conv1d`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        d_state: int = 128,
        expand: int = 2,
        n_groups: int = 1,
        conv_width: int = 4,
        use_bias: bool = False,
        use_out_bias: bool | None = None,
        use_conv_bias: bool = True,
        use_norm: bool = True,
        norm_before_gate: bool = False,
        time_step_limit: tuple[float, float] = (0.0, math.inf),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model)
        self.num_heads = H = head_count(whole("expand", expand) * d_model, num_heads)
        self.head_dim = P = head_size(expand * d_model, H, head_dim, "expand * d_model")
        self.d_state, self.n_groups = whole("d_state", d_state), whole("n_groups", n_groups)
        divides("n_groups", n_groups, "num_heads", H)
        self.time_step_limit = interval("time_step_limit", time_step_limit)
        inner, shared = H * P, n_groups * d_state
        self.sizes = (inner, inner + 2 * shared, H)
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=flag("use_bias", use_bias))
        flag("use_conv_bias", use_conv_bias)
        self.conv1d = ShortConvolution(inner + 2 * shared, whole("conv_width", conv_width), use_conv_bias)
        self.dt_bias, self.A_log = nn.Parameter(torch.empty(H)), nn.Parameter(torch.empty(H))
        step_sizes(dt_min, dt_max)
        init_softplus_decay(self.A_log, self.dt_bias, dt_min=dt_min, dt_max=dt_max)
        self.D = nn.Parameter(torch.ones(H))
        gate_first = not flag("norm_before_gate", norm_before_gate)
        norm = GatedRMSNorm(inner, eps, groups=n_groups, gate_first=gate_first)
        self.norm = norm if flag("use_norm", use_norm) else None
        use_out_bias = use_bias if use_out_bias is None else flag("use_out_bias", use_out_bias, ", or None")
        self.out_proj = nn.Linear(inner, d_model, bias=use_out_bias)
        self.state_shape = (H, d_state, P)
        self.window_shape = (conv_width - 1, inner + 2 * shared)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        z, xbc, dt = self.in_proj(x).split(self.sizes, -1)
        xbc, window = self.conv1d(xbc, state.window, tokens)
        groups = (self.n_groups, self.d_state)
        shared = self.n_groups * self.d_state
        x, B, C = F.silu(xbc).split([self.sizes[0], shared, shared], -1)
        acc = accumulation(x.dtype)
        dt = F.softplus(dt.to(acc) + self.dt_bias.to(acc), threshold=40).clamp(*self.time_step_limit)
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        v = (dt[..., None] * x).to(x.dtype)
        decay = -dt * torch.exp(self.A_log.to(acc))
        return Core(C.unflatten(-1, groups), B.unflatten(-1, groups), v, decay, window=window, rest=(x, z))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        x, z = core.rest
        o = (o + self.D[:, None] * x).flatten(-2)
        return self.out_proj(o * F.silu(z) if self.norm is None else self.norm(o, z))
