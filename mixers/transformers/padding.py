"""The attention mask for mixers whose model does not hand it on to them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Padding:
    """The attention mask [B, S] of the call that a model is in, or None."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.given_to: nn.Module | None = None

    def watch(self, models: Iterable[nn.Module]) -> None:
        """Take the mask from calls of these; of two calls, one inside the other, the outer one's counts."""
        for model in models:
            model.register_forward_pre_hook(self.enter, with_kwargs=True)
            model.register_forward_hook(self.leave, always_call=True)

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.mask is None:
            mask = kwargs.get("attention_mask")
            if mask is None and args:  # a signature takes as long as a layer of a small model
                mask = inspect.signature(model.forward).bind_partial(*args).arguments.get("attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 2:
                self.mask, self.given_to = mask, model

    def leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.given_to is model:
            self.mask = self.given_to = None


def models(module: nn.Module) -> Iterable[nn.Module]:
    """The models of transformers in a module, itself included."""
    for m in module.modules():
        if any(cls.__name__ == "PreTrainedModel" for cls in type(m).__mro__):
            yield m
