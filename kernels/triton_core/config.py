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
    raise AssertionError


@dataclass(frozen=True)
class ChunkPlan:
    """Of the matmul regime: C steps per chunk, BK x BV of the state per program; between launches a state is
    stored every `segment` steps, in `kept`. dot, prec: dtype and input precision of matmul operands."""

    tree: bool
    C: int
    BK: int
    BV: int
    segment: int
    kept: torch.dtype
    warps: int
    stages: int
    dot: torch.dtype
    prec: str

    @property
    def block(self) -> str:
        return f"{self.C}x{self.BK}x{self.BV}"


PASSES = ("states", "forward", "backward")


def chunk_plan(
    target: Target,
    launch: str,
    *,
    K: int,
    V: int,
    tree: bool,
    acc: torch.dtype,
    operands: list[torch.dtype],
    precision: str | None,
    chunk_size: int | None,
) -> ChunkPlan:
    """The plan of one launch: "states" (of a split forward), "forward" or "backward" (and its states).

    tree: there is a decay per key or per value. operands: dtypes of q, k, v."""
    dot, prec = _precision(target, acc, operands, precision)
    C, high, area, warps = _blocks(target, launch, tree, dot)
    if chunk_size is not None and not tree:
        C = min(C, power(chunk_size, 16))
    BK = min(power(K, 16), high)
    BV = min(power(V, 16), max(16, area // BK))
    segment = max(C, 64)
    if launch == "backward":
        # The state is stored once per chunk, or walked again from the chunk before: of two evils the smaller.
        segment = C if BK * BV <= 4096 or not tree else 2 * C
    warps = max(4, min(warps, BK * BV * warps // area))
    kept = dot if launch == "backward" else acc
    return ChunkPlan(tree, C, BK, BV, segment, kept, warps, 1, dot, prec)


def _precision(
    target: Target, acc: torch.dtype, operands: list[torch.dtype], precision: str | None
) -> tuple[torch.dtype, str]:
    """Dtype of matmul operands, and their input precision."""
    if acc == torch.float64:
        return acc, "ieee"
    if target.backend == "interpreter":  # NumPy: no bfloat16 products, and float32 ones are exact
        return torch.float32, "ieee"
    if all(x == torch.bfloat16 for x in operands):
        return torch.bfloat16, "ieee"
    low = precision == "tf32"
    if all(x in (torch.bfloat16, torch.float16) for x in operands):
        # tf32 keeps the ten bits of fp16 without its range: a state may grow past 65504
        low = True
    # bf16x6: three bfloat16 pieces of each operand, six products: float32 accuracy on tensor cores
    return torch.float32, "tf32" if low and target.backend == "cuda" else "bf16x6"


def _blocks(target: Target, launch: str, tree: bool, dot: torch.dtype) -> tuple[int, int, int, int]:
    """(steps per chunk, most keys, most keys x values of the state per program, warps for that many).

    Chosen by compiling (aot.py): the largest that spill no registers."""
    C = 16 if tree else 64
    if dot == torch.float64:
        return 16, 16, 256, 4
    return C, 256, 128 * 128, 16


def use_split(schedule: str, target: Target, programs: int, T: int, segment: int) -> bool:
    """Whether to find the states first, then do segments side by side: if whole sequences leave the card
    idle."""
    if schedule == "auto":
        return target.backend != "interpreter" and programs < target.processors and 4 * segment < T
    return schedule == "split"
