"""From tensors to kernel launches: strides, grids, scratch, and the small sums over heads and blocks
after."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from . import chunk, recurrent
from .config import INTERPRETER, Plan, Target, accumulation, plan, use_split

NONE, SCALAR, VECTOR, OUTER = 0, 1, 2, 3  # as in decay.py
_TL = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
Run = Callable[[Any, int, dict[str, Any], Plan], None]


@functools.cache
def _card(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        arch = properties.gcnArchName.split(":")[0]
        return Target("hip", arch, properties.warp_size, properties.multi_processor_count)
    return Target("cuda", properties.major * 10 + properties.minor, 32, properties.multi_processor_count)


def target_of(x: Tensor) -> Target:
    """The target for which kernels on this tensor are compiled."""
    if not x.is_cuda:
        return INTERPRETER
    return _card(x.device.index if x.device.index is not None else torch.cuda.current_device())


def run(kernel: Any, grid: int, arguments: dict[str, Any], plan: Plan) -> None:
    """Launch on the device of the tensors. aot.py puts its own recorder in this place."""
    device = arguments["k"].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(grid,)](**arguments, num_warps=plan.warps, num_stages=plan.stages)


class Problem:
    """The arguments of one call, with what both passes derive from them."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        outer: Tensor | None,
        log_decay_v: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        read: str,
        reverse: bool,
        target: Target | None,
        do: Tensor | None = None,
        dstate: Tensor | None = None,
    ):
        self.B, self.T, self.H, self.V = v.shape
        self.K = q.shape[-1]
        self.q, self.k, self.v, self.outer = q, k, v, outer
        self.log_decay, self.log_decay_v, self.initial_state = log_decay, log_decay_v, initial_state
        self.cu_seqlens = cu_seqlens
        self.do, self.states = do, (initial_state, dstate)
        self.N = self.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.group_q, self.group_k = self.H // q.shape[2], self.H // k.shape[2]
        self.read, self.reverse = read, reverse
        self.target = target or target_of(v)
        self.acc = accumulation(q, k, v, log_decay, outer, log_decay_v, initial_state)
        self.la, self.lb = log_decay, log_decay_v
        if log_decay is None:
            self.key = NONE
        elif outer is not None:
            self.key = OUTER
        elif log_decay.dim() == 4:
            self.key = VECTOR
        else:
            self.key = SCALAR
            self.la = log_decay.expand(self.B, self.T, self.H)  # constants have stride 0
        if log_decay_v is not None:
            self.lb = log_decay_v.expand(self.B, self.T, self.H, self.V)

    def plan(self, backward: bool, precision: str | None, chunk_size: int | None, regime: str | None) -> Plan:
        return plan(
            self.target,
            backward=backward,
            K=self.K,
            V=self.V,
            H=self.H,
            decays="both" if self.lb is not None else {VECTOR: "key", OUTER: "outer"}.get(self.key, "scalar"),
            acc=self.acc,
            operands=[self.q.dtype, self.k.dtype, self.v.dtype],
            precision=precision,
            chunk_size=chunk_size,
            regime=regime,
        )

    def slots(self, segment: int) -> int:
        """Storage slots of `segment` steps (see decay.slot_of)."""
        if self.cu_seqlens is None:
            return self.B * -(-self.T // segment)
        return self.T // segment + self.N

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.acc, device=self.v.device)

    def near(self, C: int) -> bool:
        """Whether every offset inside a tile of C steps, all heads and all columns fits 32 bits."""
        inputs = (self.q, self.k, self.v, self.la, self.lb, self.do)
        extents = [
            sum(s * n for s, n in zip(x.stride()[1:], (C, *x.shape[2:]), strict=False))
            for x in inputs
            if x is not None
        ]
        states = [
            sum(s * n for s, n in zip(x.stride(), x.shape, strict=True)) for x in self.states if x is not None
        ]
        own = self.H * max(self.K, self.V) * C, self.H * self.K * self.V
        return max(*extents, *states, *own) < 2**31

    def common(self, p: Plan) -> dict[str, Any]:
        """Arguments which every kernel takes."""
        arguments = {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "la": self.la,
            "A": self.outer,
            "lb": self.lb,
            "cu_seqlens": self.cu_seqlens,
            "T": self.T,
            "H": self.H,
            "group_q": self.group_q,
            "group_k": self.group_k,
            **strides("sq", self.q, "bthd"),
            **strides("sk", self.k, "bthd"),
            **strides("sv", self.v, "bthd"),
            **strides("sa", self.la, "bthd"),
            **strides("sA", self.outer, "hd"),
            **strides("sb", self.lb, "bthd"),
            "K": self.K,
            "V": self.V,
            "BK": p.BK,
            "BV": p.BV,
            "KEY": self.key,
            "VALUE": self.lb is not None,
            "STRICT": self.read == "before",
            "REVERSE": self.reverse,
            "VARLEN": self.cu_seqlens is not None,
            "ACC": _TL[p.acc],
            "INDEX": tl.int32 if self.near(p.C) else tl.int64,
        }
        if p.regime == "chunk":
            return arguments | {
                "N": self.N,
                "C": p.C,
                "SEGMENT": p.segment,
                "TREE": p.tree,
                "LEVELS": p.C.bit_length() - 1,
                "DOT": _TL[p.dot],
                "PREC": p.prec,
                "SUMS": _TL[p.sums],
            }
        return arguments | {
            "BH": p.BH,
            "CT": p.C,
            "SHARE_Q": self.group_q > 1 and self.group_q % p.BH == 0,
            "SHARE_K": self.group_k > 1 and self.group_k % p.BH == 0,
        }


