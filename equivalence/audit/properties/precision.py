"""Float64 that is float64, and half precision within a budget that is measured, not chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..subject import Case, Extreme, Inputs, Subject, relative
from .common import Cases, Measured, Wrong, run_pieces, whole

FLOAT64 = 1e-11  # a few hundred roundings of float64, far below one of float32
BUDGET = 16  # roundings of every input and weight that a result may be off by
LASTING_BUDGET = 4  # the same of one operation: with sums in float32 it is off by half of one
LONG = 512  # tokens, of which a sum in bfloat16 loses the later ones


def fp64(s: Subject) -> Cases:
    """The target in float64 against itself with its casts to float32 taken out."""
    for T in (s.lengths[0], s.lengths[-1]):
        case = Case("fp64", 1, T)

        def measure(case: Case = case) -> Measured:
            x = s.inputs(1, case.length, case.seed)
            with torch.no_grad():
                found = whole(s, x)
                with s.exactly():
                    expected = whole(s, x)
            error = relative(found, expected)
            if found.dtype != torch.float64:
                dtype = str(found.dtype).removeprefix("torch.")
                raise Wrong(f"of float64 inputs, outputs are {dtype}: difference {error:.2g}", error)
            return error, FLOAT64

        yield case, measure


def rounding_cost(
    exact: Subject, x: Inputs, epsilon: float, outputs: Callable[[Subject, Inputs], Tensor]
) -> float:
    """What relative errors of epsilon in inputs and weights do to the outputs: the worst of three draws."""
    g = torch.Generator().manual_seed(0)

    def noisy(y: Tensor) -> Tensor:
        return y * (1 + epsilon * (2 * torch.rand(y.shape, generator=g, dtype=torch.float64) - 1))

    expected, worst = outputs(exact, x), 0.0
    for _ in range(3):
        other = exact.at(torch.float64)
        for tensor in other.tensors().values():
            tensor.copy_(noisy(tensor))
        changed = {n: noisy(y) if y.is_floating_point() else y for n, y in x.items()}
        worst = max(worst, relative(outputs(other, changed), expected))
    return worst


def error_and_budget(
    s: Subject, x: Inputs, dtype: torch.dtype, outputs: Callable[[Subject, Inputs], Tensor]
) -> Measured:
    """The error of s in this precision, and BUDGET times what rounding its inputs and weights costs.

    Both are against the exact outputs of the rounded inputs and weights: rounding them is not the error.
    """
    low = s.at(dtype)
    exact = low.at(torch.float64)
    rounded = {n: y.to(dtype) if y.is_floating_point() else y for n, y in x.items()}
    wide = {n: y.double() if y.is_floating_point() else y for n, y in rounded.items()}
    with torch.no_grad():
        found = _finite(outputs(low, rounded), dtype)
        with exact.exactly():
            expected = _finite(outputs(exact, wide), torch.float64)
            cost = rounding_cost(exact, wide, torch.finfo(dtype).eps, outputs)
    return relative(found, expected), BUDGET * max(cost, torch.finfo(dtype).eps)


def _finite(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """
    Raises:
        Wrong: they are not.
    """
    if not bool(outputs.isfinite().all()):
        raise Wrong(f"in {str(dtype).removeprefix('torch.')}, outputs are not finite")
    return outputs


def low_precision(s: Subject) -> Cases:
    """bfloat16 at once, and token by token for long enough that a state which is rounded shows."""
    for T, pieces in ((s.lengths[0], ()), (s.lengths[-1], ()), (64, ()), (64, (1,) * 64)):
        case = Case("low_precision", 1, T, pieces, label="bfloat16")

        def outputs(s: Subject, x: Inputs, pieces: tuple[int, ...] = pieces) -> Tensor:
            return run_pieces(s, x, pieces)[0] if pieces else whole(s, x)

        def measure(case: Case = case, outputs: Callable[..., Tensor] = outputs) -> Measured:
            return error_and_budget(s, s.inputs(1, case.length, case.seed), torch.bfloat16, outputs)

        yield case, measure

    lasting = s.lasting(s.whole_pieces(LONG))
    if lasting is not None:
        case = Case("low_precision", 1, s.whole_pieces(LONG), label=f"bfloat16, {lasting.label}")

        def long(e: Extreme = lasting) -> Measured:
            error, budget = error_and_budget(e.subject, e.inputs, torch.bfloat16, whole)
            return error, budget / BUDGET * LASTING_BUDGET

        yield case, long
