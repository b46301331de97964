"""Gated linear attention (GLA), and its form with one gate per head; what these share with RetNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import number, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import GatedRMSNorm, low_rank


class GatedHeads(RecurrentMixer):
    """Heads of q, k and v; y = W_o (RMSNorm_head(o) ∘ silu(W_g x)). scale = K^(-1/2).

    K, unless given, is d_model / num_heads divided by `narrower`, rounded down, at least 1.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None,
        head_dim: int | None,
        head_v_dim: int | None,
        eps: float,
        narrower: int = 2,
    ) -> None:
        super().__init__(d_model)
        self.num_heads = H = head_count(d_model, num_heads)
        K = head_size(d_model, H, head_dim)
        self.head_dim = K = max(1, K // narrower) if head_dim is None else K
        self.head_v_dim = V = 2 * K if head_v_dim is None else whole("head_v_dim", head_v_dim, ", or None")
        self.q_proj = nn.Linear(d_model, H * K, bias=False)
        self.k_proj = nn.Linear(d_model, H * K, bias=False)
        self.v_proj = nn.Linear(d_model, H * V, bias=False)
        self.g_proj = nn.Linear(d_model, H * V, bias=False)
        self.g_norm = GatedRMSNorm(V, eps)
        self.o_proj = nn.Linear(H * V, d_model, bias=False)
        self.state_shape = (H, K, V)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return Core(q, k, v, scale=self.head_dim**-0.5)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        gate = self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.g_norm(o, gate).flatten(-2))


class GLA(GatedHeads):
    """Gated linear attention: linear attention with a decay for each key channel, made from the input.

        S_t = diag(α_t) S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t / √K        α = σ(W_2 W_1 x + b)^{1/τ}
        y = W_o (RMSNorm_head(o) ∘ silu(W_g x))

    Reduction: log_decay = logsigmoid(W_2 W_1 x + b) / τ [B, T, H, K]; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), half of d_model / num_heads by default.
        head_v_dim: channels of a value, 2 head_dim by default.
        gate_rank: of W_2 W_1.
        gate_divisor: τ above.
        eps: of the norm, which runs over each head.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; a size below 1.

    Paper: Yang, Wang, Shen, Panda & Kim 2023, "Gated Linear Attention Transformers with Hardware-Efficient
        Training" (arXiv:2312.06635), section 4.4. The scale, RMSNorm where the paper has LayerNorm, and no
        bias in W_g are those of flash-linear-attention. Initialisation: that of `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        head_v_dim: int | None = None,
        gate_rank: int = 16,
        gate_divisor: float = 16.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model, num_heads, head_dim, head_v_dim, eps)
        channels = self.num_heads * self.head_dim
        self.gk_proj = low_rank(d_model, whole("gate_rank", gate_rank), channels, bias=True)
        self.gate_divisor = number("gate_divisor", gate_divisor, 0, above=True)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        z = self.gk_proj(x).to(accumulation(x.dtype)).unflatten(-1, (self.num_heads, -1))
        return super().operands(x, state, tokens)._replace(log_decay=F.logsigmoid(z) / self.gate_divisor)


class SimpleGLA(GatedHeads):
    """Gated linear attention with one decay for each head.

        S_t = α_t S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t / √K        α = σ(W_α x + b)^{1/τ}
        y = W_o (RMSNorm_head(o) ∘ silu(W_g x))

    Reduction: log_decay = logsigmoid(W_α x + b) / τ [B, T, H]; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), half of d_model / num_heads by default.
        head_v_dim: channels of a value, 2 head_dim by default.
        gate_divisor: τ above.
        eps: of the norm, which runs over each head.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; a size below 1.

    Paper: the gate of a head is that of gated RFA (Peng, Pappas, Yogatama, Schwartz, Smith & Kong 2021,
        "Random Feature Attention", arXiv:2103.02143, section 3.2), without 1 - α before k vᵀ; the recurrence
        is Mamba-2's (Dao & Gu 2024, arXiv:2405.21060); the layer is that of flash-linear-attention, as GLA
        (Yang et al. 2023, arXiv:2312.06635) in all else. Initialisation: that of `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        head_v_dim: int | None = None,
        gate_divisor: float = 16.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model, num_heads, head_dim, head_v_dim, eps)
        self.gk_proj = nn.Linear(d_model, self.num_heads)
        self.gate_divisor = number("gate_divisor", gate_divisor, 0, above=True)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        z = self.gk_proj(x).to(accumulation(x.dtype))
        return super().operands(x, state, tokens)._replace(log_decay=F.logsigmoid(z) / self.gate_divisor)
