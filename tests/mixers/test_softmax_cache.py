"""Softmax attention's keys and values, written in place: one copy in many steps, and the same outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixerzoo.mixers import Mixer, MixerState, build


def steps(mixer: Mixer, x: Tensor, state: MixerState, inplace: bool, mask: Tensor | None = None):
    ys, states = [], [state]
    with torch.no_grad():
        for t in range(x.shape[1]):
            row = None if mask is None else mask[:, t]
            y, state = mixer.step(x[:, t], state, row, inplace=inplace)
            ys.append(y)
            states.append(state)
    return torch.stack(ys, 1), states


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 3])
def test_in_place_is_out_of_place(make, num_kv_heads: int, rows: int) -> None:
    """From a padded prompt, with rows that pause."""
    mixer = make("softmax", 8, num_heads=4, num_kv_heads=num_kv_heads)
    x = torch.randn(rows, 90, 8, dtype=torch.float64)
    mask = torch.rand(rows, 90) > 0.2
    whole, end = mixer(x, mask=mask)
    _, state = mixer(x[:, :7], mask=mask[:, :7])
    state = state.detach()
    plain, apart = steps(mixer, x[:, 7:], state, False, mask[:, 7:])
    y, together = steps(mixer, x[:, 7:], state, True, mask[:, 7:])
    assert (y - whole[:, 7:]).abs().max() < 1e-12 and torch.equal(y, plain)
    for name in ("position", "keys", "values"):
        assert torch.equal(getattr(together[-1], name), getattr(apart[-1], name))
    for row, n in enumerate(end.position.tolist()):
        assert not together[-1].keys[row, n:].any()


def test_copies_are_rare(make) -> None:
    mixer = make("softmax", 8)
    x = torch.randn(2, 400, 8, dtype=torch.float64)
    _, states = steps(mixer, x, mixer.initial_state(2, dtype=x.dtype), True)
    for part in ("keys", "values"):
        memories = [getattr(s, part).untyped_storage() for s in states[1:]]
        assert len({m.data_ptr() for m in memories}) < 10
        assert memories[-1].nbytes() < 2 * 400 * 2 * 8 * 8


@pytest.mark.parametrize("first", [0, 1])
def test_memory_of_others_is_left_alone(make, first: int) -> None:
    """Keys and values that are a part of a larger tensor have no room behind them, whatever their strides."""
    mixer = make("softmax", 8)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer(x[:, :4])
        larger = torch.randn(5, 9, 4, 2, dtype=torch.float64)
        keys, values = larger[first : first + 2, :4], larger[first + 2 : first + 4, :4]
        keys.copy_(state.keys)
        values.copy_(state.values)
        kept = larger.clone()
        y, _ = mixer.step(x[:, 4], MixerState(state.position, keys=keys, values=values), inplace=True)
        assert torch.equal(larger, kept)
        assert (y - mixer(x[:, :5])[0][:, -1]).abs().max() < 1e-12


def test_another_dtype_is_copied() -> None:
    mixer = build("softmax", 8).bfloat16()
    x = torch.randn(1, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        _, state = mixer.step(x)
        wide = replace(state, keys=state.keys.float(), values=state.values.float())
        y, after = mixer.step(x, wide, inplace=True)
        assert after.keys.dtype == torch.bfloat16 and after.keys.shape[1] == 2
        assert torch.equal(y, mixer.step(x, state)[0])


def test_not_with_gradients() -> None:
    mixer = build("softmax", 8)
    with pytest.raises(ValueError, match="inplace is True where gradients are recorded; accepted: False, or"):
        mixer.step(torch.randn(1, 8), inplace=True)
    with pytest.raises(TypeError, match="inplace is 1; accepted: True or False"):
        mixer.step(torch.randn(1, 8), inplace=1)
