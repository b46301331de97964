"""How a kernel is called, as data: its arguments, their shapes, and where its state goes in and comes out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .load import TargetError

# What an argument holds, as an expression of standard normal numbers x.
DRAWN = {
    "normal": "x",
    "unit": "torch.nn.functional.normalize(x, dim=-1)",
    "gate": "x.sigmoid()",
    "positive": "x.abs()",
    "log_decay": "-x.abs() / 2",
    "decay": "(-x.abs() / 2).exp()",
}
DECAYS = ("log_decay", "decay")
DTYPES = ("float64", "float32", "bfloat16", "float16")
SIZES = {"H": 2, "K": 4, "V": 3, "D": 4, "M": 3, "N": 2}


@dataclass(frozen=True)
class Argument:
    """A tensor that a kernel takes.

    Attributes:
        shape: one letter for each dimension, "B T H K". B is the batch and T the time; letters in parentheses
            are one dimension, "B (T N) H K": N numbers for each token. Without B it is a weight: the same for
            all rows.
        drawn: what it holds: a name out of `DRAWN`, or an expression of standard normal numbers x.
        least: the smallest decay that the kernel promises to take, as a logarithm.
        at_least: "float32" where it is never given in a lower precision.
        stands_for: in a `step_adapter`, the argument of the other kernel, if it has another name.
    """

    shape: str
    drawn: str = "normal"
    least: float = float("-inf")
    at_least: str | None = None
    stands_for: str | None = None

    @property
    def expression(self) -> str:
        return DRAWN.get(self.drawn, self.drawn)

    def draw(self, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        x = torch.randn(tuple(dims(self.shape, sizes)), generator=generator, dtype=torch.float64)
        drawn = eval(self.expression, {"torch": torch, "x": x})
        assert isinstance(drawn, Tensor)
        return drawn


@dataclass(frozen=True)
class Output:
    """A tensor in a kernel's result. `at` is the way to it: (0,) the first of a tuple, () all of it."""

    shape: str
    at: tuple[int | str, ...] = (0,)


@dataclass(frozen=True)
class State(Output):
    """A part of the state: `argument` takes what is found `at`.

    Attributes:
        part: its place where the argument takes a tuple.
        needed: whether zeros have to be given at the beginning.
    """

    at: tuple[int | str, ...] = (1,)
    argument: str | None = "initial_state"
    part: int | None = None
    needed: bool = False


