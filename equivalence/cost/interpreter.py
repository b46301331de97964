"""Triton's interpreter, watched: every load, store, product and launch is added to the open counts.

The interpreter builds no IR: the methods of its `InterpreterBuilder` *do* what a kernel says, program by
program, on NumPy arrays. So wrapping those methods sees everything. Descriptor and block-pointer accesses end
in the masked ones, and need no wrapper of their own.

Three things are put right meanwhile, because kernels are run here as they are compiled for a GPU: products of
bfloat16 (the interpreter multiplies their bit patterns), conversions to and from bfloat16 (it loses carries),
and the input precisions that it does not know. Scans and reductions with a combine function of their own go
through all lanes at once rather than lane by lane in Python. None of it changes a count.

Written for Triton 3.6 to 3.8: triton/runtime/interpreter.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .count import PRECISIONS, Cost, KernelCost, Product

ARITHMETIC = ("fadd", "fsub", "fmul", "fdiv", "frem", "minimumf", "maximumf", "minnumf", "maxnumf")
SPECIAL = ("exp", "exp2", "log", "log2", "sqrt", "precise_sqrt", "rsqrt", "sin", "cos", "erf")
COMPACT = 1 << 22  # addresses kept before duplicates are dropped

_open: list[Cost] = []
_launch: _Launch | None = None


class _Launch:
    """What one launch has done so far."""

    def __init__(self) -> None:
        self.cost = KernelCost()
        # (reading or writing, bytes of an element) -> addresses
        self.addresses: dict[tuple[bool, int], list[np.ndarray]] = {}
        self.held = 0

    def access(self, pointers: Any, mask: Any, read: bool, written: bool) -> None:
        at = pointers.data
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if mask is not None:
            at = at[np.broadcast_to(mask.data, at.shape).astype(bool)]
        if read:
            self.cost.read += at.size * size
            self._remember((True, size), at)
        if written:
            self.cost.written += at.size * size
            self._remember((False, size), at)
        if read and written:
            self.cost.atomic += at.size * size

    def _remember(self, key: tuple[bool, int], at: np.ndarray) -> None:
        self.addresses.setdefault(key, []).append(np.ravel(at).astype(np.uint64))
        self.held += at.size
        if self.held > COMPACT:
            self.addresses = {k: [np.unique(np.concatenate(v))] for k, v in self.addresses.items()}
            self.held = -sum(v[0].size for v in self.addresses.values())

    def close(self) -> None:
        for (reading, size), parts in self.addresses.items():
            distinct = int(np.unique(np.concatenate(parts)).size) * size
            if reading:
                self.cost.distinct_read += distinct
            else:
                self.cost.distinct_written += distinct


def _add(total: KernelCost, one: KernelCost) -> None:
    for f in dataclasses.fields(KernelCost):
        if f.name != "flops":
            setattr(total, f.name, getattr(total, f.name) + getattr(one, f.name))
    for product, n in one.flops.items():
        total.flops[product] = total.flops.get(product, 0) + n


@contextmanager
def counting(cost: Cost) -> Iterator[None]:
    """Add to this cost what kernels do."""
    restore = _patch() if not _open else None
    _open.append(cost)
    try:
        yield
    finally:
        _open.remove(cost)
        if restore is not None:
            for target, name, before in reversed(restore):
                setattr(target, name, before)


def launching() -> bool:
    """Whether a kernel is running now: what torch does meanwhile is the interpreter's own."""
    return _launch is not None


