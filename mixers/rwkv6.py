"""RWKV-6 (Finch): time mixing with decays and token shifts that depend on the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import HeadLayerNorm, layer_of
from .sequences import previous


class RWKV6(RecurrentMixer):
    """RWKV-6 time mixing: a decay per key channel, and a bonus for the current token.

        x^z_t = x_t + d_t ∘ (μ_z + tanh((x_t + d_t ∘ μ_x) A_z) B_z), d_t = x_{t-1} - x_t    z = w, k, v, r, g
        k, v, r, g = W_k x^k, W_v x^v, W_r x^r, W_g x^g        log w = -exp(ω + tanh(x^w A) B)
        o_t = (S_{t-1} + (u ∘ k_t) v_tᵀ)ᵀ r_t        S_t = diag(w_t) S_{t-1} + k_t v_tᵀ
        y = W_o (LayerNorm_head(o) ∘ silu(g))

    Reduction: q = r; log_decay = log w [B, T, H, K]; read="before". The current token, r·(u ∘ k) v, is
    outside, and in the map. Kept back between calls: the last x.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        layer_idx, num_layers: l and L, of the initialisation.
        mix_rank: of A_z B_z.
        decay_rank: of A B.
        eps: of the norm, which runs over each head.

    Parameters have the names of the released code; its time_maa_w, time_maa_k, … are the rows of `time_maa`.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; layer_idx is not
            below num_layers; a size below 1.

    Paper: Peng et al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence"
        (arXiv:2404.05892), section 4.2, eq. 9 to 18. Initialisation as released: powers of i/d_model for μ,
        ω_i = -6 + 5 (i/(n-1))^{0.7 + 1.3 l/(L-1)}, A = 0, B uniform in ±0.01; u_i falls with i as l grows,
        in steps of three; the matrices as `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        layer_idx: int = 0,
        num_layers: int = 1,
        mix_rank: int = 32,
        decay_rank: int = 64,
        eps: float = 64e-5,
    ) -> None:
        super().__init__(d_model)
        layer_of(layer_idx, num_layers)
        whole("mix_rank", mix_rank)
        whole("decay_rank", decay_rank)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = K = head_size(d_model, H, head_dim)
        self.time_maa_x = nn.Parameter(torch.empty(d_model))
        self.time_maa = nn.Parameter(torch.empty(5, d_model))
        self.time_maa_w1 = nn.Parameter(torch.zeros(d_model, 5 * mix_rank))
        self.time_maa_w2 = nn.Parameter(torch.empty(5, mix_rank, d_model).uniform_(-0.01, 0.01))
        self.time_decay = nn.Parameter(torch.empty(H * K))
        self.time_decay_w1 = nn.Parameter(torch.zeros(d_model, decay_rank))
        self.time_decay_w2 = nn.Parameter(torch.empty(decay_rank, H * K).uniform_(-0.01, 0.01))
        self.time_faaaa = nn.Parameter(torch.empty(H, K))
        self.key, self.value, self.receptance, self.gate = (
            nn.Linear(d_model, H * K, bias=False) for _ in range(4)
        )
        self.ln_x = HeadLayerNorm(H, K, eps, bias=True)
        self.output = nn.Linear(H * K, d_model, bias=False)
        self.state_shape = (H, K, K)
        self.window_shape = (1, d_model)
        self._initialise(layer_idx / max(num_layers - 1, 1), 1 - layer_idx / num_layers)

    @torch.no_grad()
    def _initialise(self, depth: float, height: float) -> None:
        share = torch.arange(self.d_model) / self.d_model
        plain, half = share**height, share ** (0.5 * height)
        self.time_maa_x.copy_(1 - plain)
        self.time_maa.copy_(1 - torch.stack([plain, plain, plain + 0.3 * depth, half, half]))
        i = torch.arange(self.time_decay.numel())
        fraction = i / max(len(i) - 1, 1)
        self.time_decay.copy_(-6 + 5 * fraction ** (0.7 + 1.3 * depth))
        self.time_faaaa.copy_((depth * (1 - fraction) + 0.1 * ((i + 1) % 3 - 1)).view_as(self.time_faaaa))

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        assert state.window is not None
        before, window = previous(x, state.window, tokens)
        change = before - x
        low = torch.tanh((x + change * self.time_maa_x) @ self.time_maa_w1).unflatten(-1, (5, -1))
        shares = self.time_maa + torch.einsum("btnr,nrd->btnd", low, self.time_maa_w2)
        w, k, v, r, g = (x[:, :, None] + change[:, :, None] * shares).to(x.dtype).unbind(2)
        k, v, r = (p(y) for p, y in ((self.key, k), (self.value, v), (self.receptance, r)))
        acc = accumulation(x.dtype)
        d = self.time_decay.to(acc) + torch.tanh(w @ self.time_decay_w1) @ self.time_decay_w2
        la = -torch.exp(d.clamp(max=20))  # e^{-e^20} is 0, and e^d is finite
        k, v, r, la = (y.unflatten(-1, (self.num_heads, -1)) for y in (k, v, r, la))
        bonus = (r.to(acc) * self.time_faaaa * k).sum(-1, keepdim=True)
        return Core(r, k, v, la, read="before", window=window, rest=(bonus, v, self.gate(g)))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        bonus, v, g = core.rest
        return self.output(self.ln_x((o + bonus * v).to(o.dtype)) * F.silu(g))

    def weigh(self, weights: Tensor, core: Core) -> Tensor:
        return weights + torch.diag_embed(core.rest[0][..., 0].transpose(1, 2))
