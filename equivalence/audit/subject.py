"""What can be audited: a map of sequences to sequences, with a state between calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]  # each [B, T, ...]


class Unsupported(Exception):
    """Outside what the target promises; the message says where it says so."""


class Subject:
    """One way of looking at a target. Subclasses say how it is called; the properties do the rest.

    Inputs are named tensors [B, T, ...], outputs one tensor [B, T, ...]. Everything is drawn in float64.

    Attributes:
        name: of the target, as the report has it.
        unsupported: properties outside the target's contract, each with the reason.
        lengths: of sequences, ascending: the first at which a property fails is the example.
        multiple: pieces of more than one token have lengths that are multiples of it.
        tolerance: relative differences up to it are agreement, where calls are compared `exactly`.
        slopes: the step of finite differences, and the relative difference of a slope that is agreement.
        digits: relative errors of float32 that decays at their ends may cost, whatever inputs are worth.
    """

    name: str
    unsupported: Mapping[str, str] = {}
    lengths: tuple[int, ...] = (3, 5, 9, 20)
    multiple: int = 1
    tolerance: float = 1e-9
    digits: float = 0.0
    slopes: tuple[float, float] = (1e-4, 1e-5)

    def whole_pieces(self, length: int) -> int:
        """The next multiple."""
        return -(-length // self.multiple) * self.multiple

    def inputs(self, rows: int, length: int, seed: int) -> Inputs:
        """Random inputs: the same for the same arguments."""
        raise NotImplementedError

    def run(
        self,
        inputs: Inputs,
        state: Any = None,
        mask: Tensor | None = None,
        sequences: tuple[int, ...] | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Any]:
        """Outputs and the state after them.

        Args:
            inputs: of this piece.
            state: what a former run returned; it may be changed in place. None: the beginning.
            mask: [B, T'] bool, False where nothing is; T' counts from the beginning of the row and ends with
                this piece.
            sequences: lengths of the sequences packed into the one row of inputs.
            keep: whether a state is wanted; None may be returned otherwise.

        Raises:
            Unsupported: it cannot be called that way, by its own word.
        """
        raise NotImplementedError

    def exactly(self) -> contextlib.AbstractContextManager[object]:
        """Within it, float64 is meant wherever the target says float32."""
        return contextlib.nullcontext()

    def at(self, dtype: torch.dtype) -> Subject:
        """The same in another precision: weights and inputs rounded to it.

        Raises:
            Unsupported: there is no such precision.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What gradients are taken of besides the inputs: the weights."""
        return {}

    def state_tensors(self, state: Any) -> dict[str, Tensor]:
        """The floating point tensors of a state, by name."""
        raise NotImplementedError

    def extremes(self) -> Iterator[Extreme]:
        """The target with decays at their ends.

        Raises:
            Unsupported: its decays are constants.
        """
        raise Unsupported("nothing is known of its decays")

    def lasting(self, length: int) -> Extreme | None:
        """The target with the slowest decays; None if it is not a single operation, or they are not known."""
        return None

    def snippet(self, case: Case) -> str:
        """A few lines that show the difference of a case, without anything of this package."""
        return ""

    def describe(self, case: Case) -> str:
        """Sizes and options of a case, beyond what the case says itself."""
        return ""


@dataclass(frozen=True)
class Extreme:
    """A subject whose decays are at an end, and inputs for it."""

    label: str
    subject: Subject
    inputs: Inputs


@dataclass(frozen=True)
class Case:
    """One comparison of a property."""

    property: str
    rows: int
    length: int
    pieces: tuple[int, ...] = ()  # lengths of the calls
    padding: tuple[int, int] = (0, 0)  # masked tokens of row 0: from, to
    sequences: tuple[int, ...] = ()  # packed lengths
    label: str = ""
    seed: int = 0

    def __str__(self) -> str:
        said = [f"B = {self.rows}, T = {self.length}"]
        if self.pieces:
            said.append("in pieces of " + _lengths(self.pieces))
        if self.padding[1] > self.padding[0]:
            said.append(f"tokens {self.padding[0]} to {self.padding[1] - 1} of row 0 masked")
        if self.sequences:
            said.append("sequences of " + _lengths(self.sequences))
        if self.label:
            said.append(self.label)
        return ", ".join(said)


def _lengths(sizes: tuple[int, ...]) -> str:
    """3, 1, 1, 1 as "3, then 1 × 3"."""
    runs: list[list[int]] = []
    for n in sizes:
        if runs and runs[-1][0] == n:
            runs[-1][1] += 1
        else:
            runs.append([n, 1])
    return ", then ".join(str(n) if times == 1 else f"{n} × {times}" for n, times in runs)


def in_time(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Steps start to stop of all."""
    return {n: x[:, start:stop] for n, x in inputs.items()}


def rows_of(inputs: Inputs, row: int) -> Inputs:
    """One row, as a batch of one."""
    return {n: x[row : row + 1] for n, x in inputs.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, by the largest expected number; inf if found is not finite.

    Of another shape, as far as it can be broadcast; inf if it cannot, or if that hides the difference.
    """
    if found.shape != expected.shape:
        try:
            error = relative(*torch.broadcast_tensors(found, expected))
        except RuntimeError:
            return float("inf")
        return error if error > 1e-3 else float("inf")
    if expected.numel() == 0:
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    if not bool(found.isfinite().all()):
        return float("inf")
    scale = float(expected.abs().max())
    return float((found - expected).abs().max()) / max(scale, 1e-30)
