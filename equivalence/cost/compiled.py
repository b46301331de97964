"""What the kernels of a counted call compile to, for its target, without a GPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ...kernels import OuterDecay
from ...kernels.triton_core import aot
from .operators import Call, Case, call_of, calls_of_mixer


def meta(x: Tensor | None) -> Tensor | None:
    """A tensor of this shape, strides and dtype, without data."""
    return None if x is None else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def launches(call: Call, schedule: str, target: str) -> list[aot.Launch]:
    """The different launches of forward (as in training) and backward."""
    get = call.operands.get
    decay, outer = get("log_decay"), None
    if isinstance(decay, OuterDecay):
        decay, outer = decay
    erasing = (get("beta"), *(get("erase") or (None, None)))
    tensors = (get("q"), get("k"), get("v"), decay, outer, get("log_decay_v"), *erasing,
               get("initial_state"), get("cu_seqlens"), get("mask"))  # fmt: skip
    k, v, packed = call.operands["k"], call.operands["v"], get("cu_seqlens")
    B, _, H, V = v.shape
    N = B if packed is None else packed.shape[0] - 1
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    # autograd hands on a gradient of the final state, zero or not
    dtype = torch.float64 if wide else torch.float32
    dstate = torch.empty(N, H, k.shape[3], V, dtype=dtype, device="meta")
    do = torch.empty(v.shape, dtype=v.dtype, device="meta")
    traced = aot.trace(tuple(map(meta, tensors)), do, dstate, aot.TARGETS[target], schedule, **call.options)
    found: dict[Any, aot.Launch] = {}
    for one in traced:
        found.setdefault((one.backward, one.key()), one)
    return list(found.values())


def compile_case(case: Case) -> list[dict[str, Any]]:
    """A record for each different launch of each call of the case."""
    target = aot.TARGETS[case.target]
    calls = [call_of(case)] if case.operator else calls_of_mixer(case)
    records = []
    for i, call in enumerate(calls):
        for one in launches(call, case.schedule, case.target):
            machine = aot.inspect(aot.compile_launch(one.kernel, one.arguments, one.plan, target), target)
            records.append(
                {
                    "call": i,
                    "pass": "backward" if one.backward else "forward",
                    "kernel": one.kernel.__name__,
                    "block": one.block,
                    "warps": one.plan.warps,
                    "programs": one.grid,
                    "shared_limit": aot.SHARED[case.target],
                    **asdict(machine),
                }
            )
    return records


def _compile() -> None:
    """Compiled kernels are wanted, whatever the environment says."""
    os.environ.pop("TRITON_INTERPRET", None)


def compile_all(cases: Sequence[Case], processes: int = 2) -> Iterator[list[dict[str, Any]]]:
    """Records of each case, in order, as they come."""
    # spawn: a forked child of a process whose torch has started threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(cases)), context, initializer=_compile) as pool:
        yield from pool.map(compile_case, cases)
