"""Gated DeltaNet: the delta rule on a state that decays."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .delta_net import DeltaRule
from .parts import GatedRMSNorm, init_softplus_decay, softplus_decay


class GatedDeltaRule(DeltaRule):
    """The delta rule with a scalar decay per head, log a = -e^A softplus(W_a x + b_Δ), and a gated norm."""

    def __init__(
        self,
        d_model: int,
        num_heads: int | None,
        head_dim: int | None,
        num_key_heads: int | None,
        head_v_dim: int | None,
        conv_width: int,
        use_conv_bias: bool,
        allow_neg_eigval: bool,
        eps: float,
        writes: int = 1,
        activation: Callable[[Tensor], Tensor] = F.silu,
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
            writes,
        )
        self.a_proj = nn.Linear(d_model, self.num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.g_proj = nn.Linear(d_model, self.num_heads * self.head_v_dim, bias=False)
        self.o_norm = GatedRMSNorm(self.head_v_dim, eps, activation)
        init_softplus_decay(self.A_log, self.dt_bias, low=0.01)

    def log_decay(self, x: Tensor) -> Tensor | None:
        return softplus_decay(self.a_proj(x), self.dt_bias, self.A_log)


class GatedDeltaNet(GatedDeltaRule):
    """Gated DeltaNet: the delta rule on a state that decays by one gate per head.

        q, k, v = silu(conv(W_q x, W_k x, W_v x))        q, k ← q/|q|, k/|k|        β = σ(W_b x)
        S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = α_t S_{t-1}        log α = -e^A softplus(W_a x + b_Δ)
        y = W_o (RMSNorm_head(S_tᵀ q_t / √K) ∘ silu(W_g x))

    Reduction: q, k, v as above; beta = β; log_decay = log α [B, T, H]; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads of values; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), d_model / num_heads by default.
        num_key_heads: heads of q and k, a divisor of num_heads, each shared by neighbouring heads of v.
        head_v_dim: channels of a value, head_dim by default.
        conv_width: of the causal convolution.
        use_conv_bias: of the convolution.
        allow_neg_eigval: β = 2σ(W_b x), so that I - β k kᵀ has eigenvalues in (-1, 1) instead of (0, 1).
        eps: of the norm, which runs over each head.

    Parameters have the names and shapes of `OlmoHybridGatedDeltaNet` in transformers, whose state_dict
    loads. `Qwen3_5GatedDeltaNet` has them under other names: in_proj_qkv is q_proj, k_proj and v_proj one
    below the other, in_proj_z, in_proj_b, in_proj_a, norm and out_proj are g_proj, b_proj, a_proj, o_norm and
    o_proj. `Qwen3NextGatedDeltaNet` has the rows of all of these in the order of key heads.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; num_key_heads does not
            divide num_heads; a size below 1.

    Paper: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule"
        (arXiv:2412.06464), eq. 10 and section 3.4; as in Qwen3-Next and OLMo hybrid. Negative eigenvalues:
        Grazzi et al. 2024 (arXiv:2411.12537). |x| is √(Σx² + 1e-6), as released. Initialisation: e^A uniform
        in [0.01, 16], softplus(b_Δ) log-uniform in [1e-3, 0.1], the rest as `nn.Linear` and `nn.Conv1d`.
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
            eps,
        )
