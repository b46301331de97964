"""Kimi Delta Attention: the delta rule with a decay for each key channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .arguments import flag, number
from .base import accumulation
from .delta_net import DeltaRule
from .parts import GatedRMSNorm, init_softplus_decay, low_rank, softplus_decay


class KimiDeltaAttention(DeltaRule):
    """Kimi Delta Attention (KDA): the delta rule on a state in which every key channel has its own decay.

        q, k, v = silu(conv(W_q x, W_k x, W_v x))        q, k ← q/|q|, k/|k|        β = σ(W_b x)
        S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = diag(α_t) S_{t-1}
        log α = -e^A softplus(W_f x + b_Δ)        y = W_o (RMSNorm_head(S_tᵀ q_t / √K) ∘ σ(W_g x))

    Reduction: q, k, v as above; beta = β; log_decay = log α [B, T, H, K]; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads of values; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), d_model / num_heads by default.
        num_key_heads: heads of q and k, a divisor of num_heads, each shared by neighbouring heads of v.
        head_v_dim: channels of a value, head_dim by default.
        conv_width: of the causal convolution.
        use_conv_bias: of the convolution.
        low_rank_gates: whether W_f and W_g have rank head_dim (Kimi Linear) or are full (Bailing hybrid).
        lower_bound: a log-decay below 0 with which log α = lower_bound σ(e^A (W_f x + b_Δ)), the bounded
            gate of Bailing hybrid (there -5); None: the gate above.
        allow_neg_eigval: β = 2σ(W_b x), so that I - β k kᵀ has eigenvalues in (-1, 1) instead of (0, 1).
        eps: of the norm, which runs over each head.

    Parameters have the names and shapes of `KimiLinearDeltaAttention` and `BailingHybridDeltaAttention` in
    transformers, except that those of their `forget_gate` are here without that prefix, A_log is [H], and
    f_a_proj, f_b_proj, g_a_proj and g_b_proj are f_proj.0, f_proj.1, g_proj.0 and g_proj.1.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; num_key_heads does not
            divide num_heads; a size below 1; lower_bound is not below 0.

    Paper: Kimi Team 2025, "Kimi Linear: An Expressive, Efficient Attention Architecture" (arXiv:2510.26692),
        section 3. |x| is √(Σx² + 1e-6), as released. Initialisation: e^A uniform in [1, 16], softplus(b_Δ)
        log-uniform in [1e-3, 0.1], as released; the rest as `nn.Linear` and `nn.Conv1d`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        num_key_heads: int | None = None,
        head_v_dim: int | None = None,
        conv_width: int = 4,
        use_conv_bias: bool = False,
        low_rank_gates: bool = True,
        lower_bound: float | None = None,
        allow_neg_eigval: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            d_model,
            num_heads,
            head_dim,
            num_key_heads,
            head_v_dim,
            conv_width,
            use_conv_bias,
            allow_neg_eigval,
        )
        if lower_bound is not None:
            number("lower_bound", lower_bound, -math.inf, 0, above=True, also=", or None")
        self.lower_bound = lower_bound
        H, K = self.num_heads, self.head_dim

        def gate(channels: int) -> nn.Module:
            if not low_rank_gates:
                return nn.Linear(d_model, channels, bias=False)
            return low_rank(d_model, K, channels)

        flag("low_rank_gates", low_rank_gates)
        self.f_proj, self.g_proj = gate(H * K), gate(H * self.head_v_dim)
        self.A_log = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H * K))
        self.o_norm = GatedRMSNorm(self.head_v_dim, eps, torch.sigmoid)
        init_softplus_decay(self.A_log, self.dt_bias)

    def log_decay(self, x: Tensor) -> Tensor | None:
        z, bias, A_log = self.f_proj(x), self.dt_bias, self.A_log[:, None]
        z, bias = (y.unflatten(-1, (-1, self.head_dim)) for y in (z, bias))
        if self.lower_bound is None:
            return softplus_decay(z, bias, A_log)
        acc = accumulation(z.dtype)
        return self.lower_bound * torch.sigmoid(A_log.to(acc).exp() * (z.to(acc) + bias.to(acc)))
