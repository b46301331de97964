"""mLSTM: the matrix memory of xLSTM, with exponential gates and a normaliser."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, number, one_of, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, cast, head_count, head_size
from .parts import HeadLayerNorm
from .sequences import stabilise


class MLSTM(RecurrentMixer):
    """mLSTM: gated linear attention whose input gate is an exponential, divided by what was written.

        C_t = f_t C_{t-1} + i_t k_t v_tᵀ        n_t = f_t n_{t-1} + i_t k_t
        h_t = C_tᵀ q_t / (max(|n_tᵀ q_t|, 1) + ε e^{m_t})        q ← q / √K
        i = e^{ĩ}        f = σ(f̃) or e^{f̃}        ĩ, f̃ = c tanh((W x + b) / c)
        y = W_o (σ(W_g x) ∘ LayerNorm_head(h))

    Reduction: with m_t = max(log f_t + m_{t-1}, ĩ_t), m_0 = 0, kept beside the state, which is e^{-m} times
    itself: log_decay = log f + m_{t-1} - m_t, one for each head and step; k = e^{ĩ - m} k; v = [v, 1]; the
    readout divides by max(|n|, e^{-m}) + ε. For ε = 0 nothing depends on m, which is then a constant in
    gradients; those through the normaliser are exact.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head's values, d_model / num_heads by default.
        key_dim: channels of a head's queries and keys (K), half of head_dim by default.
        forget_gate: "sigmoid" or "exp".
        gate_soft_cap: c; None leaves ĩ and f̃ as they are.
        normaliser_eps: ε. The paper has none, its released code 1e-6.
        bias: of the maps other than those of ĩ and f̃, which have one always, and of the norm.
        eps: of the norm.

    Parameters have the names and shapes of `xLSTMLayer` in transformers (weight_mode "single"), whose
    state_dict loads.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; another option out of range.

    Paper: Beck et al. 2024, "xLSTM" (arXiv:2405.04517), eq. 19 to 27 and the stabiliser of eq. 15 to 17, in
        the block of Beck et al. 2025, "xLSTM 7B" (arXiv:2503.13427), which has K = V/2, caps gates at 15 and
        initialises them with zero weights and biases -10 (ĩ) and 3 to 6 across heads (f̃). The rest as
        `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        key_dim: int | None = None,
        forget_gate: str = "sigmoid",
        gate_soft_cap: float | None = 15.0,
        normaliser_eps: float = 0.0,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(d_model)
        flag("bias", bias)
        self.num_heads = H = head_count(d_model, num_heads)
        self.head_dim = V = head_size(d_model, H, head_dim)
        self.key_dim = K = max(1, V // 2) if key_dim is None else whole("key_dim", key_dim, ", or None")
        self.forget_gate = one_of("forget_gate", forget_gate, ("sigmoid", "exp"))
        if gate_soft_cap is not None:
            number("gate_soft_cap", gate_soft_cap, 0, above=True, also=", or None")
        self.gate_soft_cap = gate_soft_cap
        self.normaliser_eps = number("normaliser_eps", normaliser_eps, 0)
        self.q = nn.Linear(d_model, H * K, bias=bias)
        self.k = nn.Linear(d_model, H * K, bias=bias)
        self.v = nn.Linear(d_model, H * V, bias=bias)
        self.ogate_preact = nn.Linear(d_model, H * V, bias=bias)
        self.igate_preact = nn.Linear(d_model, H)
        self.fgate_preact = nn.Linear(d_model, H)
        self.multihead_norm = HeadLayerNorm(H, V, eps, bias)
        self.out_proj = nn.Linear(H * V, d_model, bias=bias)
        self.state_shape = (H, K, V + 1)
        self.stabiliser_shape = (H,)
        with torch.no_grad():
            for gate in (self.igate_preact, self.fgate_preact):
                gate.weight.zero_()
            self.igate_preact.bias.fill_(-10)
            self.fgate_preact.bias.copy_(torch.linspace(3, 6, H))

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> MixerState:
        state = super().initial_state(batch_size, device, dtype)
        assert state.stabiliser is not None
        return replace(state, stabiliser=torch.zeros_like(state.stabiliser))

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        assert state.stabiliser is not None
        q, k, v = (proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.q, self.k, self.v))
        acc = accumulation(x.dtype)
        i, f = (cast(proj(x), acc) for proj in (self.igate_preact, self.fgate_preact))
        if self.gate_soft_cap is not None:
            i, f = (self.gate_soft_cap * torch.tanh(z / self.gate_soft_cap) for z in (i, f))
        log_f = F.logsigmoid(f) if self.forget_gate == "sigmoid" else f
        s = stabilise(log_f, i, state.stabiliser, tokens, constant=self.normaliser_eps == 0)
        k = cast(torch.exp(s.log_write).unsqueeze(-1) * k, k.dtype)
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        # Kept within the dtype's range: a divisor of 0 or infinity makes 0/0 of nothing.
        most = -math.log(torch.finfo(acc).tiny)
        least = torch.exp((-s.m).clamp(-most, most)).to(acc)
        return Core(q, k, v, s.log_decay, scale=self.key_dim**-0.5, stabiliser=s.end, rest=(least,))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        h = self._divide(o[..., :-1], o[..., -1:], core.rest[0].unsqueeze(-1)).to(o.dtype)
        return self.out_proj(torch.sigmoid(self.ogate_preact(x)) * self.multihead_norm(h))

    def _divide(self, o: Tensor, n: Tensor, least: Tensor) -> Tensor:
        return o / (torch.maximum(n.abs().to(least.dtype), least) + self.normaliser_eps)

    def weigh(self, weights: Tensor, core: Core) -> Tensor:
        """Divided by the normaliser."""
        return self._divide(weights, weights.sum(-1, keepdim=True), core.rest[0].mT[..., None])
