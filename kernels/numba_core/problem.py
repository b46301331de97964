"""One call's arguments as the kernels take them: flat arrays, a table of strides, ranges of channels."""

from __future__ import annotations

import functools
from typing import Any

import numpy
import torch
from torch import Tensor

# Steps between stored states, and vectors in a range of channels: a block's rows stay in the nearest cache.
BLOCK, VECTORS, BITS = 32, 4, 512

# How decays enter: over keys; and, of those that all keys share, one for every step or one for all.
NONE, VECTOR, OUTER = 0, 1, 2
ABSENT, STEPS, CONSTANT = 0, 1, 2

# The table of strides. Rows: operands. Columns: time; heads; values (of q, k and a decay per key: keys); and
# channels, heads and values in one (-1 where they have no common stride).
QUERIES, KEYS, VALUES, LOG_A, LOG_B, DO = 0, 1, 2, 3, 4, 5
TIME, HEAD, VALUE, LANE = 0, 1, 2, 3


def lane_count(dtype: torch.dtype) -> int:
    return BITS // (8 * dtype.itemsize)


def slots(batch: int, length: int, packed: int | None) -> int:
    """Places for states before every block. Packed, each sequence begins at the place of its first step's
    block, plus one for every sequence before it: no two overlap, whatever their lengths."""
    return batch * -(-length // BLOCK) if packed is None else length // BLOCK + packed


@functools.lru_cache(256)
def ranges_of(heads: int, V: int, group: int, lanes: int) -> Any:
    """Ranges of channels, [first, last + 1] and two words of padding.

    One lies within a head where a head fills vectors; else, it holds whole heads, and only such as read the
    same keys and queries (`group` heads do) where those fill vectors."""
    channels, width = heads * V, VECTORS * lanes
    whole = V if lanes <= V else V * group
    whole = whole if whole >= lanes else channels
    width = width // V * V if width >= V else width
    found = [
        (start + first, start + min(first + width, whole), 0, 0)
        for start in range(0, channels, whole)
        for first in range(0, whole, width)
    ]
    return numpy.array(found, numpy.int64).reshape(-1, 4)


@functools.lru_cache(256)
def together(heads: int, V: int, group: int, lanes: int, of: int) -> bool:
    """Whether all channels of every range belong to one group of `of` heads."""
    ranges = ranges_of(heads, V, group, lanes)
    first, last = ranges[:, 0] // (V * of), (ranges[:, 1] - 1) // (V * of)
    return bool((first == last).all())


class Problem:
    """The arguments of one call, all in the accumulation dtype: those of ops.Operands, without what erases,
    and with masked steps already blank."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        outer: Tensor | None,
        log_decay_v: Tensor | None,
        initial_state: Tensor | None,
        offsets: list[int] | None,
        *,
        scale: float,
        read: str,
        reverse: bool,
        do: Tensor | None = None,
    ) -> None:
        self.B, self.T, self.H, self.V = v.shape
        self.K = k.shape[3]
        self.channels = self.H * self.V
        self.q, self.k, self.v, self.do = q, k, v, do
        self.la, self.lb = log_decay, log_decay_v
        self.scale, self.reverse, self.strict = scale, reverse, read == "before"
        self.group_q, self.group_k = self.H // q.shape[2], self.H // k.shape[2]
        self.offsets = offsets
        self.N = self.B if offsets is None else len(offsets) - 1
        self.acc = v.dtype
        self.initial = None if initial_state is None else initial_state.contiguous()
        self.A = self.resets = None
        if outer is not None:
            # dt times the lowest number is a reset for every dt but 0, and none for 0.
            self.A = outer.clamp_min(torch.finfo(outer.dtype).min).contiguous()
            self.resets = outer.masked_fill(torch.isneginf(outer), 0.0).contiguous()
        self.key = NONE
        self.scaled = self.valued = ABSENT
        if log_decay is not None:
            if outer is not None:
                self.key = OUTER
            elif log_decay.ndim == 4:
                self.key = VECTOR
            else:
                self.scaled = CONSTANT if log_decay.ndim == 1 else STEPS
        if log_decay_v is not None:
            self.valued = CONSTANT if log_decay_v.ndim == 2 else STEPS
        self.ranges = ranges_of(self.H, self.V, min(self.group_q, self.group_k), lane_count(self.acc))

    @property
    def width(self) -> int:
        """Channels that a range may have."""
        return VECTORS * lane_count(self.acc)

    def together(self, of: int) -> bool:
        return together(self.H, self.V, min(self.group_q, self.group_k), lane_count(self.acc), of)

    def divided(self, parts: list[tuple[int, int]], of: int) -> bool:
        """Whether two parts (of the ranges) have channels of the same group of `of` heads."""
        edges, size = [low for low, _ in parts[1:]], self.V * of
        return any(self.ranges[e - 1, 1] > self.ranges[e, 0] // size * size for e in edges)

    def first_slots(self) -> list[int]:
        """Where each sequence's stored states begin."""
        if self.offsets is None:
            return [slots(n, self.T, None) for n in range(self.N)]
        return [start // BLOCK + n for n, start in enumerate(self.offsets[:-1])]

    def sequence(self, n: int) -> tuple[int, int, int]:
        """Batch row, first step and length."""
        if self.offsets is None:
            return n, 0, self.T
        return 0, self.offsets[n], self.offsets[n + 1] - self.offsets[n]

    def strides(self) -> Any:
        """The table."""
        table = numpy.zeros((6, 4), numpy.int64)
        for row, x in ((QUERIES, self.q), (KEYS, self.k)):
            table[row, :3] = x.stride()[1:]
        others = ((VALUES, self.v), (LOG_A, self.la), (LOG_B, self.lb), (DO, self.do))
        for row, y in others:
            if y is None:
                continue
            by_value = row != LOG_A
            constant = y.ndim == (2 if by_value else 1)
            steps = (0, *y.stride()) if constant else y.stride()[1:]
            time, head, last = (*steps, 0)[:3]
            lane = -1
            if by_value or self.V == 1:
                of_value = last if by_value else 0
                if self.V == 1:
                    lane = head
                elif self.H == 1 or head == self.V * of_value:
                    lane = of_value
            elif self.H == 1:
                lane = 0
            table[row] = time, head, last, lane
        return table
