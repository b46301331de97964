"""What an audit has to know of a model type of transformers. All of it is data; see docs/audit.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .calls import Call

Options = Mapping[str, Any]
# Sets the decays of a mixer, in place.
Setting = Callable[[Any], None]


@dataclass(frozen=True)
class Decays:
    """How the decays of a mixer are brought to their ends.

    Attributes:
        never: nothing is forgotten any more.
        always: everything is, in each step.
        resets: what was is forgotten where channel 0 of the input is 1, and slowly where it is 0. None if its
            decays do not depend on the input.
    """

    never: Setting
    always: Setting
    resets: Setting | None = None


@dataclass(frozen=True)
class Profile:
    """One model type.

    Attributes:
        model_type: as transformers names it.
        config: the name of the configuration's class.
        mixer: the name of the mixer's class.
        options: of a configuration of toy size, in which as many layers as may be have the mixer.
        variants: further configurations that a verdict is about, by what they are, as changes of `options`.
        apart: configurations that are targets of their own.
        decays: None where they are constants, or there are none.
        contract: properties outside of what the model promises, each with where it says so.
        call: how the mixer is called by itself.
        model: the class of the model, by the configuration; "AutoModelForCausalLM" for most.
    """

    model_type: str
    config: str
    mixer: str
    options: Options
    variants: Mapping[str, Options] = field(default_factory=dict)
    apart: Mapping[str, Options] = field(default_factory=dict)
    decays: Decays | None = None
    contract: Mapping[str, str] = field(default_factory=dict)
    call: Call = field(default_factory=Call)
    model: str = "AutoModelForCausalLM"
