"""One step of the recurrence as one kernel: the state is read once and written once, in place if asked.

Each program takes a block of heads and a block of values of one batch row, with all keys: so o needs no
second pass. No matrix product: the work is the traffic of the state. What a block of values reads again (q, k
and a log-decay per key) is less than 2% of that where heads are 64 values wide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import Target, accumulation, power
from .decay import NONE, OUTER, SCALAR, VECTOR
from .delta import DELTA, GENERAL
from .problem import TL, Run, launch, strides, target_of


@triton.jit
def load_rows(p, h, in_h, d, in_d, sh, sd):
    """[BH, D] tile: rows h, columns d, zeros where there is nothing."""
    at = h[:, None] * sh + d[None, :] * sd
    return tl.load(p + at, mask=in_h[:, None] & in_d[None, :], other=0.0)


@triton.jit(do_not_specialize=["sqb", "skb", "seb", "sxb", "syb", "smb"])
def step_kernel(
    q, k, v, la, A, lb, beta, x, y, mask, state, new, o, scale: tl.float64, H, group_q, group_k, group_x,
    group_y, sqb, sqh, sqd, skb, skh, skd, svb, svh, svd, sab, sah, sad, sAh, sAd, sbb, sbh, sbd, seb, seh,
    sxb, sxh, sxd, syb, syh, syd, smb,
    ssb, ssh, ssk, ssv, snb, snh, snk, snv,
    K: tl.constexpr, V: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KEY: tl.constexpr, VALUE: tl.constexpr, ERASE: tl.constexpr, MASK: tl.constexpr, STATE: tl.constexpr,
    BEFORE: tl.constexpr, ROWS_Q: tl.constexpr, ROWS_K: tl.constexpr, ROWS_X: tl.constexpr,
    ROWS_Y: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """new [B, H, K, V] and o [B, H, V] (contiguous) from state, which may be the same memory as new.

    STATE: whether there is one (else it is zero, and no decay is looked at). BEFORE: o reads the old state.
    ROWS_Q, ROWS_K, ROWS_X, ROWS_Y: 1 where all heads of a block have one row of q, k, x or y, else BH. With
    ERASE, K <= BK: what is erased is a sum over keys. Tiles are [BH, BK, BV]; all offsets are 64 bits. Grid:
    B * blocks of H * blocks of V."""
    pid = tl.program_id(0).to(tl.int64)
    blocks, heads = tl.cdiv(V, BV), tl.cdiv(H, BH)
    b = pid // blocks // heads
    first = pid // blocks % heads * BH
    h = first + tl.arange(0, BH)
    e = pid % blocks * BV + tl.arange(0, BV)
    in_h, in_v = h < H, e < V
    row = in_h[:, None] & in_v[None, :]
    hq, hk = first + tl.arange(0, ROWS_Q), first + tl.arange(0, ROWS_K)
    hx, hy = first + tl.arange(0, ROWS_X), first + tl.arange(0, ROWS_Y)
    in_q, in_k, in_x, in_y, in_w = hq < H, hk < H, hx < H, hy < H, in_h
    if MASK:  # what a masked row brings is not loaded: it becomes k = v = 0 and a log-decay of 0
        keep = tl.load(mask + b * smb) != 0
        in_k, in_x, in_y, in_w = in_k & keep, in_x & keep, in_y & keep, in_w & keep
    write = load_rows(v + b * svb, h, in_w, e, in_v, svh, svd).to(ACC)
    strength = tl.zeros([BH], ACC)
    if ERASE == DELTA:
        strength += tl.load(beta + b * seb + h * seh, mask=in_w, other=0.0).to(ACC)
    dt = tl.zeros([BH], ACC)
    if STATE and KEY != NONE and KEY != VECTOR:
        dt = tl.load(la + b * sab + h * sah, mask=in_w, other=0.0).to(ACC)
    decay_v = tl.zeros([BH, BV], ACC)
    if STATE and VALUE:
        decay_v = tl.exp(load_rows(lb + b * sbb, h, in_w, e, in_v, sbh, sbd).to(ACC))
    factor = tl.full([], scale, ACC)
    out = tl.zeros([BH, BV], ACC)
    for start in range(0, K, BK):
        d = start + tl.arange(0, BK).to(tl.int64)
        in_d = d < K
        inside = row[:, None, :] & in_d[None, :, None]
        S = tl.zeros([BH, BK, BV], ACC)
        if STATE:
            at = h[:, None, None] * ssh + d[None, :, None] * ssk + e[None, None, :] * ssv
            S = tl.load(state + b * ssb + at, mask=inside, other=0.0).to(ACC)
        q_t = load_rows(q + b * sqb, hq // group_q, in_q, d, in_d, sqh, sqd).to(ACC) * factor
        k_t = load_rows(k + b * skb, hk // group_k, in_k, d, in_d, skh, skd).to(ACC)
        read = S
        if STATE:
            if KEY == SCALAR:
                S = S * tl.exp(dt)[:, None, None]
            elif KEY == VECTOR:
                log = load_rows(la + b * sab, h, in_w, d, in_d, sah, sad).to(ACC)
                S = S * tl.exp(log)[:, :, None]
            elif KEY == OUTER:
                a = load_rows(A, h, in_w, d, in_d, sAh, sAd).to(ACC)
                # exp(dt·A) is e^A to the power dt: with A = -inf, 0 for dt > 0 and 1 for dt = 0
                reset = tl.where(dt > 0, -float("inf"), dt * 0.0)
                log = tl.where(a == -float("inf"), reset[:, None], dt[:, None] * a)
                S = S * tl.exp(tl.where(in_d[None, :], log, 0.0))[:, :, None]
            if VALUE:
                S = S * decay_v[:, None, :]
        if ERASE == DELTA:
            write = strength[:, None] * (write - tl.sum(k_t[:, :, None] * S, 1))
        if ERASE == GENERAL and STATE:
            x_t = load_rows(x + b * sxb, hx // group_x, in_x, d, in_d, sxh, sxd).to(ACC)
            y_t = load_rows(y + b * syb, hy // group_y, in_y, d, in_d, syh, syd).to(ACC)
            S = S + x_t[:, :, None] * tl.sum(y_t[:, :, None] * read, 1)[:, None, :]
        S = S + k_t[:, :, None] * write[:, None, :]
        at = h[:, None, None] * snh + d[None, :, None] * snk + e[None, None, :] * snv
        tl.store(new + b * snb + at, S, mask=inside)
        if not BEFORE:
            read = S
        out += tl.sum(q_t[:, :, None] * read, 1)
    tl.store(o + (b * H + h)[:, None] * V + e[None, :], out, mask=row)


class Blocks(NamedTuple):
    """Heads, keys and values of the state which a program holds at once."""

    BH: int
    BK: int
    BV: int
    warps: int
    stages: int = 1


def blocks(target: Target, H: int, K: int, V: int, acc: torch.dtype, whole: bool = False) -> Blocks:
    """At most 32 KiB of the state, 64 values wide if there are keys enough; small heads by the dozen. whole:
    all keys, of fewer values if need be.

    Independent of B, so that neither the compiled kernel nor a row's result depends on the batch it is in."""
    BV = min(power(V), max(64, 512 // power(K)))
    if whole:
        BV = max(1, min(BV, 32768 // acc.itemsize // power(K)))
    BK = power(K) if whole else min(power(K), 32768 // acc.itemsize // BV)
    BH = min(power(H), max(1, 2048 // (BK * BV)))
    return Blocks(BH, BK, BV, min(8, max(1, BH * BK * BV // (16 * target.warp))))


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    outer: Tensor | None,
    log_decay_v: Tensor | None,
    beta: Tensor | None,
    x: Tensor | None,
    y: Tensor | None,
    state: Tensor | None,
    mask: Tensor | None,
    *,
    scale: float,
    read: str,
    inplace: bool = False,
    target: Target | None = None,
    run: Run = launch,
) -> tuple[Tensor, Tensor]:
    """o [B, H, V] in the dtype of v, and the new state [B, H, K, V] in the accumulation dtype.

    q [B, Hq, K], k [B, Hk, K], v [B, H, V]; log_decay None, [H], [B, H] or [B, H, K], or, with outer [H, K],
    the dt [B, H] of log-decays dt * outer; log_decay_v None, [H, V] or [B, H, V]; beta None or [B, H]; x, y
    None or [B, Hx, K] and [B, Hy, K]; state [B, H, K, V] or None; mask [B]. inplace: write the new state into
    state. target, run: for what to compile and how to launch."""
    (B, H, V), K = v.shape, q.shape[-1]
    acc = accumulation(q, k, v, log_decay, outer, log_decay_v, beta, x, y, state)
    o = torch.empty((B, H, V), dtype=v.dtype, device=v.device)
    new = torch.empty((B, H, K, V), dtype=acc, device=v.device) if state is None or not inplace else state
    key, la = NONE.value, log_decay
    if la is not None:
        key = OUTER.value if outer is not None else VECTOR.value if la.dim() == 3 else SCALAR.value
        la = la.expand(B, H) if la.dim() == 1 else la  # constants have stride 0
    lb = None if log_decay_v is None else log_decay_v.expand(B, H, V)
    erase = NONE.value if beta is None and x is None else DELTA.value if x is None else GENERAL.value
    plan = blocks(target or target_of(v), H, K, V, acc, erase != NONE.value)
    group_q, group_k, group_x, group_y = (1 if z is None else H // z.shape[1] for z in (q, k, x, y))
    arguments: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "la": la,
        "A": outer,
        "lb": lb,
        "beta": beta,
        "x": x,
        "y": y,
        "mask": mask,
        "state": state,
        "new": new,
        "o": o,
        "scale": scale,
        "H": H,
        "group_q": group_q,
        "group_k": group_k,
        "group_x": group_x,
        "group_y": group_y,
        **strides("sq", q, "bhd"),
        **strides("sk", k, "bhd"),
        **strides("sv", v, "bhd"),
        **strides("sa", la, "bhd"),
        **strides("sA", outer, "hd"),
        **strides("sb", lb, "bhd"),
        **strides("se", beta, "bh"),
        **strides("sx", x, "bhd"),
        **strides("sy", y, "bhd"),
        **strides("sm", mask, "b"),
        **strides("ss", state, "bhkv"),
        **strides("sn", new, "bhkv"),
        "K": K,
        "V": V,
        "BH": plan.BH,
        "BK": plan.BK,
        "BV": plan.BV,
        "KEY": key,
        "VALUE": lb is not None,
        "ERASE": erase,
        "MASK": mask is not None,
        "STATE": state is not None,
        "BEFORE": read == "before",
        "ROWS_Q": plan.BH if group_q % plan.BH else 1,
        "ROWS_K": plan.BH if group_k % plan.BH else 1,
        "ROWS_X": plan.BH if group_x % plan.BH else 1,
        "ROWS_Y": plan.BH if group_y % plan.BH else 1,
        "ACC": TL[acc],
    }
    grid = B * -(-H // plan.BH) * -(-V // plan.BV)
    if grid:
        run(step_kernel, grid, arguments, plan)
    return o, new