def _float(x: Any) -> np.ndarray:
    """The numbers of a handle: bfloat16 is kept as bit patterns."""
    if x.dtype.scalar.name == "bf16":
        return (x.data.astype(np.uint32) << 16).view(np.float32)
    return x.data


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bit patterns of float32 numbers rounded to bfloat16, to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def _patch() -> list[tuple[Any, str, Any]]:
    """Wrap the interpreter; returns (object, attribute, what it was), to be put back."""
    from triton.runtime import interpreter as source

    builder = source.InterpreterBuilder
    changed: list[tuple[Any, str, Any]] = []

    def put(target: Any, name: str, value: Any) -> None:
        changed.append((target, name, getattr(target, name)))
        setattr(target, name, value)

    masked_load, masked_store = builder.create_masked_load, builder.create_masked_store
    cas, rmw, dot, scaled = (
        getattr(builder, f"create_{name}") for name in ("atomic_cas", "atomic_rmw", "dot", "dot_scaled")
    )

    def create_masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        if _launch is not None:
            _launch.access(ptrs, mask, True, False)
        return masked_load(self, ptrs, mask, *rest, **named)

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        if _launch is not None:
            _launch.access(ptrs, mask, False, True)
        return masked_store(self, ptrs, value, mask, *rest, **named)

    def create_atomic_cas(self: Any, ptr: Any, *rest: Any) -> Any:
        if _launch is not None:
            _launch.access(ptr, None, True, True)
        return cas(self, ptr, *rest)

    def create_atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        if _launch is not None:
            _launch.access(ptr, mask, True, True)
        return rmw(self, op, ptr, val, mask, *rest)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, imprecise: Any) -> Any:
        name = a.dtype.scalar.name
        if _launch is not None:
            precision = input_precision.name.lower() if name == "fp32" else ""
            _dot(Product(name, precision), a.data.shape, b.data.shape)
        if "bf16" in (name, b.dtype.scalar.name):
            out = np.matmul(_float(a), _float(b), dtype=d.data.dtype) + d.data
            return source.TensorHandle(out, d.dtype.scalar)
        return dot(self, a, b, d, input_precision, imprecise)

    def create_dot_scaled(self: Any, lhs: Any, *rest: Any) -> Any:
        out = scaled(self, lhs, *rest)
        if _launch is not None:
            # two 4-bit numbers are packed into one of uint8
            inner = lhs.data.shape[-1] * (2 if lhs.dtype.scalar.name == "uint8" else 1)
            _dot(Product(lhs.dtype.scalar.name), (*out.data.shape[:-1], inner), out.data.shape)
        return out

    convert = builder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        names = src.dtype.scalar.name, dst_type.scalar.name
        if names == ("fp32", "bf16"):
            return source.TensorHandle(_to_bfloat16(src.data), dst_type.scalar)
        if names == ("bf16", "fp32"):
            return source.TensorHandle(_float(src), dst_type.scalar)
        return convert(self, src, dst_type)

    for function in (
        create_masked_load, create_masked_store, create_atomic_cas, create_atomic_rmw, create_dot,
        create_dot_scaled, cast_impl,
    ):  # fmt: skip
        put(builder, function.__name__, function)

    def lanes(name: str, field: str, each: int) -> None:
        before = getattr(builder, name, None)
        if before is None:  # not in this Triton
            return

        def counted(self: Any, *arguments: Any) -> Any:
            out = before(self, *arguments)
            if _launch is not None:
                setattr(_launch.cost, field, getattr(_launch.cost, field) + each * out.data.size)
            return out

        put(builder, name, counted)

    for name in ARITHMETIC:
        lanes(f"create_{name}", "arithmetic", 1)
    lanes("create_fma", "arithmetic", 2)
    for name in SPECIAL:
        lanes(f"create_{name}", "special", 1)

    def generic_scan(self: Any, inputs: Any) -> Any:
        return _scan(self, inputs, reduce=False)

    def generic_reduce(self: Any, inputs: Any) -> Any:
        if self.axis is None:
            return slow_reduce(self, inputs)
        return _scan(self, inputs, reduce=True)

    slow_reduce = source.ReduceOps.generic_reduce
    put(source.ScanOps, "generic_scan", generic_scan)
    put(source.ReduceOps, "generic_reduce", generic_reduce)
    plain_sum, plain_cumsum = source.ReduceOps.sum, source.ScanOps.cumsum

    def sum_(self: Any, x: Any) -> Any:
        _additions(x)
        return plain_sum(self, x)

    def cumsum(self: Any, x: Any) -> Any:
        _additions(x)
        return plain_cumsum(self, x)

    put(source.ReduceOps, "sum", sum_)
    put(source.ScanOps, "cumsum", cumsum)

    executor = source.GridExecutor
    call = executor.__call__

    def launch(self: Any, *arguments: Any, **named: Any) -> Any:
        global _launch
        outer, _launch = _launch, _Launch()
        programs = [1]

        # The grid may be a function of the arguments, which the executor alone knows how to bind.
        set_grid_dim = builder.set_grid_dim

        def seen(of: Any, *sizes: int) -> None:
            programs[0] = int(np.prod(sizes))
            set_grid_dim(of, *sizes)

        builder.set_grid_dim = seen
        try:
            return call(self, *arguments, **named)
        finally:
            builder.set_grid_dim = set_grid_dim
            done, _launch = _launch, outer
            done.close()
            done.cost.launches, done.cost.programs = 1, programs[0]
            for cost in _open:
                _add(cost.kernels.setdefault(self.fn.__name__, KernelCost()), done.cost)

    put(executor, "__call__", launch)

    options = source.interpreter_builder.options
    known = tuple(dict.fromkeys((*options.allowed_dot_input_precisions, *PRECISIONS)))
    put(
        source.interpreter_builder,
        "options",
        dataclasses.replace(options, allowed_dot_input_precisions=known),
    )
    return changed


def _dot(product: Product, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert _launch is not None
    flops = 2 * int(np.prod(a)) * b[-1]  # batch, M and K are in a
    _launch.cost.flops[product] = _launch.cost.flops.get(product, 0) + flops


def _additions(x: Any) -> None:
    if _launch is not None and x.dtype.scalar.is_floating():
        _launch.cost.arithmetic += x.handle.data.size


def _scan(self: Any, inputs: Any, reduce: bool) -> list[Any]:
    """Scan or reduction along an axis, all other lanes at once: combine functions are elementwise."""
    axis, data = self.axis, [x.handle.data for x in inputs]
    dtypes = [x.dtype.scalar for x in inputs]

    def step(i: int) -> tuple[Any, ...]:
        slices = (np.take(d, [i], axis) for d in data)
        return tuple(self.to_tensor(s, dtype) for s, dtype in zip(slices, dtypes, strict=True))

    total = step(0)
    found = [[x.handle.data] for x in total]
    for i in range(1, data[0].shape[axis]):
        result = self.combine_fn.fn(*total, *step(i))
        total = result if isinstance(result, tuple) else (result,)
        for parts, x in zip(found, total, strict=True):
            parts.append(x.handle.data)
    if not reduce:
        joined = [np.concatenate(parts, axis) for parts in found]
    elif self.keep_dims:
        joined = [parts[-1] for parts in found]
    else:
        joined = [np.squeeze(parts[-1], axis) for parts in found]
    return [self.to_tensor(d, dtype) for d, dtype in zip(joined, dtypes, strict=True)]
