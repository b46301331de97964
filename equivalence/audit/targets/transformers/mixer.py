"""One mixer by itself as a subject: for what is about numbers rather than about models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...subject import Case, Extreme, Inputs, Unsupported
from .build import mixer_of
from .configured import ConfiguredSubject
from .profile import Options, Profile
from .snippets import of_mixer

LENGTH = 24
RESETS = 3, 9, 10  # steps of these at which everything is forgotten


class MixerSubject(ConfiguredSubject):
    """Hidden states in, hidden states out."""

    # Their chunks subtract cumulative sums, which costs digits where a gate closes: up to here that is what
    # bfloat16 costs anyway, and the finding only says how many.
    digits = 2.0**-8

    def __init__(
        self,
        profile: Profile,
        model: Any,
        label: str,
        unsupported: Mapping[str, str] | None = None,
        changes: Options | None = None,
        mixer: nn.Module | None = None,
    ) -> None:
        super().__init__(profile, model, label, unsupported, changes)
        self.path, found = mixer_of(model, profile)
        self.mixer = found if mixer is None else mixer

    def inputs(self, rows: int, length: int, seed: int) -> Inputs:
        g = torch.Generator().manual_seed(seed)
        width = self.model.config.hidden_size
        return {"hidden_states": torch.randn(rows, length, width, generator=g, dtype=torch.float64)}

    def run(
        self,
        inputs: Inputs,
        state: Any = None,
        mask: Tensor | None = None,
        sequences: tuple[int, ...] | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Any]:
        if mask is not None or sequences is not None:
            raise Unsupported("masks and packing are looked at in whole models")
        x = inputs["hidden_states"]
        return self.profile.call(self.mixer, self.model.config, x, state, keep)

    def at(self, dtype: torch.dtype) -> MixerSubject:
        mixer = copy.deepcopy(self.mixer).to(dtype)
        return MixerSubject(self.profile, self.model, self.label, self.unsupported, self.changes, mixer)

    def tensors(self) -> dict[str, Tensor]:
        for p in self.mixer.parameters():
            p.requires_grad_(False)
        return dict(self.mixer.named_parameters())

    def state_tensors(self, state: Any) -> dict[str, Tensor]:
        return self.profile.call.parts(self.mixer, state)

    def extremes(self) -> Iterator[Extreme]:
        decays = self.profile.decays
        if decays is None:
            raise Unsupported(f"nothing is known of the decays of {self.profile.mixer}")
        x = self.inputs(1, LENGTH, 0)
        marked = x["hidden_states"].clone()
        marked[..., 0] = 0.0
        marked[:, list(RESETS), 0] = 1.0
        settings = [("decays of 1", decays.never, x), ("decays of 0", decays.always, x)]
        if decays.resets is not None:
            settings.append(("decays near 1 and of 0 by turns", decays.resets, {"hidden_states": marked}))
        for label, setting, inputs in settings:
            subject = self.at(torch.float64)
            with torch.no_grad():
                setting(subject.mixer)
            yield Extreme(label, subject, inputs)

    def describe(self, case: Case) -> str:
        return f"{self.profile.mixer} ({self.label})"

    def snippet(self, case: Case) -> str:
        return of_mixer(self, case)
