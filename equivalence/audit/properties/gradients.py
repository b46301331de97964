"""Gradients against finite differences, along random directions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..subject import Case, Inputs, Subject, in_time
from .common import Cases, Measured, whole

SMALL = 1e-3  # a derivative this much smaller than the largest is measured against that


class NoGradients(Exception):
    """Backward refused."""


def _weights(like: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(like.numel())
    return torch.randn(like.shape, generator=g, dtype=torch.float64)


def _slopes(
    loss: Callable[[], Tensor], leaves: dict[str, Tensor], step: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Along one random direction for each leaf: by autograd, and by differences."""
    directions = {n: _weights(x) for n, x in leaves.items()}
    with torch.enable_grad():
        for x in leaves.values():
            x.requires_grad_()
        value = loss()
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if value.requires_grad:
            try:
                found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            except RuntimeError as e:
                first = str(e).splitlines()[0].partition(": [")[0]
                raise NoGradients(f"backward raises: {first}") from e
    with torch.no_grad():
        for x in leaves.values():
            x.requires_grad_(False)
        analytic = {
            n: 0.0 if g is None else float((g * directions[n]).sum())
            for n, g in zip(leaves, found, strict=True)
        }
        numeric = {}
        for n, x in leaves.items():
            # A slope that bends needs the smaller step, one that is small beside the loss the larger.
            large, small = (_difference(loss, x, directions[n], h) for h in (step, step / 8))
            numeric[n] = large if abs(large - analytic[n]) < abs(small - analytic[n]) else small
    return analytic, numeric


def _difference(loss: Callable[[], Tensor], x: Tensor, direction: Tensor, h: float) -> float:
    """The slope along a direction by differences of fourth order."""
    kept, ends = x.clone(), {}
    for n in (-2, -1, 1, 2):
        x.copy_(kept + n * h * direction)
        ends[n] = float(loss())
    x.copy_(kept)
    return (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * h)


def _worst(analytic: dict[str, float], numeric: dict[str, float]) -> float:
    largest = max(map(abs, numeric.values()), default=0.0)
    return max(
        (
            abs(a - numeric[n]) / max(abs(a), abs(numeric[n]), SMALL * largest, 1e-12)
            for n, a in analytic.items()
        ),
        default=0.0,
    )


def _leaves(s: Subject, x: Inputs) -> dict[str, Tensor]:
    """Inputs and weights that are real numbers."""
    every = {f"input {n}": y for n, y in x.items()} | s.tensors()
    return {n: y for n, y in every.items() if y.is_floating_point()}


def gradients(s: Subject) -> Cases:
    for T in (s.lengths[0], s.lengths[-1]):
        case = Case("gradients", 2, T)

        def measure(case: Case = case) -> Measured:
            copy = s.at(torch.float64)
            x = copy.inputs(case.rows, case.length, case.seed)

            def loss() -> Tensor:
                y = whole(copy, x)
                return (y * _weights(y)).sum()

            with copy.exactly():
                step, accepted = copy.slopes
                return _worst(*_slopes(loss, _leaves(copy, x), step)), accepted

        yield case, measure


def state_gradients(s: Subject) -> Cases:
    """Of a loss on the outputs after the state, and of one on the state itself, by what came before."""
    outputs, state = "a loss on the outputs after the state", "a loss on the state"
    for n in (s.whole_pieces(3), s.whole_pieces(8)):
        for pieces, label in (((n, 1), outputs), ((n, s.whole_pieces(4)), outputs), ((n,), state)):
            case = Case("state_gradients", 2, sum(pieces), pieces, label=label)

            def measure(case: Case = case) -> Measured:
                copy = s.at(torch.float64)
                x = copy.inputs(case.rows, case.length, case.seed)
                early, late = in_time(x, 0, case.pieces[0]), in_time(x, case.pieces[0], case.length)
                # The inputs of the first piece alone: what is found must have gone through the state.
                early = {n: y.clone() for n, y in early.items()}

                def loss() -> Tensor:
                    y, state = copy.run(early)
                    if len(case.pieces) > 1:
                        y = copy.run(late, state)[0]
                        return (y * _weights(y)).sum()
                    parts = [p for p in copy.state_tensors(state).values() if p.is_floating_point()]
                    return torch.stack([(p.double() * _weights(p)).sum() for p in parts]).sum()

                leaves = {n: y for n, y in early.items() if y.is_floating_point()} or _leaves(copy, early)
                with copy.exactly():
                    step, accepted = copy.slopes
                    return _worst(*_slopes(loss, leaves, step)), accepted

            yield case, measure
