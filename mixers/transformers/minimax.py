"""MiniMax-01's Lightning Attention. States are laid out alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..lightning_attention import LightningAttention
from ..parts import slopes
from .adapters import Adapter, given_cache
from .recipe import Recipe, accepts, same


class MiniMaxAdapter(Adapter):
    """For `MiniMaxCache`, with its get_linear_cache and set_linear_cache.

    The cache tells its length, from which masks and positions are made, by what its layer 0 has of keys.
    Where that layer is one of these, it is given keys of one zero a token to be counted.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        cache, state = given_cache(cache, kwargs), None
        held = None if cache is None else cache.get_linear_cache(self.layer_idx)
        if isinstance(held, Tensor):  # an empty list stands for none
            state = self.before(hidden_states, recurrent=held)
        y, state = self.mix(hidden_states, state, attention_mask)
        if cache is not None:
            cache.set_linear_cache(self.layer_idx, state.recurrent)
            if self.layer_idx == 0:
                counted = hidden_states.new_zeros(*hidden_states.shape[:2], 1)[:, None]
                cache.update(counted, counted, 0)
        return y, state.recurrent


def build(theirs: Any) -> LightningAttention:
    accepts(theirs, "hidden_act", type(theirs.act_fn).__name__, "SiLUActivation", "SiLU")
    ours = LightningAttention(
        theirs.qkv_proj.in_features,
        num_heads=theirs.num_attention_heads,
        head_dim=theirs.head_dim,
        layer_idx=theirs.layer_idx,
        num_layers=theirs.num_hidden_layers,
        eps=theirs.norm.variance_epsilon,
    )
    rate = theirs.slope_rate.detach().flatten()
    expected = slopes(ours.num_heads, ours.factor, rate.device, torch.float64)
    if not torch.allclose(rate.double(), expected, rtol=4 * torch.finfo(rate.dtype).eps + 1e-6, atol=0):
        raise ValueError(
            f"slope_rate of {type(theirs).__name__} is {rate.tolist()}; accepted: {expected.tolist()}, "
            "which follow from the layer's place"
        )
    return ours


RECIPES = (Recipe("minimax", "MiniMaxLightningAttention", build, same, MiniMaxAdapter),)
