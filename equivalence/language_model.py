"""A byte-level language model around any mixer of the registry.

Small enough to train on a laptop in seconds, whole enough to show that the three ways of running
it (the whole sequence, any pieces of it, one byte at a time) are the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..mixers import registry
from ..mixers.base import Mixer

State = tuple[Any, ...]  # the state of each layer's mixer


class Block(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x))."""

    mixer: Mixer

    def __init__(self, mixer: Mixer, d_model: int) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mlp = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.SiLU(), nn.Linear(2 * d_model, d_model))

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.mlp_norm(x))

    def forward(self, x: Tensor, state: Any, mask: Tensor | None, form: str) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.mixer_norm(x), state, mask=mask, form=form)
        return self._mlp(x + y), state

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        y_t, state = self.mixer.step(self.mixer_norm(x_t), state)
        return self._mlp(x_t + y_t), state


class Generation(NamedTuple):
    text: bytes  # what followed the prompt
    state_after_prompt: int  # numbers the model carries from byte to byte, here ...
    state_at_end: int  # ... and here; the same for every mixer but softmax attention


class LanguageModel(nn.Module):
    """Embedding, blocks, head, over the 256 bytes; `mixer` is a name of the registry.

    The head shares the embedding's weights. There are no position embeddings: order is the mixer's affair.
    """

    def __init__(self, mixer: str, d_model: int = 64, layers: int = 2, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.blocks = nn.ModuleList(
            Block(registry.build(mixer, d_model, **options), d_model) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(d_model, eps=1e-5)

    def _layers(self, state: State | None) -> Iterator[tuple[Block, Any]]:
        """Every block with its part of the state."""
        blocks: Any = self.blocks
        return zip(blocks, [None] * len(blocks) if state is None else state, strict=True)

    def _logits(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.norm(x), self.embedding.weight)

    def forward(
        self, tokens: Tensor, state: State | None = None, mask: Tensor | None = None, form: str = "auto"
    ) -> tuple[Tensor, State]:
        """tokens [B, T] to logits [B, T, 256] and the state after them; `mask` [B, T] is False at padding."""
        x, states = self.embedding(tokens), []
        for block, before in self._layers(state):
            x, after = block(x, before, mask, form)
            states.append(after)
        return self._logits(x), tuple(states)

    def step(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One byte: token [B] to logits [B, 256] and the state after it."""
        x, states = self.embedding(token), []
        for block, before in self._layers(state):
            x, after = block.step(x, before)
            states.append(after)
        return self._logits(x), tuple(states)

    def prefill(self, tokens: Tensor, pieces: Sequence[int]) -> tuple[Tensor, State | None]:
        """`forward` in consecutive pieces of the given lengths, the state handed from each to the next."""
        logits, state = [], None
        for piece in tokens.split(list(pieces), 1):
            out, state = self.forward(piece, state)
            logits.append(out)
        return torch.cat(logits, 1), state

    @torch.no_grad()
    def generate(self, prompt: bytes, n: int, temperature: float = 1.0, seed: int = 0) -> Generation:
        """n bytes after the prompt: a prefill, then one step per byte. Temperature 0 takes the likeliest."""
        if not prompt:
            raise ValueError("prompt is empty; accepted: at least one byte")
        device = self.embedding.weight.device
        generator = torch.Generator().manual_seed(seed)
        logits, state = self.forward(torch.tensor([list(prompt)], device=device))
        after_prompt, logits, text = numbers(state), logits[:, -1], bytearray()
        for i in range(n):
            if temperature == 0:
                token = logits[0].argmax().cpu()
            else:
                p = torch.softmax(logits[0].double().cpu() / temperature, -1)
                token = torch.multinomial(p, 1, generator=generator)[0]
            text.append(int(token))
            if i + 1 < n:
                logits, state = self.step(token.reshape(1).to(device), state)
        return Generation(bytes(text), after_prompt, numbers(state))

    @torch.no_grad()
    def attention_maps(self, tokens: Tensor) -> list[Tensor]:
        """The mixers' implicit attention maps on tokens [B, T]: one [B, H, T, T] per layer."""
        x, maps = self.embedding(tokens), []
        for block, _ in self._layers(None):
            maps.append(block.mixer.attention_map(block.mixer_norm(x)))
            x, _ = block(x, None, None, "auto")
        return maps


def numbers(state: Any) -> int:
    """How many numbers a state holds, whatever containers it is made of."""
    if isinstance(state, Tensor):
        return state.numel() if state.is_floating_point() else 0
    if dataclasses.is_dataclass(state):
        return sum(numbers(getattr(state, f.name)) for f in dataclasses.fields(state))
    if isinstance(state, dict):
        return sum(map(numbers, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(numbers, state))
    return 0


class Agreement(NamedTuple):
    """Largest difference between the logits of two ways of running a model."""

    chunked: float  # chunked prefill against the whole sequence at once
    decode: float  # one byte at a time against the whole sequence at once
    scale: float  # the largest logit

    @property
    def relative(self) -> float:
        return max(self.chunked, self.decode) / self.scale


@torch.no_grad()
def agreement(model: LanguageModel, tokens: Tensor) -> Agreement:
    """Prefill, chunked prefill and decode of the same tokens [B, T], compared.

    The pieces are of uneven lengths (1, 2, 3, 5, 8, ...), so that cuts fall anywhere in a chunk.
    """
    T = tokens.shape[1]
    pieces: list[int] = []
    a, b = 1, 2
    while (left := T - sum(pieces)) > 0:
        pieces.append(min(a, left))
        a, b = b, a + b
    whole, _ = model(tokens)
    chunked, _ = model.prefill(tokens, pieces)
    state, steps = None, []
    for t in range(T):
        logits, state = model.step(tokens[:, t], state)
        steps.append(logits)
    decoded = torch.stack(steps, 1)
    return Agreement(
        float((chunked - whole).abs().max()), float((decoded - whole).abs().max()), float(whole.abs().max())
    )
