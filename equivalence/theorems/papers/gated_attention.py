"""Linear attention with decays and gates, as plain loops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .common import Paper, head_norm, heads, linear, rms, silu


def _rotated(x: Tensor, dim: int, base: float) -> Tensor:
    """Su et al. 2021 on x [T, H, D]: channels i and i + dim/2 of the first dim turn as a complex number."""
    half = dim // 2
    theta = base ** (-2 * torch.arange(half, dtype=x.dtype) / dim)
    turn = torch.polar(
        torch.ones(len(x), 1, half, dtype=x.dtype), torch.arange(len(x))[:, None, None] * theta
    )
    z = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
    return torch.cat([z.real, z.imag, x[..., 2 * half :]], -1)


def _alibi(n: int) -> list[float]:
    """The slopes of Press et al. 2021 for any number of heads."""
    if n & (n - 1) == 0:
        return [2 ** (-8 * (h + 1) / n) for h in range(n)]
    below = 2 ** math.floor(math.log2(n))
    return _alibi(below) + _alibi(2 * below)[::2][: n - below]


def lightning_bailing(m: Any, x: Tensor) -> Tensor:
    """Ling Team 2025: kv_t = λ kv_{t-1} + k_t v_tᵀ, o_t = q_t kv_t, with RMSNorm and RoPE on q and k."""
    T, H, D = len(x), m.num_heads, m.head_dim
    qkv = linear(m.query_key_value, x)
    q, k, v = (heads(y, H) for y in (silu(qkv) if m.silu else qkv).chunk(3, -1))
    if not isinstance(m.query_layernorm, torch.nn.Identity):
        q, k = (n.weight * rms(y, n.eps) for n, y in ((m.query_layernorm, q), (m.key_layernorm, k)))
    q, k = (_rotated(y, m.rotary_dim, m.rotary_base) for y in (q, k))
    depth = (m.layer_idx - 1) / (m.num_layers - 1) if m.num_layers > 1 else 0
    out = x.new_zeros(T, H, D)
    for h, slope in enumerate(_alibi(H)):
        kv = x.new_zeros(D, D)
        for t in range(T):
            kv = math.exp(-slope * (1 - depth + 1e-5)) * kv + torch.outer(k[t, h], v[t, h])
            out[t, h] = q[t, h] @ kv / math.sqrt(D)
    groups = out.reshape(T, m.g_norm.groups, -1)
    normed = m.g_norm.weight * rms(groups, m.g_norm.eps).reshape(T, -1)
    return linear(m.dense, normed * torch.sigmoid(linear(m.g_proj, x)))


def rwkv6(m: Any, x: Tensor) -> Tensor:
    """Peng et al. 2024, eq. 9 to 18: o = r (s_{t-1} + diag(u) kᵀ v), s_t = diag(w) s_{t-1} + kᵀ v."""
    before = torch.cat([x.new_zeros(1, x.shape[1]), x[:-1]])
    base = torch.tanh(torch.lerp(x, before, m.time_maa_x) @ m.time_maa_w1).chunk(5, -1)
    w, k, v, r, g = (
        torch.lerp(x, before, mu + low @ up)
        for mu, low, up in zip(m.time_maa, base, m.time_maa_w2, strict=True)
    )
    k, v, r, g = linear(m.key, k), linear(m.value, v), linear(m.receptance, r), linear(m.gate, g)
    w = torch.exp(-torch.exp(m.time_decay + torch.tanh(w @ m.time_decay_w1) @ m.time_decay_w2))
    w, k, v, r = (heads(y, m.num_heads) for y in (w, k, v, r))
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        S = x.new_zeros(m.head_dim, m.head_dim)
        for t in range(len(x)):
            now = torch.outer(k[t, h], v[t, h])
            out[t, h] = r[t, h] @ (S + torch.diag(m.time_faaaa[h]) @ now)
            S = torch.diag(w[t, h]) @ S + now
    return linear(m.output, head_norm(m.ln_x, out) * silu(g))


GATED_ATTENTION: dict[str, Paper] = {
    "lightning-bailing": lightning_bailing,
    "rwkv6": rwkv6,
}
