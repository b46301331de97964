"""From the text that names something to the thing: `package.module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


class TargetError(Exception):
    """There is no such target, or its adapter does not fit; the message says what is accepted."""


def load_file(path: Path) -> ModuleType:
    """A file as a module of its own, under a name that no other file has.

    Raises:
        TargetError: it is not there, or raises.
    """
    if not path.is_file():
        raise TargetError(f"{path} is not a file; accepted: package.module:name or path/to/file.py:name")
    name = f"_audited_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise TargetError(f"{path} does not import: {type(e).__name__}: {e}") from e
    return module


def split(text: str) -> tuple[str, str]:
    """The file or module, and the name in it.

    Raises:
        TargetError: the text has no colon.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise TargetError(f"{text!r} names nothing; accepted: package.module:name or path/to/file.py:name")
    return where, name


@contextlib.contextmanager
def _current_folder(package: str) -> Iterator[None]:
    """The current folder on the path, if it holds what is to be imported and nothing else does.

    Not otherwise: its other folders would pass for packages of their names.
    """
    here = str(Path.cwd())
    wanted = importlib.util.find_spec(package) is None and any(
        Path(here, name).exists() for name in (f"{package}.py", package)
    )
    if wanted:
        sys.path.append(here)
    try:
        yield
    finally:
        if wanted:
            sys.path.remove(here)


def load(text: str) -> Any:
    """What `text` names.

    Raises:
        TargetError: it is not there, or what holds it does not import.
    """
    where, name = split(text)
    if where.endswith(".py"):
        module = load_file(Path(where))
    else:
        try:
            with _current_folder(where.partition(".")[0]):
                module = importlib.import_module(where)
        except ImportError as e:
            raise TargetError(f"{where} does not import: {e}") from e
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
            raise TargetError(f"{where} has no {name}; it has {', '.join(public[:20]) or 'nothing callable'}")
        found = getattr(found, part)
    return found


def importing(text: str) -> tuple[str, str]:
    """The line that imports what `text` names, and what it is called then."""
    where, name = split(text)
    first, *rest = name.split(".")
    called = ".".join([first, *rest])
    if not where.endswith(".py"):
        return f"from {where} import {first}", called
    path = Path(where).resolve()
    return f"import sys; sys.path.insert(0, {str(path.parent)!r}); from {path.stem} import {first}", called
