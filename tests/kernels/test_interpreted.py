"""Runs interpreted.py where Triton interprets its kernels on the CPU."""

import importlib.util
from pathlib import Path

import pytest
from interpreter import passed_interpreted

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_operator_under_the_interpreter():
    passed_interpreted(Path(__file__).with_name("interpreted.py"))