def strides(name: str, x: Tensor | None, axes: str) -> dict[str, int]:
    """{name + axis: stride}, 0 for axes or tensors which are not there."""
    steps = () if x is None else x.stride()
    return {name + a: (steps[i] if i < len(steps) else 0) for i, a in enumerate(axes)}


def only(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments which a kernel names."""
    return {name: arguments[name] for name in kernel.arg_names}


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    outer: Tensor | None,
    log_decay_v: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    scale: float,
    read: str,
    reverse: bool,
    precision: str | None,
    schedule: str,
    chunk_size: int | None,
    regime: str | None = None,
    target: Target | None = None,
    run: Run = run,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] in the dtype of v, final state [N, H, K, V] in the accumulation dtype."""
    x = Problem(q, k, v, log_decay, outer, log_decay_v, initial_state, cu_seqlens, read, reverse, target)
    p = x.plan(False, precision, chunk_size, regime)
    blocks, keys = -(-x.V // p.BV), -(-x.K // p.BK)
    o = x.empty(keys, x.B, x.T, x.H, x.V, dtype=v.dtype if keys == 1 else None)
    final = x.empty(x.N, x.H, x.K, x.V)
    arguments = x.common(p) | {
        "initial": initial_state,
        "INITIAL": initial_state is not None,
        **strides("si", initial_state, "bhkv"),
        "states": None,
        "o": o,
        "final": final,
        "scale": scale,
        "tokens": x.B * x.T,
        "SPLIT": False,
        "STORE": False,
        "OUTPUT": True,
    }
    if p.regime == "recurrent":
        kernel = recurrent.recurrent_forward
        if x.N * x.H:
            run(kernel, x.N * -(-x.H // p.BH) * blocks, only(kernel, arguments), p)
        return o[0], final
    kernel = chunk.chunk_forward
    walks = x.N
    if use_split(schedule, x.target, x.N * x.H * blocks * keys, x.T, p.segment) and walks * x.H:
        walks = x.slots(p.segment)
        states = x.empty(walks, x.H, x.K, x.V)
        _states(x, p, arguments | {"states": states}, False, final, run)
        arguments |= {"SPLIT": True, "states": states, "final": None}
    if walks * x.H:
        run(kernel, walks * x.H * keys * blocks, only(kernel, arguments), p)
    return _total(o).to(v.dtype), final


def _states(
    x: Problem, p: Plan, arguments: dict[str, Any], adjoint: bool, final: Tensor | None, run: Run
) -> None:
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
    run(kernel, grid, only(kernel, arguments), replace(p, warps=warps))


def backward(
    do: Tensor | None,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    outer: Tensor | None,
    log_decay_v: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    scale: float,
    read: str,
    reverse: bool,
    precision: str | None,
    schedule: str,
    chunk_size: int | None,
    regime: str | None = None,
    target: Target | None = None,
    run: Run = run,
) -> tuple[Tensor | None, ...]:
    """(dq, dk, dv, dlog_decay, douter, dlog_decay_v, dinitial_state), None for inputs which are not there."""
    if do is None:
        do = v.new_zeros(()).expand(v.shape)
    x = Problem(
        q, k, v, log_decay, outer, log_decay_v, initial_state, cu_seqlens, read, reverse, target, do, dstate
    )  # fmt: skip
    p = x.plan(True, precision, chunk_size, regime)
    blocks, keys, heads = -(-x.V // p.BV), -(-x.K // p.BK), -(-x.H // p.BH)
    arguments = x.common(p)
    # (reads, writes, within) of each launch of the chunk kernel. Each adds its own blocks to the sums over
    # blocks: the last number of launches which touch dq; dk and dv; the gradients of decays.
    passes = [(True, True, True)]
    if p.regime == "chunk" and p.apart:
        passes = [(True, False, False), (False, True, False), (False, False, True)]
    two, three = min(len(passes), 2), len(passes)
    # With one block and one head for each head of q, what a kernel writes is the gradient itself.
    nq = heads if arguments.get("SHARE_Q") else x.H
    nk = heads if arguments.get("SHARE_K") else x.H
    lone = blocks * two == 1
    lone_q, lone_k = lone and nq == q.shape[2], lone and nk == k.shape[2]
    dq = x.empty(two * blocks, x.B, x.T, nq, x.K, dtype=q.dtype if lone_q else None)
    dk = x.empty(two * blocks, x.B, x.T, nk, x.K, dtype=k.dtype if lone_k else None)
    dv = x.empty(two * keys, x.B, x.T, x.H, x.V, dtype=v.dtype if two * keys == 1 else None)
    dla = dA = dlb = ds0 = None
    if x.key != NONE:
        vector = x.key == VECTOR
        dla = x.empty(three * blocks * (1 if vector else keys), x.B, x.T, x.H, *((x.K,) if vector else ()))
    if x.lb is not None:
        dlb = x.empty(three * keys, x.B, x.T, x.H, x.V)
    if initial_state is not None:
        ds0 = x.empty(x.N, x.H, x.K, x.V)
    split = p.regime == "chunk" and use_split(schedule, x.target, x.N * x.H * blocks * keys, x.T, p.segment)
    slots = x.slots(p.segment)
    walks = slots if split else x.N
    if x.key == OUTER:
        dA = [x.empty(blocks, walks if writes else slots, x.H, x.K) for _, writes, _ in passes]
    states = x.empty(slots, x.H, x.K, x.V)
    arguments |= {
        "do": do,
        "dstate": dstate,
        "states": states,
        "dstates": None,
        "dq": dq,
        "dk": dk,
        "dv": dv,
        "dla": dla,
        "dA": dA[0] if dA else None,
        "dlb": dlb,
        "ds0": None if split else ds0,
        "scale": scale,
        "tokens": x.B * x.T,
        "SPLIT": split,
        "FINAL": ds0 is not None and not split,
        **strides("so", do, "bthd"),
    }
    seed = {
        "initial": initial_state,
        "INITIAL": initial_state is not None,
        **strides("si", initial_state, "bhkv"),
    }
    adjoint_seed = {"initial": dstate, "INITIAL": dstate is not None, **strides("si", dstate, "bhkv")}
    if x.N * x.H:
        if p.regime == "recurrent":
            kernel = recurrent.recurrent_forward
            grid = x.N * heads * blocks
            more = {"STORE": True, "OUTPUT": False, "o": None, "final": None}
            run(kernel, grid, only(kernel, arguments | seed | more), p)
            kernel = recurrent.recurrent_backward
            run(kernel, grid, only(kernel, arguments | adjoint_seed), p)
        else:
            _states(x, p, arguments | seed, False, None, run)
            if split:
                arguments["dstates"] = x.empty(slots, x.H, x.K, x.V)
                _states(x, p, arguments | adjoint_seed | {"states": arguments["dstates"]}, True, ds0, run)
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
                    run(kernel, grid, only(kernel, one), p)
    dlog_decay = douter = dlog_decay_v = None
    if log_decay is not None and dla is not None:
        dla = _total(dla)
        dlog_decay = (dla.sum((0, 1)) if log_decay.dim() == 1 else dla).to(log_decay.dtype)
    if outer is not None and dA is not None:
        douter = torch.stack([part.sum((0, 1)) for part in dA]).sum(0).to(outer.dtype)
    if log_decay_v is not None and dlb is not None:
        dlb = _total(dlb)
        dlog_decay_v = (dlb.sum((0, 1)) if log_decay_v.dim() == 2 else dlb).to(log_decay_v.dtype)
    if initial_state is not None and ds0 is not None:
        ds0 = ds0.to(initial_state.dtype)
    return _gather(dq, q), _gather(dk, k), _total(dv).to(v.dtype), dlog_decay, douter, dlog_decay_v, ds0


def _total(partial: Tensor) -> Tensor:
    """The sum over blocks, which come first."""
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def _gather(partial: Tensor, like: Tensor) -> Tensor:
    """[blocks, B, T, heads, K] of partial sums to the [B, T, Hq, K] of an input which heads share."""
    if partial.shape[0] == 1 and partial.shape[3] == like.shape[2]:
        return partial[0].to(like.dtype)
    B, T, H, K = like.shape
    return (
        partial.view(partial.shape[0], B, T, H, partial.shape[3] // max(H, 1), K).sum((0, 4)).to(like.dtype)
    )
