"""The command line: `mixerzoo prove | plot | report | list | aot`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

# command -> module of this package with HELP, add_arguments(parser) and run(args) -> exit status.
# Modules are imported for the command at hand only.
COMMANDS = {
    "prove": ".prove",
    "plot": ".plot",
    "report": ".report",
    "list": ".listing",
    "aot": ".aot",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="mixerzoo",
        description="Linear attention, state space models and linear RNNs as one recurrence, with proofs.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {name: importlib.import_module(module, __package__) for name, module in COMMANDS.items()}
    for name, module in modules.items():
        sub = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
    args = parser.parse_args(argv)
    return int(modules[args.command].run(args))


if __name__ == "__main__":
    raise SystemExit(main())
