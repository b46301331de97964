"""What the properties share: calls in pieces, and comparisons without rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..subject import Case, Inputs, Subject, in_time, relative

# What measuring a case gives: an error, and the error that is accepted.
Measured = tuple[float, float]
# Cases in ascending size, each with its measurement.
Cases = Iterator[tuple[Case, Callable[[], Measured]]]


class Wrong(Exception):
    """What is found is wrong whatever the difference; the message says what it is."""

    def __init__(self, message: str, error: float = math.inf) -> None:
        super().__init__(message)
        self.error = error


def each_piece(
    s: Subject, inputs: Inputs, sizes: Sequence[int], mask: Tensor | None = None, state: Any = None
) -> tuple[list[Tensor], Any]:
    """Outputs of the pieces, one after the other, and the state after the last."""
    outputs, start = [], 0
    for size in sizes:
        stop = start + size
        seen = None if mask is None else mask[:, :stop]
        y, state = s.run(in_time(inputs, start, stop), state, seen)
        outputs.append(y)
        start = stop
    return outputs, state


def run_pieces(
    s: Subject, inputs: Inputs, sizes: Sequence[int], mask: Tensor | None = None, state: Any = None
) -> tuple[Tensor, Any]:
    """Outputs of all pieces as one tensor, and the state after the last.

    Raises:
        Wrong: outputs have another shape than their inputs.
    """
    outputs, state = each_piece(s, inputs, sizes, mask, state)
    rows = len(next(iter(inputs.values())))
    for y, size in zip(outputs, sizes, strict=True):
        if y.shape[:2] != (rows, size):
            raise Wrong(f"outputs of {rows} rows of {size} tokens have shape {list(y.shape)}")
    return torch.cat(outputs, 1), state


def whole(s: Subject, inputs: Inputs) -> Tensor:
    """The outputs of a sequence in one call, without a state."""
    return s.run(inputs, keep=False)[0]


def exact(s: Subject, measure: Callable[[], float]) -> Callable[[], Measured]:
    """A comparison in which float64 is float64, and no gradient is wanted."""

    def measured() -> Measured:
        with torch.no_grad(), s.exactly():
            return measure(), s.tolerance

    return measured


def largest(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The largest relative difference of found and expected."""
    return max(relative(found, expected) for found, expected in pairs)