@dataclass(frozen=True)
class Adapter:
    """How a kernel is called. All of it is data.

    Attributes:
        arguments: the tensors it takes, by the names of its parameters, in the order they are drawn in.
        output: where the outputs are.
        state: where its state is; empty if it has none.
        constants: further arguments, always given.
        sizes: of the letters in shapes; B and T are the audit's, H, K, V, D, M and N have a default.
        mask: the parameter that takes a mask [B, T].
        mask_means: what True stands for in it: "token" or "padding".
        cu_seqlens: the parameter that takes the offsets of packed sequences [N + 1], int64.
        multiple: lengths of sequences that are not multiples of it are outside the contract.
        longest: sequences beyond it are outside the contract.
        lengths: of sequences, ascending; beyond the kernel's chunk, so that more than one is computed.
        step: the kernel that computes single tokens, if another: "name" beside it, or "package.module:name".
        step_adapter: of that kernel, if it is not this one.
        dtypes: of the tensors it takes, by its own word.
        device: it computes on.
        tolerance: relative differences that its own accuracy makes, of an iteration that is cut off, say.
        unsupported: properties that it documents as outside its contract, each with where it says so.
        guessed: what was not given but guessed, for the report.
    """

    arguments: Mapping[str, Argument]
    output: Output = field(default_factory=lambda: Output("B T H V"))
    state: tuple[State, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    mask: str | None = None
    mask_means: str = "token"
    cu_seqlens: str | None = None
    multiple: int = 1
    longest: int | None = None
    lengths: tuple[int, ...] = (3, 5, 9, 20)
    step: str | Callable[..., Any] | None = None
    step_adapter: Adapter | None = None
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16")
    device: str = "cpu"
    tolerance: float | None = None
    unsupported: Mapping[str, str] = field(default_factory=dict)
    guessed: str = ""

    def all_sizes(self, rows: int, length: int) -> dict[str, int]:
        return {**SIZES, **self.sizes, "B": rows, "T": length}

    def check(self, function: Callable[..., Any], called: str) -> None:
        """Whether it fits the kernel.

        Raises:
            TargetError: naming what does not, and what is accepted.
        """
        parameters = inspect.signature(function).parameters
        takes = ", ".join(parameters)
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {**self.arguments, **self.constants}
        others = [self.mask, self.cu_seqlens, *(s.argument for s in self.state)]
        for name in [*given, *filter(None, others)]:
            if name not in parameters and not anything:
                raise TargetError(f"the adapter gives {called} an argument {name!r}; accepted: {takes}")
        for p in parameters.values():
            needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            if needed and p.name not in given and p.name not in others:
                raise TargetError(
                    f"{called} needs {p.name!r}, which the adapter does not name; accepted: an Argument in "
                    "its arguments, or a value in its constants"
                )
        sizes = self.all_sizes(1, 1)
        shapes = {n: a.shape for n, a in self.arguments.items()} | {"output": self.output.shape}
        for name, shape in (*shapes.items(), *((str(s.argument), s.shape) for s in self.state)):
            for letter in letters(shape):
                if letter not in sizes:
                    raise TargetError(
                        f"the shape of {name} is {shape!r}, where {letter} has no size; "
                        f"accepted: {', '.join(sorted(sizes))}, or a size in the adapter's sizes"
                    )
        for name, a in self.arguments.items():
            if a.drawn not in DRAWN and not re.search(r"\bx\b", a.drawn):
                raise TargetError(
                    f"{name} is drawn {a.drawn!r}; accepted: {', '.join(DRAWN)}, or an expression of x"
                )
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise TargetError(f"dtypes has {dtype!r}; accepted: {', '.join(DTYPES)}")
        if self.mask_means not in ("token", "padding"):
            raise TargetError(f"mask_means is {self.mask_means!r}; accepted: 'token', 'padding'")
        if not isinstance(self.multiple, int) or self.multiple < 1:
            raise TargetError(f"multiple is {self.multiple!r}; accepted: a positive integer")


def groups(shape: str) -> list[list[str]]:
    """The letters of each dimension."""
    return [re.findall(r"\w+", g) for g in re.findall(r"\([^)]*\)|\w+", shape)]


def letters(shape: str) -> list[str]:
    return [x for g in groups(shape) for x in g]


def dims(shape: str, sizes: Mapping[str, int]) -> list[int]:
    found = []
    for group in groups(shape):
        n = 1
        for letter in group:
            n *= sizes[letter]
        found.append(n)
    return found


def to_time_second(x: Tensor, shape: str, sizes: Mapping[str, int]) -> Tensor:
    """From the kernel's layout to [B, T, ...], the other letters in their order."""
    order = letters(shape)
    x = x.reshape([sizes[n] for n in order])
    if "T" not in order:
        x, order = x.unsqueeze(-1), [*order, "T"]
    others = [n for n in order if n not in "BT"]
    return x.permute([order.index(n) for n in ("B", "T", *others)])


def from_time_second(x: Tensor, shape: str) -> Tensor:
    """The way back. Without T in the shape, T is 1 and goes."""
    order = letters(shape)
    now = ["B", "T", *(n for n in order if n not in "BT")]
    if "T" not in order:
        x, now = x.squeeze(1), [n for n in now if n != "T"]
    x = x.permute([now.index(n) for n in order])
    sizes = dict(zip(order, x.shape, strict=True))
    return x.reshape(dims(shape, sizes))
