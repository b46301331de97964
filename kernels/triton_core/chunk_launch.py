"""Launches of the matmul regime: grids, scratch, and the sums over heads and blocks after."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import chunk
from .config import ChunkPlan, chunk_plan, use_split, walk_plan
from .problem import DELTA, GENERAL, NONE, OUTER, TL, VECTOR, Problem, gather, only, strides, total


def _plan(x: Problem, launch: str) -> ChunkPlan:
    return chunk_plan(
        x.target,
        launch,
        K=x.K,
        V=x.V,
        erase={NONE: "", DELTA: "delta", GENERAL: "general"}[x.erase],
        decays="both" if x.lb is not None else {VECTOR: "key", OUTER: "outer"}.get(x.key, "scalar"),
        acc=x.acc,
        operands=[x.q.dtype, x.k.dtype, x.v.dtype],
        precision=x.precision,
        chunk_size=x.chunk_size,
    )


def _common(x: Problem, p: ChunkPlan) -> dict[str, Any]:
    own = {}
    if x.erase == DELTA:  # what a step erases lies along its key
        own = {"x": x.k, "y": x.k, "group_x": x.group_k, "group_y": x.group_k}
        own |= strides("sx", x.k, "bthd") | strides("sy", x.k, "bthd")
    return (
        x.common(p.C)
        | own
        | {
            "BK": p.BK,
            "BV": p.BV,
            "C": p.C,
            "SEGMENT": p.segment,
            "TREE": p.tree,
            "DOT": TL[p.dot],
            "PREC": p.prec,
            "SOLVE": p.solve,
        }
    )


def _blocks(x: Problem, p: ChunkPlan) -> tuple[int, int]:
    """Blocks of keys, and of values."""
    return -(-x.K // p.BK), -(-x.V // p.BV)


def _split(x: Problem, p: ChunkPlan) -> bool:
    keys, blocks = _blocks(x, p)
    return use_split(x.schedule, x.target, x.N * x.H * keys * blocks, x.T, p.segment)


def _states(x: Problem, p: ChunkPlan, states: Tensor, final: Tensor | None, adjoint: bool) -> None:
    """Fill states [slots, H, K, V]; adjoint: with gradients of states, for which q and do play k and v."""
    arguments = _common(x, p) | x.seed(x.dstate if adjoint else x.initial_state)
    arguments |= {"states": states, "final": final, "FINAL": final is not None}
    arguments |= {"ADJOINT": adjoint, "group": x.group_q if adjoint else x.group_k}
    if adjoint:
        arguments |= {"k": x.q, "v": x.do}
        arguments |= {"sk" + a: arguments["sq" + a] for a in "bthd"}
        arguments |= {"sv" + a: arguments["so" + a] for a in "bthd"}
    keys, blocks = _blocks(x, p)
    x.run(chunk.chunk_states, (x.N, x.H, keys * blocks), only(chunk.chunk_states, arguments), p)


def saved_shape(x: Problem) -> tuple[int, ...]:
    return (0,)  # a state per chunk would cost forward more than backward could save


def forward(x: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    p = _plan(x, "forward")
    keys, blocks = _blocks(x, p)
    o = x.empty(keys, x.B, x.T, x.H, x.V, dtype=x.v.dtype if keys == 1 else None)
    final = x.empty(x.N, x.H, x.K, x.V)
    split = _split(x, p)
    walks = x.slots(p.segment) if split else x.N
    states = None
    if x.N * x.H:
        if split:
            states = x.empty(walks, x.H, x.K, x.V)
            _states(x, walk_plan(p), states, final, False)
        arguments = _common(x, p) | x.seed(None if split else x.initial_state)
        arguments |= {"states": states, "o": o, "final": None if split else final, "SPLIT": split}
        kernel = chunk.chunk_forward
        if walks:
            x.run(kernel, (walks, x.H, keys * blocks), only(kernel, arguments), p)
    return total(o).to(x.v.dtype), final, None


def backward(x: Problem, saved: Tensor | None) -> tuple[Tensor | None, ...]:
    p = _plan(x, "backward")
    keys, blocks = _blocks(x, p)
    # With one block and one head for each head of q, what a kernel writes is the gradient itself.
    lone_q, lone_k = blocks * x.group_q == 1, blocks * x.group_k == 1
    dq = x.empty(blocks, x.B, x.T, x.H, x.K, dtype=x.q.dtype if lone_q else None)
    dk = x.empty(blocks, x.B, x.T, x.H, x.K, dtype=x.k.dtype if lone_k else None)
    dv = x.empty(keys, x.B, x.T, x.H, x.V, dtype=x.v.dtype if keys == 1 else None)
    dla = dA = dlb = dbeta = dx = dy = ds0 = dstates = None
    split = _split(x, p)
    slots = x.slots(p.segment)
    walks = slots if split else x.N
    if x.key == VECTOR:
        dla = x.empty(blocks, x.B, x.T, x.H, x.K)
    elif x.key != NONE:
        dla = x.empty(blocks * keys, x.B, x.T, x.H)
    if x.key == OUTER:
        dA = x.empty(blocks, walks, x.H, x.K)
    if x.lb is not None:
        dlb = x.empty(keys, x.B, x.T, x.H, x.V)
    if x.erase == DELTA:
        dbeta = x.empty(blocks, x.B, x.T, x.H)
    if x.erase == GENERAL:
        dx, dy = (
            x.empty(blocks, x.B, x.T, x.H, x.K, dtype=x.v.dtype if blocks * group == 1 else None)
            for group in (x.group_x, x.group_y)
        )
    if x.initial_state is not None:
        ds0 = x.empty(x.N, x.H, x.K, x.V)
    if x.N * x.H:
        states = x.empty(slots, x.H, x.K, x.V, dtype=p.kept)
        _states(x, walk_plan(p) if split else p, states, None, False)
        if split:
            dstates = x.empty(slots, x.H, x.K, x.V)
            _states(x, walk_plan(p), dstates, ds0, True)
        arguments = _common(x, p) | x.seed(None if split else x.dstate)
        arguments |= {
            "states": states,
            "dstates": dstates,
            "dq": dq,
            "dk": dk,
            "dv": dv,
            "dla": dla,
            "dA": dA,
            "dbeta": dbeta,
            "dx": dx,
            "dy": dy,
        }
        arguments |= {"dlb": dlb, "ds0": None if split else ds0, "SPLIT": split}
        arguments |= {"FINAL": ds0 is not None and not split}
        kernel = chunk.chunk_backward
        if walks:
            x.run(kernel, (walks, x.H, keys * blocks), only(kernel, arguments), p)
    dlog_decay = douter = dlog_decay_v = None
    if x.log_decay is not None and dla is not None:
        dla = total(dla)
        dlog_decay = (dla.sum((0, 1)) if x.log_decay.dim() == 1 else dla).to(x.log_decay.dtype)
    if x.outer is not None and dA is not None:
        douter = dA.sum((0, 1)).to(x.outer.dtype)
    if x.log_decay_v is not None and dlb is not None:
        dlb = total(dlb)
        dlog_decay_v = (dlb.sum((0, 1)) if x.log_decay_v.dim() == 2 else dlb).to(x.log_decay_v.dtype)
    if x.beta is not None and dbeta is not None:
        dbeta = total(dbeta).to(x.beta.dtype)
    if x.x is not None and x.y is not None and dx is not None and dy is not None:
        dx, dy = gather(dx, x.x), gather(dy, x.y)
    if x.initial_state is not None and ds0 is not None:
        ds0 = ds0.to(x.initial_state.dtype)
    dq, dk, dv = gather(dq, x.q), gather(dk, x.k), total(dv).to(x.v.dtype)
    return dq, dk, dv, dlog_decay, douter, dlog_decay_v, dbeta, dx, dy, ds0
