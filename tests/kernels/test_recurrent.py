"""The elementwise Triton kernels: their tests in the interpreter run in a process of their own."""

import importlib.util
from pathlib import Path

import pytest
from interpreter import passed_interpreted

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_recurrent_under_the_interpreter() -> None:
    printed = passed_interpreted(Path(__file__).with_name("test_recurrent_interpreted.py"))
    assert "skipped" not in printed
