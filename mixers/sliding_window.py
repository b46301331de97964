"""Softmax attention that looks back a fixed number of tokens: a state that does not grow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import MixerState, Tokens
from .parts import zeroed

BLOCK = 256  # queries at a time, or a window if that is longer: the cost is linear in T

# q [B, T, H, D], k, v [B, S, Hkv, D], visible [B, T, S] -> [B, T, H, D]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def slide(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, state: MixerState, tokens: Tokens, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each query on the last `window` tokens of its sequence, itself among them.

    Returns:
        outputs [B, T, H, D], and the keys and values of the last window - 1 tokens of every sequence, the
        latest last, zero where there are not so many.
    """
    if tokens.segment is not None:
        return _packed(attend, q, k, v, state, tokens, window)
    return _rows(attend, q, k, v, state, tokens, window)


def _rows(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, state: MixerState, tokens: Tokens, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Token t of a row stands at place before + t, behind the places of the state."""
    assert state.keys is not None and state.values is not None
    T, before = k.shape[1], window - 1
    if tokens.valid is not None:
        # Padding, on the right, is seen by no valid query.
        k, v = (zeroed(tokens.valid, y) for y in (k, v))
    keys, values = (
        torch.cat([old.to(new.dtype), new], 1) for old, new in ((state.keys, k), (state.values, v))
    )
    places = torch.arange(before + T, device=k.device)
    position = state.position[:, None] - before + places
    outputs = []
    size = max(BLOCK, window)
    for i in range(0, T, size):
        j = min(i + size, T)
        seen, now = position[:, None, i : j + before], tokens.position[:, i:j, None]
        visible = (seen <= now) & (seen > now - window) & (seen >= 0)
        near = slice(i, j + before)
        outputs.append(attend(q[:, i:j], keys[:, near].to(q.dtype), values[:, near].to(q.dtype), visible))

    def last(y: Tensor) -> Tensor:
        if tokens.lengths is None:
            return y[:, T:].clone()  # not a view, which would keep the whole piece
        kept = tokens.lengths[:, None] + places[:before]
        return y.gather(1, kept[..., None, None].expand(-1, -1, *y.shape[2:]))

    return torch.cat(outputs, 1), last(keys), last(values)


def _packed(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, state: MixerState, tokens: Tokens, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences as the rows of a batch, padded to the longest."""
    assert tokens.segment is not None and tokens.lengths is not None
    # A compiled graph cannot have a size that depends on lengths.
    longest = k.shape[1] if torch.compiler.is_compiling() else int(tokens.lengths.max())
    segment, rows = tokens.segment, state.position.shape[0]
    place = tokens.position[0] - state.position[segment]
    steps = torch.arange(longest, device=k.device)

    def spread(y: Tensor) -> Tensor:
        return y.new_zeros(rows, longest, *y.shape[2:]).index_put((segment, place), y[0])

    apart = Tokens(state.position[:, None] + steps, tokens.lengths, steps < tokens.lengths[:, None])
    o, keys, values = _rows(attend, spread(q), spread(k), spread(v), state, apart, window)
    return o[segment, place][None], keys, values
