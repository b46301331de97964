"""The recurrence as a plain loop, and random arguments for it: what every form is measured against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerzoo.kernels import OuterDecay

DECAYS = ("none", "H", "BTH", "BTHK", "outer")
VALUE_DECAYS = ("none", "HV", "BTHV")


def loop(
    q,
    k,
    v,
    log_decay=None,
    log_decay_v=None,
    initial_state=None,
    scale=1.0,
    read="after",
    reverse=False,
    mask=None,
    beta=None,
    erase=None,
):
    """One step at a time, everything expanded. Differentiable by autograd."""
    B, T, H, V = v.shape
    K, dtype = k.shape[-1], torch.promote_types(v.dtype, torch.float32)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    q, k = (x.repeat_interleave(H // x.shape[2], 2) for x in (q, k))
    la = log_decay
    if la is None:
        la = torch.zeros(H, dtype=dtype)
    elif isinstance(la, OuterDecay):
        la = la.dt[..., None] * la.A.to(dtype).clamp_min(-1e30)
    la = {1: lambda x: x[:, None], 3: lambda x: x[..., None], 4: lambda x: x}[la.ndim](la)
    a = la.to(dtype).exp().expand(B, T, H, K)
    b = torch.zeros(H, V, dtype=dtype) if log_decay_v is None else log_decay_v
    b = b.to(dtype).exp().expand(B, T, H, V)
    S = torch.zeros(B, H, K, V, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    outs: list[Tensor | None] = [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        new = a[:, t, :, :, None] * b[:, t, :, None] * S
        value = v[:, t]
        if erase is not None:
            x, y = (z.to(dtype).repeat_interleave(H // z.shape[2], 2)[:, t, :, :, None] for z in erase)
            new = new + x * (y * S).sum(-2, keepdim=True)
        if beta is not None:
            value = beta[:, t, :, None].to(dtype) * (value - (k[:, t, :, :, None] * new).sum(-2))
        new = new + k[:, t, :, :, None] * value[..., None, :]
        if mask is not None:
            new = torch.where(mask[:, t, None, None, None], new, S)
        outs[t] = scale * (q[:, t, :, :, None] * (new if read == "after" else S)).sum(-2)
        S = new
    return torch.stack(outs, 1) if T else v, S


def log_decays(*shape: int, dtype=torch.float64, extremes=True) -> Tensor:
    """Ordinary decays, and among them exactly 1 (log 0), exactly 0 (log -inf) and exp(-1000)."""
    x = -torch.rand(shape, dtype=torch.float64)
    if extremes:
        r = torch.rand(shape)
        x[r < 0.1] = 0.0
        x[(r >= 0.1) & (r < 0.2)] = -math.inf
        x[(r >= 0.2) & (r < 0.3)] = -1000.0
    return x.to(dtype)


def arguments(
    B, T, H, K, V, decay="none", value_decay="none", dtype=torch.float64, heads=(None, None), extremes=True
):
    """(q, k, v, log_decay, log_decay_v, initial_state)."""
    hq, hk = (H if h is None else h for h in heads)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    def decays(*shape):
        return log_decays(*shape, dtype=dtype, extremes=extremes)

    def outer():
        dt, A = normal(B, T, H).abs(), decays(H, K)
        if extremes:
            # not where A = -inf: the derivative of 0^dt at 0 is not finite
            dt[(torch.rand(B, T, H) < 0.2) & ~torch.isneginf(A).any(1)] = 0.0
        return OuterDecay(dt, A)

    la = {
        "none": lambda: None,
        "H": lambda: decays(H),
        "BTH": lambda: decays(B, T, H),
        "BTHK": lambda: decays(B, T, H, K),
        "outer": lambda: outer(),
    }[decay]()
    lb = {"none": lambda: None, "HV": lambda: decays(H, V), "BTHV": lambda: decays(B, T, H, V)}[value_decay]()
    return normal(B, T, hq, K), normal(B, T, hk, K), normal(B, T, H, V), la, lb, normal(B, H, K, V)


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference over largest value. Infinite where anything is not finite."""
    if got.shape != want.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, not {tuple(want.shape)}")
    if want.numel() == 0:
        return 0.0
    if not torch.isfinite(got).all():
        return math.inf
    got, want = got.detach(), want.detach()
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30))


def leaves(*xs):
    """The tensors among arguments, an OuterDecay's included."""
    for x in xs:
        if isinstance(x, OuterDecay):
            yield from x
        elif isinstance(x, Tensor):
            yield x
