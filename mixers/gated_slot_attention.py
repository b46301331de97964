"""Gated slot attention: softmax attention to a fixed number of slots that forget."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import number, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, head_count, head_size
from .parts import RMSNorm


class GatedSlotAttention(RecurrentMixer):
    """Gated slot attention (GSA): keys and values go to M slots, to which queries attend by softmax.

        K_t = diag(α_t) K_{t-1} + (1 - α_t) k_tᵀ        V_t = diag(α_t) V_{t-1} + (1 - α_t) v_tᵀ
        o_t = V_tᵀ softmax(K_t q_t)        α = σ(W_α x)^{1/τ}
        q, k, v = silu(W_q x), silu(W_k x), silu(W_v x)        y = W_o RMSNorm(silu(o))

    Reduction: two calls of the core, with the softmax between them: (q, k, v = 1 - α, log_decay_v = log α)
    gives K_t q_t; (q = its softmax, k = 1 - α, v, log_decay = log α) gives o. `state.recurrent` holds K_tᵀ
    above V_tᵀ.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a query or key, d_model / num_heads by default.
        head_v_dim: channels of a value, head_dim by default.
        num_slots: M above, head_dim by default.
        gate_divisor: τ above.
        eps: of the norm, which runs over all heads together.

    `attention_map` is that of the second call: how much of v_s comes out at t.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; a size below 1.

    Paper: Zhang, Yang, Zhu, Zhang, Cui, Wang, Wang, Shi, Wang, Bi, Zhou & Fu 2024, "Gated Slot Attention for
        Efficient Linear-Time Sequence Modeling" (arXiv:2409.07146), section 3; τ = 8, the silus and the norm
        as in its released code. Initialisation: that of `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        head_v_dim: int | None = None,
        num_slots: int | None = None,
        gate_divisor: float = 8.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = K = head_size(d_model, H, head_dim)
        self.head_v_dim = V = K if head_v_dim is None else whole("head_v_dim", head_v_dim, ", or None")
        self.num_slots = M = K if num_slots is None else whole("num_slots", num_slots, ", or None")
        self.gate_divisor = number("gate_divisor", gate_divisor, 0, above=True)
        self.q_proj, self.k_proj = (nn.Linear(d_model, H * K, bias=False) for _ in range(2))
        self.v_proj = nn.Linear(d_model, H * V, bias=False)
        self.f_proj = nn.Linear(d_model, H * M, bias=False)
        self.g_norm = RMSNorm(H * V, eps)
        self.o_proj = nn.Linear(H * V, d_model, bias=False)
        self.state_shape = (H, K + V, M)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        log_alpha = F.logsigmoid(self.f_proj(x).to(accumulation(x.dtype))) / self.gate_divisor
        q, k, v = (F.silu(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        parts = (q, k, v, log_alpha, -torch.expm1(log_alpha).to(v.dtype))
        q, k, v, la, write = (y.unflatten(-1, (self.num_heads, -1)) for y in parts)
        return Core(q, k, write, log_decay_v=la, rest=(v,))

    def recur(
        self, core: Core, recurrent: Tensor | None, tokens: Tokens, form: str | None
    ) -> tuple[Tensor, Tensor]:
        assert recurrent is not None
        keys, values = recurrent.split([self.head_dim, self.head_v_dim], 2)
        slots, keys = super().recur(core, keys, tokens, form)
        o, values = super().recur(self._read(core, slots), values.mT, tokens, form)
        return o, torch.cat([keys, values.mT], 2)

    def _read(self, core: Core, slots: Tensor) -> Core:
        """The second call."""
        p = slots.to(accumulation(slots.dtype)).softmax(-1)
        return Core(p, core.v, core.rest[0], core.log_decay_v)

    def core_map(self, core: Core) -> Tensor:
        position = torch.arange(core.v.shape[1], device=core.v.device).expand(core.v.shape[:2])
        slots, _ = super().recur(core, None, Tokens(position, None), "auto")
        return super().core_map(self._read(core, slots))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.o_proj(self.g_norm(F.silu(o.flatten(-2))))
