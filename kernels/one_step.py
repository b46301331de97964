"""One step of the recurrence: the torch formula, and the Triton kernel as torch sees it.

`mixerzoo::step` gives a new state, `mixerzoo::step_` writes it into the given one. Neither has a gradient:
where one is needed, the formula runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import triton_core
from .forms import read_state, tiny
from .ops import accumulation_dtype, split_resets


def formula(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    la: Tensor | None,
    A: Tensor | None,
    lb: Tensor | None,
    beta: Tensor | None,
    x: Tensor | None,
    y: Tensor | None,
    state: Tensor | None,
    mask: Tensor | None,
    scale: float,
    read: str,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """o_t [B, H, V] in the dtype of v_t and S_t [B, H, K, V], differentiable to any order. Arguments as in
    `step`, an outer log-decay as dt = la [B, H] and A [H, K]. In place, S_t takes the memory of the state,
    and nothing may need a gradient."""
    if torch.is_autocast_enabled(v_t.device.type):
        with torch.autocast(v_t.device.type, enabled=False):
            return formula(q_t, k_t, v_t, la, A, lb, beta, x, y, state, mask, scale, read, inplace)
    (B, H, V), K = v_t.shape, k_t.shape[2]
    dtype = accumulation_dtype(q_t, k_t, v_t, la, A, lb, beta, x, y, state)

    def heads(z: Tensor) -> Tensor:
        """[B, Hx, D] to [B, H, 1, D], in the accumulation dtype; one head is left to broadcasting."""
        z = z.to(dtype)
        if z.shape[1] not in (1, H):
            z = z.repeat_interleave(H // z.shape[1], 1)
        return z.unsqueeze(2)

    q, k, v = heads(q_t), heads(k_t).mT, v_t.to(dtype).unsqueeze(2)
    if x is not None and y is not None:
        x, y = heads(x).mT, heads(y)
    beta = None if beta is None else beta.to(dtype)[..., None, None]
    if scale != 1.0:
        q = q * scale
    if la is not None:
        la = la.to(dtype)[..., None, None] if la.ndim < 3 else la.to(dtype).unsqueeze(3)
        if A is not None:
            A, resets = split_resets(A)
            dt, la = la, la * A.to(dtype).unsqueeze(2)
            if resets is not None:
                la = la.masked_fill(resets.unsqueeze(2) & (dt > 0), -math.inf)
    if lb is not None:
        lb = lb.to(dtype).unsqueeze(-2)
    if mask is not None:
        keep = mask[:, None, None, None]

        def kept(z: Tensor) -> Tensor:
            return torch.where(keep, z, torch.zeros_like(z))

        k, v = kept(k), kept(v)
        la, lb, beta, x, y = (None if z is None else kept(z) for z in (la, lb, beta, x, y))
    S = v.new_zeros(B, H, K, V) if state is None else state.to(dtype)
    o, S = _advance(q, k, v, la, lb, beta, x, y, S, read_state, read, inplace)
    return o.squeeze(2).to(v_t.dtype), S


def plain_formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    la: Tensor | None,
    lb: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    scale: float,
    read: str,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """`formula` of operands of one dtype, which is that of the state. A call of torch takes a microsecond, a
    token is a dozen of them, and products of three dimensions take half of those of four."""
    B, H, K, V = state.shape
    n = B * H
    if K == 1 and beta is None:  # numbers for matrices
        la = la.unsqueeze(-1) if la is not None and la.ndim < 3 else la
        q, S = q if scale == 1.0 else q * scale, state.squeeze(2)
        o, S = _advance(q, k, v, la, lb, None, None, None, S, torch.mul, read, inplace)
        return o, state if inplace else S.unsqueeze(2)
    if k.shape[1] != H:
        q, k = (z.repeat_interleave(H // z.shape[1], 1) for z in (q, k))
    q, k, v = q.reshape(n, 1, K), k.reshape(n, K, 1), v.reshape(n, 1, V)
    S = state.view(n, K, V) if inplace else state.reshape(n, K, V)
    if scale != 1.0:
        q = q * scale
    if la is not None:
        la = (la.expand(B, H) if la.ndim == 1 else la).reshape(n, K if la.ndim == 3 else 1, 1)
    if lb is not None:
        lb = (lb.expand(B, H, V) if lb.ndim == 2 else lb).reshape(n, 1, V)
    if beta is not None:
        beta = beta.reshape(n, 1, 1)
    o, S = _advance(q, k, v, la, lb, beta, None, None, S, read_state if tiny(S) else torch.bmm, read, inplace)
    return o.reshape(B, H, V), state if inplace else S.reshape(B, H, K, V)


def _advance(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    la: Tensor | None,
    lb: Tensor | None,
    beta: Tensor | None,
    x: Tensor | None,
    y: Tensor | None,
    S: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    read: str,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """The step on S [..., K, V]: q and y [..., 1, K], k and x [..., K, 1], v [..., 1, V], la [..., K, 1] or
    [..., 1, 1], lb [..., 1, V]. Outputs [..., 1, V], and the new state."""
    o = product(q, S) if read == "before" else None
    erased = None if x is None or y is None else x * product(y, S)
    for weight in (la, lb):
        if weight is not None:
            S = S.mul_(weight.exp()) if inplace else S * weight.exp()
    if erased is not None:
        S = S.add_(erased) if inplace else S + erased
    if beta is not None:
        v = beta * (v - product(k.mT, S))
    S = S.addcmul_(k, v) if inplace else torch.addcmul(S, k, v)
    return product(q, S) if o is None else o, S


# ------------------------------------------------------------------ the kernel, registered


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    la: Tensor | None,
    A: Tensor | None,
    lb: Tensor | None,
    beta: Tensor | None,
    x: Tensor | None,
    y: Tensor | None,
    state: Tensor | None,
    mask: Tensor | None,
    scale: float,
    read: str,
) -> tuple[Tensor, Tensor]:
    return triton_core.step(q, k, v, la, A, lb, beta, x, y, state, mask, scale=scale, read=read)


def _step_in_place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    la: Tensor | None,
    A: Tensor | None,
    lb: Tensor | None,
    beta: Tensor | None,
    x: Tensor | None,
    y: Tensor | None,
    state: Tensor,
    mask: Tensor | None,
    scale: float,
    read: str,
) -> Tensor:
    out, _ = triton_core.step(
        q, k, v, la, A, lb, beta, x, y, state, mask, scale=scale, read=read, inplace=True
    )
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)  # so that autograd knows of a saved state's change
    return out


def _fake_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    la: Tensor | None,
    A: Tensor | None,
    lb: Tensor | None,
    beta: Tensor | None,
    x: Tensor | None,
    y: Tensor | None,
    state: Tensor | None,
    mask: Tensor | None,
    scale: float,
    read: str,
) -> tuple[Tensor, Tensor]:
    B, H, V = v.shape
    dtype = accumulation_dtype(q, k, v, la, A, lb, beta, x, y, state)
    return v.new_empty(B, H, V), v.new_empty(B, H, k.shape[2], V, dtype=dtype)


def _fake_in_place(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
    return v.new_empty(v.shape)


_OPERANDS = (
    "Tensor q, Tensor k, Tensor v, Tensor? la, Tensor? A, Tensor? lb, Tensor? beta, Tensor? x, Tensor? y"
)
_OPTIONS = "Tensor? mask, float scale, str read"
torch.library.define("mixerzoo::step", f"({_OPERANDS}, Tensor? state, {_OPTIONS}) -> (Tensor, Tensor)")
torch.library.impl("mixerzoo::step", "CompositeExplicitAutograd", _step)
torch.library.register_fake("mixerzoo::step", _fake_step)
torch.library.define("mixerzoo::step_", f"({_OPERANDS}, Tensor(a!) state, {_OPTIONS}) -> Tensor")
torch.library.impl("mixerzoo::step_", "CompositeExplicitAutograd", _step_in_place)
torch.library.register_fake("mixerzoo::step_", _fake_in_place)

step_op = torch.ops.mixerzoo.step.default
step_in_place_op = torch.ops.mixerzoo.step_.default
