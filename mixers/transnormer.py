"""TransNormer and TransNormerLLM: linear attention with a norm in the place of a normaliser."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, number
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .linear_attention import elu_plus_one
from .parts import RMSNorm, angles, init_linears, layer_factor, rms_norm, slopes


class TransNormer(RecurrentMixer):
    """NormAttention: y_t = W_o RMSNorm(Σ_{s≤t} (φ(q_t)·φ(k_s)) v_s), φ = elu + 1.

    Reduction: q, k = φ; no decay. Dividing by the sum of weights, whose gradient is unbounded, is
    replaced by a norm over all heads together.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        bias: of the projections.
        eps: of the norm.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; another option out of range.

    Paper: Qin, Han, Sun, Li, Kong, Barnes & Zhong 2022, "The Devil in Linear Transformer"
        (arXiv:2210.10340), NormAttention. Its DiagAttention, softmax inside blocks for the first
        layers, is not part of this. Initialisation: that of `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(d_model)
        flag("bias", bias)
        self.num_heads = head_count(d_model, num_heads)
        self.head_dim = head_size(d_model, self.num_heads, head_dim)
        inner = self.num_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, inner, bias=bias)
        self.k_proj = nn.Linear(d_model, inner, bias=bias)
        self.v_proj = nn.Linear(d_model, inner, bias=bias)
        self.norm = RMSNorm(inner, eps)
        self.out_proj = nn.Linear(inner, d_model, bias=bias)
        self.state_shape = (self.num_heads, self.head_dim, self.head_dim)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        heads = (self.num_heads, self.head_dim)
        q, k, v = (proj(x).unflatten(-1, heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return Core(elu_plus_one(q), elu_plus_one(k), v)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.out_proj(self.norm(o.flatten(-2)))


class TransNormerLLM(RecurrentMixer):
    """Gated linear attention with a constant decay per head and LRPE-d positions.

        o_t = Σ_{s≤t} Σ_i silu(q_t)_i silu(k_s)_i cos((t - s) θ_hi) e^{-λ_h (t - s)} v_s
        y_t = W_o (u_t ∘ SimpleRMSNorm(o_t))        λ_h = 2^{-8h/H} (1 - l/(L - 1) + 1e-5), h = 1 … H

    Reduction: q, k = [x cos tθ, x sin tθ] of x = silu(·) (K doubled); log_decay = -λ_h, constant [H].
    Without LRPE: q, k = silu(·).

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        layer_idx, num_layers: l and L above.
        lrpe: the rotations θ (learned). None: in layer 0 only, as in the paper.
        bias: of the projections.
        eps: added to the mean square in the norm, which has no weight and runs over all heads.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; layer_idx is not
            below num_layers.

    Paper: Qin et al. 2023, "TransNormerLLM" (arXiv:2307.14995), gated linear attention and LRPE-d.
        The slopes λ_h, geometric in h, and φ on q and k only are those of the released code.
        Initialisation: normal, deviation 0.02; θ_hi = 10000^(-2j/(H head_dim)), j = h head_dim + i.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        layer_idx: int = 0,
        num_layers: int = 1,
        lrpe: bool | None = None,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(d_model)
        flag("bias", bias)
        if lrpe is not None:
            flag("lrpe", lrpe, ", or None")
        self.eps = number("eps", eps, 0)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = D = head_size(d_model, H, head_dim)
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.factor = layer_factor(layer_idx, num_layers)
        self.qkvu_proj = nn.Linear(d_model, 4 * H * D, bias=bias)
        self.out_proj = nn.Linear(H * D, d_model, bias=bias)
        self.theta: nn.Parameter | None = None
        if layer_idx == 0 if lrpe is None else lrpe:
            j = torch.arange(H * D, dtype=torch.float64)
            theta = 10000.0 ** (-2.0 * j / (H * D))
            self.theta = nn.Parameter(theta.to(torch.get_default_dtype()).reshape(H, D))
        self.state_shape = (H, D if self.theta is None else 2 * D, D)
        init_linears(self, 0.02)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        q, k, v, u = self.qkvu_proj(x).chunk(4, -1)
        q, k, v = (y.unflatten(-1, (self.num_heads, self.head_dim)) for y in (F.silu(q), F.silu(k), v))
        if self.theta is not None:
            acc = accumulation(x.dtype)
            wave = torch.cat(angles(tokens.position, self.theta), -1).to(acc)
            q, k = ((torch.cat([y, y], -1).to(acc) * wave).to(v.dtype) for y in (q, k))
        decay = slopes(self.num_heads, -self.factor, x.device, accumulation(x.dtype))
        return Core(q, k, v, decay, rest=(u,))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        (u,) = core.rest
        return self.out_proj(u * rms_norm(o.flatten(-2), self.eps))
