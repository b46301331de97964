"""Mixers of the delta rule as plain loops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .common import Paper, convolved, head_norm, heads, linear, rms, silu


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def _softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def _convolved(m: Any, x: Tensor) -> list[Tensor]:
    """q, k and v [T, channels] after the convolution, which takes them side by side."""
    rows = [linear(p, x) for p in (m.q_proj, m.k_proj, m.v_proj)]
    return list(silu(convolved(m.conv1d, torch.cat(rows, -1))).split([r.shape[-1] for r in rows], -1))


def _rule(S: Tensor, decay: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Yang et al. 2024, eq. 10, transposed: S_t = (I - β k kᵀ) a S_{t-1} + β k vᵀ, the matrix written out."""
    transition = torch.eye(len(k), dtype=k.dtype) - beta * torch.outer(k, k)
    return transition @ (decay * S) + beta * torch.outer(k, v)


def _loop(m: Any, x: Tensor, decay: Tensor) -> Tensor:
    """Outputs [T, H, V] with decays [T, H, 1] or [T, H, K]."""
    q, k, v = _convolved(m, x)
    q, k = (_unit(heads(y, m.num_key_heads)) for y in (q, k))
    v, beta = heads(v, m.num_heads), m.strength * torch.sigmoid(linear(m.b_proj, x))
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        g = h * m.num_key_heads // m.num_heads
        S = x.new_zeros(m.head_dim, m.head_v_dim)
        for t in range(len(x)):
            S = _rule(S, decay[t, h, :, None], k[t, g], v[t, h], beta[t, h])
            out[t, h] = S.T @ q[t, g] / m.head_dim**0.5
    return out


def _gated(m: Any, x: Tensor, out: Tensor, gate: Tensor) -> Tensor:
    """The norm over each head, the gate, the projection."""
    return linear(m.o_proj, (m.o_norm.weight * rms(out, m.o_norm.eps)).flatten(1) * gate)


def _scalar_decay(m: Any, x: Tensor) -> Tensor:
    return torch.exp(-torch.exp(m.A_log) * _softplus(linear(m.a_proj, x) + m.dt_bias))[..., None]


def deltanet(m: Any, x: Tensor) -> Tensor:
    """Yang et al. 2024 (arXiv:2406.06484): S_t = S_{t-1} (I - β k kᵀ) + β v kᵀ."""
    out = _loop(m, x, torch.ones(len(x), m.num_heads, 1, dtype=x.dtype))
    return linear(m.o_proj, (m.o_norm.weight * rms(out, m.o_norm.eps)).flatten(1))


def gated_deltanet(m: Any, x: Tensor) -> Tensor:
    """Yang, Kautz & Hatamizadeh 2024, eq. 10: S_t = S_{t-1} α (I - β k kᵀ) + β v kᵀ."""
    return _gated(m, x, _loop(m, x, _scalar_decay(m, x)), silu(linear(m.g_proj, x)))


def kda(m: Any, x: Tensor) -> Tensor:
    """Kimi Team 2025: S_t = (I - β k kᵀ) Diag(α_t) S_{t-1} + β k vᵀ."""

    def gate(layers: Any) -> Tensor:
        y = x
        for layer in layers if isinstance(layers, torch.nn.Sequential) else (layers,):
            y = linear(layer, y)
        return y

    f, rate = heads(gate(m.f_proj) + m.dt_bias, m.num_heads), torch.exp(m.A_log)[:, None]
    log_decay = -rate * _softplus(f) if m.lower_bound is None else m.lower_bound * torch.sigmoid(rate * f)
    return _gated(m, x, _loop(m, x, torch.exp(log_decay)), torch.sigmoid(gate(m.g_proj)))


