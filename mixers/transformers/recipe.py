"""What has to be known of a mixer of transformers to make ours of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..base import RecurrentMixer
from .adapters import Adapter

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a class of transformers becomes one of ours.

    Attributes:
        model_type: the folder of `transformers.models` it is in.
        name: of the class.
        build: (module) -> ours, with the options that the module's attributes say.
        weights: (module, its tensors) -> ours by name. Linear in the tensors, so that it takes gradients
            as well; a tensor that is passed on as it is will be shared.
        adapter: what stands in the module's place inside a model.
    """

    model_type: str
    name: str
    build: Callable[[Any], RecurrentMixer]
    weights: Callable[[Any, Tensors], Tensors]
    adapter: type[Adapter]


def same(theirs: Any, tensors: Tensors) -> Tensors:
    """All under their own names."""
    return dict(tensors)


def renamed(**prefixes: str) -> Callable[[Any, Tensors], Tensors]:
    """Every tensor under its own name, with the first part replaced where `prefixes` says so."""

    def weights(theirs: Any, tensors: Tensors) -> Tensors:
        found = {}
        for name, x in tensors.items():
            first, dot, rest = name.partition(".")
            found[prefixes.get(first, first) + dot + rest] = x
        return found

    return weights


def accepts(theirs: Any, option: str, found: object, *accepted: object) -> None:
    if found not in accepted:
        written = " or ".join(map(repr, accepted))
        raise ValueError(f"{option} of {type(theirs).__name__} is {found!r}; accepted: {written}")


def ratio(theirs: Any, option: str, inner: int, outer: int) -> int:
    """inner / outer, which is a whole number."""
    if inner % outer:
        raise ValueError(
            f"{option} of {type(theirs).__name__} is {inner}; accepted: a multiple of hidden_size = {outer}"
        )
    return inner // outer


def has_bias(module: Any) -> bool:
    return module.bias is not None
