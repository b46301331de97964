"""State space models as plain loops, in complex numbers where the papers have them."""

from __future__ import annotations

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


STATE_SPACE: dict[str, Paper] = {
    "mamba2": mamba2,
}
