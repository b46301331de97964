"""The elementwise Triton kernels: their tests in the interpreter run in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_recurrent_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, str(HERE / "test_recurrent_interpreted.py")],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout and "skipped" not in ran.stdout
