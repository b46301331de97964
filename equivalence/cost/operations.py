"""What torch operations read and write, seen by a TorchDispatchMode.

An operation reads its tensor inputs and writes its outputs, each element once; an input that is expanded
counts its real elements. Views, allocations and metadata cost nothing. That is what an eager operation must
move; caches may serve some of it, and a compiler may fuse it away.

Operators outside torch's own namespaces (this package's, or any custom operator) are entered: what they do
inside is counted, not they themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from . import interpreter
from .count import Cost, OperationCost

OWN = ("aten", "prims", "prim", "_c10d_functional", "c10d")

# Nothing moves: memory is handed out, or described anew. (Views are found by looking at their storage.)
FREE = {
    "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "set_",
    "resize_", "lift_fresh", "detach", "is_same_size", "sym_size", "sym_numel", "sym_stride",
    "_has_compatible_shallow_copy_type", "_version",
}  # fmt: skip

# Their first input is looked at for its shape and dtype alone.
SHAPES = {
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "new_zeros",
    "new_ones", "new_full",
}  # fmt: skip

# In place, without reading what was there.
OVERWRITES = {"copy_", "fill_", "zero_", "uniform_", "normal_", "exponential_", "random_", "bernoulli_"}

# Of their first input they read only what they give back.
SELECTS = {"index", "index_select", "gather", "embedding", "take"}

# In place, they touch as much of their first input as there is in the last.
SCATTERS = {"index_put_", "scatter_", "scatter_add_", "index_add_", "index_copy_", "_index_put_impl_"}


def real_bytes(x: Tensor) -> int:
    """Bytes of the elements of a tensor, those of an expanded dimension once."""
    n = x.element_size()
    for size, stride in zip(x.shape, x.stride(), strict=True):
        n *= size if stride != 0 or size == 0 else 1
    return min(n, x.untyped_storage().nbytes())


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for x in tree:
            yield from _tensors(x)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class Counting(TorchDispatchMode):
    """Adds to a cost what torch operations move, but for those which the interpreter makes."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if interpreter.launching():
            return func(*args, **kwargs)
        if func.namespace not in OWN:
            return self._enter(func, args, kwargs)
        with self:  # an operation that is made of others
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        self._add(func, args, kwargs, out)
        return out

    def _enter(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operator's kernel for its device with this mode on, so that it sees what is inside."""
        given = next(_tensors((args, tuple(kwargs.values()))), None)
        key = "CUDA" if given is not None and given.is_cuda else "CPU"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        with self:
            return func.redispatch(keys, *args, **kwargs)

    def _add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = func._schema.name.split("::")[-1]
        if name in FREE:
            return
        read = written = 0
        changed: list[Tensor] = []  # arguments that the operation writes to
        inputs: list[Tensor] = []
        for i, argument in enumerate(func._schema.arguments):
            value = kwargs.get(argument.name) if argument.kwarg_only or i >= len(args) else args[i]
            found = list(_tensors(value))
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed += found
                if not argument.is_out and name not in OVERWRITES:
                    inputs += found
            else:
                inputs += found
        if name in SHAPES:
            inputs = inputs[1:]
        outputs = list(_tensors(out))
        if not changed:
            mine = {_storage(x) for x in inputs}
            outputs = [x for x in outputs if _storage(x) not in mine]
            if not outputs and any(True for _ in _tensors(out)):
                return  # a view
        if name == "_local_scalar_dense":
            read = inputs[0].element_size()
        elif name in SELECTS:
            got = sum(x.numel() * x.element_size() for x in outputs)
            read = min(real_bytes(inputs[0]), got) + sum(map(real_bytes, inputs[1:]))
            written = got
        elif name in SCATTERS:
            touched = real_bytes(inputs[-1])
            read, written = sum(map(real_bytes, inputs[1:])), touched
            read += touched if "add" in name or (name.startswith("index_put") and True in args) else 0
        else:
            # One tensor given twice is read once.
            once = {(_storage(x), x.storage_offset(), x.shape, x.stride()): x for x in inputs}
            read = sum(map(real_bytes, once.values()))
            written = sum(map(real_bytes, changed or outputs))
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
        total = self.cost.operations.setdefault(name, OperationCost())
        total.calls += 1
        total.read += read
        total.written += written
        total.flops += flops
