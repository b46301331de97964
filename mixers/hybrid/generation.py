"""From logits to tokens, and on to the next logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import integer, number, shown, whole
from ..base import accumulation

if TYPE_CHECKING:
    from .model import HybridLM


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above 0, softmax(logits / temperature) is drawn from.
        top_k: only the k likeliest are drawn from.
        top_p: of these, only the likeliest that together have probability top_p (Holtzman et al. 2020,
            arXiv:1904.09751, section 3.1), one at least.
        generator: of random numbers, on the device of the logits; None: torch's own.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        number("temperature", self.temperature, 0)
        if self.top_k is not None:
            whole("top_k", self.top_k, ", or None")
        if self.top_p is not None:
            number("top_p", self.top_p, 0, above=True, also=" to 1, or None")
            if self.top_p > 1:
                raise ValueError(f"top_p is {self.top_p}; accepted: above 0 to 1, or None")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator is {shown(self.generator)}; accepted: a torch.Generator, or None")

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [B, vocab_size] to tokens [B]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        z, order = logits.to(accumulation(logits.dtype)).sort(-1, descending=True)
        z = (z - z[:, :1]) / self.temperature  # 0 at the likeliest, whatever the temperature
        if self.top_k is not None:
            z[:, self.top_k :] = -torch.inf
        if self.top_p is not None:
            p = z.softmax(-1)
            z = z.masked_fill(p.cumsum(-1) - p >= self.top_p, -torch.inf)
        drawn = torch.multinomial(z.softmax(-1), 1, generator=self.generator)
        return order.gather(1, drawn)[:, 0]


def stop_tokens(eos_token_id: int | Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    if eos_token_id is None:
        return ()
    ids = (eos_token_id,) if isinstance(eos_token_id, int) else eos_token_id
    accepted = f"tokens from 0 to vocab_size - 1 = {vocab_size - 1}, or None"
    if not isinstance(ids, (tuple, list)):
        raise TypeError(f"eos_token_id is {shown(eos_token_id)}; accepted: {accepted}")
    for token in ids:
        if not 0 <= integer("eos_token_id", token, accepted) < vocab_size:
            raise ValueError(f"eos_token_id is {token}; accepted: {accepted}")
    return tuple(ids)


@torch.no_grad()
def stream(
    model: HybridLM,
    ids: Tensor,
    max_new_tokens: int,
    mask: Tensor | None,
    choose: Sampling,
    stops: tuple[int, ...],
) -> Iterator[Tensor]:
    """The next tokens [B], up to max_new_tokens times, or until every row has had one of `stops`.

    A row that has gives its first stop token from then on."""
    logits, state = model.prefill(ids, mask=mask)
    last: Tensor | None = None
    ended: Tensor | None = None
    ending = torch.tensor(stops, device=logits.device)
    for i in range(max_new_tokens):
        token = choose(logits)
        if stops:
            if last is not None and ended is not None:
                token = torch.where(ended, last, token)
            ended = torch.isin(token, ending)
            last = token
        yield token
        if i + 1 == max_new_tokens or (ended is not None and bool(ended.all())):
            return
        logits, state = model.step(token, state, inplace=True)
