"""Each mixer as its paper has it: plain loops over time, with a module's weights, in float64.

Nothing here uses the core or the mixers' own code, so that agreement with a module means that the
module's reduction to the core is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# (module, x [T, d_model]) -> y [T, d_model]
Paper = Callable[[Any, Tensor], Tensor]


def _linear(layer: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def _heads(x: Tensor, heads: int) -> Tensor:
    """[T, H D] to [T, H, D]."""
    return x.reshape(x.shape[0], heads, -1)


def _rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def linear_attention(m: Any, x: Tensor) -> Tensor:
    """Katharopoulos et al. 2020, eq. 16 to 20: S_i = S_{i-1} + φ(K_i) V_iᵀ, Z_i = Z_{i-1} + φ(K_i)."""
    q, k, v = (_heads(_linear(p, x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        S, Z = x.new_zeros(k.shape[-1], v.shape[-1]), x.new_zeros(k.shape[-1])
        for i in range(len(x)):
            S = S + torch.outer(k[i, h], v[i, h])
            Z = Z + k[i, h]
            out[i, h] = (q[i, h] @ S) / (q[i, h] @ Z)
    return _linear(m.out_proj, out.flatten(1))


def transnormer(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2022, NormAttention: masked attention without softmax or divisor, then a norm."""
    q, k, v = (_heads(_linear(p, x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        out[:, h] = torch.tril(q[:, h] @ k[:, h].T) @ v[:, h]
    return _linear(m.out_proj, m.norm.weight * _rms(out.flatten(1), m.norm.eps))


def _layer_slope(h: int, H: int, layer: int, layers: int) -> float:
    return 2 ** (-8 * (h + 1) / H) * (1 - layer / (layers - 1 + 1e-5) + 1e-5)


def transnormer_llm(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2023: o_t = Σ_{s≤t} q_tᵀ Λ^{t-s} diag(cos((t - s)θ)) k_s λ^{t-s} v_s, as a double loop."""
    q, k, v, u = _linear(m.qkvu_proj, x).chunk(4, -1)
    q, k, v = (_heads(y, m.num_heads) for y in (F.silu(q), F.silu(k), v))
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        theta = torch.zeros_like(q[0, h]) if m.theta is None else m.theta[h]
        slope = _layer_slope(h, m.num_heads, m.layer_idx, m.num_layers)
        for t in range(len(x)):
            for s in range(t + 1):
                weight = (q[t, h] * k[s, h] * torch.cos((t - s) * theta)).sum()
                out[t, h] += weight * math.exp(-slope * (t - s)) * v[s, h]
    return _linear(m.out_proj, u * _rms(out.flatten(1), m.eps))


def lightning(m: Any, x: Tensor) -> Tensor:
    """MiniMax 2025; Qin et al. 2024: kv_t = λ kv_{t-1} + k_t v_tᵀ, o_t = q_t kv_t."""
    H, D = m.num_heads, m.head_dim
    qkv = F.silu(_linear(m.qkv_proj, x)).reshape(len(x), H, 3, D)
    out = x.new_zeros(len(x), H, D)
    for h in range(H):
        kv = x.new_zeros(D, D)
        for t in range(len(x)):
            q, k, v = qkv[t, h]
            kv = math.exp(-_layer_slope(h, H, m.layer_idx, m.num_layers)) * kv + torch.outer(k, v)
            out[t, h] = q @ kv
    normed = m.norm.weight * _rms(out.flatten(1), m.norm.eps)
    return _linear(m.out_proj, torch.sigmoid(_linear(m.output_gate, x)) * normed)


def mamba(m: Any, x: Tensor) -> Tensor:
    """Gu & Dao 2023, algorithm 2, with its discretisation as released: Ā = exp(ΔA), B̄ = ΔB."""
    inner, gate = _linear(m.in_proj, x).chunk(2, -1)
    width = m.conv1d.weight.shape[-1]
    padded = torch.cat([x.new_zeros(width - 1, inner.shape[1]), inner])
    convolved = torch.stack([(padded[t : t + width] * m.conv1d.weight[:, 0].T).sum(0) for t in range(len(x))])
    if m.conv1d.bias is not None:
        convolved = convolved + m.conv1d.bias
    u = convolved * torch.sigmoid(convolved)
    rank, N = m.dt_proj.weight.shape[1], m.A_log.shape[1]
    low, B, C = _linear(m.x_proj, u).split([rank, N, N], -1)
    delta = torch.log1p(torch.exp(_linear(m.dt_proj, low)))
    A = -torch.exp(m.A_log)
    h = x.new_zeros(A.shape)
    out = []
    for t in range(len(x)):
        h = torch.exp(delta[t, :, None] * A) * h + delta[t, :, None] * B[t] * u[t, :, None]
        out.append((h * C[t]).sum(-1) + m.D * u[t])
    return _linear(m.out_proj, torch.stack(out) * gate * torch.sigmoid(gate))


def hgrn(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2023, section 3.2, in complex numbers: h_t = λ_t ∘ exp(iθ) ∘ h_{t-1} + (1 - λ_t) ∘ c_t."""
    c = F.silu(_linear(m.input_proj, x))
    theta = torch.zeros(m.channels, dtype=x.dtype)
    if m.complex:
        re, im = c.chunk(2, -1)
        c, theta = torch.complex(re, im), m.theta
    gamma = m.lower_bound if isinstance(m.lower_bound, float) else float(m.lower_bound)
    forget = gamma + (1 - gamma) * torch.sigmoid(_linear(m.forget_gate, x))
    turn = torch.polar(torch.ones_like(theta), theta)
    h = torch.zeros(m.channels, dtype=turn.dtype)
    out = []
    for t in range(len(x)):
        h = forget[t] * turn * h + (1 - forget[t]) * c[t]
        out.append(torch.cat([h.real, h.imag]) if m.complex else h.real)
    gated = torch.sigmoid(_linear(m.output_gate, x)) * torch.stack(out)
    normed = (gated - gated.mean(-1, keepdim=True)) / (
        gated.var(-1, keepdim=True, unbiased=False) + m.norm.eps
    ).sqrt()
    return _linear(m.out_proj, normed * m.norm.weight + m.norm.bias)


def softmax(m: Any, x: Tensor) -> Tensor:
    """Vaswani et al. 2017, eq. 1, causal; the rotations of Su et al. 2021 as complex numbers."""
    D = m.head_dim
    q, k, v = (_linear(p, x).reshape(len(x), -1, D) for p in (m.q_proj, m.k_proj, m.v_proj))
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
            w = torch.exp(k[: t + 1, shared] @ q[t, h] / math.sqrt(D))
            out[t, h] = (w / w.sum()) @ v[: t + 1, shared]
    return _linear(m.out_proj, out.flatten(1))


PAPERS: dict[str, Paper] = {
    "linear-attention": linear_attention,
    "transnormer": transnormer,
    "transnormer-llm": transnormer_llm,
    "lightning": lightning,
    "mamba": mamba,
    "hgrn": hgrn,
    "hgrn-complex": hgrn,
    "softmax": softmax,
}
