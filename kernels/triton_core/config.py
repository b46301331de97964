"""Which regime, which block sizes, which precision: the one place where such things are decided.

A short fixed list rather than autotuning: no stall at the first call, and results do not change from run to
run. Plain Python: neither Triton nor a GPU is needed to ask for a plan. aot.py compiles exactly what is
chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Target:
    """What a kernel is compiled for. backend: "cuda", "hip", or "interpreter" (NumPy, on CPU tensors)."""

    backend: str
    arch: int | str = 0
    warp: int = 32
    processors: int = 1


SM_80 = Target("cuda", 80, 32, 108)
SM_90 = Target("cuda", 90, 32, 132)
SM_100 = Target("cuda", 100, 32, 148)
GFX942 = Target("hip", "gfx942", 64, 304)
INTERPRETER = Target("interpreter")


@dataclass(frozen=True)
class Plan:
    """Block sizes and precisions of one pass.

    chunk: C steps per chunk, BK x BV of the state per program, a stored state per `segment` steps.
    recurrent: C steps per block of time, BH heads x BK x BV lanes per program; `segment` is C."""

    regime: str
    tree: bool
    C: int
    BK: int
    BV: int
    BH: int
    segment: int
    warps: int
    stages: int
    dot: torch.dtype
    acc: torch.dtype
    prec: str
    sums: torch.dtype
    apart: bool = (
        False  # chunk backward in three launches (reads, writes, within chunks), each with fewer registers
    )


def power(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least n and `least`."""
    return max(least, 1 << (max(n, 1) - 1).bit_length())


def regime_of(K: int, V: int) -> str:
    """The rule. Below 16 keys or values a matrix unit would multiply mostly padding: go elementwise."""
    return "recurrent" if min(K, V) < 16 else "chunk"


def accumulation(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any input is float64, else float32."""
    return (
        torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32
    )


def _precisions(
    target: Target, acc: torch.dtype, operands: list[torch.dtype], precision: str | None
) -> tuple[torch.dtype, str, torch.dtype]:
    """Dtype of matmul operands, their input precision, and the dtype of operands of sums (see decay.sums)."""
    if acc == torch.float64:
        return acc, "ieee", acc
    if target.backend == "interpreter":  # NumPy: no bfloat16 products, and float32 ones are exact
        return torch.float32, "ieee", torch.float32
    nvidia = target.backend == "cuda"
    if all(x == torch.bfloat16 for x in operands):
        return torch.bfloat16, "ieee", torch.bfloat16
    low = precision == "tf32"
    if all(x in (torch.bfloat16, torch.float16) for x in operands):
        # tf32 keeps the ten bits of fp16 without its range: a state may grow past 65504
        low = True
    return torch.float32, ("tf32" if nvidia else "ieee") if low else "pieces", torch.bfloat16


def plan(
    target: Target,
    *,
    backward: bool,
    K: int,
    V: int,
    H: int,
    decays: str,
    acc: torch.dtype,
    operands: list[torch.dtype],
    precision: str | None,
    chunk_size: int | None,
    regime: str | None = None,
) -> Plan:
    """The plan for one pass. operands: dtypes of q, k, v.

    decays: "scalar" (at most one per head and step), "key", "outer" (both over keys), "both" (any over
    values)."""
    tree = decays != "scalar"
    regime = regime or regime_of(K, V)
    dot, prec, sums = _precisions(target, acc, operands, precision)
    if regime == "recurrent":
        # One lane per thread, so that a thread holds all C steps of its lane and scans them in registers.
        BK, C, warps = power(K), 16, 4
        if backward or acc == torch.float64:
            C = 8
        lanes = warps * target.warp
        if target.backend == "interpreter":
            lanes = 64
        BV = min(power(V), max(1, lanes // BK))
        BH = min(power(H), max(1, lanes // (BK * BV)))
        warps = max(1, BH * BK * BV // target.warp)
        return Plan(regime, tree, C, BK, BV, BH, C, warps, 1, dot, acc, prec, sums)
    C, wide, high, warps, apart = _blocks(target, backward, tree, decays, dot)
    if chunk_size is not None and not tree:
        C = min(C, power(chunk_size, 16))
    BK, BV = min(power(K, 16), wide), min(power(V, 16), high)
    return Plan(regime, tree, C, BK, BV, 1, 64, warps, 1, dot, acc, prec, sums, apart)


def _blocks(
    target: Target, backward: bool, tree: bool, decays: str, dot: torch.dtype
) -> tuple[int, int, int, int, bool]:
    """(steps per chunk, keys and values of the state per program, warps, backward in three launches).

    Chosen by compiling (aot.py): the largest that spill no registers. Before Hopper a state of 64 keys must
    not be split over more than four warps; float32, in pieces, needs three times the operands of bfloat16."""
    if dot == torch.float64:
        return 16, 16, 16, 4, False
    if target.backend == "interpreter":
        return (16 if tree else 64), 64, 64, 4, False
    low = dot == torch.bfloat16
    if target.backend == "hip":
        if low:
            return (16 if tree or backward else 64), (64 if backward else 128), 64, 4, False
        return 16, (32 if backward else 64), 64, 4, backward
    ampere = int(target.arch) < 90
    if not low:
        return 16, 32, (64 if tree or not backward else 32), (8 if backward else 4), backward
    if not tree:
        return 32, (64 if backward else 128), 64, 8, False
    if not backward:
        return 16, (32 if ampere else 128), 64, 8, False
    if decays == "both":
        return 16, 32, 64, 8, int(target.arch) >= 100
    if ampere:
        return 16, 32, (32 if decays == "outer" else 64), 8, False
    return 16, 64, 64, 8, False


def use_split(schedule: str, target: Target, programs: int, T: int, segment: int) -> bool:
    """Whether to find the states first, then do segments side by side: if whole sequences leave the card
    idle."""
    if schedule == "auto":
        return target.backend != "interpreter" and programs < target.processors and 4 * segment < T
    return schedule == "split"
