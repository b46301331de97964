"""Compile the whole kernel family ahead of time, without a GPU, and say what came out.

    mixerzoo aot --target sm_90 --dtype bfloat16

For every target, dtype, head size and decay kind the launcher is run on tensors without data; the launches
it would make are compiled as they stand, then disassembled. A row tells registers per thread, bytes spilled,
shared memory against what the card has, and the matrix instructions found. Spills or a kernel that does not
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

from . import config, launch
from .config import Plan, Target

TARGETS = {"sm_80": config.SM_80, "sm_90": config.SM_90, "sm_100": config.SM_100, "gfx942": config.GFX942}
SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes a block may use
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
DECAYS = ("scalar", "key", "both", "outer", "mamba1", "hgrn")
_MATRIX = re.compile(r"\b(HMMA|DMMA|HGMMA|QGMMA|UTC\w*MMA|v_s?mfma_\w+)\b[\w.]*")


@dataclass(frozen=True)
class Case:
    """One cell of the matrix. Decays: one per head and step; per key; per key and value; outer; and the two
    shapes of the elementwise regime: Mamba-1 (16 keys, 1 value, outer) and HGRN (1 key, decays over
    values)."""

    target: str
    decay: str
    dtype: str
    head_dim: int


@dataclass
class Row:
    """What one kernel compiled to. spills: bytes of stack per thread. matrix: instructions by mnemonic."""

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


def launches(case: Case) -> list[tuple[Any, dict[str, Any], Plan]]:
    """The launches which forward and backward of a case would make: (kernel, arguments, plan)."""
    found: list[tuple[Any, dict[str, Any], Plan]] = []
    target, dtype, D = TARGETS[case.target], DTYPES[case.dtype], case.head_dim
    decay_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    B, T, H, K, V = 8, 4096, 16, D, D
    if case.decay == "mamba1":
        H, K, V = 2048, 16, 1
    if case.decay == "hgrn":
        H, K = 1, 1

    def tensor(*shape: int, dtype: torch.dtype = decay_dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def record(kernel: Any, grid: int, arguments: dict[str, Any], plan: Plan) -> None:
        found.append((kernel, arguments, plan))

    shared_heads = 1 if case.decay in ("mamba1", "hgrn") else H
    q, k = (tensor(B, T, shared_heads, K, dtype=dtype) for _ in range(2))
    v = tensor(B, T, H, V, dtype=dtype)
    log_decay = outer = log_decay_v = None
    if case.decay in ("key", "both"):
        log_decay = tensor(B, T, H, K)
    if case.decay in ("scalar", "outer", "mamba1"):
        log_decay = tensor(B, T, H)
    if case.decay in ("outer", "mamba1"):
        outer = tensor(H, K)
    if case.decay in ("both", "hgrn"):
        log_decay_v = tensor(B, T, H, V)
    state = tensor(B, H, K, V)
    inputs = (q, k, v, log_decay, outer, log_decay_v, state, None)
    options: dict[str, Any] = {
        "scale": 0.125, "read": "after", "reverse": False, "precision": None, "schedule": "fused",
        "chunk_size": None, "target": target, "run": record,
    }  # fmt: skip
    launch.forward(*inputs, **options)
    launch.backward(tensor(B, T, H, V, dtype=dtype), state, None, *inputs, **options)
    return found


def compile_launch(kernel: Any, arguments: dict[str, Any], plan: Plan, target: Target) -> Any:
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


def _inspect(compiled: Any, target: Target) -> tuple[int, int, dict[str, int]]:
    """Registers, spilled bytes and matrix instructions of a compiled kernel."""
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]

        def number(pattern: str) -> int:
            return max((int(x) for x in re.findall(pattern, text)), default=0)

        spills = 4 * number(r"\.vgpr_spill_count:\s*(\d+)") + number(r"\.private_segment_fixed_size:\s*(\d+)")
        return number(r"\.vgpr_count:\s*(\d+)"), spills, dict(Counter(_MATRIX.findall(text)))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def ask(*command: str) -> str:
            return subprocess.run([*command, file.name], check=True, capture_output=True, text=True).stdout

        usage = ask(_tool("cuobjdump"), "-res-usage")
        text = ask(_tool("nvdisasm"), "-c")
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    return registers, int(re.findall(r"STACK:(\d+)", usage)[-1]), dict(Counter(_MATRIX.findall(text)))


def compile_case(case: Case, kernels: tuple[str, ...] = ()) -> list[Row]:
    """Compile every kernel of a case (or those named)."""
    rows = []
    for kernel, arguments, plan in launches(case):
        if kernels and kernel.__name__ not in kernels:
            continue
        start = time.perf_counter()
        compiled = compile_launch(kernel, arguments, plan, TARGETS[case.target])
        registers, spills, matrix = _inspect(compiled, TARGETS[case.target])
        block = f"{plan.C}x{plan.BK}x{plan.BV}" + (f"x{plan.BH}" if plan.regime == "recurrent" else "")
        seconds = time.perf_counter() - start
        rows.append(
            Row(
                target=case.target,
                kernel=kernel.__name__,
                decay=case.decay,
                dtype=case.dtype,
                head_dim=case.head_dim,
                block=block,
                warps=plan.warps,
                registers=registers,
                spills=spills,
                shared=compiled.metadata.shared,
                shared_limit=SHARED[case.target],
                matrix=matrix,
                seconds=seconds,
            )
        )
    return rows


def cases(
    targets: Iterable[str] = TARGETS,
    dtypes: Iterable[str] = ("bfloat16", "float32"),
    head_dims: Iterable[int] = (64, 128),
    decays: Iterable[str] = DECAYS,
) -> list[Case]:
    """The matrix. Blocks of the elementwise shapes do not depend on head_dim: once per target and dtype."""
    head_dims = list(head_dims)
    return [
        Case(target, decay, dtype, dim)
        for target in targets
        for dtype in dtypes
        for dim in head_dims
        for decay in decays
        if decay not in ("mamba1", "hgrn") or dim == head_dims[0]
    ]


def compile_all(matrix: list[Case], processes: int = 2) -> Iterator[list[Row]]:
    """Rows of each case, in order, as they come."""
    if processes == 1:
        yield from map(compile_case, matrix)
        return
    # spawn: a forked child of a process whose torch has started threads can hang
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(compile_case, matrix)
