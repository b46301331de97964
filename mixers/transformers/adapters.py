"""Our mixers in the places of transformers' own: the same calls, and the same caches read and written.

Attention masks are taken for what they say: a token that is masked is not there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import shown
from ..base import MixerState, RecurrentMixer, Tokens
from .padding import Padding


class Masked(nn.Module):
    """Knows which tokens are padding.

    Attributes:
        unmasked: whether the model hands no attention mask on to it.
        padding: knows the mask all the same.
    """

    unmasked = False

    def __init__(self) -> None:
        super().__init__()
        self.padding = Padding()

    def valid(self, x: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Which tokens of x [B, T, d_model] there are, by the last T columns of a mask [B, S]; None: all."""
        if self.unmasked:
            mask = self.padding.mask
        if mask is None or mask.ndim != 2:
            return None
        valid = mask[:, mask.shape[1] - x.shape[1] :]
        return None if bool(valid.all()) else valid != 0


class Adapter(Masked):
    """A mixer of ours that is called as `theirs` was.

    Attributes:
        mixer: ours, with the weights.
        layer_idx: its place in the model's cache.
        indexed: whether it has such a place.
    """

    indexed = True

    def __init__(self, mixer: RecurrentMixer, theirs: nn.Module, layer_idx: int | None = None) -> None:
        super().__init__()
        self.mixer = mixer
        found = getattr(theirs, "layer_idx", layer_idx)
        if self.indexed and not isinstance(found, int):
            raise ValueError(
                f"layer_idx of {type(theirs).__name__} is {shown(found)}; accepted: a whole number, "
                "or the whole model"
            )
        self.layer_idx: int | None = found
        self.train(theirs.training)

    def mix(
        self, x: Tensor, state: MixerState | None, mask: Tensor | None = None
    ) -> tuple[Tensor, MixerState]:
        valid = self.valid(x, mask)
        if x.shape[1] > 1 or valid is not None or state is None:
            return self.mixer(x, state, valid)
        # One token more: `step` without its look at the arguments, which a model makes alike each time.
        return self.mixer.mix(x, state, Tokens(state.position.unsqueeze(1), None), None)

    def before(self, x: Tensor, position: Tensor | None = None, **parts: Tensor | None) -> MixerState:
        """The state that a cache holds. None holds how many tokens were seen: 0 unless `position` says."""
        if position is None:
            position = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return MixerState(position, **parts)


class CacheLayerAdapter(Adapter):
    """For caches of `LinearAttentionLayer`s: conv_states [B, channels, width], recurrent_states.

    Without a cache, sequences may be packed as `cu_seq_lens_q` says.

    The convolution looks width - 1 tokens back, so the oldest place of conv_states is read by nobody; it
    is 0 here.
    """

    def to_ours(self, recurrent: Tensor) -> Tensor:
        """Their recurrent state as ours [B, H, K, V]."""
        return recurrent

    def to_theirs(self, recurrent: Tensor) -> Tensor:
        """Our recurrent state as theirs."""
        return recurrent

    def forward(
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        cache, offsets = given_cache(cache, kwargs), kwargs.get("cu_seq_lens_q")
        if offsets is not None:
            if cache is not None:
                raise NotImplementedError(
                    "cu_seq_lens_q was given together with a cache; accepted: one of the two, "
                    "as with use_cache=False"
                )
            return self.mixer(hidden_states, cu_seqlens=offsets)[0]
        y, state = self.mix(hidden_states, self.read(cache, hidden_states), attention_mask)
        if cache is not None:
            self.write(cache, state)
        return y

    def read(self, cache: Any, x: Tensor, position: Tensor | None = None) -> MixerState | None:
        if cache is None or not cache.has_previous_state(self.layer_idx):
            return None
        assert self.mixer.window_shape is not None
        layer = cache.layers[self.layer_idx]
        conv = layer.conv_states[0]
        window = conv[..., conv.shape[-1] - self.mixer.window_shape[0] :].mT
        recurrent = self.to_ours(layer.recurrent_states[0])
        return self.before(x, position, window=window, recurrent=recurrent)

    def write(self, cache: Any, state: MixerState) -> None:
        layer = cache.layers[self.layer_idx]
        if getattr(layer, "record_past", False):
            raise NotImplementedError(
                "the cache records its past so that tokens can be taken back; accepted: a cache that does "
                "not, as a recurrent state cannot give tokens back"
            )
        assert state.window is not None and state.recurrent is not None
        window, recurrent = state.window.mT, self.to_theirs(state.recurrent)
        if cache.has_previous_state(self.layer_idx):
            conv = layer.conv_states[0]
            conv[..., conv.shape[-1] - window.shape[-1] :].copy_(window)
            layer.recurrent_states[0].copy_(recurrent)
        else:
            cache.update_conv_state(F.pad(window, (1, 0)), self.layer_idx)
            cache.update_recurrent_state(recurrent, self.layer_idx)


def representable(m: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The stabiliser m as a cache of this dtype holds it, and what the state kept beside it is to be
    multiplied by."""
    held = m.to(dtype).to(m.dtype)
    return held, torch.exp(m - held)


def given_cache(cache: Any, kwargs: dict[str, Any]) -> Any:
    """The cache, which earlier versions call cache_params or past_key_values."""
    for name in ("cache_params", "past_key_values"):
        if cache is None:
            cache = kwargs.get(name)
    return cache
