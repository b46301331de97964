"""The theorems: each file a group, each with its statement in words and the code that checks it."""

from __future__ import annotations

import importlib

from ..theorem import Collection, Theorem

# In the order they are shown. Each has a Collection THEOREMS, or a function theorems() returning one.
FILES = (
    "forms",
    "gradients",
    "delta",
    "erasing",
    "links",
    "mixer_links",
    "operator",
    "lattice",
    "triton",
    "rounding",
    "delta_rounding",
    "mixers",
    "coq",
)


def catalogue() -> dict[str, Theorem]:
    """All theorems by name, each with all its evidence.

    Raises:
        ValueError: two have one name, or evidence is given for none, or twice.
    """
    found: dict[str, Theorem] = {}
    collections = []
    for name in FILES:
        module = importlib.import_module(f".{name}", __name__)
        collection: Collection = module.THEOREMS if hasattr(module, "THEOREMS") else module.theorems()
        collections.append(collection)
        for theorem in collection:
            if theorem.name in found:
                raise ValueError(f"there are two theorems named {theorem.name}")
            found[theorem.name] = theorem
    for collection in collections:
        for name, kind, check, over in collection.further:
            if name not in found:
                raise ValueError(f"{kind} evidence is given for {name}, which is no theorem")
            found[name] = found[name].also(kind, check, over)
    return found
