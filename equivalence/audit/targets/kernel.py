"""A kernel as a target: a function of queries, keys, values and gates."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..examine import Target
from ..subject import Case, Extreme, Inputs, Subject, Unsupported
from .adapter import DECAYS, DTYPES, Adapter, dims, from_time_second, letters, to_time_second
from .guess import guess
from .load import TargetError, load
from .measuring import Measuring, NoState, outside, tensor_at
from .module import ModuleAdapter, module_target
from .snippets import of_kernel, snippet

WEIGHTS_SEED = 1
LASTING = "log-decays of -1e-3"


class KernelSubject(Measuring):
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
        self.unsupported, self.dtypes = outside(adapter.unsupported, adapter.dtypes), adapter.dtypes
        self.documented = adapter.tolerance
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
        wanted = self.precision(dtype)
        weights = {n: w.to(dtype).clone() for n, w in self.weights.items()}
        return KernelSubject(self.name, self.function, self.adapter, self.called, wanted, weights)

    # ---------------------------------------------------------------- how it is called

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
        if a.longest is not None and a.longest < T:
            raise Unsupported(f"it takes at most {a.longest} tokens")
        given: dict[str, Any] = dict(a.constants)
        for name, argument in a.arguments.items():
            drawn = argument.stands_for or name
            of_time = drawn in inputs
            x = from_time_second(inputs[drawn], argument.shape) if of_time else self.weights[drawn]
            given[name] = self._given(x, argument.at_least)
        given |= self._state(a, state, first.shape[0]) | self._mask(a, mask) | self._packed(a, sequences)
        result = self.refusing(lambda: function(**given))
        return self._output(a, result, first.shape[0], T), self._after(a, result) if keep else None

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
        y = tensor_at(result, a.output.at, "outputs")
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
        return tuple(tensor_at(result, part.at, f"the state {part.shape}") for part in a.state)

    def state_tensors(self, state: Any) -> dict[str, Tensor]:
        if isinstance(state, NoState):
            raise Unsupported("it returns no state")
        names = [p.argument or f"state {i}" for i, p in enumerate(self.adapter.state)]
        return {f"{n} {i}": x.cpu() for i, (n, x) in enumerate(zip(names, state, strict=True))}

    # ---------------------------------------------------------------- decays at their ends

    def extremes(self) -> Iterator[Extreme]:
        if not any(a.drawn in DECAYS for a in self.adapter.arguments.values()):
            raise Unsupported("it has no decays")
        for label, log in ENDS.items():
            found = self._at_end(label, log, self.lengths[-1])
            if found is not None:
                yield found

    def lasting(self, length: int) -> Extreme | None:
        return self._at_end(LASTING, SLOW, length)

    def _at_end(self, label: str, log: End, length: int) -> Extreme | None:
        """With these decays; None if the kernel does not promise to take them."""
        decays = {n: a for n, a in self.adapter.arguments.items() if a.drawn in DECAYS}
        x, weights = self.inputs(1, length, 0), dict(self.weights)
        for name, a in decays.items():
            held = x if name in x else weights
            logs = log(held[name] if a.drawn == "log_decay" else held[name].log())
            if bool((logs < a.least).any()):
                return None
            held[name] = logs if a.drawn == "log_decay" else logs.exp()
        other = KernelSubject(self.name, self.function, self.adapter, self.called, self.dtype, weights)
        return Extreme(label, other, x)

    def snippet(self, case: Case) -> str:
        step = None
        if self.step is not None:
            function, adapter = self.step
            step = f"{_where(function, self.adapter.step, self.called)}", adapter
        widest = self.widest()
        if widest == torch.float64 and case.property != "fp64" and not self.native:
            widest = torch.float32
        calls = of_kernel(self.called, self.adapter, step, case, WEIGHTS_SEED, str(widest))
        return snippet(calls, case, self._ends(case.label))

    def _ends(self, label: str) -> str:
        """The line that brings decays to the end of this label."""
        log = SLOW if label.endswith(LASTING) else ENDS.get(label)
        if log is None:
            return ""
        lines = []
        for name, a in self.adapter.arguments.items():
            if a.drawn not in DECAYS or "B" not in letters(a.shape):
                continue
            value = log.value if a.drawn == "log_decay" else math.exp(log.value)
            written = f"float('{value}')" if math.isinf(value) else repr(value)
            before = ":, " * letters(a.shape).index("T")
            which = f"{before}{log.every - 1}::{log.every}" if log.every > 1 else ":"
            lines.append(f"x[{name!r}][{which}] = {written}")
        return "; ".join(lines)

    def describe(self, case: Case) -> str:
        used = {n for a in self.adapter.arguments.values() for n in letters(a.shape)} - {"B", "T"}
        sizes = self.adapter.all_sizes(1, 1)
        said = [f"{n} = {sizes[n]}" for n in sorted(used)]
        chunk = [f"{n} = {v}" for n, v in self.adapter.constants.items() if n == "chunk_size"]
        return ", ".join([*said, *chunk])


@dataclass(frozen=True)
class End:
    """Every n-th token's log-decay, from the n-th on; of a weight, all."""

    every: int
    value: float

    def __call__(self, logs: Tensor) -> Tensor:
        logs = logs.clone()
        if logs.ndim < 2:
            return logs.fill_(self.value)
        logs[:, self.every - 1 :: self.every] = self.value
        return logs


SLOW = End(1, -1e-3)  # its exponential is 1 in bfloat16
ENDS: dict[str, End] = {
    "log-decays of 0": End(1, 0.0),
    "log-decays of -1e-6": End(1, -1e-6),
    "log-decays of -50": End(1, -50.0),
    "log-decays of -1e4": End(1, -1e4),
    "log-decays of -inf": End(1, float("-inf")),
    "every third log-decay -1e4": End(3, -1e4),
    "every third log-decay -inf": End(3, float("-inf")),
}


def _where(function: Callable[..., Any], step: str | Callable[..., Any] | None, called: str) -> str:
    """How the kernel for single tokens is imported."""
    if isinstance(step, str):
        return step if ":" in step else f"{called.rpartition(':')[0]}:{step}"
    return f"{function.__module__}:{function.__qualname__}"


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

    return Target(name, subjects, adapter.guessed)


def kernel_target(text: str, function: Callable[..., Any], adapter: Any = None) -> Target:
    """A target out of a function: a kernel, or one that makes a module if its adapter is a `ModuleAdapter`.

    Without an adapter, what is beside the function as ADAPTER is taken: one, or several by the names of
    functions. Without that it is guessed.

    Raises:
        TargetError: the adapter does not fit, or could not be guessed.
    """
    if adapter is None:
        beside = getattr(sys.modules.get(getattr(function, "__module__", "")), "ADAPTER", None)
        name = getattr(function, "__name__", "")
        adapter = beside.get(name) if isinstance(beside, Mapping) else beside
    if isinstance(adapter, ModuleAdapter):
        return module_target(text, function, adapter)
    if adapter is None:
        adapter = guess(function, text)
    if not isinstance(adapter, Adapter):
        raise TargetError(
            f"ADAPTER is {type(adapter).__name__}; accepted: an Adapter for a kernel, a ModuleAdapter for a "
            "function that makes a module"
        )
    return kernel(text, function, adapter, text)
