"""A byte-level language model of any one mixer of the registry, and what is asked of it.

Small enough to train on a laptop in seconds, whole enough to show that the three ways of running
it (the whole sequence, any pieces of it, one byte at a time) are the same function.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..mixers import HybridConfig, HybridLM
from ..mixers.hybrid.generation import Sampling
from ..mixers.hybrid.model import place


def language_model(mixer: str, d_model: int = 64, layers: int = 2, **options: Any) -> HybridLM:
    """A model over the 256 bytes, every layer of which has this mixer, a name of the registry.

    Every layer is made as the only one of a model is: what the figures show is the mixer, not the
    changes that some papers make to it with depth.
    """
    return HybridLM(
        HybridConfig(
            vocab_size=256,
            d_model=d_model,
            num_layers=layers,
            period=layers + 1,
            linear=mixer,
            linear_options={**place(mixer, 0, 1), **options},
            mlp_dim=4 * d_model // 3,
            tied=True,
            init_std=d_model**-0.5,
        )
    )


class Generation(NamedTuple):
    text: bytes  # what followed the prompt
    state_after_prompt: int  # numbers the model carries from byte to byte, here ...
    state_at_end: int  # ... and here; the same for every mixer but softmax attention


@torch.no_grad()
def generation(model: HybridLM, prompt: bytes, n: int, temperature: float = 1.0, seed: int = 0) -> Generation:
    """n bytes after the prompt: a prefill, then one step per byte. Temperature 0 takes the likeliest."""
    if not prompt:
        raise ValueError("prompt is empty; accepted: at least one byte")
    device = model.embedding.weight.device
    choose = Sampling(temperature, generator=torch.Generator().manual_seed(seed))
    logits, state = model.prefill(torch.tensor([list(prompt)], device=device))
    after_prompt, text = numbers(state), bytearray()
    for i in range(n):
        token = choose(logits.double().cpu())
        text.append(int(token))
        if i + 1 < n:
            logits, state = model.step(token.to(device), state, inplace=True)
    return Generation(bytes(text), after_prompt, numbers(state))


def numbers(state: Any) -> int:
    """How many numbers a state holds, positions apart."""
    if isinstance(state, Tensor):
        return state.numel() if state.is_floating_point() else 0
    if dataclasses.is_dataclass(state):
        return sum(numbers(getattr(state, f.name)) for f in dataclasses.fields(state))
    return sum(map(numbers, state)) if isinstance(state, tuple) else 0


class Agreement(NamedTuple):
    """Largest difference between the logits of two ways of running a model."""

    chunked: float  # chunked prefill against the whole sequence at once
    decode: float  # one byte at a time against the whole sequence at once
    scale: float  # the largest logit

    @property
    def relative(self) -> float:
        return max(self.chunked, self.decode) / self.scale


@torch.no_grad()
def agreement(model: HybridLM, tokens: Tensor) -> Agreement:
    """Prefill, chunked prefill and decode of the same tokens [B, T], compared.

    The pieces are of uneven lengths (1, 2, 3, 5, 8, ...), so that cuts fall anywhere in a chunk.
    """
    T = tokens.shape[1]
    whole, _ = model(tokens)
    state, chunks = None, []
    start, piece, following = 0, 1, 2
    while start < T:
        logits, state = model(tokens[:, start : start + piece], state)
        chunks.append(logits)
        start, piece, following = start + piece, following, piece + following
    chunked = torch.cat(chunks, 1)
    state, steps = None, []
    for t in range(T):
        logits, state = model.step(tokens[:, t], state)
        steps.append(logits)
    decoded = torch.stack(steps, 1)
    return Agreement(
        float((chunked - whole).abs().max()), float((decoded - whole).abs().max()), float(whole.abs().max())
    )
