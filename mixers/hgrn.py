"""HGRN: an elementwise gated recurrence whose forget gate has a lower bound that grows with depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, number, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation
from .parts import angles, layer_of, ones


class LowerBounds(nn.Module):
    """The learned lower bounds of all layers of a model, made once and given to each layer.

    γ^l = Σ_{i≤l} P_i - P_0 with P = softmax(Γ) over layers: 0 in layer 0, growing, below 1.

    Args:
        num_layers: L.
        channels: that of the layers' states (`expand * d_model`).

    Paper: Qin, Yang & Zhong 2023 (arXiv:2311.04823), section 3.2. Γ starts at 0, so γ^l = l/L.
    """

    def __init__(self, num_layers: int, channels: int) -> None:
        super().__init__()
        whole("num_layers", num_layers)
        whole("channels", channels)
        self.gamma = nn.Parameter(torch.zeros(num_layers, channels))

    def forward(self, layer_idx: int) -> Tensor:
        layer_of(layer_idx, self.gamma.shape[0])
        p = self.gamma.softmax(0)
        return p[1 : layer_idx + 1].sum(0)


def checked_bound(
    lower_bound: float | LowerBounds | None, layer_idx: int, num_layers: int, channels: int
) -> float | LowerBounds:
    """The option `lower_bound` of a layer, l/L by default."""
    if lower_bound is None:
        return layer_idx / num_layers
    if not isinstance(lower_bound, LowerBounds):
        return number("lower_bound", lower_bound, 0, 1, also=", a LowerBounds, or None")
    accepted = (num_layers, channels)
    if tuple(lower_bound.gamma.shape) != accepted:
        raise ValueError(
            f"lower_bound holds {list(lower_bound.gamma.shape)} bounds; accepted: "
            f"[num_layers, channels] = {list(accepted)}"
        )
    return lower_bound


def layer_bound(lower_bound: float | LowerBounds, layer_idx: int, like: Tensor) -> Tensor:
    """γ of a layer: [channels] or []."""
    if isinstance(lower_bound, LowerBounds):
        return lower_bound(layer_idx).to(like.dtype)
    return like.new_full((), lower_bound)


def log_forget(z: Tensor, bound: Tensor) -> Tensor:
    """log f for f = γ + (1 - γ) σ(z), γ in [0, 1): relative precision at both ends, finite gradients.

    Near 1 by way of 1 - f, whose digits log f has; near 0 without forming f, which may underflow.
    """
    positive = bound > 0
    log_bound = torch.where(positive, torch.where(positive, bound, 1.0).log(), -torch.inf)
    low = torch.logaddexp(log_bound, torch.log1p(-bound) + F.logsigmoid(z))
    forgotten = (1 - bound) * torch.sigmoid(-z)
    return torch.where(forgotten > 0.5, low, torch.log1p(-forgotten.clamp(max=0.5)))


class HGRN(RecurrentMixer):
    """HGRN: a gated recurrence per channel, its forget gate bounded from below.

        h_t = f_t e^{iθ} ∘ h_{t-1} + (1 - f_t) ∘ c_t        f = γ + (1 - γ) σ(W_f x)
        y = W_o LayerNorm(σ(W_g x) ∘ h)                     c = silu(W_c x)

    Real by default (θ = 0); with complex=True c and h are complex, θ is learned and
    the same for all inputs, and real and imaginary parts are read out side by side.

    Reduction: K = 1, q = k = 1, V = channels; log_decay_v = log f; v = (1 - f) c. Complex:
    v = (1 - f) c e^{-i(t+1)θ} as pairs (V doubled), and the outputs are turned back by e^{i(t+1)θ}, so
    state.recurrent is the paper's state turned by e^{-iTθ}.

    Args:
        d_model: width of x and y.
        complex: the complex recurrence of the paper's experiments, or the real one.
        expand: channels are expand · d_model.
        layer_idx, num_layers: l and L of the lower bound.
        lower_bound: γ as a number in [0, 1), or a `LowerBounds` shared by all layers of a model,
            which learns it. None: l/L, where the paper's bounds start.
        bias: of the projections.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1; layer_idx is not below num_layers; lower_bound is outside [0, 1).

    Paper: Qin, Yang & Zhong 2023, "Hierarchically Gated Recurrent Neural Network for Sequence
        Modeling" (NeurIPS 2023, arXiv:2311.04823), section 3.2. That the gate is applied before the
        norm follows the authors' released code. Initialisation: θ_j = 10000^(-2j/channels), the rest
        as `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        complex: bool = False,
        expand: int = 1,
        layer_idx: int = 0,
        num_layers: int = 1,
        lower_bound: float | LowerBounds | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(d_model)
        layer_of(layer_idx, num_layers)
        flag("bias", bias)
        self.complex = flag("complex", complex)
        self.channels = whole("expand", expand) * d_model
        self.layer_idx, self.num_layers = layer_idx, num_layers
        self.lower_bound = checked_bound(lower_bound, layer_idx, num_layers, self.channels)
        width = 2 * self.channels if complex else self.channels
        self.input_proj = nn.Linear(d_model, width, bias=bias)
        self.forget_gate = nn.Linear(d_model, self.channels, bias=bias)
        self.output_gate = nn.Linear(d_model, width, bias=bias)
        self.norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, d_model, bias=bias)
        if complex:
            j = torch.arange(self.channels, dtype=torch.float64)
            self.theta = nn.Parameter((10000.0 ** (-2.0 * j / self.channels)).to(torch.get_default_dtype()))
        self.state_shape = (1, 1, width)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        c = F.silu(self.input_proj(x))
        z = self.forget_gate(x)
        acc = accumulation(z.dtype)
        z = z.to(acc)
        bound = layer_bound(self.lower_bound, self.layer_idx, z)
        lb = log_forget(z, bound)
        write = (1 - bound) * torch.sigmoid(-z)  # 1 - f, without the difference
        rest: tuple[Tensor, ...] = ()
        if self.complex:
            cos, sin = (y.to(acc) for y in angles(tokens.position + 1, self.theta))
            re, im = c.to(acc).chunk(2, -1)
            v = torch.cat([write * (re * cos + im * sin), write * (im * cos - re * sin)], -1)
            lb = torch.cat([lb, lb], -1)
            rest = (cos, sin)
        else:
            v = write * c
        v = v.to(c.dtype)[:, :, None]
        one = ones(v)
        return Core(one, one, v, log_decay_v=lb[:, :, None], rest=rest)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        h = o[:, :, 0]
        if self.complex:
            cos, sin = core.rest
            re, im = h.chunk(2, -1)
            h = torch.cat([re * cos - im * sin, re * sin + im * cos], -1).to(h.dtype)
        return self.out_proj(self.norm(torch.sigmoid(self.output_gate(x)) * h))
