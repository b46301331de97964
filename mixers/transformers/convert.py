"""From a module of transformers to ours."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...kernels import checks
from ..base import RecurrentMixer
from .adapters import Masked
from .padding import Padding, models
from .recipe import Recipe
from .table import ALSO, RECIPES

Known = TypeVar("Known")


def from_transformers(module: Any) -> Any:
    """Our mixer with the weights of a mixer of transformers, or a model with our mixers in place of its own.

    Args:
        module: a mixer of one of the model types below, such as `model.backbone.layers[0].mixer`; or a
            model, or any part of one, that has such mixers in it.

            minimax, mamba, falcon_mamba, jamba, zamba, mamba2, bamba, falcon_h1, nemotron_h,
            granitemoehybrid, zamba2, recurrent_gemma, xlstm, rwkv, qwen3_next, qwen3_5, qwen3_5_moe,
            olmo_hybrid, kimi_linear, bailing_hybrid

    Returns:
        Of a mixer: ours. A parameter that both lay out alike is one tensor, shared by the two; one
        that is permuted, cut or scaled is a copy. dtype, device, `requires_grad` and training mode are
        those of the original.

        Of a model: the model itself, changed in place. Every such mixer in it is replaced by an adapter that
        takes the same arguments, reads and writes transformers' own caches, and computes with ours
        (its `mixer`). `generate` works as before. Names in `state_dict` have `.mixer` in them from then on:
        save a checkpoint before, not after.

    Raises:
        TypeError: neither such a mixer nor has one in it, or the mixer is quantised.
        ValueError: an option that ours do not have, naming it, what it was, and what is accepted.
    """
    recipe = recipe_of(module)
    if recipe is not None:
        return convert(module, recipe)
    # A module that stands in two places is named twice.
    named = list(module.named_modules(remove_duplicate=False)) if isinstance(module, nn.Module) else []
    if not any(recipe_of(m) for _, m in named):
        raise TypeError(f"module is {type(module).__name__}; accepted: {known()}")
    new: dict[nn.Module, Masked] = {}
    for name, m in named:  # all before any takes its place: after an error the model is as it was
        recipe, also = recipe_of(m), _known_by_name(m, ALSO)
        if recipe is not None and m not in new:
            new[m] = recipe.adapter(convert(m, recipe), m, _layer_idx(name))
        elif also is not None and m not in new:
            new[m] = also(m).train(m.training)
    for name, m in named:
        if m in new:
            module.set_submodule(name, new[m])
    unmasked = [m for m in new.values() if m.unmasked]
    if unmasked:
        padding = Padding()
        padding.watch(models(module))
        for adapter in unmasked:
            adapter.padding = padding
    return module


def recipe_of(module: Any) -> Recipe | None:
    return _known_by_name(module, RECIPES)


def _known_by_name(module: Any, table: dict[tuple[str, str], Known]) -> Known | None:
    """By the names of the module's class and of those it derives from."""
    for cls in type(module).__mro__:
        place = re.fullmatch(r"transformers\.models\.(\w+)\.modeling_\1", cls.__module__)
        if place and (place[1], cls.__name__) in table:
            return table[place[1], cls.__name__]
    return None


def known() -> str:
    classes = ", ".join(f"{name} ({model_type})" for model_type, name in RECIPES)
    return f"a mixer of transformers, or a model that has one: {classes}"


def convert(theirs: nn.Module, recipe: Recipe) -> RecurrentMixer:
    tensors = _tensors(theirs)
    with torch.device("meta"):
        ours = recipe.build(theirs)
    with torch.enable_grad():  # a copy of parameters that are trained is one too
        weights = recipe.weights(theirs, tensors)
    _assign(ours, weights, type(theirs).__name__)
    return ours.train(theirs.training)


def _tensors(theirs: nn.Module) -> dict[str, Tensor]:
    kind = type(theirs).__name__
    for name, m in theirs.named_modules():
        weight = getattr(m, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and type(m) is not nn.Linear:
            raise TypeError(
                f"{name} of {kind} is {type(m).__module__}.{type(m).__name__}; accepted: torch.nn.Linear "
                "(not quantised, and without adapters of its own)"
            )
    tensors: dict[str, Tensor] = dict(theirs.named_parameters())
    for name, x in tensors.items():
        if type(x) is not nn.Parameter or x.dtype not in checks.FLOATS:
            raise TypeError(
                f"{name} of {kind} is {type(x).__name__} of {x.dtype}; accepted: a Parameter of "
                "float64, float32, bfloat16 or float16 (not quantised)"
            )
        if x.is_meta:
            raise ValueError(f"{name} of {kind} is on the meta device; accepted: weights that are in memory")
    return tensors


def _assign(ours: RecurrentMixer, weights: dict[str, Tensor], kind: str) -> None:
    expected = dict(ours.named_parameters())
    if weights.keys() != expected.keys():
        raise ValueError(
            f"weights of {kind} are {sorted(weights)}, under our names; accepted: {sorted(expected)}"
        )
    for name, x in weights.items():
        if x.shape != expected[name].shape:
            raise ValueError(
                f"{name} of {kind} has shape {checks.shape(x)}; accepted: {checks.shape(expected[name])}"
            )
        if not isinstance(x, nn.Parameter):
            x = nn.Parameter(x.detach().clone(), x.requires_grad)
        place, _, leaf = name.rpartition(".")
        setattr(ours.get_submodule(place), leaf, x)


def _layer_idx(name: str) -> int | None:
    """The last number of a name such as model.layers.3.temporal_block."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(numbers[-1]) if numbers else None
