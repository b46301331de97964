"""What adapters are made of, without a model of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixerzoo.mixers import MixerState
from mixerzoo.mixers.transformers.adapters import given_cache, representable
from mixerzoo.mixers.transformers.padding import Padding
from mixerzoo.mixers.transformers.recipe import ratio
from mixerzoo.mixers.transformers.xlstm import to_theirs


class Model(nn.Module):
    """Shows the mask that its padding sees, and may call another model."""

    def __init__(self, padding: Padding, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.padding, self.inner = padding, inner

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        if x.isnan().any():
            raise ValueError("NaN")
        if self.inner is not None:
            return self.inner(x, attention_mask=1 - attention_mask)
        return self.padding.mask


def test_a_mask_holds_for_its_call_alone() -> None:
    padding = Padding()
    inner = Model(padding)
    outer = Model(padding, inner)
    padding.watch([inner, outer])
    x, mask = torch.zeros(1, 3), torch.tensor([[0, 1, 1]])
    assert inner(x, attention_mask=mask) is mask and inner(x, mask) is mask
    assert padding.mask is None and inner(x) is None
    assert outer(x, attention_mask=mask) is mask  # not that of the call inside
    assert padding.mask is None and padding.given_to is None
    with pytest.raises(ValueError, match="NaN"):
        inner(x * torch.nan, attention_mask=mask)
    assert padding.mask is None


def test_a_cache_by_any_of_its_names() -> None:
    assert given_cache(1, {"cache_params": 2}) == 1
    assert given_cache(None, {"cache_params": 2}) == given_cache(None, {"past_key_values": 2}) == 2
    assert given_cache(None, {}) is None


def test_a_stabiliser_in_half_precision() -> None:
    """What the cache cannot hold of it stays in the state: e^held times the factor is e^m."""
    m = torch.linspace(-3, 3, 7, dtype=torch.float64) / 3
    held, factor = representable(m, torch.bfloat16)
    assert torch.equal(held, m.bfloat16().double()) and not torch.equal(held, m)
    assert ((held.exp() * factor - m.exp()).abs() < 1e-14).all()


def test_a_width_that_is_no_multiple() -> None:
    assert ratio(None, "intermediate_size", 12, 4) == 3
    with pytest.raises(
        ValueError, match=r"^intermediate_size of list is 13; accepted: a multiple of hidden_size = 4"
    ):
        ratio([], "intermediate_size", 13, 4)


def test_what_xlstm_is_handed_back() -> None:
    """Matrix, normaliser and stabiliser; relative to the m that the cache can hold."""
    S, m = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    state = MixerState(torch.ones(2, dtype=torch.int64), S, stabiliser=m)
    for dtype in (torch.float64, torch.bfloat16):
        C, n, held = to_theirs(state, dtype)
        size = held.exp()
        true = S * m.exp()[..., None, None]
        assert held.shape == (2, 3, 1) and torch.equal(held.to(dtype).double(), held)
        assert ((C * size[..., None] - true[..., :-1]).abs() < 1e-12).all()
        assert ((n * size - true[..., -1]).abs() < 1e-12).all()
