"""RecurrentGemma's RG-LRU."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..base import MixerState
from ..rg_lru import RGLRU
from .adapters import CacheLayerAdapter, given_cache
from .recipe import Recipe, accepts, same


class RecurrentGemmaAdapter(CacheLayerAdapter):
    """Theirs [B, channels], kept in the module; ours [B, 1, 1, channels], in the cache's layer, or in the
    module as well where that layer is not for states (before transformers 5.24).

    A token at position 0 begins a sequence: nothing before it is looked at, neither by the recurrence nor by
    the convolution.
    """

    unmasked = True
    held: MixerState | None = None

    def to_ours(self, recurrent: Tensor) -> Tensor:
        return recurrent[:, None, None]

    def to_theirs(self, recurrent: Tensor) -> Tensor:
        return recurrent[:, 0, 0]

    def forward(  # type: ignore[override]
        self,
        input_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        x, position = input_states, position_ids.expand(input_states.shape[:2])
        cache = given_cache(cache, kwargs)
        inside = cache is None or not hasattr(cache.layers[self.layer_idx], "conv_states")
        valid, start = self.valid(x), position.select(1, 0)
        before = self.held if inside else self.read(cache, x, start)
        if before is not None and (not use_cache or len(before.position) != len(x)):
            before = None
        if valid is None:
            if before is None:
                before = self.mixer.initial_state(len(x), x.device, x.dtype)
            if before.position is not start:
                before = replace(before, position=start)
            y, state = self.documents(x, position, before)
        else:
            if before is not None:
                first = valid.to(torch.uint8).argmax(1, keepdim=True)
                before = replace(before, position=position.gather(1, first)[:, 0])
            y, state = self.mix(x, before)
        if inside:
            self.held = state.detach() if use_cache else None
        else:
            self.write(cache, state)
        return y, None

    def documents(self, x: Tensor, position: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """With a sequence beginning wherever the position [B, T] is 0, besides those of `state`."""
        if bool(position.all()):
            return self.mix(x, state)
        B, T, _ = x.shape
        first = position == 0
        begins = first.clone()
        begins[:, 0] = True
        at = begins.flatten().nonzero()[:, 0]
        row, place = at // T, at % T
        fresh = self.mixer.initial_state(len(at), x.device, x.dtype)
        goes_on = (place == 0) & ~first[row, 0]
        parts = {}
        for field in fields(MixerState):
            new, old = getattr(fresh, field.name), getattr(state, field.name)
            if new is not None:
                keep = goes_on.reshape(-1, *(1 for _ in new.shape[1:]))
                parts[field.name] = torch.where(keep, old[row].to(new.dtype), new)
        offsets = torch.cat([at, at.new_tensor([B * T])])
        y, after = self.mixer(x.reshape(1, B * T, -1), MixerState(**parts), cu_seqlens=offsets)
        ends = torch.cat([row[1:] != row[:-1], row.new_ones(1, dtype=torch.bool)])
        last = {name: getattr(after, name)[ends] for name in parts}
        return y.reshape(B, T, -1), MixerState(**last)


def build(theirs: Any) -> RGLRU:
    accepts(theirs, "hidden_activation", type(theirs.act_fn).__name__, "GELUTanh")
    return RGLRU(
        theirs.hidden_size,
        width=theirs.lru_width,
        num_heads=theirs.rg_lru.num_attention_heads,
        conv_width=theirs.conv1d_width,
    )


RECIPES = (Recipe("recurrent_gemma", "RecurrentGemmaRecurrentBlock", build, same, RecurrentGemmaAdapter),)
