"""Lightning Attention as Ling and Ring (Bailing) use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, number, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import (
    GatedRMSNorm,
    RMSNorm,
    angles,
    init_linears,
    layer_of,
    rotary_frequencies,
    rotate_pairs,
    slopes,
)


class BailingLightningAttention(RecurrentMixer):
    """Lightning Attention with normed and rotated q and k, a scale, and a norm over groups of heads.

        q, k, v = W_qkv x        q, k ← RoPE(RMSNorm_head(q)), RoPE(RMSNorm_head(k))
        S_t = e^{-λ_h} S_{t-1} + k_t v_tᵀ        y_t = W_o (RMSNorm_group(S_tᵀ q_t / √K) ∘ σ(W_g x_t))
        λ_h = s_h (1 - (l - 1)/(L - 1) + 1e-5), s_h = 2^{-8h/H}, h = 1 … H

    Reduction: q, k, v as above; log_decay = -λ_h, constant [H]; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head (K), d_model / num_heads by default.
        layer_idx, num_layers: l and L above.
        silu: whether q, k and v pass through silu first, as in Lightning Attention.
        qk_norm: whether q and k are normed.
        rotary_base: of the rotary positions.
        rotary_dim: how many channels of a head are turned, its first ones; None: half of them.
        norm_groups: groups of channels, over each of which the norm runs: `group_norm_size` there.
        eps: of the norms.

    Parameters have the names and shapes of the linear layers of Ring-linear-2.0 and Ling-2.5 as released
    (`query_key_value`, whose rows run [q k v, head, channel], `dense`, `g_proj`, `g_norm`, …).

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; layer_idx is not
            below num_layers; rotary_dim is odd or above head_dim; norm_groups does not divide
            num_heads · head_dim.

    Paper: Ling Team 2025, "Every Attention Matters: An Efficient Hybrid Architecture for Long-Context
        Reasoning" (arXiv:2510.19338). That λ has l - 1, so that the first layer decays by more than
        s_h, follows the released model; where H is no power of two, its s_h interleave those of the next
        powers, as in ALiBi (Press et al. 2021). With L = 1 the factor is that of l = 1.
        Initialisation: normal, deviation 0.02, as released.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        layer_idx: int = 0,
        num_layers: int = 1,
        silu: bool = False,
        qk_norm: bool = True,
        rotary_base: float = 600000.0,
        rotary_dim: int | None = None,
        norm_groups: int = 1,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(d_model)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = D = head_size(d_model, H, head_dim)
        layer_of(layer_idx, num_layers)
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.silu = flag("silu", silu)
        self.rotary_base = number("rotary_base", rotary_base, 0, above=True)
        self.rotary_dim = D // 2 if rotary_dim is None else whole("rotary_dim", rotary_dim, ", or None")
        if rotary_dim is not None and (rotary_dim % 2 or rotary_dim > D):
            raise ValueError(f"rotary_dim is {rotary_dim}; accepted: an even number up to head_dim = {D}")
        whole("norm_groups", norm_groups)
        if H * D % norm_groups:
            raise ValueError(f"norm_groups is {norm_groups}; accepted: a divisor of the {H * D} channels")
        self.query_key_value = nn.Linear(d_model, 3 * H * D, bias=False)
        norms = flag("qk_norm", qk_norm)
        self.query_layernorm, self.key_layernorm = (
            RMSNorm(D, eps) if norms else nn.Identity() for _ in range(2)
        )
        self.g_proj = nn.Linear(d_model, H * D, bias=False)
        self.g_norm = GatedRMSNorm(H * D, eps, torch.sigmoid, norm_groups)
        self.dense = nn.Linear(H * D, d_model, bias=False)
        self.state_shape = (H, D, D)
        init_linears(self, 0.02)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        qkv = self.query_key_value(x)
        if self.silu:
            qkv = F.silu(qkv)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        frequencies = rotary_frequencies(self.rotary_dim, self.rotary_base, x.device)
        cos, sin = (y[:, :, None] for y in angles(tokens.position, frequencies))
        q = rotate_pairs(self.query_layernorm(q), cos, sin)
        k = rotate_pairs(self.key_layernorm(k), cos, sin)
        la = -self._slopes(x.device, accumulation(x.dtype))
        return Core(q, k, v, la, scale=self.head_dim**-0.5)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.dense(self.g_norm(o.flatten(-2), self.g_proj(x)))

    def _slopes(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        H, L = self.num_heads, self.num_layers
        factor = 1 + 1e-5 if L == 1 else 1 - (self.layer_idx - 1) / (L - 1) + 1e-5
        power = 2 ** (H.bit_length() - 1)
        between = slopes(2 * power, factor, device, dtype)[::2]
        return torch.cat([slopes(power, factor, device, dtype), between[: H - power]])
