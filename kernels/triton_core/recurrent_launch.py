"""Launches of the elementwise regime: plans, grids, scratch, and the sums over heads and blocks after."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import recurrent
from .config import plan
from .problem import NONE, OUTER, VECTOR, Problem, gather, only, total


def _plan(x: Problem, backward: bool) -> Any:
    return plan(
        x.target, backward=backward, K=x.K, V=x.V, H=x.H, decays="key", acc=x.acc,
        operands=[x.q.dtype, x.k.dtype, x.v.dtype], precision=x.precision, chunk_size=None,
        regime="recurrent",
    )  # fmt: skip


def _common(x: Problem, p: Any) -> dict[str, Any]:
    return x.common(p.C) | {
        "BK": p.BK,
        "BV": p.BV,
        "BH": p.BH,
        "CT": p.C,
        "SHARE_Q": x.group_q > 1 and x.group_q % p.BH == 0,
        "SHARE_K": x.group_k > 1 and x.group_k % p.BH == 0,
    }


def saved_shape(x: Problem) -> tuple[int, ...]:
    return (0,)


def forward(x: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    p = _plan(x, False)
    blocks = -(-x.V // p.BV)
    o, final = x.empty(x.B, x.T, x.H, x.V, dtype=x.v.dtype), x.empty(x.N, x.H, x.K, x.V)
    arguments = _common(x, p) | x.seed(x.initial_state)
    arguments |= {"states": None, "o": o, "final": final, "STORE": False, "OUTPUT": True}
    kernel = recurrent.recurrent_forward
    if x.N * x.H:
        x.run(kernel, x.N * -(-x.H // p.BH) * blocks, only(kernel, arguments), p)
    return o, final, None


def backward(x: Problem, saved: Tensor | None) -> tuple[Tensor | None, ...]:
    p = _plan(x, True)
    blocks, heads = -(-x.V // p.BV), -(-x.H // p.BH)
    arguments = _common(x, p)
    # With one block and one head for each head of q, what a kernel writes is the gradient itself.
    nq = heads if arguments["SHARE_Q"] else x.H
    nk = heads if arguments["SHARE_K"] else x.H
    lone_q, lone_k = blocks == 1 and nq == x.q.shape[2], blocks == 1 and nk == x.k.shape[2]
    dq = x.empty(blocks, x.B, x.T, nq, x.K, dtype=x.q.dtype if lone_q else None)
    dk = x.empty(blocks, x.B, x.T, nk, x.K, dtype=x.k.dtype if lone_k else None)
    dv = x.empty(x.B, x.T, x.H, x.V, dtype=x.v.dtype)
    dla = dA = dlb = ds0 = None
    if x.key != NONE:
        dla = x.empty(blocks, x.B, x.T, x.H, *((x.K,) if x.key == VECTOR else ()))
    if x.lb is not None:
        dlb = x.empty(x.B, x.T, x.H, x.V)
    if x.initial_state is not None:
        ds0 = x.empty(x.N, x.H, x.K, x.V)
    if x.key == OUTER:
        dA = x.empty(blocks, x.N, x.H, x.K)
    states = x.empty(x.slots(p.C), x.H, x.K, x.V)
    arguments |= {"dstate": x.dstate, "states": states, "dq": dq, "dk": dk, "dv": dv, "dla": dla, "dA": dA}
    arguments |= {"dlb": dlb, "ds0": ds0, "FINAL": ds0 is not None}
    grid = x.N * heads * blocks
    if grid:
        kernel = recurrent.recurrent_forward
        more = {"STORE": True, "OUTPUT": False, "o": None, "final": None}
        x.run(kernel, grid, only(kernel, arguments | x.seed(x.initial_state) | more), p)
        kernel = recurrent.recurrent_backward
        x.run(kernel, grid, only(kernel, arguments | x.seed(x.dstate)), p)
    dlog_decay = douter = dlog_decay_v = None
    if x.log_decay is not None and dla is not None:
        dla = total(dla)
        dlog_decay = (dla.sum((0, 1)) if x.log_decay.dim() == 1 else dla).to(x.log_decay.dtype)
    if x.outer is not None and dA is not None:
        douter = dA.sum((0, 1)).to(x.outer.dtype)
    if x.log_decay_v is not None and dlb is not None:
        dlog_decay_v = (dlb.sum((0, 1)) if x.log_decay_v.dim() == 2 else dlb).to(x.log_decay_v.dtype)
    if x.initial_state is not None and ds0 is not None:
        ds0 = ds0.to(x.initial_state.dtype)
    return gather(dq, x.q), gather(dk, x.k), dv, dlog_decay, douter, dlog_decay_v, ds0
