"""Files: the text that is read, where a command may write, and where hypothesis keeps its notes.

The text is real English: by default the reference documentation that ships inside Python.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def english(path: str | Path | None = None) -> bytes:
    """The bytes of a file, or of Python's own reference documentation (about half a megabyte).

    Raises:
        OSError: the file is missing or cannot be read, or this Python ships without `pydoc_data`.
        ValueError: it is not a regular file, or shorter than 1,000 bytes.
    """
    if path is None:
        try:
            from pydoc_data.topics import topics
        except ImportError as e:
            raise FileNotFoundError(
                "this Python has no pydoc_data.topics (some distributions package it apart): give --text FILE"
            ) from e
        return "\n".join(topics[name] for name in sorted(topics)).encode()

    def message(what: str) -> str:
        return f"--text is {path} ({what}); accepted: a file of at least 1,000 bytes"

    if not os.path.lexists(path):
        raise FileNotFoundError(message("missing"))
    if not os.path.isfile(path):  # nor a pipe: it would be empty when read again
        raise ValueError(message("not a file"))
    try:
        text = Path(path).read_bytes()
    except OSError as e:
        raise type(e)(message(e.strerror or type(e).__name__)) from e
    if len(text) < 1000:
        raise ValueError(message(f"of {len(text)} bytes"))
    return text


def check_file(argument: str, path: Path) -> None:
    """Raise ValueError, which names the argument, if a file cannot be written there."""
    target = path if os.path.exists(path) else path.parent
    if os.path.isdir(path) or not os.path.isdir(path.parent) or not os.access(target, os.W_OK):
        raise ValueError(
            f"{argument} is {path}; accepted: a file in a folder that exists and can be written to"
        )


def check_folder(argument: str, path: Path) -> None:
    """Raise ValueError, which names the argument, if there is no folder and none can be made there."""
    nearest = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not os.path.isdir(nearest):
        raise ValueError(f"{argument} is {path}; accepted: a folder, or the name of a new one")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{argument} is {path}; accepted: a folder that can be written to")


@contextmanager
def notes_elsewhere() -> Iterator[None]:
    """Let hypothesis keep its notes in a temporary folder, not in `.hypothesis` where the program runs.

    A folder chosen by HYPOTHESIS_STORAGE_DIRECTORY is used as it is.
    """
    if os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY"):
        yield
        return
    from hypothesis import configuration

    before = getattr(configuration, "__hypothesis_home_directory", None)
    with tempfile.TemporaryDirectory(prefix="mixerzoo-") as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(before)
