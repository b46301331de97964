"""`mixerzoo aot`: the Triton kernels compiled ahead of time, without a GPU."""

from __future__ import annotations

import argparse
import importlib.util
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    if importlib.util.find_spec("triton") is None:
        return
    from ..kernels.triton_core import aot

    aot.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("triton") is None:
        print("mixerzoo aot: triton is not installed here (it exists for Linux only)", file=sys.stderr)
        return 2
    from ..kernels.triton_core import aot

    return aot.run(args)
