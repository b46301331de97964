"""How the kernels of flash-linear-attention are called on a GPU."""

from __future__ import annotations

from .adapter import Adapter

KERNELS: dict[str, Adapter] = {}
