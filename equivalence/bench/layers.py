"""Whole layers of transformers over ours with the same weights."""

from __future__ import annotations

import copy
import functools
import importlib.util
from typing import Any

import torch

from ...mixers import from_transformers
from .bar import Bar, Effort, Measured, Missing, forward, forward_and_backward, in_turns

LENGTH, DECODED = 512, 64
KINDS = ("forward", "forward-backward", "decode")


def _both(profile: Any) -> tuple[Any, Any, Any, int]:
    """Their layer and ours in float32, how theirs is called, and the width."""
    from ..audit.targets.transformers.build import mixer_of, model_of

    model = model_of(profile).float()
    theirs = mixer_of(model, profile)[1]
    try:
        ours = from_transformers(copy.deepcopy(theirs))
    except (TypeError, ValueError) as e:
        raise Missing(f"a mixer of ours for {profile.mixer}: {e}") from e
    return theirs, ours, model.config, ours.d_model


def measure(profile: Any, kind: str, effort: Effort) -> Measured:
    theirs, ours, config, width = _both(profile)
    x = torch.randn(1, effort.size(LENGTH, 128), width)
    call = profile.call

    if kind == "decode":
        return in_turns(
            forward(lambda: _decode_theirs(call, theirs, config, x)),
            forward(lambda: _decode_ours(ours, x)),
            effort,
        )
    runs = (lambda: call(theirs, config, x, None, False)[0], lambda: ours(x)[0])
    if kind == "forward":
        return in_turns(forward(runs[0]), forward(runs[1]), effort)
    weights = [list(m.parameters()) for m in (theirs, ours)]
    calls = [forward_and_backward(r, [x, *w]) for r, w in zip(runs, weights, strict=True)]
    return in_turns(calls[0], calls[1], effort)


def _decode_theirs(call: Any, mixer: Any, config: Any, x: torch.Tensor) -> None:
    state = call(mixer, config, x[:, :8], None, True)[1]
    for t in range(8, 8 + DECODED):
        state = call(mixer, config, x[:, t : t + 1], state, True)[1]


def _decode_ours(mixer: Any, x: torch.Tensor) -> None:
    state = mixer(x[:, :8])[1]
    for t in range(8, 8 + DECODED):
        state = mixer.step(x[:, t], state, inplace=True)[1]


def bars() -> list[Bar]:
    if importlib.util.find_spec("transformers") is None:
        return []
    from ...mixers.transformers.table import RECIPES
    from ..audit.targets.transformers.profiles import PROFILES

    taken = {recipe.model_type for recipe in RECIPES.values()}
    return [
        Bar(
            "layers",
            f"{profile.model_type}-{kind}",
            f"{profile.mixer} over ours, toy size, {'8 + 64 tokens' if kind == 'decode' else f'T {LENGTH}'}",
            functools.partial(measure, profile, kind),
            at_least=0.95,
        )
        for profile in PROFILES
        if profile.model_type in taken
        for kind in KINDS
    ]
