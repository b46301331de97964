"""What a whole model and a mixer of it have in common as subjects."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ...subject import Subject
from .exact import ExactFloat64
from .profile import Options, Profile


class ConfiguredSubject(Subject):
    """One configuration of a profile.

    Args:
        profile: of the model type.
        model: built of it.
        label: what the configuration is.
        unsupported: properties outside of what the model promises, each with the reason.
        changes: of the profile's options.
    """

    def __init__(
        self,
        profile: Profile,
        model: Any,
        label: str,
        unsupported: Mapping[str, str] | None = None,
        changes: Options | None = None,
    ) -> None:
        self.name = profile.model_type
        self.profile, self.model, self.label, self.changes = profile, model, label, changes or {}
        self.unsupported = unsupported or {}

    def exactly(self) -> contextlib.AbstractContextManager[object]:
        return ExactFloat64()
