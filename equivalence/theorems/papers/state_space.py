"""State space models as plain loops, in complex numbers where the papers have them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .common import Paper, convolved, linear, rms, silu


def mamba2(m: Any, x: Tensor) -> Tensor:
    """Dao & Gu 2024, section 6 and the block of section 7: h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_tᵀ."""
    H, P, N, G = m.num_heads, m.head_dim, m.d_state, m.n_groups
    z, xbc, dt = linear(m.in_proj, x).split([H * P, H * P + 2 * G * N, H], -1)
    u, B, C = silu(convolved(m.conv1d, xbc)).split([H * P, G * N, G * N], -1)
    low, high = m.time_step_limit
    delta = torch.log1p(torch.exp(dt + m.dt_bias)).clamp(low, high)
    out = x.new_zeros(len(x), H * P)
    for h in range(H):
        group, head = slice(h // (H // G) * N, (h // (H // G) + 1) * N), slice(h * P, (h + 1) * P)
        state = x.new_zeros(N, P)
        for t in range(len(x)):
            decay = torch.exp(-delta[t, h] * torch.exp(m.A_log[h]))
            state = decay * state + delta[t, h] * torch.outer(B[t, group], u[t, head])
            out[t, head] = C[t, group] @ state + m.D[h] * u[t, head]

    def normed(y: Tensor) -> Tensor:
        return m.norm.weight * rms(y.reshape(len(y), G, -1), m.norm.eps).flatten(1)

    if m.norm is None:
        out = out * silu(z)
    else:
        out = normed(out * silu(z)) if m.norm.gate_first else normed(out) * silu(z)
    return linear(m.out_proj, out)


def mamba3(m: Any, x: Tensor) -> Tensor:
    """Lahoti et al. 2026: the trapezoidal recurrence of a complex state, with pairs of channels as numbers.

    h_t = α_t h_{t-1} + (1 - λ) Δ α_t k_{t-1} x_{t-1}ᵀ + λ Δ k_t x_tᵀ, α = e^{Δ(A - iθ)}
    o_t = Re(q̄_tᵀ h_t)."""
    H, P, N, G, S = m.num_heads, m.head_dim, m.d_state, m.n_groups, m.pairs
    z, u, B, C, dt, a, trap, theta = linear(m.in_proj, x).split([H * P, H * P, G * N, G * N, H, H, H, S], -1)
    delta = torch.log1p(torch.exp(dt + m.dt_bias))
    rate = torch.clamp(torch.log1p(torch.exp(a)), min=m.A_floor)
    share = torch.sigmoid(trap)
    out = x.new_zeros(len(x), H, P)

    def numbers(y: Tensor, norm: Any, bias: Tensor, h: int) -> Tensor:
        y = norm.weight * rms(y.reshape(len(x), G, N)[:, h // (H // G)], norm.eps) + bias[h]
        pairs, rest = y[:, : 2 * S].reshape(len(x), S, 2), y[:, 2 * S :]
        return torch.cat([torch.complex(pairs[..., 0], pairs[..., 1]), rest + 0j], -1)

    for h in range(H):
        k, q = numbers(B, m.B_norm, m.B_bias, h), numbers(C, m.C_norm, m.C_bias, h)
        v = u.reshape(len(x), H, P)[:, h] + 0j
        state = torch.zeros(k.shape[1], P, dtype=k.dtype)
        before = torch.zeros_like(state)
        for t in range(len(x)):
            step = delta[t, h]
            angle = torch.cat([math.pi * torch.tanh(theta[t]) * step, x.new_zeros(k.shape[1] - S)])
            decay = torch.polar(torch.exp(-step * rate[t, h]).expand_as(angle), -angle)[:, None]
            now = torch.outer(k[t], v[t])
            state = decay * (state + (1 - share[t, h]) * step * before) + share[t, h] * step * now
            before = now
            out[t, h] = (q[t].conj() @ state).real + m.D[h] * v[t].real
    y = out.flatten(1)
    if m.norm is not None:
        y = m.norm.weight * rms(out, m.norm.eps).flatten(1)
    return linear(m.out_proj, y * silu(z))


def s4d(m: Any, x: Tensor) -> Tensor:
    """Gu et al. 2022, eq. 2 to 4: a recurrence for each channel, with zero-order hold and B = 1."""
    dt, C = torch.exp(m.log_dt)[:, None], torch.view_as_complex(m.C)
    A = torch.complex(-torch.exp(m.log_A_real), m.A_imag)
    decay, write = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    h, out = torch.zeros_like(A), []
    for u in x:
        h = decay * h + write * u[:, None]
        out.append(2 * (C * h).sum(-1).real + m.D * u)
    y = torch.stack(out)
    gelu = y / 2 * (1 + torch.erf(y / math.sqrt(2)))
    values, gate = linear(m.out_proj, gelu).chunk(2, -1)
    return values * torch.sigmoid(gate)


def _complex_maps(m: Any) -> tuple[Tensor, Tensor]:
    """B [states, d_model] and C [d_model, states]."""
    re, im = m.input_proj.weight.chunk(2)
    real, minus = m.output_proj.weight.chunk(2, 1)
    return torch.complex(re, im), torch.complex(real, -minus)


def s5(m: Any, x: Tensor) -> Tensor:
    """Smith et al. 2022, section 3: h_t = exp(ΔΛ) h_{t-1} + Λ^{-1} (exp(ΔΛ) - 1) B u_t."""
    B, C = _complex_maps(m)
    lam, dt = torch.complex(-torch.exp(m.log_A_real), m.A_imag), torch.exp(m.log_dt)
    h, out = torch.zeros_like(lam), []
    for u in x:
        h = torch.exp(dt * lam) * h + (torch.exp(dt * lam) - 1) / lam * (B @ (u + 0j))
        out.append(2 * (C @ h).real + m.D * u)
    return torch.stack(out)


def lru(m: Any, x: Tensor) -> Tensor:
    """Orvieto et al. 2023, section 3: x_k = λ ∘ x_{k-1} + exp(γ_log) ∘ B u_k."""
    B, C = _complex_maps(m)
    lam = torch.exp(torch.complex(-torch.exp(m.nu_log), torch.exp(m.theta_log)))
    h, out = torch.zeros_like(lam), []
    for u in x:
        h = lam * h + torch.exp(m.gamma_log) * (B @ (u + 0j))
        out.append((C @ h).real + m.D * u)
    return torch.stack(out)


def longhorn(m: Any, x: Tensor) -> Tensor:
    """Liu et al. 2024, section 3: S_t = (1 - Δ ⊗ k²) ∘ S_{t-1} + (Δ ∘ x) ⊗ k."""
    inner, gate = linear(m.in_proj, x).chunk(2, -1)
    u = silu(convolved(m.conv1d, inner))
    low, k, q = linear(m.x_proj, u).split(m.sizes, -1)
    beta = torch.sigmoid(linear(m.dt_head, low))
    S, out = x.new_zeros(u.shape[1], k.shape[1]), []
    for t in range(len(x)):
        delta = beta[t] / (1 + beta[t] * k[t].square().sum())
        S = (1 - torch.outer(delta, k[t] ** 2)) * S + torch.outer(delta * u[t], k[t])
        out.append(S @ q[t] + m.D * u[t])
    return linear(m.out_proj, torch.stack(out) * silu(gate))


STATE_SPACE: dict[str, Paper] = {
    "mamba2": mamba2,
    "mamba3": mamba3,
    "s4d": s4d,
    "s5": s5,
    "lru": lru,
    "longhorn": longhorn,
}
