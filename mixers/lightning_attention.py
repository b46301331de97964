"""Lightning Attention as MiniMax-01 uses it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import RMSNorm, init_linears, layer_factor, slopes


class LightningAttention(RecurrentMixer):
    """Linear attention with one constant decay per head and a gated norm instead of a normaliser.

        q, k, v = silu(W_qkv x)        S_t = e^{-λ_h} S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t
        y_t = W_o (σ(W_g x_t) ∘ RMSNorm(o_t))        λ_h = 2^{-8h/H} (1 - l/(L - 1) + 1e-5), h = 1 … H

    Reduction: q, k, v as above; log_decay = -λ_h, constant [H].

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        layer_idx, num_layers: l and L above; decay is strongest in layer 0.
        eps: of the norm, which runs over all heads together.

    Parameters have the names and shapes of `MiniMaxLightningAttention` in transformers (the rows of
    `qkv_proj` run [head, q k v, channel]), whose state_dict loads but for its buffers: the decays
    are computed here, in float64.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; layer_idx is not
            below num_layers.

    Paper: MiniMax 2025, "MiniMax-01: Scaling Foundation Models with Lightning Attention"
        (arXiv:2501.08313); the kernel is Qin et al. 2024, "Lightning Attention-2"
        (arXiv:2401.04658). Initialisation: normal, deviation 0.02, as the transformers port.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        layer_idx: int = 0,
        num_layers: int = 1,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(d_model)
        self.num_heads = head_count(d_model, num_heads)
        self.head_dim = head_size(d_model, self.num_heads, head_dim)
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.factor = layer_factor(layer_idx, num_layers)
        inner = self.num_heads * self.head_dim
        self.qkv_proj = nn.Linear(d_model, 3 * inner, bias=False)
        self.output_gate = nn.Linear(d_model, inner, bias=False)
        self.norm = RMSNorm(inner, eps)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.state_shape = (self.num_heads, self.head_dim, self.head_dim)
        init_linears(self, 0.02)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        qkv = F.silu(self.qkv_proj(x)).unflatten(-1, (self.num_heads, 3 * self.head_dim))
        q, k, v = qkv.chunk(3, -1)
        return Core(q, k, v, slopes(self.num_heads, -self.factor, x.device, accumulation(x.dtype)))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.out_proj(torch.sigmoid(self.output_gate(x)) * self.norm(o.flatten(-2)))
