"""Triton's interpreter in half the time, for a process that does nothing else with it.

Written for Triton 3.6 to 3.8: triton/runtime/interpreter.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class _Nothing:
    def restore(self) -> None:
        pass


def patch_language_once_a_launch() -> None:
    """The interpreter puts its own functions into triton.language for a kernel, and again whenever the kernel
    calls a device function, which is half of a small kernel's time. From here on it does so once, for the
    language's own device functions too. Nothing happens if this Triton does it otherwise."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch: Any = getattr(interpreter, "_patch_lang", None)
    executor: Any = getattr(interpreter, "GridExecutor", None)
    if patch is None or executor is None or getattr(executor, "once", False):
        return

    class Executor(executor):
        once = True
        patched = False

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().__call__(*args, **kwargs)
            finally:
                Executor.patched = False

    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def once(fn: Any) -> Any:
        if Executor.patched:
            return _Nothing()
        Executor.patched = True
        return patch(everything)

    interpreter._patch_lang, interpreter.GridExecutor = once, Executor
