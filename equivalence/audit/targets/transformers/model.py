"""A causal language model as a subject: tokens in, logits out, its cache as the state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...subject import Case, Inputs, Unsupported
from .calls import CACHES, cache_name
from .configured import ConfiguredSubject
from .profile import Options, Profile
from .snippets import of_model

FIRST_TOKEN = 3  # those before it have meanings


class ModelSubject(ConfiguredSubject):
    """Called as `generate` calls it: with masks of the whole row and positions that do not count padding."""

    def __init__(
        self,
        profile: Profile,
        model: Any,
        label: str,
        unsupported: Mapping[str, str] | None = None,
        changes: Options | None = None,
    ) -> None:
        super().__init__(profile, model, label, unsupported, changes)
        self.parameters = inspect.signature(model.forward).parameters
        self.cache_name = cache_name(model.forward)
        # RWKV scales its weights in its first call.
        first = model(torch.tensor([[FIRST_TOKEN]]), use_cache=False)
        self.has_logits = hasattr(first, "logits")

    def inputs(self, rows: int, length: int, seed: int) -> Inputs:
        g = torch.Generator().manual_seed(seed)
        return {
            "input_ids": torch.randint(FIRST_TOKEN, self.model.config.vocab_size, (rows, length), generator=g)
        }

    def run(
        self,
        inputs: Inputs,
        state: Any = None,
        mask: Tensor | None = None,
        sequences: tuple[int, ...] | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Any]:
        ids = inputs["input_ids"]
        cache, seen = state if state is not None else (None, 0)
        stop = seen + ids.shape[1]
        options: dict[str, Any] = {"use_cache": keep}
        if sequences is not None:
            options |= self.packed(ids, sequences)
        elif "position_ids" in self.parameters:
            valid = torch.ones(len(ids), stop, dtype=torch.long) if mask is None else mask.long()
            options["position_ids"] = (valid.cumsum(1) - 1).clamp(min=0)[:, seen:]
        # As generate does: a model that counts no positions needs no mask for single tokens.
        if mask is not None and (ids.shape[1] > 1 or "position_ids" in self.parameters):
            options["attention_mask"] = mask.long()
        named = self.cache_name
        if keep and named is None:
            raise Unsupported(f"its forward has none of {', '.join(CACHES)}")
        if keep and cache is None and self.profile.model_type == "recurrent_gemma":
            from transformers import DynamicCache

            cache = DynamicCache(config=self.model.config)  # for its layers of attention
        if cache is not None:
            options[str(named)] = cache
        output = self.model(ids, **options)
        y = output.logits if self.has_logits else output.last_hidden_state
        if keep:
            cache = getattr(output, str(named), None) or cache
            if cache is None:
                raise Unsupported(f"its output has no {named}")
        return y, (cache, stop)

    def packed(self, ids: Tensor, sequences: tuple[int, ...]) -> dict[str, Any]:
        """Their lengths, as transformers' data collator hands them to models."""
        if "packed" in self.unsupported:
            raise Unsupported(self.unsupported["packed"])
        offsets = torch.tensor([0, *sequences]).cumsum(0).int()
        index = torch.cat([torch.full((n,), i) for i, n in enumerate(sequences)])[None].int()
        options: dict[str, Any] = {
            "seq_idx": index,
            "cu_seq_lens_q": offsets,
            "cu_seq_lens_k": offsets,
            "max_length_q": max(sequences),
            "max_length_k": max(sequences),
        }
        if "position_ids" in self.parameters:
            options["position_ids"] = torch.cat([torch.arange(n) for n in sequences])[None]
        return options

    def describe(self, case: Case) -> str:
        return f"{type(self.model).__name__} ({self.label})"

    def snippet(self, case: Case) -> str:
        return of_model(self, case)
