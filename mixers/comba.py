"""Comba: a delta rule whose feedback and output are corrected separately."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arguments import flag, number
from .base import Core, MixerState, Tokens
from .gated_delta_net import GatedDeltaRule


class Comba(GatedDeltaRule):
    """Comba: the delta rule with a key of its own for erasing, and a query corrected by it.

        q, k, v = silu(conv(W_q x, W_k x, W_v x))        log α = -e^A softplus(W_a x + b_Δ)
        q ← q - d σ(b) k, then q, k ← q/|q|, k/|k|        p = σ(b) k        β = σ(W_b x)
        S_t = S̃ + β_t k_t (v_t - S̃ᵀ p_t)ᵀ,  S̃ = α_t S_{t-1}
        y = W_o (RMSNorm_head(S_tᵀ q_t / √K) ∘ σ(W_g x))

    Reduction: q and k as above; v = βv; erase = (-βk, αp); log_decay = log α [B, T, H]; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads of values; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), d_model / num_heads by default.
        num_key_heads: heads of q and k, a divisor of num_heads, each shared by neighbouring heads of v.
        head_v_dim: channels of a value, head_dim by default.
        conv_width: of the causal convolution.
        use_conv_bias: of the convolution.
        correction: what d, one number for each head of keys, starts at.
        erase_decayed: whether p reads the decayed state, as above, or S_{t-1}, as in the paper's formula.
        eps: of the norm, which runs over each head.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; num_key_heads does not
            divide num_heads; a size below 1; correction is below 0.

    Paper: Hu, Pan, Li, Chen, Wang et al. 2025, "Improving Bilinear RNNs with Closed-loop Control"
        (arXiv:2506.02475), section 3: S_t = S_{t-1} (α - β σ(b) k kᵀ) + β v kᵀ, o = S (q - d k). In
        flash-linear-attention, training reads the decayed state and decoding S_{t-1}; there p is divided by
        its length once more, which leaves of σ(b) in the erasure no more than its rounding, and the query
        is corrected before q and k have length 1, as it is here. Initialisation: d = 1 (the paper's small
        models: 0.02), b = 1, the rest as `GatedDeltaNet`.
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
        correction: float = 1.0,
        erase_decayed: bool = True,
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
            False,
            eps,
            activation=torch.sigmoid,
        )
        self.erase_decayed = flag("erase_decayed", erase_decayed)
        self.decay = nn.Parameter(torch.ones(self.num_key_heads))
        self.D = nn.Parameter(torch.full((self.num_key_heads,), float(number("correction", correction, 0))))

    def queries_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return super().queries_keys(q - (self.D * torch.sigmoid(self.decay))[:, None] * k, k)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        core = super().operands(x, state, tokens)
        assert isinstance(core.log_decay, Tensor) and core.beta is not None
        beta, groups = core.beta[..., None], self.num_heads // self.num_key_heads
        p = torch.sigmoid(self.decay)[:, None] * core.k
        p, k = (z.repeat_interleave(groups, 2) for z in (p, core.k))
        if self.erase_decayed:
            p = core.log_decay.exp()[..., None] * p
        v = (beta * core.v).to(core.v.dtype)
        return core._replace(v=v, beta=None, erase=(-beta * k, p))
