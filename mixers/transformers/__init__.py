"""Mixers of transformers' models as mixers of this package, with their weights.

`from_transformers` is the way in. transformers itself is not imported here: its modules are known by
the names of their classes.
"""

from .convert import from_transformers

__all__ = ["from_transformers"]
