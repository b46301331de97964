"""Linear attention with a normaliser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arguments import flag
from .base import Core, MixerState, RecurrentMixer, Tokens, head_count, head_size


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, written so that small results keep their digits: x + 1 above 0, exp(x) below."""
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


class LinearAttention(RecurrentMixer):
    """Linear attention: y_t = W_o Σ_{s≤t} (φ(q_t)·φ(k_s)) v_s / Σ_{s≤t} φ(q_t)·φ(k_s), φ = elu + 1.

    Reduction: q, k = φ; v = [v, 1]; no decay; the readout divides by the last channel.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        bias: of the four projections.

    Where every weight of a row underflows to 0 (no key close to the query in the dtype's range),
    y_t is W_o 0 rather than 0/0. There is no eps in the divisor.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; another option out of range.

    Paper: Katharopoulos, Vyas, Pappas & Fleuret 2020, "Transformers are RNNs" (arXiv:2006.16236),
        causal linear attention (its section 3.3) with the feature map elu + 1. Initialisation: that
        of `nn.Linear`.
    """

    def __init__(
        self, d_model: int, num_heads: int | None = None, head_dim: int | None = None, bias: bool = True
    ) -> None:
        super().__init__(d_model)
        flag("bias", bias)
        self.num_heads = head_count(d_model, num_heads)
        self.head_dim = head_size(d_model, self.num_heads, head_dim)
        inner = self.num_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, inner, bias=bias)
        self.k_proj = nn.Linear(d_model, inner, bias=bias)
        self.v_proj = nn.Linear(d_model, inner, bias=bias)
        self.out_proj = nn.Linear(inner, d_model, bias=bias)
        self.state_shape = (self.num_heads, self.head_dim, self.head_dim + 1)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        heads = (self.num_heads, self.head_dim)
        q, k, v = (proj(x).unflatten(-1, heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        return Core(elu_plus_one(q), elu_plus_one(k), v)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.out_proj(_divide(o[..., :-1], o[..., -1:]).flatten(-2))

    def weigh(self, weights: Tensor, core: Core) -> Tensor:
        """Normalised: every row sums to 1."""
        return _divide(weights, weights.sum(-1, keepdim=True))


def _divide(o: Tensor, n: Tensor) -> Tensor:
    """o / n, and 0 where n is 0 (as o then is), with finite gradients there."""
    return o / torch.where(n == 0, torch.ones_like(n), n)
