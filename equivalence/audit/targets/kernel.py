"""A kernel as a target: a function of queries, keys, values and gates."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..examine import Target
from ..properties.precision import rounding_cost
from ..subject import Case, Extreme, Inputs, Subject, Unsupported, relative
from .adapter import DECAYS, DTYPES, Adapter, dims, from_time_second, letters, to_time_second
from .float64 import Float64
from .load import TargetError, load

WEIGHTS_SEED = 1
# Without float64, differences up to so many roundings of the inputs are rounding.
ROUNDINGS = 64
DTYPE_COMPLAINT = re.compile(
    r"scalar type|dtype|data type|\b(float64|float32|bfloat16|float16|double|half)\b", re.IGNORECASE
)


class NoState:
    """Of a kernel that returns none. It cannot be gone on from."""


class KernelSubject(Subject):
    """Calls of one function by its adapter.

    Args:
        name: of the target.
        function: the kernel.
        adapter: how it is called.
        called: how it is imported, for snippets: "package.module:name".
        dtype: what tensors are given in.
        weights: its constants; None: drawn.
        copies: whether it is given tensors of its own, which it may write to.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        adapter: Adapter,
        called: str = "",
        dtype: torch.dtype = torch.float64,
        weights: Mapping[str, Tensor] | None = None,
        copies: bool = True,
    ) -> None:
        self.name, self.function, self.adapter, self.called = name, function, adapter, called
        self.dtype, self.copies = dtype, copies
        self.unsupported = adapter.unsupported
        self.multiple = adapter.multiple
        self.lengths = tuple(sorted({-(-n // adapter.multiple) * adapter.multiple for n in adapter.lengths}))
        g = torch.Generator().manual_seed(WEIGHTS_SEED)
        sizes = adapter.all_sizes(1, 1)
        drawn = {n: a.draw(sizes, g) for n, a in adapter.arguments.items() if "B" not in letters(a.shape)}
        self.weights = dict(weights if weights is not None else drawn)
        self.step = step_of(function, adapter)

    # ---------------------------------------------------------------- what is drawn

    def inputs(self, rows: int, length: int, seed: int) -> Inputs:
        g = torch.Generator().manual_seed(seed)
        sizes = self.adapter.all_sizes(rows, length)
        return {
            n: to_time_second(a.draw(sizes, g), a.shape, sizes).clone()
            for n, a in self.adapter.arguments.items()
            if "B" in letters(a.shape)
        }

    def tensors(self) -> dict[str, Tensor]:
        return self.weights

    def at(self, dtype: torch.dtype) -> KernelSubject:
        named = str(dtype).removeprefix("torch.")
        wanted = dtype if named in self.adapter.dtypes else self._widest() if named == "float64" else None
        if wanted is None:
            raise Unsupported(f"it takes {', '.join(self.adapter.dtypes)}")
        weights = {n: w.to(dtype).clone() for n, w in self.weights.items()}
        return KernelSubject(self.name, self.function, self.adapter, self.called, wanted, weights)

    def _widest(self) -> torch.dtype:
        return next(
            getattr(torch, n)
            for n in ("float64", "float32", "bfloat16", "float16")
            if n in self.adapter.dtypes
        )

    # ---------------------------------------------------------------- how it is called

    def exactly(self) -> contextlib.AbstractContextManager[object]:
        return Float64()

    def run(
        self,
        inputs: Inputs,
        state: Any = None,
        mask: Tensor | None = None,
        sequences: tuple[int, ...] | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Any]:
        first = next(iter(inputs.values()))
        T = first.shape[1]
        mask = None if mask is None else mask[:, -T:]
        if mask is not None and bool(mask.all()):
            mask = None
        single = T == 1 and (keep or state is not None) and mask is None and sequences is None
        function, a = self.step if single and self.step is not None else (self.function, self.adapter)
        if T % a.multiple:
            raise Unsupported(f"it takes lengths that are multiples of {a.multiple}")
        given: dict[str, Any] = dict(a.constants)
        for name, argument in a.arguments.items():
            if name in inputs:
                x = from_time_second(inputs[name], argument.shape)
            else:
                x = self.weights[name]
            given[name] = self._given(x, argument.at_least)
        given |= self._state(a, state, first.shape[0]) | self._mask(a, mask) | self._packed(a, sequences)
        result = self._call(function, a, given)
        return self._output(a, result, first.shape[0], T), self._after(a, result) if keep else None

    def _call(self, function: Callable[..., Any], a: Adapter, given: dict[str, Any]) -> Any:
        """In other precisions than float32, a complaint about dtypes is a refusal."""
        try:
            return function(**given)
        except (RuntimeError, TypeError, AssertionError) as e:
            named = str(self.dtype).removeprefix("torch.")
            if self.dtype != torch.float32 and DTYPE_COMPLAINT.search(str(e)):
                raise Unsupported(f"given {named} it raises {type(e).__name__}: {str(e).splitlines()[0]}") from e
            raise

    def _given(self, x: Tensor, at_least: str | None = None) -> Tensor:
        dtype = self.dtype if at_least is None else torch.promote_types(self.dtype, getattr(torch, at_least))
        x = x.to(self.adapter.device, dtype)
        return x.clone() if self.copies else x

    def _state(self, a: Adapter, state: Any, rows: int) -> dict[str, Any]:
        if state is None:
            sizes = {**a.all_sizes(rows, 1)}
            zeros = [s for s in a.state if s.needed and s.argument is not None]
            return {str(s.argument): self._given(torch.zeros(dims(s.shape, sizes))) for s in zeros}
        if isinstance(state, NoState):
            raise Unsupported("it returns no state")
        given: dict[str, Any] = {}
        for part, found in zip(a.state, state, strict=True):
            if part.argument is None:
                raise Unsupported("it takes no initial state")
            if part.part is None:
                given[part.argument] = found
            else:
                given.setdefault(part.argument, []).append((part.part, found))
        return {
            n: tuple(x for _, x in sorted(v, key=lambda p: p[0])) if isinstance(v, list) else v
            for n, v in given.items()
        }

    def _mask(self, a: Adapter, mask: Tensor | None) -> dict[str, Tensor]:
        if mask is None:
            return {}
        if a.mask is None:
            raise Unsupported("it takes no mask")
        return {a.mask: (mask if a.mask_means == "token" else ~mask).to(a.device)}

    def _packed(self, a: Adapter, sequences: tuple[int, ...] | None) -> dict[str, Tensor]:
        if sequences is None:
            return {}
        if a.cu_seqlens is None:
            raise Unsupported("it takes no packed sequences")
        return {a.cu_seqlens: torch.tensor([0, *sequences], device=a.device).cumsum(0)}

    def _output(self, a: Adapter, result: Any, rows: int, length: int) -> Tensor:
        y = _at(result, a.output.at, "outputs")
        sizes = a.all_sizes(rows, length)
        try:
            return to_time_second(y, a.output.shape, sizes).cpu()
        except RuntimeError as e:
            raise Unsupported(
                f"its outputs have shape {list(y.shape)}, its adapter says {a.output.shape!r}"
            ) from e

    def _after(self, a: Adapter, result: Any) -> Any:
        if not a.state:
            return NoState()
        return tuple(_at(result, part.at, f"the state {part.shape}") for part in a.state)

    def state_tensors(self, state: Any) -> dict[str, Tensor]:
        if isinstance(state, NoState):
            raise Unsupported("it returns no state")
        names = [p.argument or f"state {i}" for i, p in enumerate(self.adapter.state)]
        return {f"{n} {i}": x.cpu() for i, (n, x) in enumerate(zip(names, state, strict=True))}

    # ---------------------------------------------------------------- how exact it is

    @functools.cached_property
    def honest(self) -> bool:
        """Whether it computes in float64 when float64 is meant: a change of 1e-12 in its inputs shows as such."""
        if self._widest() != torch.float64:
            return False
        T = self.lengths[0]
        x = self.inputs(1, T, 0)
        with torch.no_grad(), self.exactly():
            y = self.run(x, keep=False)[0]
            other = self.run(
                {n: t * (1 + 1e-12) if t.is_floating_point() else t for n, t in x.items()}, keep=False
            )[0]
        return y.dtype == torch.float64 and relative(other, y) < 1e-9 and not torch.equal(other, y)

    @functools.cached_property
    def tolerance(self) -> float:  # type: ignore[override]
        """1e-9, or the adapter's; of a kernel without float64, ROUNDINGS times what rounding its inputs to float32 costs."""
        if self.adapter.tolerance is not None:
            return self.adapter.tolerance
        if self.honest:
            return Subject.tolerance
        epsilon = torch.finfo(self._widest() if self._widest() != torch.float64 else torch.float32).eps

        def outputs(s: Subject, x: Inputs) -> Tensor:
            return s.run(x, keep=False)[0]

        with torch.no_grad():
            cost = rounding_cost(self, self.inputs(1, self.lengths[-1], 0), epsilon, outputs)
        return ROUNDINGS * max(cost, epsilon)

    @functools.cached_property
    def slopes(self) -> tuple[float, float]:  # type: ignore[override]
        return Subject.slopes if self.honest else (1e-2, 5e-2)

    # ---------------------------------------------------------------- decays at their ends

    def extremes(self) -> Iterator[Extreme]:
        decays = {n: a for n, a in self.adapter.arguments.items() if a.drawn in DECAYS}
        if not decays:
            raise Unsupported("it has no decays")
        T = self.lengths[-1]
        for label, log in ENDS.items():
            x, weights = self.inputs(1, T, 0), dict(self.weights)
            outside = False
            for name, a in decays.items():
                held = x if name in x else weights
                logs = held[name] if a.drawn == "log_decay" else held[name].log()
                logs = log(logs)
                outside = outside or bool((logs < a.least).any())
                held[name] = logs if a.drawn == "log_decay" else logs.exp()
            if not outside:
                yield Extreme(
                    label,
                    KernelSubject(self.name, self.function, self.adapter, self.called, self.dtype, weights),
                    x,
                )

    def describe(self, case: Case) -> str:
        used = {n for a in self.adapter.arguments.values() for n in letters(a.shape)} - {"B", "T"}
        sizes = self.adapter.all_sizes(1, 1)
        said = [f"{n} = {sizes[n]}" for n in sorted(used)]
        return ", ".join(
            [*said, *(f"{n} = {v}" for n, v in self.adapter.constants.items() if n == "chunk_size")]
        )


def _every(n: int, value: float) -> Callable[[Tensor], Tensor]:
    """Every n-th token's decay: the second dimension, or the first of a weight."""

    def changed(logs: Tensor) -> Tensor:
        logs = logs.clone()
        logs[:, n - 1 :: n] = value
        return logs

    return changed


def _all(value: float) -> Callable[[Tensor], Tensor]:
    return lambda logs: torch.full_like(logs, value)


ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-decays of 0": _all(0.0),
    "log-decays of -1e-6": _all(-1e-6),
    "log-decays of -50": _all(-50.0),
    "log-decays of -1e4": _all(-1e4),
    "log-decays of -inf": _all(float("-inf")),
    "every third log-decay -1e4": _every(3, -1e4),
    "every third log-decay -inf": _every(3, float("-inf")),
}


def _at(result: Any, way: tuple[int | str, ...], what: str) -> Tensor:
    found = result
    for key in way:
        try:
            found = found[key] if isinstance(key, int) or isinstance(found, Mapping) else getattr(found, key)
        except (TypeError, IndexError, KeyError, AttributeError) as e:
            raise Unsupported(f"its adapter finds {what} at {way}, where its result has none") from e
    if not isinstance(found, Tensor):
        raise Unsupported(f"its adapter finds {what} at {way}, where its result has {type(found).__name__}")
    return found


def step_of(function: Callable[..., Any], adapter: Adapter) -> tuple[Callable[..., Any], Adapter] | None:
    """The kernel for single tokens, and how it is called.

    Raises:
        TargetError: there is none of this name, or the adapter does not fit it.
    """
    if adapter.step is None:
        return None
    step = adapter.step
    if isinstance(step, str):
        beside = sys.modules[function.__module__]
        found = load(step) if ":" in step else getattr(beside, step, None)
        if found is None:
            raise TargetError(
                f"step is {step!r}; accepted: a name in {beside.__name__}, or package.module:name"
            )
        step = found
    assert callable(step)
    if adapter.step_adapter is not None:
        chosen = replace(adapter.step_adapter, multiple=1)
    else:
        accepted = inspect.signature(step).parameters
        constants = {n: v for n, v in adapter.constants.items() if n in accepted}
        chosen = replace(adapter, constants=constants, multiple=1, cu_seqlens=None, mask=None)
    chosen.check(step, getattr(step, "__name__", "step"))
    return step, chosen


def kernel(name: str, function: Callable[..., Any], adapter: Adapter, called: str = "") -> Target:
    """A target out of a function.

    Raises:
        TargetError: the adapter does not fit it.
    """
    adapter.check(function, name)
    dtype = getattr(torch, next(n for n in DTYPES if n in adapter.dtypes))
    subject = KernelSubject(name, function, adapter, called, dtype)
    # With the tensors of the caller: what is written to them shows when they are given again.
    sharing = KernelSubject(name, function, adapter, called, dtype, copies=False)

    def subjects(property: str) -> Sequence[Subject]:
        if property != "interleaved":
            return [subject]
        sharing.honest, sharing.tolerance = subject.honest, subject.tolerance
        return [sharing]

    return Target(name, subjects)
