"""What kernels and modules share: how exact they are is measured."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..properties.precision import rounding_cost
from ..subject import Inputs, Subject, Unsupported, relative
from .adapter import DTYPES
from .float64 import Float64

# Without float64, differences up to so many roundings of the inputs are rounding.
ROUNDINGS = 64
# The step of differences in float32, and what it makes of their slopes.
COARSE = (3e-2, 2e-2)
DTYPE_COMPLAINT = re.compile(
    r"scalar type|dtype|data type|\b(float64|float32|bfloat16|float16|double|half)\b", re.IGNORECASE
)

# The same call twice differs by more than any rounding: a state is kept somewhere.
REMEMBERS = 1e-3
# No measured allowance for rounding is above this.
MOST = 1e-2

T = TypeVar("T")


class NoState:
    """Of a target that returns none. It cannot be gone on from."""


def found_at(result: Any, way: tuple[int | str, ...], what: str) -> Any:
    """What is there in a result.

    Raises:
        Unsupported: nothing is.
    """
    found = result
    for key in way:
        try:
            found = found[key] if isinstance(key, int) or isinstance(found, Mapping) else getattr(found, key)
        except (TypeError, IndexError, KeyError, AttributeError) as e:
            raise Unsupported(f"its adapter finds {what} at {way}, where its result has none") from e
    return found


def tensor_at(result: Any, way: tuple[int | str, ...], what: str) -> Tensor:
    """The tensor that is there.

    Raises:
        Unsupported: none is.
    """
    found = found_at(result, way, what)
    if not isinstance(found, Tensor):
        raise Unsupported(f"its adapter finds {what} at {way}, where its result has {type(found).__name__}")
    return found


def outside(unsupported: Mapping[str, str], dtypes: tuple[str, ...]) -> dict[str, str]:
    """What is outside the contract, and what cannot be looked at in these dtypes."""
    found = dict(unsupported)
    takes = f"it takes {', '.join(dtypes)}"
    if "float64" not in dtypes:
        found.setdefault("fp64", takes)
    if not {"float64", "float32"} & set(dtypes):
        for name in ("low_precision", "gradients", "state_gradients", "decay_extremes"):
            found.setdefault(name, f"{takes}: there is nothing more exact to compare it with")
    return found


class Measuring(Subject):
    """Compared in float64 where it computes in it, otherwise within its rounding.

    Attributes:
        dtype: what tensors are given in.
        dtypes: names of those that it takes, by its own word.
        documented: the accuracy that it documents, or None.
    """

    dtype: torch.dtype
    dtypes: tuple[str, ...] = DTYPES
    documented: float | None = None

    def widest(self) -> torch.dtype:
        found = getattr(torch, next(n for n in DTYPES if n in self.dtypes))
        assert isinstance(found, torch.dtype)
        return found

    def exactly(self) -> contextlib.AbstractContextManager[object]:
        return Float64() if self.widest() == torch.float64 else contextlib.nullcontext()

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """What stands for a precision: for float64 the widest there is.

        Raises:
            Unsupported: it does not take it.
        """
        if _named(dtype) in self.dtypes:
            return dtype
        if dtype == torch.float64:
            return self.widest()
        raise Unsupported(f"it takes {', '.join(self.dtypes)}")

    def refusing(self, call: Callable[[], T]) -> T:
        """In other precisions than float32, a complaint about dtypes is a refusal."""
        try:
            return call()
        except (RuntimeError, TypeError, AssertionError) as e:
            if self.dtype != torch.float32 and DTYPE_COMPLAINT.search(str(e)):
                said = f"{type(e).__name__}: {str(e).splitlines()[0]}"
                raise Unsupported(f"given {_named(self.dtype)} it raises {said}") from e
            raise

    @functools.cached_property
    def honest(self) -> bool:
        """Whether it computes in float64 when float64 is meant: a change of 1e-12 in its inputs shows."""
        return self._shows(self.exactly())

    @functools.cached_property
    def native(self) -> bool:
        """Whether it does so as it is."""
        return self._shows(contextlib.nullcontext())

    def _shows(self, within: contextlib.AbstractContextManager[object]) -> bool:
        if self.widest() != torch.float64:
            return False
        x = self.inputs(1, self.lengths[0], 0)
        changed = {n: y * (1 + 1e-12) if y.is_floating_point() else y for n, y in x.items()}
        try:
            with torch.no_grad(), within:
                y, again, other = (self.run(given, keep=False)[0] for given in (x, x, changed))
        except (Unsupported, RuntimeError):
            return False
        if relative(again, y) > REMEMBERS:
            return True  # of what depends on earlier calls no precision can be told: no allowance for it
        return y.dtype == torch.float64 and relative(other, y) < 1e-9 and not torch.equal(other, y)

    @functools.cached_property
    def tolerance(self) -> float:  # type: ignore[override]
        """1e-9, or what is documented; without float64, ROUNDINGS times what rounding the inputs costs."""
        if self.documented is not None:
            return self.documented
        if self.honest:
            return Subject.tolerance
        wide = self.widest()
        epsilon = torch.finfo(torch.float32 if wide == torch.float64 else wide).eps

        def outputs(s: Subject, x: Inputs) -> Any:
            return s.run(x, keep=False)[0]

        with torch.no_grad():
            cost = rounding_cost(self, self.inputs(1, self.lengths[-1], 0), epsilon, outputs)
        return min(ROUNDINGS * max(cost, epsilon), MOST)

    @functools.cached_property
    def slopes(self) -> tuple[float, float]:  # type: ignore[override]
        return Subject.slopes if self.honest else COARSE


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
