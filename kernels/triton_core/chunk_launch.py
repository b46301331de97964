"""Launches of the matmul regime: grids, scratch, and the sums over heads and blocks after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import chunk
from .config import Plan, plan, use_split
from .problem import NONE, OUTER, TL, VECTOR, Problem, gather, only, total


def _plan(x: Problem, backward: bool) -> Plan:
    return plan(
        x.target,
        backward=backward,
        K=x.K,
        V=x.V,
        H=x.H,
        decays="both" if x.lb is not None else {VECTOR: "key", OUTER: "outer"}.get(x.key, "scalar"),
        acc=x.acc,
        operands=[x.q.dtype, x.k.dtype, x.v.dtype],
        precision=x.precision,
        chunk_size=x.chunk_size,
        regime="chunk",
    )


def _common(x: Problem, p: Plan) -> dict[str, Any]:
    return x.common(p.C) | {
        "BK": p.BK,
        "BV": p.BV,
        "C": p.C,
        "SEGMENT": p.segment,
        "TREE": p.tree,
        "LEVELS": p.C.bit_length() - 1,
        "DOT": TL[p.dot],
        "PREC": p.prec,
        "SUMS": TL[p.sums],
    }


def saved_shape(x: Problem) -> tuple[int, ...]:
    return (0,)


def forward(x: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    p = _plan(x, False)
    blocks, keys = -(-x.V // p.BV), -(-x.K // p.BK)
    o = x.empty(keys, x.B, x.T, x.H, x.V, dtype=x.v.dtype if keys == 1 else None)
    final = x.empty(x.N, x.H, x.K, x.V)
    arguments = (
        _common(x, p)
        | x.seed(x.initial_state)
        | {
            "states": None,
            "o": o,
            "final": final,
            "SPLIT": False,
        }
    )
    kernel = chunk.chunk_forward
    walks = x.N
    if use_split(x.schedule, x.target, x.N * x.H * blocks * keys, x.T, p.segment) and walks * x.H:
        walks = x.slots(p.segment)
        states = x.empty(walks, x.H, x.K, x.V)
        _states(x, p, arguments | {"states": states}, False, final)
        arguments |= {"SPLIT": True, "states": states, "final": None}
    if walks * x.H:
        x.run(kernel, walks * x.H * keys * blocks, only(kernel, arguments), p)
    return total(o).to(x.v.dtype), final, None


def _states(x: Problem, p: Plan, arguments: dict[str, Any], adjoint: bool, final: Tensor | None) -> None:
    """Fill arguments["states"]; with adjoint, the gradients of states, for which q and do play k and v."""
    kernel = chunk.chunk_states
    arguments = arguments | {
        "ADJOINT": adjoint,
        "group": x.group_q if adjoint else x.group_k,
        "final": final,
        "FINAL": final is not None,
    }
    if adjoint:
        arguments |= {"k": x.q, "v": arguments["do"]}
        arguments |= {"sk" + a: arguments["sq" + a] for a in "bthd"}
        arguments |= {"sv" + a: arguments["so" + a] for a in "bthd"}
    warps = 4 if p.BK * p.BV <= 4096 else 8  # it holds little but the state
    grid = x.N * x.H * -(-x.K // p.BK) * -(-x.V // p.BV)
    x.run(kernel, grid, only(kernel, arguments), replace(p, warps=warps))


def backward(x: Problem, saved: Tensor | None) -> tuple[Tensor | None, ...]:
    p = _plan(x, True)
    blocks, keys, heads = -(-x.V // p.BV), -(-x.K // p.BK), -(-x.H // p.BH)
    arguments = _common(x, p)
    # (reads, writes, within) of each launch of the chunk kernel. Each adds its own blocks to the sums over
    # blocks: the last number of launches which touch dq; dk and dv; the gradients of decays.
    passes = [(True, True, True)]
    if p.apart:
        passes = [(True, False, False), (False, True, False), (False, False, True)]
    two, three = min(len(passes), 2), len(passes)
    # With one block and one head for each head of x.q, what a kernel writes is the gradient itself.
    nq = heads if arguments.get("SHARE_Q") else x.H
    nk = heads if arguments.get("SHARE_K") else x.H
    lone = blocks * two == 1
    lone_q, lone_k = lone and nq == x.q.shape[2], lone and nk == x.k.shape[2]
    dq = x.empty(two * blocks, x.B, x.T, nq, x.K, dtype=x.q.dtype if lone_q else None)
    dk = x.empty(two * blocks, x.B, x.T, nk, x.K, dtype=x.k.dtype if lone_k else None)
    dv = x.empty(two * keys, x.B, x.T, x.H, x.V, dtype=x.v.dtype if two * keys == 1 else None)
    dla = dA = dlb = ds0 = None
    if x.key != NONE:
        vector = x.key == VECTOR
        dla = x.empty(three * blocks * (1 if vector else keys), x.B, x.T, x.H, *((x.K,) if vector else ()))
    if x.lb is not None:
        dlb = x.empty(three * keys, x.B, x.T, x.H, x.V)
    if x.initial_state is not None:
        ds0 = x.empty(x.N, x.H, x.K, x.V)
    split = use_split(x.schedule, x.target, x.N * x.H * blocks * keys, x.T, p.segment)
    slots = x.slots(p.segment)
    walks = slots if split else x.N
    if x.key == OUTER:
        dA = [x.empty(blocks, walks if writes else slots, x.H, x.K) for _, writes, _ in passes]
    states = x.empty(slots, x.H, x.K, x.V)
    arguments |= {
        "dstate": x.dstate,
        "states": states,
        "dstates": None,
        "dq": dq,
        "dk": dk,
        "dv": dv,
        "dla": dla,
        "dA": dA[0] if dA else None,
        "dlb": dlb,
        "ds0": None if split else ds0,
        "SPLIT": split,
        "FINAL": ds0 is not None and not split,
    }
    seed, adjoint_seed = x.seed(x.initial_state), x.seed(x.dstate)
    if x.N * x.H:
        _states(x, p, arguments | seed, False, None)
        if split:
            arguments["dstates"] = x.empty(slots, x.H, x.K, x.V)
            _states(x, p, arguments | adjoint_seed | {"states": arguments["dstates"]}, True, ds0)
        kernel = chunk.chunk_backward
        for i, (reads, writes, within) in enumerate(passes):
            one = arguments | adjoint_seed | {"READS": reads, "WRITES": writes, "WITHIN": within}
            for name, parts, place in (
                ("dq", dq, i // 2), ("dk", dk, i - 1), ("dv", dv, i - 1), ("dla", dla, i), ("dlb", dlb, i)
            ):  # fmt: skip
                count = two if name in ("dq", "dk", "dv") else three
                if parts is not None:
                    one[name] = parts.unflatten(0, (count, -1))[max(place, 0)]
            if dA:
                one["dA"] = dA[i]
            if not writes:  # segments side by side: nothing passes from one to the next
                one |= {
                    "SPLIT": True,
                    "FINAL": False,
                    "INITIAL": False,
                    "ds0": None,
                    "dstate": None,
                    "dstates": None,
                }
            grid = (walks if writes else slots) * x.H * keys * blocks
            if grid:
                x.run(kernel, grid, only(kernel, one), p)
    dlog_decay = douter = dlog_decay_v = None
    if x.log_decay is not None and dla is not None:
        dla = total(dla)
        dlog_decay = (dla.sum((0, 1)) if x.log_decay.dim() == 1 else dla).to(x.log_decay.dtype)
    if x.outer is not None and dA is not None:
        douter = torch.stack([part.sum((0, 1)) for part in dA]).sum(0).to(x.outer.dtype)
    if x.log_decay_v is not None and dlb is not None:
        dlb = total(dlb)
        dlog_decay_v = (dlb.sum((0, 1)) if x.log_decay_v.dim() == 2 else dlb).to(x.log_decay_v.dtype)
    if x.initial_state is not None and ds0 is not None:
        ds0 = ds0.to(x.initial_state.dtype)
    return gather(dq, x.q), gather(dk, x.k), total(dv).to(x.v.dtype), dlog_decay, douter, dlog_decay_v, ds0
