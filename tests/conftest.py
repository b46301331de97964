"""Keeps this folder's parent off the import path.

`python -m pytest` puts the current folder there, where `kernels/` would pass for the distribution of
that name, which transformers looks for. The tests import `mixerzoo.kernels`, as installed.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    from mixerzoo.equivalence.interpreting import patch_language_once_a_launch

    patch_language_once_a_launch()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="I/N", default="0/1", help="run every N-th test, from the I-th on")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    i, n = map(int, config.getoption("share").split("/"))
    mine = items[i::n]
    if len(mine) < len(items):
        config.hook.pytest_deselected(items=[x for j, x in enumerate(items) if j % n != i])
        items[:] = mine
