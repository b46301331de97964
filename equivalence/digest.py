"""A digest of numbers, bit for bit: what makes one run of a theorem comparable with another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .algebra import Element


class Digest:
    """SHA-256 over values in the order in which they are added, with their types and shapes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, value: Any) -> None:
        """Take in field elements, tensors, arrays, numbers, words, None, and groups of these.

        Raises:
            TypeError: it is of another kind, whose bits would not be the same in the next run.
        """
        if isinstance(value, Element):
            self._put(type(value).__name__)
            self.add(value.parts)
        elif isinstance(value, Tensor):
            self._put(f"{value.dtype}{list(value.shape)}")
            flat = value.detach().cpu().contiguous().reshape(-1)
            self._hash.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._put(f"{value.dtype}{list(value.shape)}")
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, np.ndarray):  # of Python's own numbers
            self._put(f"object{list(value.shape)}")
            self.add(value.reshape(-1).tolist())
        elif value is None or isinstance(value, (bool, int, str, Decimal)):
            self._put(repr(value))
        elif isinstance(value, float):
            self._put(value.hex())
        elif isinstance(value, Mapping):
            self.add(list(value.items()))
        elif isinstance(value, (tuple, list)):
            self._put(f"{len(value)}[")
            for part in value:
                self.add(part)
        elif is_dataclass(value) and not isinstance(value, type):
            self._put(type(value).__name__)
            self.add([getattr(value, f.name) for f in fields(value)])
        else:
            raise TypeError(f"a digest is of numbers, words and groups of these, not {type(value).__name__}")

    def _put(self, words: str) -> None:
        self._hash.update(words.encode() + b"\0")

    def hex(self) -> str:
        return self._hash.hexdigest()
