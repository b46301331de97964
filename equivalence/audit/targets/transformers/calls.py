"""How a mixer of transformers is called by itself, and which tensors its state is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...subject import Unsupported

# What versions and models call the state that is handed on.
CACHES = ("cache", "past_key_values", "cache_params", "state")


def cache_name(forward: Callable[..., Any]) -> str | None:
    """What a forward calls it; None if it takes none."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in CACHES if name in parameters), None)


class Call:
    """The mixers that keep their states in a `Cache`: most of them.

    Attributes:
        written: the call without a state, as code.
    """

    written = "mixer(x)"

    def __call__(self, mixer: Any, config: Any, x: Tensor, state: Any, keep: bool) -> tuple[Tensor, Any]:
        """Outputs of x [B, T, d_model] and the state after it."""
        if keep and state is None:
            state = self.cache(config)
        y = mixer(x, attention_mask=None, **self.given(mixer, state))
        return (y[0] if isinstance(y, tuple) else y), state

    def given(self, mixer: Any, state: Any) -> dict[str, Any]:
        """The state as an argument."""
        name = cache_name(mixer.forward)
        if name is None:
            raise Unsupported(f"its forward has none of {', '.join(CACHES)}")
        return {name: state}

    def cache(self, config: Any) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=config)

    def parts(self, mixer: Any, state: Any) -> dict[str, Tensor]:
        """The floating point tensors of a state."""
        layer = state.layers[mixer.layer_idx]
        found = {"recurrent": layer.recurrent_states.get(0), "convolution": layer.conv_states.get(0)}
        return {n: x for n, x in found.items() if x is not None}


class MiniMax(Call):
    written = "mixer(x, None, attention_mask=None)[0]"

    def __call__(self, mixer: Any, config: Any, x: Tensor, state: Any, keep: bool) -> tuple[Tensor, Any]:
        if keep and state is None:
            from transformers.models.minimax.modeling_minimax import MiniMaxCache

            state = MiniMaxCache()
        return mixer(x, None, attention_mask=None, **self.given(mixer, state))[0], state

    def parts(self, mixer: Any, state: Any) -> dict[str, Tensor]:
        return {"recurrent": state.get_linear_cache(mixer.layer_idx)}


class RecurrentGemma(Call):
    """The state is in the module; what is handed on is how many tokens were seen."""

    written = "mixer(x, torch.arange(x.shape[1])[None].expand(len(x), -1), None, use_cache=False)[0]"

    def __call__(self, mixer: Any, config: Any, x: Tensor, state: Any, keep: bool) -> tuple[Tensor, Any]:
        start = state or 0
        positions = torch.arange(start, start + x.shape[1])[None].expand(len(x), -1)
        if start == 0:
            mixer.conv1d_state = mixer.rg_lru.recurrent_states = None
            mixer._setup_cache(len(x), x.device, x.dtype)
        return mixer(x, positions, None, use_cache=keep)[0], start + x.shape[1]

    def parts(self, mixer: Any, state: Any) -> dict[str, Tensor]:
        return {"recurrent": mixer.rg_lru.recurrent_states, "convolution": mixer.conv1d_state}


class XLSTM(Call):
    written = "mixer(x)[0]"

    def __call__(self, mixer: Any, config: Any, x: Tensor, state: Any, keep: bool) -> tuple[Tensor, Any]:
        y, state = mixer(x, state)
        return y, tuple(part.to(x.dtype) for part in state)  # as its cache holds them

    def parts(self, mixer: Any, state: Any) -> dict[str, Tensor]:
        return dict(zip(("C", "n", "m"), state, strict=True))


class RWKV(Call):
    """Five tensors [B, channels, layers], as its model makes them."""

    written = "mixer(x)[0]"

    def __call__(self, mixer: Any, config: Any, x: Tensor, state: Any, keep: bool) -> tuple[Tensor, Any]:
        if keep and state is None:
            layers = config.num_hidden_layers
            wide = torch.promote_types(x.dtype, torch.float32)
            state = [torch.zeros(*x.shape[::2], layers, dtype=x.dtype if i <= 1 else wide) for i in range(5)]
            state[4] -= 1e30
        y, state = mixer(x, state, use_cache=keep)
        return y, state

    def parts(self, mixer: Any, state: Any) -> dict[str, Tensor]:
        names = ("last", "above", "below", "maximum")
        return {n: x[:, :, mixer.layer_id] for n, x in zip(names, state[1:], strict=True)}
