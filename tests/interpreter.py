"""Tests of Triton kernels in Triton's interpreter, which is chosen when Triton is imported: they run in a
process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def passed_interpreted(tests: Path, share: str = "0/1") -> str:
    """Run a file of tests under TRITON_INTERPRET=1, all of which must pass; what pytest printed.

    share: "i/n", every n-th test from the i-th on (see conftest.py): n processes divide a long file."""
    command = [sys.executable, "-m", "pytest", "-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "--share", share, str(tests)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    return run.stdout


class _Nothing:
    def restore(self) -> None:
        pass


def patch_language_once_a_launch() -> None:
    """The interpreter puts its own functions into triton.language for a kernel, and again whenever the kernel
    calls a device function, which is half of a small kernel's time. Here it does so once, for the language's
    own device functions too."""
    import triton.language as tl
    from triton.runtime import interpreter

    class Executor(interpreter.GridExecutor):
        patched = False

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().__call__(*args, **kwargs)
            finally:
                Executor.patched = False

    patch = interpreter._patch_lang
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def once(fn: Any) -> Any:
        if Executor.patched:
            return _Nothing()
        Executor.patched = True
        return patch(everything)

    interpreter._patch_lang, interpreter.GridExecutor = once, Executor
