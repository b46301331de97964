"""Tests of Triton kernels in Triton's interpreter, which is chosen when Triton is imported: they run in a
process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
