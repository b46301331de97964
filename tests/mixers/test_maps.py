"""Maps of mixers that do not have the one of the base class: rows weigh values into outputs."""

from __future__ import annotations

import torch
from torch import nn

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


def test_mamba3(make) -> None:
    """Without the part of a write that belongs to the token after it."""
    mixer = make("mamba3", num_heads=2, expand=1, d_state=4)
    mixer.out_proj = nn.Identity()
    x = torch.randn(2, T, D, dtype=torch.float64)
    z, v = mixer.in_proj(x)[..., : 2 * D].chunk(2, -1)
    v = v.unflatten(-1, (2, D // 2))
    o = (mixer(x)[0] / nn.functional.silu(z)).unflatten(-1, (2, D // 2)) - mixer.D[:, None] * v
    weights = mixer.attention_map(x)
    assert weights.shape == (2, 2, T, T) and not weights.triu(1).any()
    assert (torch.einsum("bhts,bshv->bthv", weights, v) - o).abs().max() < 1e-11


def test_mlstm(make) -> None:
    """Divided by the normaliser, where it is above 1 and where it is not."""
    mixer = make("mlstm", num_heads=2)
    mixer.out_proj, mixer.multihead_norm = nn.Identity(), nn.Flatten(-2)
    with torch.no_grad():
        mixer.igate_preact.bias.fill_(1)
    x = torch.randn(2, T, D, dtype=torch.float64)
    v = mixer.v(x).unflatten(-1, (2, D // 2))
    h = (mixer(x)[0] / torch.sigmoid(mixer.ogate_preact(x))).unflatten(-1, (2, D // 2))
    weights = mixer.attention_map(x)
    total = weights.sum(-1).abs()
    assert total.max() <= 1 + 1e-12 and (total > 1 - 1e-12).any() and (total < 0.9).any()
    assert (torch.einsum("bhts,bshv->bthv", weights, v) - h).abs().max() < 1e-12


def test_rwkv4(make) -> None:
    """The current token and its bonus included: a mean of values."""
    mixer = make("rwkv4")
    with torch.no_grad():  # the same value in all channels, and the mean over them
        mixer.value.weight.copy_(mixer.value.weight[:1].expand_as(mixer.value.weight))
        mixer.receptance.weight.zero_()
        mixer.output.weight.fill_(2 / D)
    x = torch.randn(2, T, D, dtype=torch.float64)
    core, _, _ = core_of(mixer, x)
    above, below = core.rest[1].chunk(2, -1)
    v = (above / below)[..., 0]
    weights = mixer.attention_map(x)
    assert weights.shape == (2, 1, T, T) and not weights.triu(1).any()
    assert (weights.sum(-1) - 1).abs().max() < 1e-12
    assert (torch.einsum("bts,bs->bt", weights[:, 0], v) - mixer(x)[0][..., 0]).abs().max() < 1e-12
