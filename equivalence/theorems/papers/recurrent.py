"""State spaces and linear RNNs as plain loops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import Paper, convolved, linear, rms


def mamba(m: Any, x: Tensor) -> Tensor:
    """Gu & Dao 2023, algorithm 2, with its discretisation as released: Ā = exp(ΔA), B̄ = ΔB.

    Norms as Lieber et al. 2024 (Jamba), groups as Glorioso et al. 2024 (Zamba), one after the other."""
    inner, gate = linear(m.in_proj, x).chunk(2, -1)
    inner = convolved(m.conv1d, inner)
    u = inner * torch.sigmoid(inner)
    rank, N = m.dt_proj.weight.shape[1], m.A_log.shape[1]
    split = [p.chunk(m.num_heads) for p in (m.x_proj.weight, m.dt_proj.weight, m.dt_proj.bias, m.A_log, m.D)]
    heads = []
    for part, W, W_delta, bias, A_log, D in zip(u.chunk(m.num_heads, -1), *split, strict=True):
        low, B, C = (part @ W.T).split([rank, N, N], -1)
        low, B, C = normed(m.dt_layernorm, low), normed(m.b_layernorm, B), normed(m.c_layernorm, C)
        delta = torch.log1p(torch.exp(low @ W_delta.T + bias))
        A = -torch.exp(A_log)
        h = x.new_zeros(A.shape)
        out = []
        for t in range(len(x)):
            h = torch.exp(delta[t, :, None] * A) * h + delta[t, :, None] * B[t] * part[t, :, None]
            out.append((h * C[t]).sum(-1) + D * part[t])
        heads.append(torch.stack(out))
    return linear(m.out_proj, torch.cat(heads, -1) * gate * torch.sigmoid(gate))


def normed(norm: Any, x: Tensor) -> Tensor:
    """Zhang & Sennrich 2019, where the mixer has a norm there."""
    if not hasattr(norm, "eps"):
        return x
    return rms(x, norm.eps) if norm.weight is None else rms(x, norm.eps) * norm.weight


def hgrn(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2023, section 3.2, in complex numbers: h_t = λ_t ∘ exp(iθ) ∘ h_{t-1} + (1 - λ_t) ∘ c_t."""
    c = F.silu(linear(m.input_proj, x))
    theta = torch.zeros(m.channels, dtype=x.dtype)
    if m.complex:
        re, im = c.chunk(2, -1)
        c, theta = torch.complex(re, im), m.theta
    gamma = m.lower_bound if isinstance(m.lower_bound, float) else float(m.lower_bound)
    forget = gamma + (1 - gamma) * torch.sigmoid(linear(m.forget_gate, x))
    turn = torch.polar(torch.ones_like(theta), theta)
    h = torch.zeros(m.channels, dtype=turn.dtype)
    out = []
    for t in range(len(x)):
        h = forget[t] * turn * h + (1 - forget[t]) * c[t]
        out.append(torch.cat([h.real, h.imag]) if m.complex else h.real)
    gated = torch.sigmoid(linear(m.output_gate, x)) * torch.stack(out)
    normed = (gated - gated.mean(-1, keepdim=True)) / (
        gated.var(-1, keepdim=True, unbiased=False) + m.norm.eps
    ).sqrt()
    return linear(m.out_proj, normed * m.norm.weight + m.norm.bias)


RECURRENT: dict[str, Paper] = {
    "mamba": mamba,
    "hgrn": hgrn,
    "hgrn-complex": hgrn,
}
