"""Memory of large results on a CPU, used again.

A fresh page costs a fault and is zeroed, which for a result of 32 MB takes longer than to fill it. malloc
keeps some of what was freed below that size; here what is larger than half of it is kept too, `KEPT` bytes
at the most, those freed last. It comes from numpy, which asks the system for pages of 2 MB.
"""

from __future__ import annotations

import weakref

import numpy
import torch

# Bytes from which on this is for; bytes that are kept; and what sizes and addresses are multiples of.
LARGE, KEPT, PAGE, ALIGNED = 1 << 24, 1 << 28, 1 << 21, 64

# Below 32 MB glibc's malloc learns from what is freed: it keeps twice the largest block so far (mallopt(3),
# M_MMAP_THRESHOLD).
LEARNT = (1 << 25) - (1 << 16)


def settle() -> None:
    """Free one such block, which nothing has touched: else a few results of 8 MB would be given back to the
    system after each call, and come in fresh pages in the next."""
    torch.empty(LEARNT, dtype=torch.uint8, device="cpu")


settle()


class _Room:
    """Equal to itself alone, so that a list finds it in one step, whichever threads look."""

    def __init__(self, size: int) -> None:
        self.size, self.memory = size, numpy.empty(size, numpy.uint8)


_idle: list[_Room] = []


def _give_back(room: _Room) -> None:
    _idle.append(room)
    while sum(r.size for r in list(_idle)) > KEPT:
        try:
            _idle.pop(0)
        except IndexError:  # another thread was faster
            return


def _room(size: int) -> _Room:
    for room in reversed(list(_idle)):
        if room.size == size:
            try:
                _idle.remove(room)
            except ValueError:
                continue
            return room
    return _Room(size)


def take(size: int) -> torch.Tensor:
    """So many bytes, [size] uint8, aligned as torch's own; anyone's again once nothing refers to them."""
    room = _room(-(-(size + ALIGNED) // PAGE) * PAGE)
    start = -room.memory.ctypes.data % ALIGNED
    lent = room.memory[start : start + size]
    weakref.finalize(lent, _give_back, room).atexit = False
    return torch.from_numpy(lent)
