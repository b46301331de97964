"""RNNs whose gates look at the input alone, as plain loops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .common import Paper, convolved, heads, linear


def rg_lru(m: Any, x: Tensor) -> Tensor:
    """De et al. 2024, eq. 1 to 4: h_t = a_t ∘ h_{t-1} + sqrt(1 - a_t²) ∘ (i_t ∘ x_t), in Griffin's block."""
    u = convolved(m.conv_1d, linear(m.linear_x, x))
    blocks = heads(u, m.rg_lru.input_gate_weight.shape[0])

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        z = torch.stack([blocks[:, h] @ weight[h] + bias[h] for h in range(len(bias))], 1)
        return 1 / (1 + torch.exp(-z.flatten(1)))

    r = gate(m.rg_lru.recurrent_gate_weight, m.rg_lru.recurrent_gate_bias)
    i = gate(m.rg_lru.input_gate_weight, m.rg_lru.input_gate_bias)
    a = (1 / (1 + torch.exp(m.rg_lru.recurrent_param))) ** (8 * r)
    h, out = i[0] * u[0], []
    for t in range(len(x)):
        if t > 0:
            h = a[t] * h + torch.sqrt(1 - a[t] ** 2) * (i[t] * u[t])
        out.append(h)
    z = linear(m.linear_y, x)
    gelu = z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    return linear(m.linear_out, torch.stack(out) * gelu)


def mlstm(m: Any, x: Tensor) -> Tensor:
    """Beck et al. 2024, eq. 19 to 27, without their stabiliser: the exponentials as they are."""
    H, K, V = m.num_heads, m.key_dim, m.head_dim
    q, k, v = (heads(linear(p, x), H) for p in (m.q, m.k, m.v))

    def capped(z: Tensor) -> Tensor:
        return z if m.gate_soft_cap is None else m.gate_soft_cap * torch.tanh(z / m.gate_soft_cap)

    log_i, f = capped(linear(m.igate_preact, x)), capped(linear(m.fgate_preact, x))
    forget = torch.exp(f) if m.forget_gate == "exp" else torch.sigmoid(f)
    out = x.new_zeros(len(x), H, V)
    for h in range(H):
        C, n, top = x.new_zeros(V, K), x.new_zeros(K), x.new_zeros(())
        for t in range(len(x)):
            write = torch.exp(log_i[t, h])
            C = forget[t, h] * C + write * torch.outer(v[t, h], k[t, h] / math.sqrt(K))
            n = forget[t, h] * n + write * k[t, h] / math.sqrt(K)
            top = torch.maximum(forget[t, h].log() + top, log_i[t, h])
            divisor = torch.clamp((n @ q[t, h]).abs(), min=1) + m.normaliser_eps * torch.exp(top)
            out[t, h] = C @ q[t, h] / divisor
    centred = out - out.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + m.multihead_norm.eps).sqrt()
    normed = normed.flatten(1) * m.multihead_norm.weight
    if m.multihead_norm.bias is not None:
        normed = normed + m.multihead_norm.bias
    return linear(m.out_proj, torch.sigmoid(linear(m.ogate_preact, x)) * normed)


def rwkv4(m: Any, x: Tensor) -> Tensor:
    """Peng et al. 2023, eq. 11 to 18: the sums over all earlier tokens as they are written."""
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])

    def mixed(share: Tensor, layer: Any) -> Tensor:
        return linear(layer, share[0, 0] * x + (1 - share[0, 0]) * before)

    r = torch.sigmoid(mixed(m.time_mix_receptance, m.receptance))
    k, v = mixed(m.time_mix_key, m.key), mixed(m.time_mix_value, m.value)
    w, u = torch.exp(m.time_decay), m.time_first
    out = []
    for t in range(len(x)):
        above, below = torch.exp(u + k[t]) * v[t], torch.exp(u + k[t])
        for i in range(t):
            weight = torch.exp(-(t - 1 - i) * w + k[i])
            above, below = above + weight * v[i], below + weight
        out.append(r[t] * above / below)
    return linear(m.output, torch.stack(out))


def _candidate(m: Any, x: Tensor) -> Tensor:
    h = linear(m.hidden_proj, x)
    return torch.where(h >= 0, h + 0.5, torch.sigmoid(h)) if m.positive_state else h


def min_gru(m: Any, x: Tensor) -> Tensor:
    """Feng et al. 2024, section 3.1: h_t = (1 - z_t) ∘ h_{t-1} + z_t ∘ h̃_t."""
    z, candidate = torch.sigmoid(linear(m.gate_proj, x)), _candidate(m, x)
    h, out = torch.zeros_like(candidate[0]), []
    for t in range(len(x)):
        h = (1 - z[t]) * h + z[t] * candidate[t]
        out.append(h)
    return linear(m.out_proj, torch.stack(out))


def min_lstm(m: Any, x: Tensor) -> Tensor:
    """Feng et al. 2024, section 3.2: h_t = f'_t ∘ h_{t-1} + i'_t ∘ h̃_t, divided by f + i."""
    f, i = torch.sigmoid(linear(m.gate_proj, x)).chunk(2, -1)
    candidate = _candidate(m, x)
    h, out = torch.zeros_like(candidate[0]), []
    for t in range(len(x)):
        h = (f[t] * h + i[t] * candidate[t]) / (f[t] + i[t])
        out.append(h)
    return linear(m.out_proj, torch.stack(out))


def gateloop(m: Any, x: Tensor) -> Tensor:
    """Katsch 2023, section 3, in complex numbers: h_t = a_t h_{t-1} + k_tᵀ v_t, y_t = Re(q_t h_t)."""
    H = m.num_heads
    q, k, v = (heads(linear(p, x), H) for p in (m.q_proj, m.k_proj, m.v_proj))
    size = torch.sigmoid(heads(linear(m.size_proj, x), H))
    a = torch.polar(size, heads(linear(m.angle_proj, x), H))
    out = torch.zeros_like(v)
    for h in range(H):
        S = torch.zeros(k.shape[-1], v.shape[-1], dtype=a.dtype)
        for t in range(len(x)):
            S = a[t, h, :, None] * S + torch.outer(k[t, h], v[t, h])
            out[t, h] = ((q[t, h] + 0j) @ S).real
    return linear(m.out_proj, out.flatten(1))


GATED_RNN: dict[str, Paper] = {
    "rg-lru": rg_lru,
    "mingru": min_gru,
    "minlstm": min_lstm,
    "gateloop": gateloop,
    "mlstm": mlstm,
    "rwkv4": rwkv4,
}
