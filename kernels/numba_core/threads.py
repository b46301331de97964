"""One call of a compiled function by several threads: torch's own, where they can be had.

Threads of OpenMP wait for their next work by looking for it, all the time. Beside torch's, a second set of
threads would find its cores taken.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


@functools.cache
def _team() -> Callable[..., Any] | None:
    """The entry of the OpenMP that torch has loaded: GCC's, which LLVM's and Intel's have too."""
    if "OpenMP" not in torch.__config__.parallel_info().partition("parallel backend:")[2]:
        return None
    try:
        found = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    found.restype = None
    return found


@functools.cache
def _pool(process: int, many: int) -> ThreadPoolExecutor:
    """Threads of this process (those of the one it was forked from are not here)."""
    return ThreadPoolExecutor(many, thread_name_prefix="mixerzoo")


def call(compiled: Any, words: Any, many: int) -> None:
    """compiled(words) on so many threads at once, returning when all have."""
    at = words.ctypes.data
    if many == 1:
        compiled.ctypes(words.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))
    elif (team := _team()) is not None:
        team(compiled.address, at, many, 0)
    else:
        argument = words.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
        pool = _pool(os.getpid(), many)
        for done in [pool.submit(compiled.ctypes, argument) for _ in range(many)]:
            done.result()
