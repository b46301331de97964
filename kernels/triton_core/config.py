"""Which regime, which block sizes, which precision: the one place where such things are decided.

A short fixed list rather than autotuning: no stall at the first call, and results do not change from run to
run. Plain Python: neither Triton nor a GPU is needed to ask for a plan. aot.py compiles exactly what is
chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class ChunkPlan:
    """Of the matmul regime: C steps per chunk, BK x BV of the state per program; between launches a state is
    stored every `segment` steps, in `kept`. dot, prec: dtype and input precision of matmul operands. erase:
    "" or what erases; solve: the input precision of the products that invert its system."""

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
    erase: str = ""
    solve: str = "ieee"

    @property
    def block(self) -> str:
        return f"{self.C}x{self.BK}x{self.BV}"


def chunk_plan(
    target: Target,
    launch: str,
    *,
    K: int,
    V: int,
    decays: str,
    erase: str = "",
    acc: torch.dtype,
    operands: list[torch.dtype],
    precision: str | None,
    chunk_size: int | None,
) -> ChunkPlan:
    """The plan of the launches of "forward" or "backward".

    decays: "scalar" (at most one per head and step), "key", "outer" (both over keys) or "both" (any over
    values). erase: "delta", "general" or "". operands: dtypes of q, k, v."""
    dot, prec = _precision(target, acc, operands, precision)
    if erase:
        C, wide, warps = _erasing(target, launch, erase, decays, max(K, V), dot, prec)
        high, stages = power(K, 16), 1  # all keys: what is erased is a sum over them
        wide = max(16, wide * 128 // max(128, high))
    else:
        C, high, wide, warps, stages = _blocks(target, launch, decays, max(K, V), dot, prec)
    if chunk_size is not None and decays == "scalar":
        C = min(C, power(chunk_size, 16))
    BK, BV = min(power(K, 16), high), min(power(V, 16), wide)
    warps = max(4, min(warps, BK * BV * warps // (high * wide)))
    # The gradient takes the stored states for operands alone, forward goes on from them.
    segment, kept = (C, dot) if launch == "backward" else (max(C, 64), acc)
    solve = "ieee"
    if dot != torch.float64 and target.backend != "interpreter":
        solve = "tf32x3" if target.backend == "cuda" else "bf16x6"  # about float32, on small products
    return ChunkPlan(decays != "scalar", C, BK, BV, segment, kept, warps, stages, dot, prec, erase, solve)


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


# Steps per chunk, keys and values of the state per program, warps, pipeline stages.
Block = tuple[int, int, int, int, int]
WHOLE_64, WHOLE_128 = (64, 64, 64, 8, 1), (64, 128, 128, 8, 1)
TREE_64 = (16, 64, 64, 8, 1)
# (architecture, how products are made, launch) -> for each kind of decays, for head dims up to 64 and above.
# Found by compiling (aot.py): the largest that spill no registers; on sm_90 and sm_100, where blocks of the
# next size down would move more bytes than the spills do, larger ones. docs/triton.md has both numbers.
_BLOCKS: dict[tuple[str, str, str], dict[str, tuple[Block, Block]]] = {
    ("sm_90", "bf16", "forward"): {
        "scalar": ((64, 64, 64, 8, 2), WHOLE_128),
        "key": ((16, 64, 64, 8, 2), (16, 128, 128, 16, 1)),
        "outer": ((16, 64, 64, 8, 2), TREE_64),
        "both": (TREE_64, (16, 128, 64, 8, 1)),
    },
    ("sm_90", "bf16", "backward"): {
        "scalar": (WHOLE_64, WHOLE_128),
        "key": (TREE_64, (32, 64, 128, 8, 1)),
        "outer": (TREE_64, (16, 64, 128, 8, 1)),
        "both": (TREE_64, TREE_64),
    },
    ("sm_90", "bf16x6", "forward"): {
        "scalar": (TREE_64, TREE_64),
        "key": (TREE_64, TREE_64),
        "outer": ((16, 32, 64, 4, 1), (16, 32, 64, 4, 1)),
        "both": ((16, 32, 64, 8, 1), (16, 32, 64, 8, 1)),
    },
    ("sm_90", "bf16x6", "backward"): {
        "scalar": ((16, 64, 32, 8, 1), (16, 64, 32, 8, 1)),
        "key": (TREE_64, TREE_64),
        "outer": (TREE_64, TREE_64),
        "both": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
    },
    ("sm_80", "bf16", "forward"): {
        "scalar": ((32, 64, 64, 8, 1), (32, 128, 64, 8, 1)),
        "key": (TREE_64, TREE_64),
        "outer": (TREE_64, TREE_64),
        "both": ((16, 32, 64, 8, 1), (16, 32, 64, 8, 1)),
    },
    ("sm_80", "bf16", "backward"): {
        "scalar": ((32, 64, 64, 8, 1), (16, 64, 64, 8, 1)),
        "key": ((16, 32, 64, 8, 1), (16, 32, 64, 8, 1)),
        "outer": ((16, 32, 64, 8, 1), (16, 32, 64, 8, 1)),
        "both": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
    },
    ("sm_80", "bf16x6", "forward"): {
        "scalar": ((16, 32, 64, 4, 1), (16, 32, 64, 4, 1)),
        "key": ((16, 32, 64, 4, 1), (16, 32, 64, 4, 1)),
        "outer": ((16, 32, 64, 4, 1), (16, 32, 64, 4, 1)),
        "both": ((16, 32, 64, 8, 1), (16, 32, 64, 8, 1)),
    },
    ("sm_80", "bf16x6", "backward"): {
        "scalar": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
        "key": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
        "outer": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
        "both": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
    },
    ("gfx942", "bf16", "forward"): {
        "scalar": ((32, 64, 64, 8, 1), (32, 128, 64, 8, 1)),
        "key": (TREE_64, (16, 128, 128, 8, 1)),
        "outer": (TREE_64, (16, 128, 128, 8, 1)),
        "both": (TREE_64, (16, 128, 64, 8, 1)),
    },
    ("gfx942", "bf16", "backward"): {
        "scalar": ((16, 64, 64, 8, 1), (16, 64, 64, 8, 1)),
        "key": ((16, 32, 32, 4, 1), (16, 32, 32, 4, 1)),
        "outer": ((16, 32, 32, 4, 1), (16, 32, 32, 4, 1)),
        "both": ((16, 32, 32, 4, 1), (16, 32, 32, 4, 1)),
    },
    ("gfx942", "bf16x6", "forward"): {
        "scalar": ((16, 32, 64, 8, 1), (16, 32, 64, 8, 1)),
        "key": (TREE_64, TREE_64),
        "outer": (TREE_64, TREE_64),
        "both": ((16, 32, 32, 4, 1), (16, 32, 32, 4, 1)),
    },
    ("gfx942", "bf16x6", "backward"): {
        "scalar": ((16, 32, 32, 4, 1), (16, 32, 32, 4, 1)),
        "key": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
        "outer": ((16, 16, 32, 4, 1), (16, 16, 32, 4, 1)),
        "both": ((16, 16, 16, 4, 1), (16, 16, 16, 4, 1)),
    },
}
_BLOCKS["sm_100", "bf16", "forward"] = _BLOCKS["sm_90", "bf16", "forward"] | {
    "key": ((16, 64, 64, 8, 2), (16, 128, 128, 8, 1)),
}
_BLOCKS["sm_100", "bf16", "backward"] = _BLOCKS["sm_90", "bf16", "backward"] | {
    "key": (TREE_64, (16, 64, 128, 8, 1)),
}
_BLOCKS["sm_100", "bf16x6", "forward"] = _BLOCKS["sm_90", "bf16x6", "forward"] | {
    "scalar": (WHOLE_64, WHOLE_64),
    "key": ((16, 32, 64, 4, 1), (16, 32, 64, 4, 1)),
}
_BLOCKS["sm_100", "bf16x6", "backward"] = _BLOCKS["sm_90", "bf16x6", "backward"]
for _arch in ("sm_90", "sm_100"):
    _BLOCKS[_arch, "tf32", "forward"] = {
        "scalar": (WHOLE_64, WHOLE_64),
        "key": (TREE_64, TREE_64),
        "outer": (TREE_64, TREE_64),
        "both": ((16, 32, 64, 8, 1), (16, 32, 64, 8, 1)),
    }
    _BLOCKS[_arch, "tf32", "backward"] = _BLOCKS[_arch, "bf16x6", "backward"] | {
        "scalar": ((32, 64, 64, 8, 1), (32, 64, 64, 8, 1)),
    }


# The same where something is erased: steps per chunk, values per program (which has all keys), warps. Where
# the gradient spills with any blocks, those which move the fewest bytes in all.
Erasing = tuple[int, int, int]
_ERASING: dict[tuple[str, str, str], dict[str, tuple[Erasing, Erasing]]] = {
    ("sm_90", "bf16", "forward"): {
        "delta scalar": ((32, 64, 8), (32, 128, 8)),
        "delta key": ((16, 64, 8), (16, 128, 8)),
        "general scalar": ((16, 64, 8), (16, 128, 8)),
        "general key": ((16, 64, 8), (16, 64, 8)),
    },
    ("sm_90", "bf16", "backward"): {
        "delta scalar": ((32, 64, 8), (16, 128, 8)),
        "delta key": ((16, 64, 8), (16, 128, 8)),
        "general scalar": ((16, 64, 8), (16, 64, 8)),
        "general key": ((16, 64, 8), (16, 64, 8)),
    },
    ("sm_80", "bf16", "forward"): {
        "delta scalar": ((16, 64, 8), (16, 64, 8)),
        "delta key": ((16, 64, 8), (16, 64, 8)),
        "general scalar": ((16, 64, 8), (16, 32, 8)),
        "general key": ((16, 64, 8), (16, 32, 8)),
    },
    ("gfx942", "bf16", "forward"): {
        "delta scalar": ((16, 64, 8), (16, 128, 8)),
        "delta key": ((16, 64, 8), (16, 128, 8)),
        "general scalar": ((16, 64, 8), (16, 64, 8)),
        "general key": ((16, 64, 8), (16, 64, 8)),
    },
}
_ERASING["sm_100", "bf16", "forward"] = _ERASING["sm_90", "bf16", "forward"] | {
    "delta scalar": ((32, 64, 8), (16, 128, 8)),
}
_ERASING["sm_100", "bf16", "backward"] = _ERASING["sm_90", "bf16", "backward"]
_NARROW: dict[str, tuple[Erasing, Erasing]] = dict.fromkeys(
    ("delta scalar", "delta key", "general scalar", "general key"), ((16, 32, 8), (16, 32, 8))
)
_ERASING["sm_80", "bf16", "backward"] = _ERASING["gfx942", "bf16", "backward"] = _NARROW
for _arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
    for _launch in ("forward", "backward"):
        _ERASING[_arch, "tf32", _launch] = _ERASING[_arch, "bf16x6", _launch] = _NARROW
        if _arch in ("sm_90", "sm_100"):
            _ERASING[_arch, "tf32", _launch] = _ERASING[_arch, "bf16x6", _launch] = _NARROW | {
                "delta scalar": ((16, 64, 8), (16, 32, 8)),
                "delta key": ((16, 64, 8), (16, 32, 8)),
            }


def _erasing(
    target: Target, launch: str, erase: str, decays: str, D: int, dot: torch.dtype, prec: str
) -> Erasing:
    if dot == torch.float64:
        return 16, 16, 4
    kind = f"{erase} {'scalar' if decays == 'scalar' else 'key'}"
    arch, how = _row(target, dot, prec)
    return _ERASING[arch, how, launch][kind][D > 64]


def _blocks(target: Target, launch: str, decays: str, D: int, dot: torch.dtype, prec: str) -> Block:
    if dot == torch.float64:
        return 16, 16, 16, 4, 1
    arch, how = _row(target, dot, prec)
    return _BLOCKS[arch, how, launch][decays][D > 64]


def _row(target: Target, dot: torch.dtype, prec: str) -> tuple[str, str]:
    """Architecture, and how products are made, of a row of the tables.

    The interpreter takes what sm_90 takes for bfloat16: what it counts is what most people would run."""
    arch, how = "sm_90", "bf16" if dot == torch.bfloat16 else prec
    if target.backend == "interpreter":
        how = "bf16"
    elif target.backend == "hip":
        arch = "gfx942"
    elif int(target.arch) < 90:
        arch, how = "sm_80", "bf16" if how == "bf16" else "bf16x6"
    elif int(target.arch) >= 100:
        arch = "sm_100"
    return arch, how


def walk_plan(p: ChunkPlan) -> ChunkPlan:
    """Of the walk that a split schedule starts with: narrower states, so that more programs share it."""
    return replace(p, BK=p.BK if p.erase else min(p.BK, 64), BV=min(p.BV, 64), warps=min(p.warps, 8))


def use_split(schedule: str, target: Target, programs: int, T: int, segment: int) -> bool:
    """Whether to find the states first, then do segments side by side: if whole sequences leave the card
    idle."""
    if schedule == "auto":
        return target.backend != "interpreter" and programs < target.processors and 4 * segment < T
    return schedule == "split"
