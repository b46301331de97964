"""Linear attention and its kin, and softmax attention, as plain loops."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import Paper, heads, linear, rms


def linear_attention(m: Any, x: Tensor) -> Tensor:
    """Katharopoulos et al. 2020, eq. 16 to 20: S_i = S_{i-1} + φ(K_i) V_iᵀ, Z_i = Z_{i-1} + φ(K_i)."""
    q, k, v = (heads(linear(p, x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        S, Z = x.new_zeros(k.shape[-1], v.shape[-1]), x.new_zeros(k.shape[-1])
        for i in range(len(x)):
            S = S + torch.outer(k[i, h], v[i, h])
            Z = Z + k[i, h]
            out[i, h] = (q[i, h] @ S) / (q[i, h] @ Z)
    return linear(m.out_proj, out.flatten(1))


def transnormer(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2022, NormAttention: masked attention without softmax or divisor, then a norm."""
    q, k, v = (heads(linear(p, x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        out[:, h] = torch.tril(q[:, h] @ k[:, h].T) @ v[:, h]
    return linear(m.out_proj, m.norm.weight * rms(out.flatten(1), m.norm.eps))


def _layer_slope(h: int, H: int, layer: int, layers: int) -> float:
    return 2 ** (-8 * (h + 1) / H) * (1 - layer / (layers - 1 + 1e-5) + 1e-5)


def transnormer_llm(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2023: o_t = Σ_{s≤t} q_tᵀ Λ^{t-s} diag(cos((t - s)θ)) k_s λ^{t-s} v_s, as a double loop."""
    q, k, v, u = linear(m.qkvu_proj, x).chunk(4, -1)
    q, k, v = (heads(y, m.num_heads) for y in (F.silu(q), F.silu(k), v))
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        theta = torch.zeros_like(q[0, h]) if m.theta is None else m.theta[h]
        slope = _layer_slope(h, m.num_heads, m.layer_idx, m.num_layers)
        for t in range(len(x)):
            for s in range(t + 1):
                weight = (q[t, h] * k[s, h] * torch.cos((t - s) * theta)).sum()
                out[t, h] += weight * math.exp(-slope * (t - s)) * v[s, h]
    return linear(m.out_proj, u * rms(out.flatten(1), m.eps))


def lightning(m: Any, x: Tensor) -> Tensor:
    """MiniMax 2025; Qin et al. 2024: kv_t = λ kv_{t-1} + k_t v_tᵀ, o_t = q_t kv_t."""
    H, D = m.num_heads, m.head_dim
    qkv = F.silu(linear(m.qkv_proj, x)).reshape(len(x), H, 3, D)
    out = x.new_zeros(len(x), H, D)
    for h in range(H):
        kv = x.new_zeros(D, D)
        for t in range(len(x)):
            q, k, v = qkv[t, h]
            kv = math.exp(-_layer_slope(h, H, m.layer_idx, m.num_layers)) * kv + torch.outer(k, v)
            out[t, h] = q @ kv
    normed = m.norm.weight * rms(out.flatten(1), m.norm.eps)
    return linear(m.out_proj, torch.sigmoid(linear(m.output_gate, x)) * normed)


def softmax(m: Any, x: Tensor) -> Tensor:
    """Vaswani et al. 2017, eq. 1, causal; the rotations of Su et al. 2021 as complex numbers; a window."""
    D = m.head_dim
    q, k, v = (linear(p, x).reshape(len(x), -1, D) for p in (m.q_proj, m.k_proj, m.v_proj))
    if m.rotary_base is not None:
        theta = m.rotary_base ** (-2 * torch.arange(D // 2, dtype=x.dtype) / D)
        angle = torch.arange(len(x), dtype=x.dtype)[:, None, None] * theta
        turn = torch.polar(torch.ones_like(angle), angle)

        def rotated(y: Tensor) -> Tensor:
            z = torch.complex(y[..., : D // 2], y[..., D // 2 : D // 2 * 2]) * turn
            return torch.cat([z.real, z.imag, y[..., D // 2 * 2 :]], -1)

        q, k = rotated(q), rotated(k)
    out = torch.zeros_like(q)
    for h in range(m.num_heads):
        shared = h * m.num_kv_heads // m.num_heads
        for t in range(len(x)):
            near = slice(0 if m.window is None else max(0, t + 1 - m.window), t + 1)
            w = torch.exp(k[near, shared] @ q[t, h] / math.sqrt(D))
            out[t, h] = (w / w.sum()) @ v[near, shared]
    return linear(m.out_proj, out.flatten(1))


ATTENTION: dict[str, Paper] = {
    "linear-attention": linear_attention,
    "transnormer": transnormer,
    "transnormer-llm": transnormer_llm,
    "lightning": lightning,
    "softmax": softmax,
}
