"""Real English to read: by default the reference documentation that ships inside Python."""

from __future__ import annotations

from pathlib import Path


def english(path: str | Path | None = None) -> bytes:
    """The bytes of a file, or of Python's own reference documentation (about half a megabyte).

    Raises:
        FileNotFoundError: the file is missing, or this Python ships without `pydoc_data`.
        ValueError: the text is shorter than 1,000 bytes.
    """
    if path is not None:
        source, text = str(path), Path(path).read_bytes()
    else:
        source = "pydoc_data.topics"
        try:
            from pydoc_data.topics import topics
        except ImportError as e:
            raise FileNotFoundError(
                "this Python has no pydoc_data.topics (some distributions package it apart): give --text FILE"
            ) from e
        text = "\n".join(topics[name] for name in sorted(topics)).encode()
    if len(text) < 1000:
        raise ValueError(f"{source} has {len(text)} bytes; accepted: at least 1,000")
    return text
