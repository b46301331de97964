"""Results into memory that is there.

A block of steps is small enough for a cache, but only where its results fall into the memory of the last
block's. `into` runs an operation and keeps its result's memory under a name, inside `reusing()`; a result of
that name lives until the next one. Elsewhere (proofs, derivatives of the gradient) every result is a new one:
the code is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
    dtypes. No argument may lie in it, unless the operation goes element by element."""
    if _here.kept is None:
        return operation(*args, **options)
    key = name, *((x.shape, x.dtype) if isinstance(x, torch.Tensor) else x for x in args)
    memory = _here.kept.get(key)
    if memory is None:
        result = _here.kept[key] = operation(*args, **options)
        return result
    return operation(*args, **options, out=memory)


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


def lend(name: Hashable, x: Any) -> None:
    """Memory that the next result of this name may go to, if its operation can."""
    if _here.kept is not None:
        _here.kept[name] = x


def lent(name: Hashable) -> Any:
    """What was lent under this name, which it is no more; None if nothing was."""
    return None if _here.kept is None else _here.kept.pop(name, None)


def once(operation: Callable[..., Any], x: Any, *options: Any) -> Any:
    """operation(x, *options), computed once where x is the very object of the last time: a constant decay's
    weights are the same in every block."""
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
