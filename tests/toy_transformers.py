"""Models of transformers at toy size, with weights of order one, and how they are called."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.equivalence.audit.targets.transformers.build import model_of
from mixerzoo.equivalence.audit.targets.transformers.exact import ExactFloat64
from mixerzoo.equivalence.audit.targets.transformers.profiles import MIXED, PROFILES
from mixerzoo.mixers.transformers.table import RECIPES

__all__ = ["CONFIGS", "ExactFloat64", "first_mixer", "logits", "relative", "toy"]

# Those that ours takes the place of.
TYPES = {recipe.model_type for recipe in RECIPES.values()}
CONFIGS = {p.model_type: p for p in PROFILES if p.model_type in TYPES}


def toy(model_type: str, seed: int = 1, **options: Any) -> Any:
    """A causal language model in float64, in evaluation mode, whose every parameter is random."""
    mixed = MIXED if model_type == "minimax" else {}
    return model_of(CONFIGS[model_type], mixed | options, seed)


def first_mixer(model: nn.Module, kind: str) -> nn.Module:
    """The first module in it of this class."""
    return next(m for m in model.modules() if type(m).__name__ == kind)


def logits(model: Any, pieces: list[Tensor], mask: Tensor | None = None, cache: Any = None) -> Tensor:
    """Of a sequence that is given piece by piece, with the cache handed on; mask as `generate` makes it.

    model may be a list, of one for each piece."""
    models = model if isinstance(model, list) else [model] * len(pieces)
    out, seen = [], 0
    for model, ids in zip(models, pieces, strict=True):
        named = "state" if model.config.model_type == "rwkv" else "cache"
        positions = "position_ids" in inspect.signature(model.forward).parameters
        seen += ids.shape[1]
        valid = torch.ones(len(ids), seen, dtype=torch.long) if mask is None else mask[:, :seen]
        kwargs: dict[str, Any] = {"use_cache": True}
        if cache is not None:
            kwargs[named] = cache
        if positions:
            kwargs["position_ids"] = (valid.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if mask is not None and (ids.shape[1] > 1 or positions):
            kwargs["attention_mask"] = valid
        output = model(ids, **kwargs)
        cache = getattr(output, named, cache)
        out.append(output.logits)
    return torch.cat(out, 1)


def relative(x: Tensor, reference: Tensor) -> float:
    """The largest difference, by the largest number of the reference."""
    return float((x - reference).detach().abs().max() / reference.detach().abs().max())
