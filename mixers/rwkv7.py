"""RWKV-7 (Goose): time mixing with a generalised delta rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..kernels.operator import DELTA_FORMS
from .arguments import whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import HeadLayerNorm, l2_normalise, layer_of, low_rank
from .sequences import previous


class RWKV7(RecurrentMixer):
    """RWKV-7 time mixing: one key erases at a rate per channel, another one writes.

        x^z_t = x_t + μ_z ∘ (x_{t-1} - x_t)        z = r, w, k, v, a, g
        r, k, v = W_r x^r, W_k x^k, W_v x^v        a = σ(a_0 + A_a x^a)        g = G_2 σ(G_1 x^g)
        log w = -e^{-1/2} σ(w_0 + W_2 tanh(W_1 x^w))        κ = k ∘ ξ/|k ∘ ξ|        k ← k ∘ (1 + (a - 1) ∘ α)
        S_t = (diag(w_t) - (a_t ∘ κ_t) κ_tᵀ) S_{t-1} + k_t v_tᵀ
        y = W_o (g ∘ (LayerNorm_head(S_tᵀ r_t) + (r_t·(ρ ∘ k_t)) v_t))

    Reduction: q = r; erase = (-a ∘ κ, κ), κ reading the undecayed state; log_decay = log w [B, T, H, K].
    The last term is outside, after the norm. Kept back between calls: the last x.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        layer_idx, num_layers: l and L, of the initialisation.
        decay_rank, rate_rank, gate_rank: of the low-rank maps to w, a and g. None: about 2.5 √d_model,
            2.5 √d_model and 5 √d_model, in multiples of 32, as released.
        eps: of the norm, which runs over each head.

    This is the time mixing of a first layer. In later layers of the paper's models v is moved towards the
    v of layer 0 by a gate: a connection between layers, which a mixer by itself does not have.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; layer_idx is not
            below num_layers; a size below 1.

    Paper: Peng et al. 2025, "RWKV-7 'Goose' with Expressive Dynamic State Evolution" (arXiv:2503.14456),
        section 4, eq. 3 to 24. |x| is √(Σx² + 1e-24), where the released code has max(|x|, 1e-12).
        Initialisation as released: powers of i/d_model for μ, ξ, w_0 and a_0 by channel, α = 1.02,
        ρ = -0.04, the first factor of the low-rank maps 0 and the second orthogonal times 0.1, W_r and W_v
        uniform in ±0.5 d_model^{-1/2}, W_k in a tenth of that, W_o = 0, the norm's weight ((l + 1)/L)^0.7.
    """

    forms = DELTA_FORMS

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        layer_idx: int = 0,
        num_layers: int = 1,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        gate_rank: int | None = None,
        eps: float = 64e-5,
    ) -> None:
        super().__init__(d_model)
        layer_of(layer_idx, num_layers)

        def rank(name: str, given: int | None, factor: float) -> int:
            usual = max(32, 32 * round(factor * math.sqrt(d_model) / 32))
            return usual if given is None else whole(name, given, ", or None")

        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = K = head_size(d_model, H, head_dim)
        inner = H * K
        self.shifts = nn.Parameter(torch.empty(6, d_model))  # r, w, k, v, a, g
        self.r_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, inner, bias=False) for _ in range(3))
        decay_rank, rate_rank = rank("decay_rank", decay_rank, 2.5), rank("rate_rank", rate_rank, 2.5)
        self.w_lora = low_rank(d_model, decay_rank, inner, nn.Tanh(), bias=True)
        self.a_lora = low_rank(d_model, rate_rank, inner, bias=True)
        self.g_lora = low_rank(d_model, rank("gate_rank", gate_rank, 5.0), inner, nn.Sigmoid())
        self.k_k = nn.Parameter(torch.empty(inner))
        self.k_a = nn.Parameter(torch.full((inner,), 1.02))
        self.r_k = nn.Parameter(torch.full((H, K), -0.04))
        self.ln_x = HeadLayerNorm(H, K, eps, bias=True)
        self.o_proj = nn.Linear(inner, d_model, bias=False)
        self.state_shape = (H, K, K)
        self.window_shape = (1, d_model)
        self._initialise(
            layer_idx / max(num_layers - 1, 1), layer_idx / num_layers, (layer_idx + 1) / num_layers
        )

    @torch.no_grad()
    def _initialise(self, depth: float, before: float, after: float) -> None:
        power = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None] * (1 - before)
        self.shifts.copy_(1 - (torch.arange(self.d_model) / self.d_model) ** power)
        i = torch.arange(self.k_k.numel())
        line = i / max(len(i) - 1, 1)
        zigzag = 2 * (i % self.head_dim) / max(self.head_dim - 1, 1) - 1
        zigzag = zigzag * zigzag.abs()
        self.k_k.copy_(0.71 - 0.1 * (line - 0.5))
        w = -5.5 + 6 * line ** (1 + depth**0.3) + 2.5 * zigzag
        a = -0.19 + 0.3 * zigzag + 0.4 * (line - 0.5)
        for low, bias in ((self.w_lora, w), (self.a_lora, a), (self.g_lora, None)):
            first, last = (m for m in low if isinstance(m, nn.Linear))
            nn.init.zeros_(first.weight)
            out, rank = last.weight.shape
            nn.init.orthogonal_(last.weight, gain=0.1 * max(1.0, math.sqrt(rank / out)))
            if bias is not None:
                last.bias.copy_(bias)
        for proj, size in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5), (self.o_proj, 0.0)):
            nn.init.uniform_(proj.weight, -size * self.d_model**-0.5, size * self.d_model**-0.5)
        self.ln_x.weight.fill_(after**0.7)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        assert state.window is not None
        before, window = previous(x, state.window, tokens)
        shifted = x[:, :, None] + self.shifts * (before - x)[:, :, None]
        xr, xw, xk, xv, xa, xg = shifted.to(x.dtype).unbind(2)
        acc = accumulation(x.dtype)
        la = -math.exp(-0.5) * torch.sigmoid(self.w_lora(xw).to(acc))
        a, k = torch.sigmoid(self.a_lora(xa).to(acc)), self.k_proj(xk).to(acc)
        parts = (self.r_proj(xr), la, k * self.k_k, k * (1 + (a - 1) * self.k_a), self.v_proj(xv), a)
        r, la, kappa, k, v, a = (y.unflatten(-1, (self.num_heads, -1)) for y in parts)
        kappa = l2_normalise(kappa, 1e-24)
        bonus = (r.to(acc) * self.r_k * k).sum(-1, keepdim=True) * v
        rest = (bonus.flatten(-2).to(v.dtype), self.g_lora(xg))
        return Core(r, k, v, la, erase=(-a * kappa, kappa), window=window, rest=rest)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        bonus, g = core.rest
        return self.o_proj((self.ln_x(o) + bonus) * g)
