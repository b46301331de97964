"""Results into memory that is there.

A block of steps is small enough for a cache, but only where its results fall into the memory of the last
block's. `into` runs an operation and keeps its result's memory under a name, inside `reusing()`; a result of
that name lives until the next one. Elsewhere (proofs, derivatives of the gradient) every result is a new one:
the code is the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from . import large


class _Here(threading.local):
    kept: dict[Hashable, Any] | None = None


_here = _Here()


@contextmanager
def reusing(reuse: bool = True) -> Iterator[None]:
    """Memory of its own for what runs inside, or (False) new memory for every result."""
    before = _here.kept
    _here.kept = {} if reuse else None
    try:
        yield
    finally:
        _here.kept = before


def reuses() -> bool:
    """Whether results go into memory that is there."""
    return _here.kept is not None


def into(name: Hashable, operation: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """operation(*args), in the memory of the last result of this name from arguments of the same shapes and
    dtypes, which is contiguous. No argument may lie in it, unless the operation goes element by element."""
    if _here.kept is None:
        return operation(*args, **options)
    key = name, *((x.shape, x.dtype) if isinstance(x, torch.Tensor) else x for x in args)
    memory = _here.kept.get(key)
    if memory is None:
        result = _here.kept[key] = operation(*args, **options).contiguous()
        return result
    return operation(*args, **options, out=memory)


def kept(name: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` returned the first time, inside `reusing()`."""
    if _here.kept is None:
        return make()
    if name not in _here.kept:
        _here.kept[name] = make()
    return _here.kept[name]


def memory(name: Hashable, like: Any, n: int, *sizes: int) -> Any:
    """Memory for a tensor [n, *sizes] under a name, that lasts as long as `into`'s; None where every result
    is a new one."""
    if _here.kept is None:
        return None
    key = name, like.dtype, sizes
    found = _here.kept.get(key)
    if found is None or found.shape[0] < n:
        found = _here.kept[key] = like.new_empty(n, *sizes)
    return found if found.shape[0] == n else found[:n]


def new(like: torch.Tensor, *sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of these sizes with the device of `like`, and its dtype if no other, yet to be written."""
    dtype = dtype or like.dtype
    size = math.prod(sizes) * dtype.itemsize
    if like.device.type != "cpu" or size < large.LARGE:
        return like.new_empty(sizes, dtype=dtype)
    return large.take(size).view(dtype).view(sizes)


def lend(name: Hashable, x: Any) -> None:
    """Memory that the next result of this name may go to, if its operation can."""
    if _here.kept is not None:
        _here.kept[name] = x


def lent(name: Hashable) -> Any:
    """What was lent under this name, which it is no more; None if nothing was."""
    return None if _here.kept is None else _here.kept.pop(name, None)


def once(operation: Callable[..., Any], x: Any, *options: Any) -> Any:
    """operation(x, *options), computed once where x is the very object of the last time: a constant decay's
    weights are the same in every block. x may be no result of `into`, which is one object for all."""
    if _here.kept is None:
        return operation(x, *options)
    name = (operation, *options)
    found = _here.kept.get(name)
    if found is None or found[0] is not x:
        found = _here.kept[name] = (x, operation(x, *options))
    return found[1]


def own(x: Any) -> Any:
    """x, in memory that no later result takes."""
    return x if _here.kept is None else x.clone()


def copied(x: Any, out: Any = None) -> Any:
    """x in the memory of `out`, or where memory is reused, of its own."""
    if out is not None:
        return out.copy_(x)
    return x if _here.kept is None else x.clone(memory_format=torch.contiguous_format)


def times(name: Hashable, x: Any, y: Any) -> Any:
    """x ∘ y, None being 1. May take the place of either."""
    return x if y is None else into(name, torch.mul, x, y)


def _to(x: Any, dtype: torch.dtype, out: Any = None) -> Any:
    return x.to(dtype) if out is None else out.copy_(x)


def cast(name: Hashable, x: Any, dtype: Any) -> Any:
    """x in another dtype (field elements have none)."""
    return x if dtype is None or x.dtype == dtype else into(name, _to, x, dtype)


def dtype_of(x: Any) -> Any:
    """None of field elements."""
    return getattr(x, "dtype", None)


def wide(name: Hashable, x: Any) -> Any:
    """x in float64."""
    return cast(name, x, None if dtype_of(x) is None else torch.float64)


def one_batch(x: torch.Tensor) -> bool:
    """Whether all leading axes are one, without a copy."""
    axes = [(n, s) for n, s in zip(x.shape[:-2], x.stride()[:-2], strict=True) if n > 1]
    return all(outer == n * inner for (_, outer), (n, inner) in pairwise(axes))


def matmul(name: Hashable, a: Any, b: Any) -> Any:
    """a b; in memory of this name, and where leading axes would have to be copied to be one, for each index
    of the first by itself."""
    if _here.kept is None or a.shape[0] == 1 or (one_batch(a) and one_batch(b)):
        return into(name, torch.matmul, a, b)
    lead = torch.Size(map(max, a.shape[:-2], b.shape[:-2]))
    out = memory(name, a, *lead, a.shape[-2], b.shape[-1])
    for x, y, z in zip(a, b, out, strict=True):
        torch.matmul(x, y, out=z)
    return out


# ------------------------------------------------------------------ of a result, in its place


def scaled(x: Any, factor: Any) -> Any:
    """x ∘ factor, None being 1."""
    return x if factor is None else x * factor if _here.kept is None else x.mul_(factor)


def lowered(x: Any, diagonal: int) -> Any:
    """x with zeros above a diagonal."""
    return torch.tril(x, diagonal) if _here.kept is None else x.tril_(diagonal)


def increased(x: Any, y: Any) -> Any:
    """x + y."""
    return x + y if _here.kept is None else x.add_(y)


def plus_times(x: Any, a: Any, b: Any) -> Any:
    """x + a ∘ b."""
    return x + a * b if _here.kept is None else x.addcmul_(a, b)


def plus_scaled(y: Any, x: Any, factor: Any) -> Any:
    """y + x ∘ factor, None being 1; in x's place."""
    if _here.kept is None:
        return y + (x if factor is None else x * factor)
    return x.add_(y) if factor is None else torch.addcmul(y, x, factor, out=x)


def plus_product(x: Any, a: Any, b: Any) -> Any:
    """x + a b."""
    if _here.kept is None:
        return x + a @ b
    if not x.is_contiguous():
        return x.add_(into("product", torch.matmul, a, b))
    lead = x.shape[:-2]
    a, b = (z.expand(*lead, *z.shape[-2:]).reshape(-1, *z.shape[-2:]) for z in (a, b))
    x.view(-1, *x.shape[-2:]).baddbmm_(a, b)
    return x


def with_product(x: Any, a: Any, b: Any, out: Any, sign: int = 1) -> Any:
    """x + a b, or x - a b, of [batches, ., .]: in this room, which may be x's, or (None) in memory of its
    own."""
    if out is None:
        return x + a @ b if sign > 0 else x - a @ b
    return x.baddbmm_(a, b, alpha=sign) if out is x else torch.baddbmm(x, a, b, alpha=sign, out=out)


# ------------------------------------------------------------------ results one after the other, side by side


def places(room: Any, n: int) -> list[Any]:
    """Where n results go, in memory for [n, ...], or (None) in memory of their own."""
    return [None] * n if room is None else list(room)


def side_by_side(room: Any, results: list[Any]) -> Any:
    """Results as one, [n, ...]."""
    return torch.stack(results) if room is None else room
