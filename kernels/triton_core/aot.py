"""Compile the whole kernel family ahead of time, without a GPU, and say what came out.

    mixerzoo aot --target sm_90 --dtype bfloat16

For every target, dtype, head size and decay kind the launcher is run on tensors without data; the launches
it would make are compiled as they stand, then disassembled. A row tells registers per thread, bytes spilled,
shared memory against what the card has, and the instructions found, by kind. Spills or a kernel that does not
fit are failures.
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import config
from .config import Target

TARGETS = {"sm_80": config.SM_80, "sm_90": config.SM_90, "sm_100": config.SM_100, "gfx942": config.GFX942}
SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes a block may use
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
DECAYS = ("scalar", "key", "both", "outer", "mamba1", "hgrn")
# With what is erased: the delta rule with no decay, one per head and step, one per key; the general form with
# one per head and step, and one per key.
ERASING = ("delta", "gated_delta", "kda", "dplr_scalar", "dplr")
SCHEDULES = ("fused", "split", "auto")

# What may differ from the plain case: read="after", forward in time, rows of one sequence, no padding, an
# initial state and a gradient of the final one.
VARIANTS = {
    "before": 'read="before"',
    "reverse": "time runs backwards",
    "packed": "sequences packed into one row",
    "mask": "padding",
    "stateless": "no initial state and no gradient of the final one",
}

# Kinds of machine instructions, by mnemonic: NVIDIA's SASS (cuobjdump documentation, "Instruction set
# reference"), AMD's CDNA 3 (its instruction set manual). The first that matches.
KINDS = {
    "matrix": (r"[A-Z]*MMA\w*", r"v_s?mfma_\w+|v_smfmac_\w+"),
    "special": (r"MUFU", r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_\w+"),
    "float": (
        r"[FDH](ADD|MUL|FMA)2?\w*|[FDH]MNMX\w*",
        r"v_(pk_)?(add|sub|subrev|mul|fma|fmac|mac|mad|max|min|dot2)_?\w*f(16|32|64)\w*",
    ),
    "global load": (r"LDG(STS)?|LD|UTMALDG|UBLKCP|ATOMG?|RED|REDG", r"(global|buffer|flat)_(load|atomic)\w*"),
    "global store": (r"STG|ST|UTMASTG", r"(global|buffer|flat)_store\w*"),
    "shared load": (r"LDS|LDSM|LDTM", r"ds_(read|load)\w*"),
    "shared store": (r"STS|STSM|STTM", r"ds_(write|store)\w*"),
    "barrier": (r"BAR|SYNCS", r"s_barrier\w*"),
    "shuffle": (r"SHFL|REDUX|CREDUX", r"ds_(b?permute|swizzle)\w*|v_permlane\w*|\w+_dpp"),
    "spill": (r"LDL|STL", r"scratch_\w+"),
}
_SASS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
_GCN = re.compile(r"^\s+([a-z][a-z0-9_]+)", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One cell of the matrix. Decays: one per head and step; per key; per key and value; outer; and the two
    shapes of the elementwise regime: Mamba-1 (16 keys, 1 value, outer) and HGRN (1 key, decays over
    values). none: no decay at all. And those of ERASING."""

    target: str
    decay: str
    dtype: str
    head_dim: int
    schedule: str = "fused"
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """A launch that a call makes, recorded instead of made. plan: has warps and stages."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    plan: Any
    backward: bool

    @property
    def block(self) -> str:
        """Its block sizes, to be shown."""
        p = self.plan
        return str(p.block) if hasattr(p, "block") else f"{p.BH}x{p.BK}x{p.BV}"

    def key(self) -> tuple[Any, ...]:
        """Two launches with one key compile to the same."""
        parts = tuple(
            (name, str(x.dtype) if isinstance(x, torch.Tensor) else x) for name, x in self.arguments.items()
        )
        return self.kernel.__name__, self.plan.warps, self.plan.stages, parts


@dataclass(frozen=True)
class Machine:
    """What a kernel is as machine code. spills: bytes of stack per thread. matrix: instructions by mnemonic;
    kinds: by KINDS, and "other". Counts are of the code as it stands: a loop's body counts once."""

    registers: int
    spills: int
    shared: int
    matrix: dict[str, int]
    kinds: dict[str, int]


@dataclass
class Row:
    """What one kernel compiled to (see Machine)."""

    target: str
    kernel: str
    decay: str
    dtype: str
    head_dim: int
    block: str
    warps: int
    registers: int
    spills: int
    shared: int
    shared_limit: int
    matrix: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    schedule: str = "fused"
    variants: tuple[str, ...] = ()
    backward: bool = False
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Why this row is not acceptable; empty if it is."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.shared > self.shared_limit:
            found.append(f"needs {self.shared} bytes of shared memory, {self.shared_limit} there")
        if self.kernel.startswith("chunk") and not self.matrix:
            found.append("uses no matrix instruction")
        return found


