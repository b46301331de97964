"""Models of toy size with random weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from ..load import TargetError, load
from .exact import ExactFloat64
from .profile import Options, Profile
from .profiles import SIZES, TOKENS

AUTO = "AutoModelForCausalLM"
# What a configuration of toy size has, where it has such an option.
SMALL: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "head_dim": 8,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "state_size": 6,
}


def config_of(profile: Profile, changes: Options | None = None) -> Any:
    """The configuration of a profile.

    Raises:
        TargetError: the installed transformers does not have this model, or not these options.
    """
    import transformers

    options = SIZES | TOKENS | dict(profile.options) | dict(changes or {})
    found = load(profile.config) if ":" in profile.config else getattr(transformers, profile.config, None)
    if found is None:
        raise TargetError(f"transformers {transformers.__version__} has no {profile.config}")
    try:
        return found(**options)
    except Exception as e:
        raise TargetError(
            f"{profile.config} does not take the options of the profile of {profile.model_type}: {e}"
        ) from e


def guess(model: Any) -> Profile:
    """A profile of a model class of which nothing is known: small sizes by their usual names."""
    config = model.config_class
    usual = config()
    options = {n: v for n, v in SMALL.items() if hasattr(usual, n)}
    written = f"{config.__module__}:{config.__qualname__}"
    return Profile(config.model_type, written, "", options)


def model_of(profile: Profile, changes: Options | None = None, seed: int = 1) -> Any:
    """A model in float64, in evaluation mode, whose every parameter is random and of order one.

    Raises:
        TargetError: it cannot be built of the profile's options.
    """
    config = config_of(profile, changes)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # decays are computed in it at construction
    try:
        with ExactFloat64(), torch.no_grad():
            try:
                model = _built(profile, config).double().eval()
            except Exception as e:
                raise TargetError(
                    f"{profile.model} cannot be built at toy size: {type(e).__name__}: {e}; accepted: a "
                    "PROFILE whose options suit it"
                ) from e
            for p in model.parameters():
                p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else p.shape[-1] ** -0.5))
    finally:
        torch.set_default_dtype(before)
    return model


def _built(profile: Profile, config: Any) -> Any:
    """Experts one by one: the grouped product has no float64."""
    import transformers

    if profile.model == AUTO:
        return transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    config._experts_implementation = "eager"
    if ":" in profile.model:
        return load(profile.model)(config)
    module = f"transformers.models.{profile.model_type}.modeling_{profile.model_type}"
    return getattr(importlib.import_module(module), profile.model)(config)


def mixer_of(model: nn.Module, profile: Profile) -> tuple[str, nn.Module]:
    """The first mixer in a model, and its path: of the class that the profile names, or derived from it.

    Raises:
        TargetError: it has none.
    """
    for name, module in model.named_modules():
        if any(base.__name__ == profile.mixer for base in type(module).__mro__):
            return name, module
    raise TargetError(
        f"{type(model).__name__} has no module of class {profile.mixer}; accepted: one that has"
    )
