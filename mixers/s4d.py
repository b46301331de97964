"""S4D: a diagonal, complex state space model for each channel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import OuterDecay
from .arguments import even, one_of, step_sizes
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation
from .parts import angles, log_uniform, rotate_pairs, zero_order_hold


class S4D(RecurrentMixer):
    """S4D: for each channel a diagonal, complex state space model, the same at all times.

        h' = A h + u        h_t = e^{ΔA} h_{t-1} + A^{-1} (e^{ΔA} - 1) u_t        o_t = 2 Re(C·h_t) + D u_t
        y = GLU(W gelu(o))

    Of every conjugate pair of states one is kept; 2 stands for the other.

    Reduction: heads = channels, K = d_state (real and imaginary parts), V = 1; v = u; log_decay =
    OuterDecay(Δ, Re A); k = A^{-1}(e^{ΔA} - 1) turned by e^{-i(t+1)Δ Im A}, q = 2 C turned by the same, so
    state.recurrent is the paper's state turned by e^{-iTΔ Im A}. D u is outside.

    Args:
        d_model: width of u and y, and channels.
        d_state: states of a channel (N), an even number; N / 2 complex numbers are kept.
        init: "lin" or "inv", see below.
        dt_min, dt_max: range of the initial step sizes Δ, log-uniform, one for each channel.

    `attention_map` has up to 8 maps, each the mean over a contiguous group of channels.

    Raises:
        TypeError: an option of another type.
        ValueError: d_state is odd or below 2; init is another word; dt_min is not above 0, or above dt_max.

    Paper: Gu, Gupta, Goel & Ré 2022, "On the Parameterization and Initialization of Diagonal State Space
        Models" (arXiv:2206.11893), with zero-order hold and B = 1. Initialisation: Re A = -1/2; Im A_n = πn
        (S4D-Lin) or (N/π)(N/(2n + 1) - 1) (S4D-Inv), n = 0 … N/2 - 1; C complex normal, D normal; W as
        `nn.Linear`. gelu and GLU are those of the released layer.
    """

    map_heads = 8

    def __init__(
        self, d_model: int, d_state: int = 64, init: str = "lin", dt_min: float = 1e-3, dt_max: float = 0.1
    ) -> None:
        super().__init__(d_model)
        half = even("d_state", d_state) // 2
        one_of("init", init, ("lin", "inv"))
        step_sizes(dt_min, dt_max)
        n = torch.arange(half)
        angle = math.pi * n if init == "lin" else d_state / math.pi * (d_state / (2 * n + 1) - 1)
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max).log())
        self.log_A_real = nn.Parameter(torch.full((d_model, half), 0.5).log())
        self.A_imag = nn.Parameter(angle.expand(d_model, half).clone())
        self.C = nn.Parameter(torch.randn(d_model, half, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)
        self.state_shape = (d_model, d_state, 1)

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        acc = accumulation(x.dtype)
        dt, re, im = self.log_dt.double().exp(), -self.log_A_real.double().exp(), self.A_imag.double()
        cos, sin = (z.to(acc) for z in angles(tokens.position + 1, dt[:, None] * im))
        k = torch.cat(zero_order_hold(dt[:, None], re, im), -1).to(acc)
        q = torch.cat([self.C[..., 0], -self.C[..., 1]], -1).to(acc)  # Re(C h) = Re C Re h - Im C Im h
        k, q = (rotate_pairs(z.expand(*cos.shape[:-1], -1), cos, -sin).to(x.dtype) for z in (k, q))
        A = torch.cat([re, re], -1).to(acc)
        decay = OuterDecay(dt.to(acc).expand(x.shape), A)
        return Core(q, k, x[..., None], decay, scale=2.0)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return F.glu(self.out_proj(F.gelu(o[..., 0] + self.D * x)), -1)