def gated_deltaproduct(m: Any, x: Tensor) -> Tensor:
    """Siems et al. 2025: H_i = A(x_i) H_{i-1} + B(x_i), A = g Π_j (I - β_j k_j k_jᵀ)."""
    n, H, G = m.num_householder, m.num_heads, m.num_key_heads
    q, k, v = _convolved(m, x)
    q, k = _unit(heads(q, G)), _unit(k.reshape(len(x), n, G, -1))
    v = v.reshape(len(x), n, H, -1)
    beta = m.strength * torch.sigmoid(linear(m.b_proj, x)).reshape(len(x), n, H)
    decay, none = _scalar_decay(m, x), torch.ones(1, dtype=x.dtype)
    out = torch.zeros_like(v[:, 0])
    for h in range(H):
        g = h * G // H
        S = x.new_zeros(m.head_dim, m.head_v_dim)
        for t in range(len(x)):
            for j in range(n):
                S = _rule(S, none if j else decay[t, h], k[t, j, g], v[t, j, h], beta[t, j, h])
            out[t, h] = S.T @ q[t, g] / m.head_dim**0.5
    return _gated(m, x, out, silu(linear(m.g_proj, x)))


def comba(m: Any, x: Tensor) -> Tensor:
    """Hu et al. 2025: S_t = S_{t-1} (α - β̃ k kᵀ) + β v kᵀ, β̃ = σ(b) β; or k reads α S_{t-1}."""
    H, G = m.num_heads, m.num_key_heads
    q, k, v = _convolved(m, x)
    q, k, v = heads(q, G), heads(k, G), heads(v, H)
    feedback = torch.sigmoid(m.decay)
    q, k = _unit(q - m.D[:, None] * feedback[:, None] * k), _unit(k)
    beta, decay = torch.sigmoid(linear(m.b_proj, x)), _scalar_decay(m, x)
    out = torch.zeros_like(v)
    for h in range(H):
        g = h * G // H
        S = x.new_zeros(m.head_dim, m.head_v_dim)
        for t in range(len(x)):
            alpha = decay[t, h]
            read = (alpha * S if m.erase_decayed else S).T @ (feedback[g] * k[t, g])
            S = alpha * S + beta[t, h] * torch.outer(k[t, g], v[t, h] - read)
            out[t, h] = S.T @ q[t, g] / m.head_dim**0.5
    return _gated(m, x, out, torch.sigmoid(linear(m.g_proj, x)))


def rwkv7(m: Any, x: Tensor) -> Tensor:
    """Peng et al. 2025, eq. 3 to 24: wkv_t = wkv_{t-1} (diag(w) - κ̂ᵀ(a ⊙ κ̂)) + vᵀ k̃, of a first layer."""
    before = torch.cat([x.new_zeros(1, x.shape[1]), x[:-1]])
    xr, xw, xk, xv, xa, xg = (torch.lerp(x, before, mu) for mu in m.shifts)
    r, k, v = linear(m.r_proj, xr), linear(m.k_proj, xk), linear(m.v_proj, xv)
    a = torch.sigmoid(linear(m.a_lora[1], linear(m.a_lora[0], xa)))
    w = torch.sigmoid(linear(m.w_lora[2], torch.tanh(linear(m.w_lora[0], xw))))
    w = torch.exp(-math.exp(-0.5) * w)
    g = linear(m.g_lora[2], torch.sigmoid(linear(m.g_lora[0], xg)))
    kappa, k = k * m.k_k, k * torch.lerp(torch.ones_like(a), a, m.k_a)
    r, w, kappa, k, v, a = (heads(y, m.num_heads) for y in (r, w, kappa, k, v, a))
    kappa = kappa / kappa.square().sum(-1, keepdim=True).sqrt()
    out, bonus = torch.zeros_like(v), torch.zeros_like(v)
    for h in range(m.num_heads):
        wkv = x.new_zeros(m.head_dim, m.head_dim)
        for t in range(len(x)):
            transition = torch.diag(w[t, h]) - torch.outer(kappa[t, h], a[t, h] * kappa[t, h])
            wkv = wkv @ transition + torch.outer(v[t, h], k[t, h])
            out[t, h] = wkv @ r[t, h]
            bonus[t, h] = (r[t, h] @ (m.r_k[h] * k[t, h])) * v[t, h]
    return linear(m.o_proj, g * (head_norm(m.ln_x, out) + bonus.flatten(1)))


DELTA: dict[str, Paper] = {
    "deltanet": deltanet,
    "gated-deltanet": gated_deltanet,
    "gated-deltaproduct": gated_deltaproduct,
    "kda": kda,
    "comba": comba,
    "rwkv7": rwkv7,
}
