"""DeltaNet, and what the mixers of the delta rule share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.operator import DELTA_FORMS
from .arguments import flag, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import RMSNorm, ShortConvolution, l2_normalise


class DeltaRule(RecurrentMixer):
    """q, k and v through one short convolution, q and k of length 1, a write strength β.

        q, k, v = silu(conv(W_q x, W_k x, W_v x))        q, k ← q/|q|, k/|k|        β = σ(W_b x)
        S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = a_t ∘ S_{t-1}        o_t = S_tᵀ q_t / √K

    A mixer adds its decay, `log_decay`, and `g_proj` and `o_norm`, the gate and the norm of its readout, or a
    `readout` of its own. `writes` is how often each token writes.
    """

    forms = DELTA_FORMS
    g_proj: nn.Module
    o_norm: nn.Module

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
        writes: int = 1,
    ) -> None:
        super().__init__(d_model)
        whole("conv_width", conv_width)
        flag("use_conv_bias", use_conv_bias)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = K = head_size(d_model, H, head_dim)
        self.num_key_heads = (
            H if num_key_heads is None else whole("num_key_heads", num_key_heads, ", or None")
        )
        if H % self.num_key_heads:
            raise ValueError(f"num_key_heads is {num_key_heads}; accepted: a divisor of num_heads = {H}")
        self.head_v_dim = V = K if head_v_dim is None else whole("head_v_dim", head_v_dim, ", or None")
        self.strength = 2.0 if flag("allow_neg_eigval", allow_neg_eigval) else 1.0
        self.widths = (self.num_key_heads * K, writes * self.num_key_heads * K, writes * H * V)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, n, bias=False) for n in self.widths)
        self.b_proj = nn.Linear(d_model, writes * H, bias=False)
        self.conv1d = ShortConvolution(sum(self.widths), conv_width, bias=use_conv_bias)
        self.o_proj = nn.Linear(H * V, d_model, bias=False)
        self.state_shape = (H, K, V)
        self.window_shape = (conv_width - 1, sum(self.widths))

    def log_decay(self, x: Tensor) -> Tensor | None:
        """log a [B, T, H] or [B, T, H, K], or None."""
        return None

    def queries_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, num_key_heads, K] each, as the convolution leaves them."""
        return l2_normalise(q), l2_normalise(k)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        qkv = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)
        qkv, window = self.conv1d(qkv, state.window, tokens)
        q, k, v = F.silu(qkv).split(self.widths, -1)
        q, k = self.queries_keys(*(z.unflatten(-1, (-1, self.head_dim)) for z in (q, k)))
        v = v.unflatten(-1, (-1, self.head_v_dim))
        beta = self.strength * torch.sigmoid(self.b_proj(x).to(accumulation(x.dtype)))
        return Core(q, k, v, self.log_decay(x), scale=self.head_dim**-0.5, beta=beta, window=window)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        gate = self.g_proj(x).unflatten(-1, (-1, self.head_v_dim))
        return self.o_proj(self.o_norm(o, gate).flatten(-2))


class DeltaNet(DeltaRule):
    """DeltaNet: every token replaces what its key retrieves by a mixture of that and its value.

        q, k, v = silu(conv(W_q x, W_k x, W_v x))        q, k ← q/|q|, k/|k|        β = σ(W_b x)
        S_t = S_{t-1} + β_t k_t (v_t - S_{t-1}ᵀ k_t)ᵀ        y = W_o RMSNorm_head(S_tᵀ q_t / √K)

    Reduction: q, k, v as above; beta = β; no decay; scale = K^(-1/2).

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key (K), d_model / num_heads by default.
        num_key_heads: heads of q and k, a divisor of num_heads, each shared by neighbouring heads of v.
        head_v_dim: channels of a value, head_dim by default.
        conv_width: of the causal convolution.
        use_conv_bias: of the convolution.
        allow_neg_eigval: β = 2σ(W_b x), so that I - β k kᵀ has eigenvalues in (-1, 1) instead of (0, 1).
        eps: of the norm, which runs over each head.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; num_key_heads does not
            divide num_heads; a size below 1.

    Paper: Yang, Wang, Zhang, Shen & Kim 2024, "Parallelizing Linear Transformers with the Delta Rule over
        Sequence Length" (arXiv:2406.06484), section 3.3; the rule is that of Schlag, Irie & Schmidhuber
        2021 (arXiv:2102.11174), eq. 24; negative eigenvalues: Grazzi et al. 2024 (arXiv:2411.12537).
        |x| is √(Σx² + 1e-6), as in flash-linear-attention. Initialisation: that of `nn.Linear` and
        `nn.Conv1d`.
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
        )
        self.o_norm = RMSNorm(self.head_v_dim, eps)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.o_proj(self.o_norm(o).flatten(-2))
