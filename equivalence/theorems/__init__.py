"""The theorems: each file a group, each with its statement in words and the code that checks it."""

from __future__ import annotations

import importlib

from ..theorem import Theorem

# In the order they are shown. Each has a Collection THEOREMS, or a function theorems() returning one.
FILES = ("forms", "gradients", "delta", "links", "mixer_links", "operator", "lattice", "mixers")


def catalogue() -> dict[str, Theorem]:
    """All theorems by name."""
    found: dict[str, Theorem] = {}
    for name in FILES:
        module = importlib.import_module(f".{name}", __name__)
        for theorem in module.THEOREMS if hasattr(module, "THEOREMS") else module.theorems():
            if theorem.name in found:
                raise ValueError(f"there are two theorems named {theorem.name}")
            found[theorem.name] = theorem
    return found
