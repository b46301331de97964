"""LRU: a linear recurrence with complex diagonal transitions, mapped into and out of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .arguments import number, whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation
from .parts import angles, ones, rotate_pairs


class DiagonalComplex(RecurrentMixer):
    """h_t = λ ∘ h_{t-1} + γ ∘ B u_t, y_t = Re(C h_t) + D ∘ u_t, complex, from log|λ|, arg λ and γ.

    Reduction: K = 1, q = k = 1, V twice the states (real and imaginary parts); log_decay_v = log|λ|;
    v = γ B u turned by e^{-i(t+1) arg λ}, and the outputs turned back, so state.recurrent is h turned by
    e^{-iT arg λ}.
    """

    def __init__(self, d_model: int, states: int) -> None:
        super().__init__(d_model)
        self.input_proj = nn.Linear(d_model, 2 * states, bias=False)  # rows Re B, Im B
        self.output_proj = nn.Linear(2 * states, d_model, bias=False)  # columns of Re C, -Im C
        self.D = nn.Parameter(torch.empty(d_model).normal_())
        self.state_shape = (1, 1, 2 * states)

    def transition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log|λ| and arg λ, real and imaginary part of γ; each of the number of states."""
        raise NotImplementedError

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        u = self.input_proj(x)
        acc = accumulation(u.dtype)
        log_size, angle, re, im = self.transition(acc)
        u = rotate_pairs(u.to(acc), re, im)  # γ u: the product of complex numbers
        cos, sin = (z.to(acc) for z in angles(tokens.position + 1, angle))
        v = rotate_pairs(u, cos, -sin).to(x.dtype)[:, :, None]
        one = ones(v)
        return Core(one, one, v, log_decay_v=torch.cat([log_size, log_size])[None], rest=(cos, sin))

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        return self.output_proj(rotate_pairs(o[:, :, 0], *core.rest)) + self.D * x


class LRU(DiagonalComplex):
    """LRU: a linear recurrent unit, complex and diagonal, its inputs scaled to keep the state's size.

        h_t = λ ∘ h_{t-1} + γ ∘ B u_t        y_t = Re(C h_t) + D ∘ u_t        λ = exp(-e^ν + i e^θ)

    Reduction: K = 1, q = k = 1, V twice the states (real and imaginary parts); log_decay_v = -e^ν; v = γ B u
    turned by e^{-i(t+1)θ'}, θ' = e^θ, and the outputs turned back, so state.recurrent is the paper's state
    turned by e^{-iTθ'}.

    Args:
        d_model: width of u and y.
        d_state: complex numbers in the state (N), d_model by default.
        r_min, r_max: radii of the ring of initial λ. max_phase: their largest angle.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1; a radius outside [0, 1] or r_min above r_max.

    Paper: Orvieto et al. 2023, "Resurrecting Recurrent Neural Networks for Long Sequences"
        (arXiv:2303.06349), section 3 and appendix A. Initialisation: λ uniform on the ring, γ = √(1 - |λ|²)
        (learned as its logarithm), B normal with deviation (2 d_model)^{-1/2} for each part, C with N^{-1/2},
        D with 1.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int | None = None,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ) -> None:
        N = d_model if d_state is None else whole("d_state", d_state, ", or None")
        super().__init__(d_model, N)
        number("r_max", r_max, 0, above=True)
        number("r_min", r_min, 0)
        number("max_phase", max_phase, 0, above=True)
        if not r_min < r_max <= 1:
            raise ValueError(f"r_min is {r_min}, r_max {r_max}; accepted: 0 <= r_min < r_max <= 1")
        square = torch.rand(N) * (r_max**2 - r_min**2) + r_min**2
        square = square.clamp(1e-12, 1 - 1e-6)  # neither end has a logarithm of its logarithm
        self.nu_log = nn.Parameter(torch.log(-0.5 * square.log()))
        self.theta_log = nn.Parameter(torch.log(max_phase * torch.rand(N).clamp(min=1e-6)))
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-square))
        nn.init.normal_(self.input_proj.weight, std=(2 * d_model) ** -0.5)
        nn.init.normal_(self.output_proj.weight, std=N**-0.5)

    def transition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gamma = self.gamma_log.to(dtype).exp()
        return -self.nu_log.to(dtype).exp(), self.theta_log.double().exp(), gamma, torch.zeros_like(gamma)
