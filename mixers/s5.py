"""S5: one state space model for all channels together, diagonal and complex."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arguments import even, step_sizes
from .lru import DiagonalComplex
from .parts import log_uniform, zero_order_hold


class S5(DiagonalComplex):
    """S5: a state space model with many inputs and outputs, diagonal and complex, by zero-order hold.

        h' = Λ h + B u        h_t = e^{ΔΛ} h_{t-1} + Λ^{-1} (e^{ΔΛ} - 1) B u_t
        y_t = 2 Re(C h_t) + D ∘ u_t

    Of every conjugate pair of states one is kept; 2 stands for the other.

    Reduction: K = 1, q = k = 1, V = d_state (real and imaginary parts); log_decay_v = Δ Re Λ, constant; v is
    the input turned by e^{-i(t+1)Δ Im Λ}, and the outputs are turned back, so state.recurrent is the paper's
    state turned by e^{-iTΔ Im Λ}.

    Args:
        d_model: width of u and y.
        d_state: states (P), an even number; d_state / 2 complex numbers are kept.
        dt_min, dt_max: range of the initial step sizes Δ, log-uniform, one for each state.

    Raises:
        TypeError: an option of another type.
        ValueError: d_state is odd or below 2; dt_min is not above 0, or above dt_max.

    Paper: Smith, Warrington & Linderman 2022, "Simplified State Space Layers for Sequence Modeling"
        (arXiv:2208.04933), section 3. Initialisation: Λ the eigenvalues of the normal part of HiPPO-LegS, B
        and C random (deviations d_model^{-1/2} and P^{-1/2}) in the basis of its eigenvectors, D normal.
        Re Λ = -e^{log_A_real} here, where the released code clips it below -1e-4.
    """

    def __init__(self, d_model: int, d_state: int = 64, dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
        super().__init__(d_model, even("d_state", d_state) // 2)
        step_sizes(dt_min, dt_max)
        half = d_state // 2
        angle, basis = hippo(d_state)
        self.log_A_real = nn.Parameter(torch.full((half,), 0.5).log())
        self.A_imag = nn.Parameter(angle[half:].to(self.D.dtype))
        self.log_dt = nn.Parameter(log_uniform(half, dt_min, dt_max).log())
        with torch.no_grad():
            kept = basis[:, half:]
            B = kept.mH @ (torch.randn(d_state, d_model, dtype=torch.float64) * d_model**-0.5 + 0j)
            C = torch.randn(d_model, d_state, dtype=torch.complex128) * d_state**-0.5 @ kept
            self.input_proj.weight.copy_(torch.cat([B.real, B.imag]))
            self.output_proj.weight.copy_(torch.cat([C.real, -C.imag], 1))

    def transition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dt, re, im = self.log_dt.double().exp(), -self.log_A_real.double().exp(), self.A_imag.double()
        hold = zero_order_hold(dt, re, im)
        return (dt * re).to(dtype), dt * im, 2 * hold[0].to(dtype), 2 * hold[1].to(dtype)


def hippo(n: int) -> tuple[Tensor, Tensor]:
    """Imaginary parts (rising) and unitary eigenvectors of HiPPO-LegS's normal part, -1/2 plus a skew matrix.

    Source: Gu et al. 2022 (arXiv:2206.11893), section 3."""
    root = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    skew = torch.tril(root[:, None] * root, -1)
    skew = (skew.mT - skew) / 2
    angle, basis = torch.linalg.eigh(-1j * skew)
    return angle, basis
