"""Maps of mixers that do not have the one of the base class: rows weigh values into outputs."""

from __future__ import annotations

import torch

from mixerzoo.mixers.base import Tokens

T, D = 7, 6


def core_of(mixer, x: torch.Tensor):
    state = mixer.initial_state(len(x), dtype=x.dtype)
    tokens = Tokens(torch.arange(T).expand(len(x), T), None)
    return mixer.operands(x, state, tokens), state, tokens


def test_deltaproduct(make) -> None:
    """All writes of a token have the same value: the map weighs it."""
    mixer = make("gated-deltaproduct", num_householder=3)
    x = torch.randn(2, T, D, dtype=torch.float64)
    core, state, tokens = core_of(mixer, x)
    v = torch.randn(2, T, *core.v.shape[2:], dtype=torch.float64)
    o, _ = mixer.recur(core._replace(v=v.repeat_interleave(3, 1)), state.recurrent, tokens, "recurrent")
    weights = mixer.attention_map(x)
    assert weights.shape == (2, core.v.shape[2], T, T) and not weights.triu(1).any()
    assert (torch.einsum("bhts,bshv->bthv", weights, v) - o).abs().max() < 1e-12


def test_gated_slots(make) -> None:
    """The map of the second call: what the slots hold, weighed by the softmax over them."""
    mixer = make("gated-slot-attention", num_heads=2, num_slots=5)
    x = torch.randn(2, T, D, dtype=torch.float64)
    core, state, tokens = core_of(mixer, x)
    (v,) = core.rest
    o, _ = mixer.recur(core, state.recurrent, tokens, "recurrent")
    weights = mixer.attention_map(x)
    assert weights.shape == (2, 2, T, T) and not weights.triu(1).any()
    assert (torch.einsum("bhts,bshv->bthv", weights, v) - o).abs().max() < 1e-12
