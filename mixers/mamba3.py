"""Mamba-3's state space layer: a trapezoidal rule and rotations by the input."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import divides, flag, number, step_sizes, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import GatedRMSNorm, RMSNorm, inverse_softplus, log_uniform, rotate_pairs
from .sequences import first, following, last, running_sum


class Mamba3(RecurrentMixer):
    """Mamba-3 (single input, single output): a trapezoidal rule, and complex decays as rotations of B and C.

        z, x, B, C, δ, a, l, θ = W_in u        Δ = softplus(δ + b_Δ)        A = -max(softplus(a), A_floor)
        k, q = R(Θ_t) (RMSNorm(B) + b_B), R(Θ_t) (RMSNorm(C) + b_C)        Θ_t = Θ_{t-1} + π tanh(θ_t) Δ_t
        h_t = e^{Δ_t A_t} (h_{t-1} + (1 - λ_t) Δ_t k_{t-1} x_{t-1}ᵀ) + λ_t Δ_t k_t x_tᵀ        λ = σ(l)
        o_t = h_tᵀ q_t + D x_t        y = W_out (o ∘ silu(z))

    R(Θ) turns pairs of channels: with pairs as complex numbers, h decays by e^{Δ(A - iπ tanh θ)}. There is no
    convolution: the rule reaches back by one token.

    Reduction: v = x; log_decay = ΔA, one for each head and step; a token's write is
    (λ_t Δ_t + (1 - λ_{t+1}) Δ_{t+1}) k_t, the second part taken from o_t again, where it does not belong yet.
    Of the last token of a call that part is not known: k and x are kept in state.window and written into the
    next call's initial state. Θ is summed in float64 and kept in state.angle.

    Args:
        d_model: width of u and y.
        num_heads: heads; by default the most that divide n = expand · d_model up to max(4, n / 64).
        head_dim: channels of a head, expand · d_model / num_heads by default.
        d_state: numbers each channel remembers.
        expand: num_heads · head_dim is expand · d_model, unless head_dim is given.
        n_groups: groups of heads that share B and C.
        rope_fraction: share of the state's channels that are turned, above 0 to 1.
        A_floor: the least decay rate.
        use_norm: y = W_out (RMSNorm(o) ∘ silu(z)), the norm over each head.
        dt_min, dt_max: range of the initial step sizes, log-uniform.

    Parameters have the names of the released module, and its shapes but for B_bias and C_bias, which lack the
    rank of its MIMO form (1 here).

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide expand · d_model and no head_dim was given; n_groups does not
            divide num_heads; d_state is too small for a pair to turn; another option out of range.

    Paper: Lahoti et al. 2026, "Mamba-3: Improved Sequence Modeling using State Space Principles"
        (arXiv:2603.15569), with the parametrisation of the released code: A by the input, angles within ±π
        and shared by the heads, whose Δ scales them. Initialisation as released: biases of B and C and D 1,
        b_Δ such that Δ is log-uniform in [dt_min, dt_max]; the rest as `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        d_state: int = 128,
        expand: int = 2,
        n_groups: int = 1,
        rope_fraction: float = 0.5,
        A_floor: float = 1e-4,
        use_norm: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__(d_model)
        self.num_heads = H = head_count(whole("expand", expand) * d_model, num_heads)
        self.head_dim = P = head_size(expand * d_model, H, head_dim, "expand * d_model")
        self.d_state, self.n_groups = whole("d_state", d_state), whole("n_groups", n_groups)
        divides("n_groups", n_groups, "num_heads", H)
        self.pairs = int(d_state * number("rope_fraction", rope_fraction, 0, above=True)) // 2
        if not 0 < self.pairs <= d_state // 2:
            raise ValueError(
                f"rope_fraction is {rope_fraction}, d_state {d_state}; accepted: a share up to 1 that holds "
                "a pair of channels"
            )
        self.A_floor = number("A_floor", A_floor, 0)
        step_sizes(dt_min, dt_max)
        shared = n_groups * d_state
        self.sizes = (H * P, H * P, shared, shared, H, H, H, self.pairs)
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(H, dt_min, dt_max)))
        self.B_bias = nn.Parameter(torch.ones(H, d_state))
        self.C_bias = nn.Parameter(torch.ones(H, d_state))
        self.B_norm = RMSNorm(d_state, 1e-5)
        self.C_norm = RMSNorm(d_state, 1e-5)
        self.D = nn.Parameter(torch.ones(H))
        self.norm = GatedRMSNorm(H * P, 1e-5, groups=H) if flag("use_norm", use_norm) else None
        self.out_proj = nn.Linear(H * P, d_model, bias=False)
        self.state_shape = (H, d_state, P)
        self.window_shape = (1, H * (d_state + P))
        self.angle_shape = (H, self.pairs)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        assert state.recurrent is not None and state.window is not None and state.angle is not None
        H, N, P = self.num_heads, self.d_state, self.head_dim
        z, x, B, C, dt, a, trap, theta = self.in_proj(x).split(self.sizes, -1)
        acc = accumulation(x.dtype)
        dt = F.softplus(dt.to(acc) + self.dt_bias.to(acc), threshold=40)
        decay = -dt * F.softplus(a.to(acc), threshold=40).clamp(min=self.A_floor)
        turn = math.pi * torch.tanh(theta.to(acc))[:, :, None] * dt[..., None]
        angle, end = running_sum(turn, state.angle, tokens)
        cos, sin = angle.cos().to(acc), angle.sin().to(acc)

        def turned(y: Tensor, norm: RMSNorm, bias: Tensor) -> Tensor:
            y = norm(y.unflatten(-1, (self.n_groups, N))).repeat_interleave(H // self.n_groups, 2) + bias
            n = 2 * self.pairs  # neighbours are pairs: even channels, then odd ones, then the rest
            y = torch.cat([y[..., 0:n:2], y[..., 1:n:2], y[..., n:]], -1)
            return rotate_pairs(y, cos, sin).to(x.dtype)

        k, q = turned(B, self.B_norm, self.B_bias), turned(C, self.C_norm, self.C_bias)
        v = x.unflatten(-1, (H, P))
        late = torch.sigmoid(-trap.to(acc)) * dt  # what the token before is written with
        now, later = torch.sigmoid(trap.to(acc)) * dt, following(late, tokens)
        pending_k, pending_v = state.window[:, 0].to(acc).unflatten(-1, (H, N + P)).split([N, P], -1)
        pending = first(late, tokens)[..., None, None] * pending_k[..., None] * pending_v[..., None, :]
        kept = last(torch.cat([k, v], -1), state.window[:, 0].to(x.dtype).unflatten(-1, (H, N + P)), tokens)
        too_early = later * (q.to(acc) * k.to(acc)).sum(-1)
        k = ((now + later)[..., None] * k).to(x.dtype)
        initial, window, rest = state.recurrent + pending, kept.flatten(1)[:, None], (z, too_early)
        return Core(q, k, v, decay, initial=initial, window=window, angle=end, rest=rest)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        z, too_early = core.rest
        o = o + (self.D[:, None] - too_early[..., None]) * core.v
        o = o.flatten(-2).to(z.dtype)
        return self.out_proj(o * F.silu(z) if self.norm is None else self.norm(o, z))

    def weigh(self, weights: Tensor, core: Core) -> Tensor:
        """Without what is written too early."""
        return weights - torch.diag_embed(core.rest[1].mT)
