"""Counting what a call costs: bytes and products, kernel by kernel and operation by operation.

    TRITON_INTERPRET=1 python my_program.py

    from mixerzoo.equivalence.cost import count
    with count() as cost:
        anything()                      # with any Triton kernels, on CPU tensors
    cost.kernels["my_kernel"].read      # bytes

Kernels run in Triton's interpreter, on the CPU; it sees every load, store and product of every program, with
its mask. Torch operations around the kernels are seen by a TorchDispatchMode. Nothing is sampled, and nothing
is estimated: counts are of this very call. What a count is not: time, cache hits, or instructions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cost", "KernelCost", "OperationCost", "Product", "count"]

# Products of float32 operands that one dot is made of, by input_precision, and the format which they are in
# (Triton language reference, tl.dot: tf32x3, bf16x3, bf16x6).
PRECISIONS = {
    "ieee": (1, ""),
    "tf32": (1, "tf32"),
    "tf32x3": (3, "tf32"),
    "bf16x3": (3, "bf16"),
    "bf16x6": (6, "bf16"),
}


@dataclass(frozen=True)
class Product:
    """A kind of tl.dot: dtype of the operands as Triton names it, and input_precision ("" but for fp32)."""

    operands: str
    precision: str = ""

    @property
    def times(self) -> int:
        """Products executed for each product written down."""
        return PRECISIONS[self.precision or "ieee"][0]

    @property
    def format(self) -> str:
        """The format that is multiplied: bf16, fp16, tf32, fp32 (no tensor core on NVIDIA), fp64, ..."""
        return PRECISIONS[self.precision or "ieee"][1] or self.operands

    def __str__(self) -> str:
        return f"{self.operands} {self.precision}".strip()


@dataclass
class KernelCost:
    """All launches of one kernel. Bytes are those of lanes whose mask is true, in the dtype of the pointer.

    read, written: bytes that programs ask for, again each time they ask.
    distinct_read, distinct_written: bytes at different addresses, per launch: what is left if a cache answers
        every second question.
    atomic: bytes of atomics, which are in both read and written too.
    flops: 2 M N K of each tl.dot, as written down (see Product.times for what is executed).
    arithmetic: elementwise floating additions, multiplications, ... and the additions of sums, in lanes; an
        fma counts as 2.
    special: exponentials, logarithms, roots, sines, in lanes.
    """

    launches: int = 0
    programs: int = 0
    read: int = 0
    written: int = 0
    distinct_read: int = 0
    distinct_written: int = 0
    atomic: int = 0
    flops: dict[Product, int] = field(default_factory=dict)
    arithmetic: int = 0
    special: int = 0

    @property
    def moved(self) -> int:
        return self.read + self.written

    @property
    def distinct(self) -> int:
        return self.distinct_read + self.distinct_written

    @property
    def nominal(self) -> int:
        """FLOPs of products as written down."""
        return sum(self.flops.values())

    @property
    def executed(self) -> int:
        """FLOPs of products as executed: six for one under bf16x6."""
        return sum(n * product.times for product, n in self.flops.items())


@dataclass
class OperationCost:
    """All calls of one torch operation outside kernels. flops: of matrix products alone."""

    calls: int = 0
    read: int = 0
    written: int = 0
    flops: int = 0

    @property
    def moved(self) -> int:
        return self.read + self.written


@dataclass
class Cost:
    """What was counted: kernels by name, in order of their first launch, and torch operations by name."""

    kernels: dict[str, KernelCost] = field(default_factory=dict)
    operations: dict[str, OperationCost] = field(default_factory=dict)

    @property
    def read(self) -> int:
        return sum(x.read for x in self.kernels.values()) + sum(x.read for x in self.operations.values())

    @property
    def written(self) -> int:
        return sum(x.written for x in self.kernels.values()) + sum(
            x.written for x in self.operations.values()
        )

    @property
    def moved(self) -> int:
        """Bytes read and written, by kernels and around them."""
        return self.read + self.written

    @property
    def distinct(self) -> int:
        """As moved, with each kernel launch counting an address once."""
        return sum(x.distinct for x in self.kernels.values()) + sum(x.moved for x in self.operations.values())

    @property
    def nominal(self) -> int:
        return sum(x.nominal for x in self.kernels.values()) + sum(x.flops for x in self.operations.values())

    @property
    def executed(self) -> int:
        return sum(x.executed for x in self.kernels.values()) + sum(x.flops for x in self.operations.values())

    @property
    def launches(self) -> int:
        """Kernels started, torch's among them (one for each operation)."""
        return sum(x.launches for x in self.kernels.values()) + sum(x.calls for x in self.operations.values())


@contextmanager
def count(kernels: bool = True, operations: bool = True) -> Iterator[Cost]:
    """Count what happens inside the block. Blocks may be nested; each counts everything inside itself.

    Args:
        kernels: count Triton kernels, which must be interpreted.
        operations: count torch operations outside of kernels.

    Yields:
        A Cost that fills while the block runs.

    Raises:
        RuntimeError: kernels are to be counted, but Triton was not told to interpret them.
        ModuleNotFoundError: kernels are to be counted, but Triton is not installed.
    """
    from . import interpreter, operations as torch_operations  # noqa: I001 (heavy imports, only when counting)

    cost = Cost()
    if kernels and os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise RuntimeError(
            "count(kernels=True) without TRITON_INTERPRET=1; accepted: that variable set before triton is "
            "imported, so that kernels run in Triton's interpreter"
        )
    inside: list[Any] = []
    if operations:
        inside.append(torch_operations.Counting(cost))
    if kernels:
        inside.append(interpreter.counting(cost))
    for manager in inside:
        manager.__enter__()
    try:
        yield cost
    finally:
        for manager in reversed(inside):
            manager.__exit__(None, None, None)
