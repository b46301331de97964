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


def cosformer(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2022, eq. 10, causal: weights relu(Q_i)·relu(K_j) cos(π/2 (i - j)/M) over their sum."""
    q, k, v = (heads(linear(p, x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    q, k = q.clamp(min=0), k.clamp(min=0)
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        for i in range(len(x)):
            cosine = torch.cos(math.pi / 2 * (i - torch.arange(i + 1, dtype=x.dtype)) / m.max_length)
            w = (k[: i + 1, h] @ q[i, h]) * cosine
            out[i, h] = (w @ v[: i + 1, h]) / w.sum().clamp(min=m.eps)
    return linear(m.out_proj, out.flatten(1))


def _swish_gated(m: Any, x: Tensor, out: Tensor) -> Tensor:
    gate = heads(silu(linear(m.g_proj, x)), m.num_heads)
    return linear(m.o_proj, (m.g_norm.weight * rms(out, m.g_norm.eps) * gate).flatten(1))


def _queries_keys_values(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (heads(linear(p, x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    return q / math.sqrt(m.head_dim), k, v


def _retention(m: Any, x: Tensor, both: bool) -> Tensor:
    """(Q Kᵀ ⊙ D) V with D_nm = γ^{n-m}, n ≥ m; in both directions γ^|n-m|."""
    q, k, v = _queries_keys_values(m, x)
    q, k = (_rotated(y, m.head_dim, m.rotary_base) for y in (q, k))
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        for n in range(len(x)):
            for j in range(len(x) if both else n + 1):
                out[n, h] += (1 - 2.0 ** (-5 - h)) ** abs(n - j) * (q[n, h] @ k[j, h]) * v[j, h]
    return _swish_gated(m, x, out)


def retnet(m: Any, x: Tensor) -> Tensor:
    """Sun et al. 2023, eq. 5, the parallel form."""
    return _retention(m, x, both=False)


def retnet_bidirectional(m: Any, x: Tensor) -> Tensor:
    """Fan et al. 2023, in one dimension: D_nm = γ^|n-m|."""
    return _retention(m.mixer, x, both=True)


def _gates(m: Any, x: Tensor) -> Tensor:
    """α [T, H, K] or [T, H, 1]."""
    z = x
    for layer in m.gk_proj if isinstance(m.gk_proj, torch.nn.Sequential) else (m.gk_proj,):
        z = linear(layer, z)
    return heads(torch.sigmoid(z) ** (1 / m.gate_divisor), m.num_heads)


def gla(m: Any, x: Tensor) -> Tensor:
    """Yang et al. 2023, eq. 3: S_t = (α_tᵀ 1) ⊙ S_{t-1} + k_tᵀ v_t. Simple GLA: one α for a head."""
    q, k, v = _queries_keys_values(m, x)
    alpha, out = _gates(m, x), torch.zeros_like(v)
    for h in range(m.num_heads):
        S = x.new_zeros(m.head_dim, m.head_v_dim)
        for t in range(len(x)):
            S = alpha[t, h, :, None] * S + torch.outer(k[t, h], v[t, h])
            out[t, h] = q[t, h] @ S
    return _swish_gated(m, x, out)


def gla_bidirectional(m: Any, x: Tensor) -> Tensor:
    """The weights one by one: the product of α over (s, t] before the token, over [t, s) after it."""
    m = m.mixer
    q, k, v = _queries_keys_values(m, x)
    alpha, out = _gates(m, x), torch.zeros_like(v)
    for h in range(m.num_heads):
        for t in range(len(x)):
            for s in range(len(x)):
                between = alpha[s + 1 : t + 1, h] if s <= t else alpha[t:s, h]
                out[t, h] += (q[t, h] * between.prod(0) * k[s, h]).sum() * v[s, h]
    return _swish_gated(m, x, out)


def hgrn2(m: Any, x: Tensor) -> Tensor:
    """Qin et al. 2024, eq. 3: h_t = Diag(f_t) h_{t-1} + (1 - f_t) ⊗ i_t, read by o_t."""
    gamma = float(m.lower_bound)
    f = heads(gamma + (1 - gamma) * torch.sigmoid(linear(m.f_proj, x)), m.num_heads)
    q, i = heads(silu(linear(m.q_proj, x)), m.num_heads), heads(linear(m.i_proj, x), m.num_heads)
    out = torch.zeros_like(i)
    for h in range(m.num_heads):
        S = x.new_zeros(m.head_dim, m.head_v_dim)
        for t in range(len(x)):
            S = torch.diag(f[t, h]) @ S + torch.outer(1 - f[t, h], i[t, h])
            out[t, h] = q[t, h] @ S
    return linear(m.o_proj, m.g_norm.weight * rms(out.flatten(1), m.g_norm.eps))


def gated_slot_attention(m: Any, x: Tensor) -> Tensor:
    """Zhang et al. 2024, eq. 8 to 10: slots K̃ and Ṽ, o_t = Ṽ_tᵀ softmax(K̃_t q_t)."""
    q, k, v = (heads(silu(linear(p, x)), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    alpha = heads(torch.sigmoid(linear(m.f_proj, x)) ** (1 / m.gate_divisor), m.num_heads)
    out = torch.zeros_like(v)
    for h in range(m.num_heads):
        K, V = x.new_zeros(m.num_slots, m.head_dim), x.new_zeros(m.num_slots, m.head_v_dim)
        for t in range(len(x)):
            a = alpha[t, h]
            K = a[:, None] * K + torch.outer(1 - a, k[t, h])
            V = a[:, None] * V + torch.outer(1 - a, v[t, h])
            out[t, h] = V.T @ (K @ q[t, h]).softmax(0)
    return linear(m.o_proj, m.g_norm.weight * rms(silu(out.flatten(1)), m.g_norm.eps))


GATED_ATTENTION: dict[str, Paper] = {
    "lightning-bailing": lightning_bailing,
    "rwkv6": rwkv6,
    "cosformer": cosformer,
    "retnet": retnet,
    "retnet-bidirectional": retnet_bidirectional,
    "gla": gla,
    "gla-bidirectional": gla_bidirectional,
    "simple-gla": gla,
    "hgrn2": hgrn2,
    "gated-slot-attention": gated_slot_attention,
}
