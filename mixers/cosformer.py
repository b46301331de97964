"""cosFormer: linear attention that weighs positions by a cosine."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import checks
from .arguments import flag, number, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import angles


class CosFormer(RecurrentMixer):
    """cosFormer, causal: weights relu(q_t)·relu(k_s) cos(π/2 (t - s)/M), divided by their sum.

        o_t = Σ_{s≤t} w_ts v_s / max(Σ_{s≤t} w_ts, ε)        w_ts = relu(q_t)·relu(k_s) cos(π/2 (t - s)/M)

    Reduction: q, k = [x cos θ_t, x sin θ_t] of x = relu(·), θ_t = πt/2M (K doubled); no decay; v = [v, 1],
    divide by the last channel.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        max_length: M above. A sequence has no more tokens: two further apart would weigh less than 0.
        bias: of the projections.
        eps: ε above.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; a size below 1; in a call,
            a sequence is longer than max_length (looked at on a CPU, elsewhere inside
            `mixerzoo.kernels.check_values()`).

    Paper: Qin, Sun, Deng, Li, Wei, Lv, Yan, Kong & Zhong 2022, "cosFormer: Rethinking Softmax in Attention"
        (arXiv:2202.08791), eq. 9 to 13. The bound ε = 1e-6 is that of the released code, whose M is
        the length of each batch; for a sequence that grows it is fixed here. Initialisation: that of
        `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        max_length: int = 4096,
        bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(d_model)
        flag("bias", bias)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = D = head_size(d_model, H, head_dim)
        self.max_length = whole("max_length", max_length)
        self.eps = number("eps", eps, 0, above=True)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, H * D, bias=bias) for _ in range(3))
        self.out_proj = nn.Linear(H * D, d_model, bias=bias)
        self.state_shape = (H, 2 * D, D + 1)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        position = tokens.position
        if tokens.valid is not None:
            position = torch.where(tokens.valid, position, 0)
        if checks.checking(position) and int(position.max()) >= self.max_length:
            raise ValueError(
                f"x reaches position {int(position.max())}; accepted: positions below "
                f"max_length = {self.max_length}"
            )
        theta = torch.tensor(math.pi / 2 / self.max_length, device=x.device, dtype=torch.float64)
        turn = [y.to(accumulation(x.dtype))[..., None, None] for y in angles(position, theta)]
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (torch.cat([F.relu(y) * z for z in turn], -1).to(v.dtype) for y in (q, k))
        return Core(q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.out_proj((o[..., :-1] / o[..., -1:].clamp(min=self.eps)).flatten(-2))

    def weigh(self, weights: Tensor, core: Core) -> Tensor:
        """Normalised."""
        return weights / weights.sum(-1, keepdim=True).clamp(min=self.eps)
