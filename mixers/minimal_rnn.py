"""minGRU and minLSTM: the gated RNNs of old without what kept them from being parallel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation
from .parts import ones


def positive(x: Tensor) -> Tensor:
    """x + 1/2 above 0, σ(x) below: g of the paper's appendix B."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


class _Minimal(RecurrentMixer):
    """h_t = a_t ∘ h_{t-1} + (write)_t ∘ h̃_t, with gates and candidate from x_t alone; y = W_o h."""

    gates: int

    def __init__(self, d_model: int, expand: int = 1, positive_state: bool = True, bias: bool = True) -> None:
        super().__init__(d_model)
        width = whole("expand", expand) * d_model
        flag("bias", bias)
        self.positive_state = flag("positive_state", positive_state)
        self.gate_proj = nn.Linear(d_model, self.gates * width, bias=bias)
        self.hidden_proj = nn.Linear(d_model, width, bias=bias)
        self.out_proj = nn.Linear(width, d_model, bias=bias)
        self.state_shape = (1, 1, width)

    def log_gates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log a and the write, from the gates' inputs in the accumulation dtype."""
        raise NotImplementedError

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        z, h = self.gate_proj(x), self.hidden_proj(x)
        log_decay, write = self.log_gates(z.to(accumulation(z.dtype)))
        v = (write * (positive(h) if self.positive_state else h)).to(h.dtype)[:, :, None]
        one = ones(v)
        return Core(one, one, v, log_decay_v=log_decay[:, :, None])

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.out_proj(o[:, :, 0])


class MinGRU(_Minimal):
    """minGRU: a GRU whose gate and candidate do not look at the state.

        h_t = (1 - z_t) ∘ h_{t-1} + z_t ∘ h̃_t        z = σ(W_z x)        h̃ = g(W_h x)        y = W_o h

    g(x) = x + 1/2 above 0, σ(x) below, or the identity.

    Reduction: K = 1, q = k = 1, V = channels; log_decay_v = log(1 - z) = log σ(-W_z x); v = z h̃.

    Args:
        d_model: width of x and y.
        expand: channels are expand · d_model.
        positive_state: h̃ through g, as the paper's log-space version, which its experiments use, has it;
            False: h̃ = W_h x, as its plain version.
        bias: of the projections.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1.

    Paper: Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, "Were RNNs All We Needed?" (arXiv:2410.01201),
        section 3.1 and appendix B. h_0 = 0 here also with g, where the paper's code starts at g(0) = 1/2.
        Initialisation: that of `nn.Linear`.
    """

    gates = 1

    def log_gates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return F.logsigmoid(-z), torch.sigmoid(z)


class MinLSTM(_Minimal):
    """minLSTM: an LSTM whose gates and candidate do not look at the state, its gates summing to 1.

        h_t = f'_t ∘ h_{t-1} + i'_t ∘ h̃_t        f' = f / (f + i)        i' = i / (f + i)
        f = σ(W_f x)        i = σ(W_i x)        h̃ = g(W_h x)        y = W_o h

    g as in `MinGRU`.

    Reduction: K = 1, q = k = 1, V = channels; with d = log i - log f, log_decay_v = log f' = log σ(-d) and
    v = σ(d) h̃.

    Args:
        d_model: width of x and y.
        expand: channels are expand · d_model.
        positive_state: as in `MinGRU`.
        bias: of the projections.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1.

    Paper: Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, "Were RNNs All We Needed?" (arXiv:2410.01201),
        section 3.2 and appendix B, length independence included. h_0 = 0. Initialisation: that of
        `nn.Linear`.
    """

    gates = 2

    def log_gates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        f, i = z.chunk(2, -1)
        d = F.logsigmoid(i) - F.logsigmoid(f)
        return F.logsigmoid(-d), torch.sigmoid(d)
