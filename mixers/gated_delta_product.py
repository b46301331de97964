"""Gated DeltaProduct: several delta-rule writes for every token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import whole
from .base import Core, MixerState, Tokens
from .gated_delta_net import GatedDeltaRule


class GatedDeltaProduct(GatedDeltaRule):
    """Gated DeltaProduct: a token decays the state once and writes to it n times by the delta rule.

        q, k_j, v_j = silu(conv(W_q x, W_kj x, W_vj x))        q, k_j ← q/|q|, k_j/|k_j|
        S ← α_t S        S ← S + β_j k_j (v_j - Sᵀ k_j)ᵀ for j = 1 … n        β_j = 2σ(W_bj x)
        log α = -e^A softplus(W_a x + b_Δ)        y = W_o (RMSNorm_head(Sᵀ q_t / √K) ∘ silu(W_g x))

    so that the state's transition is α times a product of n generalised Householder matrices.

    Reduction: n steps of the core for each token; log_decay = log α at the first of them and 0 at the
    others, q read at the last.

    Args:
        d_model: width of x and y.
        num_heads: heads of values; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), d_model / num_heads by default.
        num_key_heads: heads of q and k, a divisor of num_heads, each shared by neighbouring heads of v.
        head_v_dim: channels of a value, head_dim by default.
        num_householder: n above.
        conv_width: of the causal convolution.
        use_conv_bias: of the convolution.
        allow_neg_eigval: whether β is 2σ(W_b x) or σ(W_b x).
        eps: of the norm, which runs over each head.

    Rows of W_k, W_v and W_b run [write, head, channel]. `attention_map` adds up a token's writes: the weights
    of values that are the same in all of them.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; num_key_heads does not
            divide num_heads; a size below 1.

    Paper: Siems, Carstensen, Zela, Hutter, Pontil & Grazzi 2025, "DeltaProduct: Improving State-Tracking in
        Linear RNNs via Householder Products" (arXiv:2502.10297), section 4. |x| is √(Σx² + 1e-6), as in
        flash-linear-attention. Initialisation: as `GatedDeltaNet`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        num_key_heads: int | None = None,
        head_v_dim: int | None = None,
        num_householder: int = 2,
        conv_width: int = 4,
        use_conv_bias: bool = False,
        allow_neg_eigval: bool = True,
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
            whole("num_householder", num_householder),
        )
        self.num_householder = num_householder

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        core, n = super().operands(x, state, tokens), self.num_householder
        assert isinstance(core.log_decay, Tensor) and core.beta is not None
        k, v, beta = (z.unflatten(2, (n, -1)).flatten(1, 2) for z in (core.k, core.v, core.beta))
        q = core.q.repeat_interleave(n, 1)
        la = F.pad(core.log_decay[:, :, None], (0, 0, 0, n - 1)).flatten(1, 2)
        return core._replace(q=q, k=k, v=v, beta=beta, log_decay=la)

    def recur(
        self, core: Core, recurrent: Tensor | None, tokens: Tokens, form: str | None
    ) -> tuple[Tensor, Tensor]:
        n = self.num_householder
        if form is None:
            for j in range(n):
                write = {
                    name: getattr(core, name)[:, j : j + 1] for name in ("q", "k", "v", "log_decay", "beta")
                }
                o, recurrent = super().recur(core._replace(**write), recurrent, tokens, None)
            assert recurrent is not None
            return o, recurrent
        valid, cu = tokens.valid, tokens.cu_seqlens
        tokens = tokens._replace(
            valid=None if valid is None else valid.repeat_interleave(n, 1),
            cu_seqlens=None if cu is None else cu * n,
        )
        o, recurrent = super().recur(core, recurrent, tokens, form)
        return o[:, n - 1 :: n], recurrent

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        n = self.num_householder
        return super().attention_map(x)[:, :, n - 1 :: n].unflatten(-1, (x.shape[1], n)).sum(-1)
