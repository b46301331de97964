"""The command line: `mixerzoo prove | audit | stream | bench | plot | report | list | aot | cost`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# command -> (module with add_arguments(parser) and run(args) -> exit status; what it does).
# A module is imported only when its command is asked for: the help of one needs none of the others.
COMMANDS = {
    "prove": (".prove", "prove that all ways of computing the zoo are the same functions"),
    "audit": (
        ".audit.command",
        "which properties of a recurrence other people's kernels, modules and models keep",
    ),
    "stream": (
        ".stream.command",
        "read millions of tokens in constant memory, interrupt and resume, and plot what it costs",
    ),
    "bench": (
        ".bench.command",
        "the torch backend on this CPU: ratios to yardsticks, and the bars they are to meet",
    ),
    "plot": (".plot", "attention maps, errors, times and learning curves, as pictures"),
    "report": (".report", "proofs and plots on one self-contained page"),
    "list": (".listing", "the mixers: family, decay, gating, paper"),
    "aot": (".aot", "compile the Triton kernels for GPUs that need not be present, and print the table"),
    "cost": (
        ".cost.command",
        "what the recurrence costs on a GPU: bytes and products counted, kernels compiled, time modelled",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="mixerzoo",
        description="Linear attention, state space models and linear RNNs as one recurrence, with proofs.",
    )
    parser.add_argument("--version", action="version", version=f"mixerzoo {_version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    module = None
    for name, (path, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        if argv[:1] == [name]:
            module = importlib.import_module(path, __package__)
            module.add_arguments(sub)
    args = parser.parse_args(argv)
    assert module is not None  # a command was required, and it is the first argument
    try:
        return int(module.run(args))
    except KeyboardInterrupt:
        return 130


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mixerzoo")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
