"""flash-linear-attention: its references in PyTorch, which run on a CPU, and with a GPU its kernels."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..examine import Target
from ..finding import PROPERTIES
from ..subject import Subject
from .adapter import Adapter
from .fla_kernels import KERNELS
from .fla_references import REFERENCES
from .kernel import kernel
from .load import TargetError

PACKAGE = "fla"


class Absent(Subject):
    """A function that is there and cannot be called here, with the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.unsupported = dict.fromkeys(PROPERTIES, reason)


def folder() -> Path:
    """Where the installed flash-linear-attention has its operators. Looking for it does not import it.

    Raises:
        TargetError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        if (Path(place) / "ops").is_dir():
            return Path(place) / "ops"
    raise TargetError(
        "flash-linear-attention is not installed; `pip install flash-linear-attention` makes its references "
        "and kernels targets"
    )


@contextlib.contextmanager
def _without_packages(ops: Path) -> Iterator[None]:
    """fla and fla.ops as packages whose __init__ did not run: it would import every kernel."""
    kept = {n: m for n, m in sys.modules.items() if n == PACKAGE or n.startswith(PACKAGE + ".")}
    for name in kept:
        del sys.modules[name]
    bare = {PACKAGE: ops.parent, f"{PACKAGE}.ops": ops}
    bare |= {f"{PACKAGE}.ops.{p.name}": p for p in ops.iterdir() if (p / "__init__.py").is_file()}
    bare |= {
        f"{PACKAGE}.ops.{p.parent.name}.{p.name}": p for p in ops.glob("*/*") if (p / "__init__.py").is_file()
    }
    for name, path in bare.items():
        module = ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n == PACKAGE or n.startswith(PACKAGE + ".")]:
            del sys.modules[name]
        sys.modules.update(kept)


def _reference(ops: Path, where: str) -> ModuleType:
    with _without_packages(ops):
        module = importlib.import_module(f"{PACKAGE}.ops.{where}")
    sys.modules[module.__name__] = module  # its functions look for what is beside them
    return module


def _target(name: str, found: Callable[[], Any], adapter: Adapter, called: str) -> Target | None:
    """None if the installed version has no such function."""
    try:
        function = found()
    except AttributeError:
        return None
    except Exception as e:
        reason = f"does not import here: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
        return Target(name, lambda property: [Absent(name, reason)])
    return kernel(name, function, adapter, called)


def _all(
    table: Mapping[str, Adapter], module: Callable[[str], Any], file: Callable[[str], Path]
) -> list[Target]:
    found = []
    for text, adapter in table.items():
        where, name = text.split(":")
        if not file(where).is_file():
            continue
        target = _target(
            name,
            lambda where=where, name=name: getattr(module(where), name),  # type: ignore[misc]
            adapter,
            f"{PACKAGE}.ops.{text}",
        )
        found += [] if target is None else [target]
    return found


def targets() -> Sequence[Target]:
    """The references that the installed version has, and with a GPU its kernels.

    Raises:
        TargetError: it is not installed.
    """
    ops = folder()

    def file(where: str) -> Path:
        return ops / (where.replace(".", "/") + ".py")

    found = _all(REFERENCES, lambda where: _reference(ops, where), file)
    if torch.cuda.is_available():
        found += _all(KERNELS, lambda where: importlib.import_module(f"{PACKAGE}.ops.{where}"), file)
    return found
