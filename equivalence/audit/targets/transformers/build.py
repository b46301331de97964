"""Models of toy size with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .exact import ExactFloat64
from .profile import Options, Profile
from .profiles import SIZES, TOKENS


def config_of(profile: Profile, changes: Options | None = None) -> Any:
    """The configuration of a profile.

    Raises:
        ImportError: the installed transformers does not have this model.
    """
    import transformers

    found = getattr(transformers, profile.config, None)
    if found is None:
        raise ImportError(f"transformers {transformers.__version__} has no {profile.config}")
    return found(**(SIZES | TOKENS | dict(profile.options) | dict(changes or {})))


def model_of(profile: Profile, changes: Options | None = None, seed: int = 1) -> Any:
    """A model in float64, in evaluation mode, whose every parameter is random and of order one."""
    import transformers

    config = config_of(profile, changes)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # decays are computed in it at construction
    try:
        with ExactFloat64(), torch.no_grad():
            if profile.model == "AutoModelForCausalLM":
                # Experts one by one: the grouped product has no float64.
                model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
            else:
                config._experts_implementation = "eager"
                model = _class(profile)(config)
            model = model.double().eval()
            for p in model.parameters():
                p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else p.shape[-1] ** -0.5))
    finally:
        torch.set_default_dtype(before)
    return model


def _class(profile: Profile) -> Any:
    import importlib

    module = f"transformers.models.{profile.model_type}.modeling_{profile.model_type}"
    return getattr(importlib.import_module(module), profile.model)


def mixer_of(model: nn.Module, profile: Profile) -> tuple[str, nn.Module]:
    """The first mixer in a model, and its path."""
    return next((n, m) for n, m in model.named_modules() if type(m).__name__ == profile.mixer)
