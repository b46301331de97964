"""From the text that names a target to the target: a library, a model of transformers, a module, a kernel."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from ..examine import Target
from .load import TargetError, load, load_file

ACCEPTED = (
    "transformers, fla, a model type of transformers (mamba2), or package.module:name or "
    "path/to/file.py:name of a model class of transformers, a torch module or a kernel"
)


def find(text: str, adapter: Path | None = None) -> list[Target]:
    """The targets that a name means.

    Args:
        text: "transformers" or "fla" for all of a library; a model type of transformers; or where a class or
            a function is: "package.module:name", "path/to/file.py:name".
        adapter: a file with an ADAPTER for a kernel or a module, or a PROFILE for a model of transformers.

    Raises:
        TargetError: there is no such target, or the adapter does not fit.
    """
    given = None if adapter is None else vars(load_file(adapter))
    if text in ("transformers", "fla"):
        if given is not None:
            raise TargetError(f"--adapter was given for all of {text}; accepted: with one target of it")
        if text == "transformers":
            return list(_transformers().targets())
        from . import fla

        return list(fla.targets())
    if ":" not in text:
        return _model_type(text, given)
    found = load(text)
    if isinstance(found, type) and _is_model_class(found):
        return list(_transformers().of_class(found, text, _named(given, "PROFILE")))
    chosen = _named(given, "ADAPTER")
    if isinstance(found, nn.Module) or (isinstance(found, type) and issubclass(found, nn.Module)):
        from .module import module_target

        return [module_target(text, found, chosen)]
    if not callable(found):
        raise TargetError(
            f"{text} is {type(found).__name__}; accepted: a function, a module, or a class of them"
        )
    from .kernel import kernel_target

    return [kernel_target(text, found, chosen)]


def _named(given: dict[str, Any] | None, name: str) -> Any:
    """What an adapter's file is to hold.

    Raises:
        TargetError: it does not.
    """
    if given is None:
        return None
    if name not in given:
        raise TargetError(f"the file of --adapter has no {name}; accepted: a file that defines {name}")
    return given[name]


def _transformers() -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise TargetError(
            "transformers is not installed; `pip install mixerzoo[transformers]` makes its models targets"
        )
    from . import transformers

    return transformers


def _is_model_class(found: type) -> bool:
    if importlib.util.find_spec("transformers") is None:
        return False
    from transformers import PreTrainedModel

    return issubclass(found, PreTrainedModel)


def _model_type(text: str, given: dict[str, Any] | None) -> list[Target]:
    module = _transformers()
    profile = _named(given, "PROFILE")
    if profile is not None:
        return list(module.targets([profile]))
    targets = [t for t in module.targets() if t.name == text or t.name.startswith(f"{text} (")]
    if not targets:
        known = ", ".join(dict.fromkeys(t.name.partition(" (")[0] for t in module.targets()))
        raise TargetError(f"{text!r} is not a target; accepted: {ACCEPTED}. Model types here: {known}")
    return targets
