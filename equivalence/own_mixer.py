"""The proofs of a mixer for a mixer of your own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st

from ..mixers import Mixer
from .theorem import Budget, Counterexample, Tally
from .theorems.examples import agree, run_examples
from .theorems.mixers import CHECKS, WIDTH, Case, on_paper, outputs, randomised
from .theorems.papers import Paper


@dataclass(frozen=True)
class _Own(Case):
    """A case of a mixer that is not in the registry."""

    make: Callable[[], Mixer] | None = None

    def __str__(self) -> str:
        return (
            f"{self.name}, B = {self.batch}, T = {self.length}, form={self.form!r}, float64, seed {self.seed}"
        )

    def module(self) -> Mixer:
        assert self.make is not None
        return _made(self.make, self.seed % 4)


@functools.lru_cache(maxsize=16)
def _made(make: Callable[[], Mixer], seed: int) -> Mixer:
    return randomised(make, seed)


def check_mixer(
    factory: Callable[[int], Mixer], paper: Paper | None = None, examples: int = 40, seed: int = 0
) -> dict[str, float]:
    """What `mixerzoo prove` states of every mixer of the registry, of one that is not in it.

    Args:
        factory: d_model -> the mixer, such as its class. It is called with a small d_model, and the
            parameters of what it makes are moved to random places.
        paper: (mixer, x [T, d_model]) -> y [T, d_model], the mixer as you would write it on paper: a plain
            loop over time with the mixer's weights. None leaves that property out.
        examples: how many to draw for each property.
        seed: of the draws.

    Returns:
        The largest relative error of each property: "streaming" (whole = any pieces = token by token, in
        every form), "padding", "packing", "batching", "causality", "gradients" and "paper".

    Raises:
        Counterexample: with the smallest case found for which a property does not hold.
        TypeError: factory does not make a Mixer.

    >>> from mixerzoo.mixers import HGRN
    >>> sorted(check_mixer(HGRN, examples=3))
    ['batching', 'causality', 'gradients', 'packing', 'padding', 'streaming']
    """
    first = factory(WIDTH)
    if not isinstance(first, Mixer):
        raise TypeError(f"factory makes {type(first).__name__}; accepted: a mixerzoo.mixers.Mixer")
    name = f"{getattr(factory, '__name__', type(first).__name__)}({WIDTH})"

    def make() -> Mixer:
        return factory(WIDTH)

    drawn = st.builds(
        _Own,
        name=st.just(name),
        variant=st.just(0),
        length=st.integers(1, 12),
        batch=st.integers(1, 3),
        form=st.sampled_from(first.forms),
        seed=st.integers(0, 999),
        make=st.just(make),
    )
    sides: dict[str, Any] = {property: (stated.left, stated.right) for property, stated in CHECKS.items()}
    if paper is not None:
        sides["paper"] = outputs, functools.partial(on_paper, paper=paper)
    worst = {}
    for property, (left, right) in sides.items():
        tally = Tally()

        def check(case: Case, left: Any = left, right: Any = right) -> float:
            return agree(case, left(case), right(case))

        try:
            run_examples(Budget(seed=seed), tally, drawn, check, examples, examples)
        except Counterexample as e:
            raise Counterexample(f"{property}: {e}") from e
        worst[property] = tally.worst or 0.0
    return worst
