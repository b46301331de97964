"""HGRN2: HGRN with its state expanded by an outer product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .hgrn import LowerBounds, checked_bound, layer_bound, log_forget
from .parts import RMSNorm, layer_of


class HGRN2(RecurrentMixer):
    """HGRN2: gated linear attention whose keys are what its decays leave, with decays bounded from below.

        S_t = diag(f_t) S_{t-1} + (1 - f_t) i_tᵀ        f = γ + (1 - γ) σ(W_f x)        i = W_i x
        y = W_o RMSNorm(S_tᵀ q_t)        q = silu(W_q x)

    Reduction: q; k = 1 - f; v = i; log_decay = log f [B, T, H, K].

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of f and q (K, the expansion ratio), d_model / num_heads by default.
        head_v_dim: channels of i, head_dim by default.
        layer_idx, num_layers: l and L of the lower bound.
        lower_bound: γ as a number in [0, 1), or a `LowerBounds` of num_heads · head_dim channels shared by
            all layers of a model, which learns it. None: l/L, where the paper's bounds start.
        bias: of the projections.
        eps: of the norm, which runs over all heads together.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; layer_idx is not below
            num_layers; lower_bound is outside [0, 1).

    Paper: Qin, Yang, Sun, Shen, Li, Sun & Zhong 2024, "HGRN2: Gated Linear RNNs with State Expansion"
        (arXiv:2404.07904), section 3.2; bounds as in HGRN (arXiv:2311.04823). The silu of q, the output gate
        of HGRN, and the norm are those of the released code. Initialisation: that of `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        head_v_dim: int | None = None,
        layer_idx: int = 0,
        num_layers: int = 1,
        lower_bound: float | LowerBounds | None = None,
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model)
        layer_of(layer_idx, num_layers)
        flag("bias", bias)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = K = head_size(d_model, H, head_dim)
        self.head_v_dim = V = K if head_v_dim is None else whole("head_v_dim", head_v_dim, ", or None")
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.lower_bound = checked_bound(lower_bound, layer_idx, num_layers, H * K)
        self.q_proj = nn.Linear(d_model, H * K, bias=bias)
        self.f_proj = nn.Linear(d_model, H * K, bias=bias)
        self.i_proj = nn.Linear(d_model, H * V, bias=bias)
        self.g_norm = RMSNorm(H * V, eps)
        self.o_proj = nn.Linear(H * V, d_model, bias=bias)
        self.state_shape = (H, K, V)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        z = self.f_proj(x).to(accumulation(x.dtype))
        bound = layer_bound(self.lower_bound, self.layer_idx, z)
        k = (1 - bound) * torch.sigmoid(-z)  # 1 - f, without the difference
        parts = (F.silu(self.q_proj(x)), k, self.i_proj(x), log_forget(z, bound))
        return Core(*(y.unflatten(-1, (self.num_heads, -1)) for y in parts))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.o_proj(self.g_norm(o.flatten(-2)))
