"""Launches of the elementwise regime: its plan, grids, scratch, and the sums over heads and blocks after.

Every schedule is the fused one here: a program takes a whole sequence, never a segment of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import recurrent
from .config import power
from .problem import VECTOR, Problem, gather, only, total


@dataclass(frozen=True)
class Plan:
    """C steps per block of time, a stored state per `SUB` of them; a program has BH heads, BV values and all
    keys, in groups of BK."""

    C: int
    SUB: int
    BK: int
    BH: int
    BV: int
    warps: int
    stages: int = 1

    @property
    def block(self) -> str:
        return f"{self.C}x{self.BK}x{self.BH}x{self.BV}"


def plan(x: Problem) -> Plan:
    """One lane per thread: a thread holds the C rows of its lane, about eight registers for every step, and
    twice that in float64 or where keys and values both decay: then half the steps. Every group of keys takes
    four more. Found by compiling (aot.py).

    A stored state for every block (SUB = 1) saves the walk over what comes before a block in its segment; but
    of several keys, states are as large as outputs. Nothing here depends on the target: what forward stored
    must have the shape that backward expects."""
    double = x.acc.itemsize == 8 or (x.key == VECTOR and x.lb is not None)
    BK = min(power(-(-x.K // 4)), 256)
    channels = min(64, 256 // BK)
    width = BK * channels
    BV = min(power(x.V), channels)
    BH = min(power(x.H), channels // BV)
    BK = min(power(x.K), width // (BH * BV))
    C, SUB = (8, 4) if double else (24, 1) if x.K == 1 else (16, 2)
    return Plan(C, SUB, BK, BH, BV, max(1, BK * BH * BV // x.target.warp))


def _common(x: Problem, p: Plan) -> dict[str, Any]:
    def share(group: int) -> bool:
        return group > 1 and (group % p.BH == 0 or group == x.H)

    return x.common(p.C) | {
        "BK": p.BK,
        "BH": p.BH,
        "BV": p.BV,
        "C": p.C,
        "SUB": p.SUB,
        "cols": x.V,
        "GROUPS": power(-(-x.K // p.BK)),
        "FIXED_A": x.log_decay is not None and x.log_decay.dim() == 1,
        "FIXED_B": x.log_decay_v is not None and x.log_decay_v.dim() == 2,
        "SHARE_Q": share(x.group_q),
        "SHARE_K": share(x.group_k),
    }


def _blocks(x: Problem, p: Plan) -> tuple[int, int]:
    """Blocks of values and of heads."""
    return -(-x.V // p.BV), -(-x.H // p.BH)


def _walk(x: Problem, p: Plan, o: Tensor | None, final: Tensor | None, states: Tensor | None) -> None:
    """The walk forward, which writes outputs and final state, states before every block, or both."""
    blocks, heads = _blocks(x, p)
    arguments = _common(x, p) | x.seed(x.initial_state)
    arguments |= {"states": states, "o": o, "final": final}
    arguments |= {"STORE": states is not None, "OUTPUT": o is not None}
    kernel = recurrent.recurrent_forward
    if x.N * x.H:
        x.run(kernel, x.N * heads * blocks, only(kernel, arguments), p)


def saved_shape(x: Problem) -> tuple[int, ...]:
    """States [slots, K, H, V], with channels last, as they lie across lanes."""
    p = plan(x)
    return x.slots(p.C * p.SUB), x.K, x.H, x.V


def forward(x: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    o, final = x.empty(x.B, x.T, x.H, x.V, dtype=x.v.dtype), x.empty(x.N, x.H, x.K, x.V)
    states = x.empty(*saved_shape(x)) if save else None
    _walk(x, plan(x), o, final, states)
    return o, final, states


def backward(x: Problem, saved: Tensor | None) -> tuple[Tensor | None, ...]:
    p = plan(x)
    blocks, heads = _blocks(x, p)
    arguments = _common(x, p)
    states = saved
    if states is None:
        states = x.empty(*saved_shape(x))
        _walk(x, p, None, None, states)

    def partial(like: Tensor, *shape: int, lone: bool = True) -> Tensor:
        """[blocks, ...] of sums over each block of values; of the gradient itself where there is one."""
        return x.empty(blocks, *shape, dtype=like.dtype if blocks == 1 and lone else None)

    nq = heads if arguments["SHARE_Q"] else x.H
    nk = heads if arguments["SHARE_K"] else x.H
    dq = partial(x.q, x.B, x.T, nq, x.K, lone=nq == x.q.shape[2])
    dk = partial(x.k, x.B, x.T, nk, x.K, lone=nk == x.k.shape[2])
    dv = x.empty(x.B, x.T, x.H, x.V, dtype=x.v.dtype)
    dla = dA = dlb = ds0 = None
    if x.log_decay is not None:
        if arguments["FIXED_A"]:
            dla = partial(x.log_decay, x.N, x.H, lone=x.N == 1)
        else:
            dla = partial(x.log_decay, x.B, x.T, x.H, *((x.K,) if x.key == VECTOR else ()))
    if x.outer is not None:
        dA = partial(x.outer, x.N, x.K, x.H, lone=x.N == 1)
    if x.log_decay_v is not None:
        fixed = arguments["FIXED_B"]
        shape = (x.N,) if fixed else (x.B, x.T)
        dlb = x.empty(*shape, x.H, x.V, dtype=None if fixed and x.N > 1 else x.log_decay_v.dtype)
    if x.initial_state is not None:
        ds0 = x.empty(x.N, x.H, x.K, x.V, dtype=x.initial_state.dtype)
    arguments |= {"dstate": x.dstate, "states": states, "dq": dq, "dk": dk, "dv": dv, "dla": dla, "dA": dA}
    arguments |= {"dlb": dlb, "ds0": ds0, "FINAL": ds0 is not None} | x.seed(x.dstate)
    kernel = recurrent.recurrent_backward
    if x.N * x.H:
        x.run(kernel, x.N * heads * blocks, only(kernel, arguments), p)

    if dla is not None and x.log_decay is not None:
        dla = (total(total(dla)) if arguments["FIXED_A"] else total(dla)).to(x.log_decay.dtype)
    if dA is not None and x.outer is not None:
        dA = total(total(dA)).mT.to(x.outer.dtype)
    if dlb is not None and x.log_decay_v is not None and arguments["FIXED_B"]:
        dlb = total(dlb).to(x.log_decay_v.dtype)
    return gather(dq, x.q), gather(dk, x.k), dv, dla, dA, dlb, None, None, None, ds0
