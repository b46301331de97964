"""GateLoop: linear attention whose decay is a complex number of the input's choosing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .sequences import running_sum


class GateLoop(RecurrentMixer):
    """GateLoop: linear attention with complex decays given by the input, their size and their angle.

        S_t = diag(a_t) S_{t-1} + k_t v_tᵀ        a = σ(W_α x) e^{i W_β x}        y_t = W_o Re(S_tᵀ q_t)

    Reduction: with Θ_t = Σ_{s≤t} W_β x_s, q, k = [x cos Θ, x sin Θ] (K doubled); log_decay = log σ(W_α x),
    for both halves. Θ is summed in float64 and kept in state.angle.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64). The paper's
            experiments have d_model of them, with head_dim 1.
        head_dim: channels of a head, d_model / num_heads by default.
        bias: of the projections.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; another option out of range.

    Paper: Katsch 2023, "GateLoop: Fully Data-Controlled Linear Recurrence for Sequence Modeling"
        (arXiv:2311.01927), section 3: σ for the size, the identity for the angle. Initialisation: that of
        `nn.Linear`.
    """

    def __init__(
        self, d_model: int, num_heads: int | None = None, head_dim: int | None = None, bias: bool = True
    ) -> None:
        super().__init__(d_model)
        flag("bias", bias)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = D = head_size(d_model, H, head_dim)
        self.q_proj = nn.Linear(d_model, H * D, bias=bias)
        self.k_proj = nn.Linear(d_model, H * D, bias=bias)
        self.v_proj = nn.Linear(d_model, H * D, bias=bias)
        self.size_proj = nn.Linear(d_model, H * D, bias=bias)
        self.angle_proj = nn.Linear(d_model, H * D, bias=bias)
        self.out_proj = nn.Linear(H * D, d_model, bias=bias)
        self.state_shape = (H, 2 * D, D)
        self.angle_shape = (H, D)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        assert state.angle is not None
        projections = (self.q_proj, self.k_proj, self.v_proj, self.size_proj, self.angle_proj)
        q, k, v, size, turn = (p(x).unflatten(-1, (self.num_heads, self.head_dim)) for p in projections)
        angle, end = running_sum(turn, state.angle, tokens)
        acc = accumulation(x.dtype)
        wave = torch.cat([angle.cos(), angle.sin()], -1).to(acc)
        q, k = ((torch.cat([z, z], -1) * wave).to(v.dtype) for z in (q, k))
        decay = F.logsigmoid(size.to(acc))
        return Core(q, k, v, torch.cat([decay, decay], -1), angle=end)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.out_proj(o.flatten(-2))
