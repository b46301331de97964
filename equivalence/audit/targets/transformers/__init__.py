"""The linear mixers of transformers.

`profiles.py` is the data: one `Profile` for each model type, which a user can add to. Calls in pieces, with
padding, packed, in batches are looked at in whole models, called as `generate` calls them; what is about
numbers (precision, gradients, decays at their ends) in the mixer by itself. Both in float64 with the casts to
float32 taken out, unless rounding is what is looked at.
"""

from __future__ import annotations

import functools
import inspect
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...examine import Target
from ...subject import Subject
from .build import guess, mixer_of, model_of
from .mixer import MixerSubject
from .model import ModelSubject
from .profile import Options, Profile
from .profiles import PROFILES

# Of a mixer by itself; the other properties are those of whole models.
OF_MIXERS = ("fp64", "low_precision", "gradients", "state_gradients", "decay_extremes")
PADDING = ("padding_left", "padding_right", "padding_inside")
AS_BUILT = "toy size"
# They have a recurrent state in their cache, which is not that of a linear mixer.
NOT_LINEAR = {"zaya": "softmax attention whose values are mixed with those of the token before"}


def targets(profiles: Iterable[Profile] | None = None) -> list[Target]:
    """A target for each profile; by default for each of ours that the installed transformers has.

    Raises:
        ImportError: transformers is not installed.
    """
    import transformers

    transformers.logging.set_verbosity_error()  # of kernels that are not there, once for each
    if profiles is None:
        profiles = [p for p in PROFILES if hasattr(transformers, p.config)]
    found = []
    for profile in profiles:
        found.append(Target(profile.model_type, _Subjects(profile, profile.variants)))
        for label, changes in profile.apart.items():
            name = f"{profile.model_type} ({label})"
            found.append(Target(name, _Subjects(profile, {label: changes}, base=False)))
    return found


def of_class(model: type, written: str, profile: Profile | None = None) -> list[Target]:
    """A target out of a model class: what is not said of it is taken from the profile of its model type, or
    guessed.

    Raises:
        TargetError: nothing is known of it, and what was guessed does not build.
    """
    model_type = model.config_class.model_type  # type: ignore[attr-defined]
    known = next(
        (p for p in PROFILES if p.model_type in (model_type, model_type.removesuffix("_text"))), None
    )
    chosen = profile or known or guess(model)
    if profile is None:
        chosen = replace(chosen, model=written, apart={})
    return [Target(chosen.model_type, _Subjects(chosen, chosen.variants))]


class _Subjects:
    """The configurations of one profile, built when first asked for, and kept."""

    def __init__(self, profile: Profile, variants: Mapping[str, Options], base: bool = True) -> None:
        self.profile = profile
        self.variants = {**({AS_BUILT: {}} if base else {}), **variants}

    @functools.cached_property
    def models(self) -> dict[str, Any]:
        return {label: model_of(self.profile, options) for label, options in self.variants.items()}

    @functools.cached_property
    def contract(self) -> dict[str, str]:
        return contract_of(self.profile, next(iter(self.models.values())))

    @functools.cached_property
    def of_models(self) -> list[Subject]:
        return [
            ModelSubject(self.profile, model, label, self.contract, self.variants[label])
            for label, model in self.models.items()
        ]

    @functools.cached_property
    def of_mixer(self) -> list[Subject]:
        label, model = next(iter(self.models.items()))
        return [MixerSubject(self.profile, model, label, self.contract, self.variants[label])]

    def __call__(self, name: str) -> Sequence[Subject]:
        return self.of_mixer if name in OF_MIXERS and self.profile.mixer else self.of_models


def contract_of(profile: Profile, model: Any) -> dict[str, str]:
    """Properties outside of what a model promises: by its profile, and by its own source."""
    found = dict(profile.contract)
    mixer = type(mixer_of(model, profile)[1]) if profile.mixer else type(model)
    if not profile.mixer:
        found |= dict.fromkeys(OF_MIXERS, "no profile says which of its modules is the mixer")
    module = inspect.getsource(sys.modules[mixer.__module__])
    if "`attention_mask` was passed, but it is unused in this model" in module:
        found |= dict.fromkeys(PADDING, "it warns that it does not use attention_mask")
    elif "attention_mask" not in inspect.signature(type(model).forward).parameters:
        found |= dict.fromkeys(PADDING, "its forward has no attention_mask")
    if "cu_seq_lens" not in inspect.getsource(mixer) and "seq_idx" not in module:
        found.setdefault("packed", "it takes no boundaries of sequences")
    return found


def not_looked_at() -> list[str]:
    """Model types of the installed transformers that keep a recurrent state and are in no profile.

    Raises:
        ImportError: transformers is not installed.
    """
    import transformers

    known = {profile.model_type for profile in PROFILES} | set(NOT_LINEAR)
    folder = pathlib.Path(transformers.__file__).parent / "models"
    return sorted(
        path.parent.name
        for path in folder.glob("*/modeling_*.py")
        if path.parent.name not in known and "update_recurrent_state(" in path.read_text()
    )
