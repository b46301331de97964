"""RetNet's multi-scale retention."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import number
from .base import Core, MixerState, Tokens, accumulation
from .gated_linear_attention import GatedHeads
from .parts import angles, rotary_frequencies, rotate_pairs


class RetNet(GatedHeads):
    """Retention: linear attention with rotary positions and one constant decay for each head.

        S_t = γ_h S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t / √K        q, k = RoPE(W_q x), RoPE(W_k x)
        y = W_o (RMSNorm_head(o) ∘ silu(W_g x))        γ_h = 1 - 2^{-5-h}, h = 0 … H - 1

    Reduction: q and k rotated; log_decay = log γ_h, constant [H]; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), d_model / num_heads by default.
        head_v_dim: channels of a value, 2 head_dim by default.
        rotary_base: of the rotary positions.
        eps: of the norm, which runs over each head.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; a size below 1.

    Paper: Sun, Dong, Huang, Ma, Xia, Xue, Wang & Wei 2023, "Retentive Network: A Successor to Transformer
        for Large Language Models" (arXiv:2307.08621), eq. 5 to 8. RMSNorm with a weight in the place of the
        group norm, and rotations of the pairs (i, i + K/2) instead of neighbours, are those of
        flash-linear-attention. Initialisation: that of `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        head_v_dim: int | None = None,
        rotary_base: float = 10000.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model, num_heads, head_dim, head_v_dim, eps, narrower=1)
        self.rotary_base = number("rotary_base", rotary_base, 0, above=True)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        core = super().operands(x, state, tokens)
        frequencies = rotary_frequencies(self.head_dim, self.rotary_base, x.device)
        cos, sin = (y[:, :, None] for y in angles(tokens.position, frequencies))
        h = torch.arange(self.num_heads, device=x.device, dtype=torch.float64)
        log_gamma = torch.log1p(-torch.exp2(-5 - h)).to(accumulation(x.dtype))
        q, k = rotate_pairs(core.q, cos, sin), rotate_pairs(core.k, cos, sin)
        return core._replace(q=q, k=k, log_decay=log_gamma)
