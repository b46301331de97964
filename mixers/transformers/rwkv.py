"""RWKV-4's time mixing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..rwkv4 import RWKV4
from .adapters import Adapter, Masked, representable
from .recipe import Recipe, same


class RWKVAdapter(Adapter):
    """Their state: five tensors [B, channels, layers]. This layer has the last token in [1], and in [2], [3]
    and [4] the sums above and below the fraction bar and their maximum. Ours: [above, below]
    [B, 1, 1, 2 channels], and the maximum as the stabiliser."""

    unmasked = True

    def __init__(self, mixer: Any, theirs: nn.Module, layer_idx: int | None = None) -> None:
        super().__init__(mixer, theirs, theirs.layer_id)  # type: ignore[arg-type]

    @property
    def output(self) -> nn.Module:
        """The model scales its weight by powers of two."""
        return self.mixer.output  # type: ignore[return-value]

    def forward(
        self, hidden: Tensor, state: list[Tensor] | None = None, use_cache: bool = False
    ) -> tuple[Tensor, list[Tensor] | None]:
        if state is None:
            return self.mix(hidden, None)[0], None
        assert self.layer_idx is not None
        last, above, below, top = (part.select(2, self.layer_idx) for part in state[1:])
        sums = torch.cat([above, below], -1)
        before = self.before(
            hidden,
            window=last.unsqueeze(1),
            recurrent=sums.reshape(len(sums), 1, 1, -1),
            stabiliser=top,
        )
        y, after = self.mix(hidden, before)
        assert after.window is not None and after.recurrent is not None and after.stabiliser is not None
        m, factor = representable(after.stabiliser, top.dtype)
        for place, part in zip((above, below), after.recurrent[:, 0, 0].chunk(2, -1), strict=True):
            place.copy_(part * factor)
        last.copy_(after.window.squeeze(1))
        top.copy_(m)
        return y, state


class FeedForward(Masked):
    """Their channel mixing, which looks at the token before as well, called so that rows do not mix.

    Theirs adds [B, channels] to [B, 1, channels] when it goes on by one token, which is [B, B, channels]. It
    is given two tokens here, the one before and this one.
    """

    unmasked = True

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs

    @property
    def value(self) -> nn.Module:
        """The model scales its weight by powers of two."""
        return self.theirs.value

    def forward(
        self, hidden: Tensor, state: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor] | None]:
        valid = self.valid(hidden)
        if valid is not None:
            hidden = torch.where(valid[..., None], hidden, torch.zeros_like(hidden))
        if state is None:
            return self.theirs(hidden)
        if hidden.shape[:2] == (1, 1):
            return self.theirs(hidden, state)
        last = state[0][:, :, self.theirs.layer_id]
        y, _ = self.theirs(torch.cat([last[:, None], hidden], 1))
        last.copy_(hidden[:, -1])
        return y[:, 1:], state


def build(theirs: Any) -> RWKV4:
    return RWKV4(theirs.key.in_features, width=theirs.attention_hidden_size)


ALSO = {("rwkv", "RwkvFeedForward"): FeedForward}
RECIPES = (Recipe("rwkv", "RwkvSelfAttention", build, same, RWKVAdapter),)