def trace(
    operands: tuple[torch.Tensor | None, ...],
    do: torch.Tensor,
    dstate: torch.Tensor | None,
    target: Target,
    schedule: str = "fused",
    **options: Any,
) -> list[Launch]:
    """The launches which forward (as in training) and backward would make, on tensors of device "meta".

    operands: those of launch.forward, in its order; options: read, reverse, scale, ... of the operator."""
    from . import launch

    found: list[Launch] = []
    backward = False

    def record(kernel: Any, grid: int, arguments: dict[str, Any], plan: Any) -> None:
        found.append(Launch(kernel, grid, arguments, plan, backward))

    given: dict[str, Any] = {
        "scale": 0.125, "read": "after", "reverse": False, "precision": None, "chunk_size": None,
        **options, "schedule": schedule, "target": target, "run": record,
    }  # fmt: skip
    *_, saved = launch.forward(*operands, save=True, **given)
    backward = True
    launch.backward(do, dstate, saved, *operands, **given)
    return found


def launches(case: Case, B: int = 8, T: int = 4096) -> list[Launch]:
    """The different launches which forward, backward and (of a fused case) one step would make on B sequences
    of T steps."""
    from . import one_step

    target, dtype, D = TARGETS[case.target], DTYPES[case.dtype], case.head_dim
    decay_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    N, H, K, V = B, 16, D, D
    if case.decay == "mamba1":
        H, K, V = 2048, 16, 1
    if case.decay == "hgrn":
        H, K = 1, 1
    packed = "packed" in case.variants
    if packed:
        B, T = 1, B * T

    def tensor(*shape: int, dtype: torch.dtype = decay_dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shared_heads = 1 if case.decay in ("mamba1", "hgrn") else H
    q, k = (tensor(B, T, shared_heads, K, dtype=dtype) for _ in range(2))
    v = tensor(B, T, H, V, dtype=dtype)
    log_decay = outer = log_decay_v = beta = x = y = state = cu_seqlens = mask = None
    if case.decay in ("key", "both", "kda", "dplr"):
        log_decay = tensor(B, T, H, K)
    if case.decay in ("delta", "gated_delta", "kda"):
        beta = tensor(B, T, H)
    if case.decay in ("dplr_scalar", "dplr"):
        x, y = (tensor(B, T, H, K, dtype=dtype) for _ in range(2))
    if case.decay in ("scalar", "outer", "mamba1", "gated_delta", "dplr_scalar"):
        log_decay = tensor(B, T, H)
    if case.decay in ("outer", "mamba1"):
        outer = tensor(H, K)
    if case.decay in ("both", "hgrn"):
        log_decay_v = tensor(B, T, H, V)
    if packed:
        cu_seqlens = tensor(N + 1, dtype=torch.int64)
    if "stateless" not in case.variants:
        state = tensor(N, H, K, V)
    if "mask" in case.variants:
        mask = tensor(B, T, dtype=torch.bool)
    options: dict[str, Any] = {
        "read": "before" if "before" in case.variants else "after",
        "reverse": "reverse" in case.variants,
    }
    operands = (q, k, v, log_decay, outer, log_decay_v, beta, x, y, state, cu_seqlens, mask)
    do = tensor(B, T, H, V, dtype=dtype)
    found: dict[Any, Launch] = {}
    for one in trace(operands, do, state, target, case.schedule, **options):
        found.setdefault(one.key(), one)
    if case.schedule == "fused" and not packed:

        def record(kernel: Any, grid: int, arguments: dict[str, Any], plan: Any) -> None:
            one = Launch(kernel, grid, arguments, plan, False)
            found.setdefault(one.key(), one)

        def first(x: torch.Tensor | None) -> Any:
            return None if x is None else x[:, 0]

        one_step.step(
            first(q), first(k), first(v), first(log_decay), outer, first(log_decay_v), first(beta), first(x),
            first(y), state, first(mask), scale=0.125, read=options["read"], target=target, run=record,
        )  # fmt: skip
    return list(found.values())


def compile_launch(kernel: Any, arguments: dict[str, Any], plan: Any, target: Target) -> Any:
    """What the JIT would compile for these arguments, for a target that need not be present."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.compiler import compile as triton_compile
    from triton.runtime.jit import create_function_from_signature

    gpu = GPUTarget(target.backend, target.arch, target.warp)
    backend = make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**arguments)
    signature, constants, attributes = {}, {}, {}
    for i, (name, (kind, detail)) in enumerate(zip(bound, specialization, strict=True)):
        signature[name] = kind
        if kind == "constexpr":
            constants[(i,)] = bound[name]
        elif isinstance(detail, str):
            attributes[(i,)] = backend.parse_attr(detail)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton_compile(source, target=gpu, options={"num_warps": plan.warps, "num_stages": plan.stages})


def _tool(name: str) -> str:
    import triton.backends.nvidia as nvidia

    return str(Path(next(iter(nvidia.__path__))) / "bin" / name)


def kinds_of(mnemonics: Iterable[str], backend: str) -> dict[str, int]:
    """How many instructions of each of KINDS; "other" are the rest."""
    which = 1 if backend == "hip" else 0
    patterns = {kind: re.compile(both[which]) for kind, both in KINDS.items()}
    found = Counter[str]()
    for name, n in Counter(mnemonics).items():
        found[next((kind for kind, p in patterns.items() if p.fullmatch(name)), "other")] += n
    return {kind: found[kind] for kind in (*KINDS, "other")}


def inspect(compiled: Any, target: Target) -> Machine:
    """Registers, spills, shared memory and instructions of a compiled kernel."""
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]

        def number(pattern: str) -> int:
            return max((int(x) for x in re.findall(pattern, text)), default=0)

        registers = number(r"\.vgpr_count:\s*(\d+)")
        spills = 4 * number(r"\.vgpr_spill_count:\s*(\d+)") + number(r"\.private_segment_fixed_size:\s*(\d+)")
        names = _GCN.findall(text)
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()

            def ask(*command: str) -> str:
                return subprocess.run(
                    [*command, file.name], check=True, capture_output=True, text=True
                ).stdout

            usage = ask(_tool("cuobjdump"), "-res-usage")
            text = ask(_tool("nvdisasm"), "-c")
        registers = int(re.findall(r"REG:(\d+)", usage)[-1])
        spills = int(re.findall(r"STACK:(\d+)", usage)[-1])
        names = _SASS.findall(text)
    matrix = re.compile(KINDS["matrix"][1 if target.backend == "hip" else 0])
    return Machine(
        registers,
        spills,
        compiled.metadata.shared,
        dict(Counter(name for name in names if matrix.fullmatch(name))),
        kinds_of(names, target.backend),
    )


def compile_case(case: Case, kernels: tuple[str, ...] = ()) -> list[Row]:
    """Compile every kernel of a case (or those named)."""
    rows = []
    target = TARGETS[case.target]
    for one in launches(case):
        if kernels and one.kernel.__name__ not in kernels:
            continue
        start = time.perf_counter()
        machine = inspect(compile_launch(one.kernel, one.arguments, one.plan, target), target)
        rows.append(
            Row(
                target=case.target,
                kernel=one.kernel.__name__,
                decay=case.decay,
                dtype=case.dtype,
                head_dim=case.head_dim,
                block=one.block,
                warps=one.plan.warps,
                registers=machine.registers,
                spills=machine.spills,
                shared=machine.shared,
                shared_limit=SHARED[case.target],
                matrix=machine.matrix,
                kinds=machine.kinds,
                schedule=case.schedule,
                variants=case.variants,
                backward=one.backward,
                seconds=time.perf_counter() - start,
            )
        )
    return rows


def cases(
    targets: Iterable[str] = TARGETS,
    dtypes: Iterable[str] = ("bfloat16", "float32"),
    head_dims: Iterable[int] = (64, 128),
    decays: Iterable[str] = (*DECAYS, *ERASING),
    schedules: Iterable[str] = ("fused",),
    variants: tuple[str, ...] = (),
) -> list[Case]:
    """The matrix. Blocks of the elementwise shapes do not depend on head_dim: once per target and dtype."""
    head_dims, schedules = list(head_dims), list(schedules)
    return [
        Case(target, decay, dtype, dim, schedule, variants)
        for target in targets
        for dtype in dtypes
        for dim in head_dims
        for decay in decays
        for schedule in schedules
        if decay not in ("mamba1", "hgrn") or dim == head_dims[0]
    ]


def representative(
    targets: Iterable[str] = TARGETS, dtypes: Iterable[str] = ("bfloat16", "float32")
) -> list[Case]:
    """What `cases` leaves out, not as a product: wide heads, no decay, the split schedule, and the variants,
    one at a time and together."""
    everything = ("before", "reverse", "packed", "mask")
    return [
        Case(target, decay, dtype, dim, schedule, variants)
        for target in targets
        for dtype in dtypes
        for decay, dim, schedule, variants in (
            ("scalar", 256, "fused", ()),
            ("key", 256, "fused", ()),
            ("none", 64, "fused", ("stateless",)),
            ("scalar", 64, "split", ()),
            ("key", 64, "split", ()),
            ("key", 128, "split", ("stateless",)),
            ("scalar", 64, "fused", ("before",)),
            ("key", 64, "fused", ("reverse",)),
            ("key", 64, "fused", ("packed",)),
            ("key", 64, "fused", ("mask",)),
            ("key", 64, "split", everything),
            ("mamba1", 64, "fused", everything),
            ("delta", 64, "fused", ("stateless",)),
            ("gated_delta", 64, "split", everything),
        )
    ]


def compile_all(matrix: list[Case], processes: int = 2) -> Iterator[list[Row]]:
    """Rows of each case, in order, as they come."""
    if processes == 1:
        yield from map(compile_case, matrix)
        return
    # spawn: a forked child of a process whose torch has started threads can hang
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(compile_case, matrix)
