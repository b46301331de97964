"""Both sides of a theorem about the recurrence, at one point after another: how they are run and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..algebra import Element, Field, Log, differs
from ..theorem import Budget, Counterexample, Side, Tally
from .problems import Operands, Problem, Run, definition, in_time, run_form


class Case(NamedTuple):
    """One identity: for what, the arguments of both sides, and the degree of the polynomials."""

    where: object
    arguments: tuple[Any, ...]
    degree: int


# The cases of a theorem, at random points that the generator gives.
Cases = Callable[[Budget, np.random.Generator], Iterable[Case]]

AXES = {"outputs": "bthv", "state": "bhkv"}


class identity:
    """Decorator: evidence that both sides of a theorem agree, from the cases that it is to hold for.

    Called, it is exact evidence. `on_lattice` is bitwise evidence, from the same sides: float64 tensors of
    small whole numbers in the place of field elements, log-decays of 0 and -inf, so that nothing rounds.
    """

    def __init__(self, cases: Cases) -> None:
        self.cases = cases

    def __call__(self, budget: Budget, tally: Tally) -> None:
        for where, arguments, degree in self.cases(budget, budget.rng()):
            same(where, tally.left(*arguments), tally.right(*arguments))
            tally.exact(degree)

    def on_lattice(self, budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        for where, arguments, _ in self.cases(budget, budget.rng()):
            (operands,) = (x for x in arguments if isinstance(x, Operands))
            if operands.outer is not None:
                continue  # 0 · -inf is no log-decay
            drawn = [_on_lattice(x, rng) for x in arguments]
            found = tally.left(*drawn)
            same(where, found, tally.right(*drawn))
            _whole(where, found)
            tally.bitwise()


def _whole(where: object, found: Any) -> None:
    """Raise Counterexample unless all are whole numbers so small that none was rounded on the way."""
    for name, x in _named(found).items():
        if not torch.equal(x, x.round()) or (x.abs() >= 2**53).any():
            raise Counterexample(f"{name}: not whole numbers that float64 holds, for {where}")


LATTICE = (
    "the same cases but dt·A, on float64 tensors: q, k, v, state and what erases in {-1, 0, 1}, β and decays "
    "in {0, 1}"
)


def minus_infinity(y: Any) -> Any:
    """The logarithm of 0, in the shape and of the kind of a log-decay."""
    return Log(np.zeros_like(y.parts[0])) if isinstance(y, Log) else torch.full_like(y, -np.inf)


def _on_lattice(x: Any, rng: np.random.Generator) -> Any:
    """Operands with small whole numbers for field elements; anything else as it is."""
    if not isinstance(x, Operands):
        return x

    def drawn(name: str, y: Any) -> Any:
        if isinstance(y, Log):
            return torch.from_numpy(np.where(rng.random(y.shape) < 0.2, -np.inf, 0.0))
        if isinstance(y, Field):
            low = 0 if name == "beta" else -1
            return torch.from_numpy(rng.integers(low, 2, y.shape).astype(np.float64))
        return 1 if name == "scale" else y

    return Operands(**{name: drawn(name, y) for name, y in x._asdict().items()})


def same(where: object, left: Any, right: Any) -> None:
    """All that the left side gives, by name, is what the right side gives.

    Raises:
        Counterexample: naming the case and the first place where they differ.
    """
    x, y = (_named(side) for side in (left, right))
    if x.keys() != y.keys():
        raise Counterexample(f"one side gives {', '.join(x)}, the other {', '.join(y)}, for {where}")
    for name in x:
        if isinstance(x[name], torch.Tensor):
            if not torch.equal(x[name], y[name]):
                raise Counterexample(f"{name}: both sides differ, for {where}")
        elif isinstance(x[name], Element):
            equal(name, where, x[name], y[name], AXES.get(name.rpartition(", ")[2], ""))
        elif x[name] != y[name]:
            raise Counterexample(f"{name}: {x[name]} is not {y[name]}, for {where}")


def _named(side: Any) -> Mapping[str, Any]:
    if isinstance(side, Mapping):
        return side
    return side._asdict() if hasattr(side, "_asdict") else {"the sides": side}


def split(one: str, two: str, cut: int, p: Problem, x: Operands) -> Run:
    """In two pieces, by a form each, the state handed from the first to the second."""
    early, late = (in_time(x, lambda y, s=s: y[:, s]) for s in (slice(None, cut), slice(cut, None)))
    if p.reverse:
        early, late = late, early
    o1, S1 = run_form(one, p, early)
    o2, S2 = run_form(two, p, late._replace(initial_state=S1))
    return Run(torch.cat([o2, o1] if p.reverse else [o1, o2], 1), S2)


IN_PIECES = Side("two pieces, each by any form, the state handed from the first to the second", split)
AT_ONCE = Side("the sequence at once, step by step", lambda one, two, cut, p, x: definition(p, x))


def splits(problems: Sequence[Problem], names: Sequence[str], rng: np.random.Generator) -> Iterator[Case]:
    """Every place to split each sequence, each of the forms after each."""
    for n, p in enumerate(problems):
        x = p.operands(rng)
        for cut in range(1, p.length):
            one, two = names[(n + cut) % len(names)], names[(n + cut // len(names)) % len(names)]
            yield Case(f"{one}, split after {cut}, then {two}; {p}", (one, two, cut, p, x), p.degree)


def equal(what: str, arguments: object, x: Any, y: Any, axes: str) -> None:
    """x = y, exactly.

    Raises:
        Counterexample: naming the arguments and the first place where they differ.
    """
    at = differs(x, y)
    if at is None:
        return
    if at == () and x.shape != y.shape:
        raise Counterexample(f"{what}: shape {list(x.shape)}, not {list(y.shape)}, for {arguments}")
    named = len(axes) == len(at)
    place = ", ".join(f"{a} = {i}" for a, i in zip(axes, at, strict=True)) if named else f"{list(at)}"
    raise Counterexample(f"{what}: both sides differ at {place}, for {arguments}")
