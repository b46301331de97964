"""Weights of the transformers layers load, and outputs agree in float64.

Both of theirs cast to float32 inside whatever their dtype. The comparisons at 1e-12 take those
casts out (by making `.float()` and their norm keep float64); what they cost is measured beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mixerzoo.mixers import LightningAttention, Mamba

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def float64_by_default() -> Iterator[None]:
    """Their decays are computed in the default dtype at construction."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def minimax(layer_idx: int = 1):
    from transformers.models.minimax import modeling_minimax as theirs

    config = theirs.MiniMaxConfig(
        hidden_size=24, num_attention_heads=4, head_dim=10, num_hidden_layers=5, block_size=8
    )
    torch.manual_seed(layer_idx)
    hf = theirs.MiniMaxLightningAttention(config, layer_idx)
    torch.nn.init.normal_(hf.norm.weight)
    ours = LightningAttention(24, num_heads=4, head_dim=10, layer_idx=layer_idx, num_layers=5)
    missing = ours.load_state_dict(hf.state_dict(), strict=False)
    assert not missing.missing_keys
    assert set(missing.unexpected_keys) == {"slope_rate", "query_decay", "key_decay", "diagonal_decay"}
    return theirs, hf, ours


@pytest.mark.parametrize("layer_idx", [0, 1, 4])
def test_lightning(layer_idx: int) -> None:
    _, hf, ours = minimax(layer_idx)
    x = torch.randn(2, 21, 24)
    with torch.no_grad():
        cast = relative(hf(x, None, None)[0], ours(x)[0])
        hf.norm = ours.norm  # the same norm without the cast
        exact = relative(hf(x, None, None)[0], ours(x)[0])
        _, state = ours(x)
    assert exact < 1e-12
    assert 1e-10 < cast < 1e-6  # their norm is float32 whatever the dtype of the module
    assert relative(hf(x, None, None)[1], state.recurrent) < 1e-12


def test_lightning_decode() -> None:
    theirs, hf, ours = minimax()
    hf.norm = ours.norm
    cache = theirs.MiniMaxCache()
    x = torch.randn(2, 14, 24)
    with torch.no_grad():
        y, _ = hf(x[:, :11], None, None, past_key_values=cache)
        ours_y, state = ours(x[:, :11])
        assert relative(ours_y, y) < 1e-12
        for t in range(11, 14):
            y, _ = hf(x[:, t : t + 1], None, None, past_key_values=cache)
            ours_y, state = ours.step(x[:, t], state)
            assert relative(ours_y, y[:, 0]) < 1e-12


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("use_conv_bias", [False, True])
def test_mamba(use_bias: bool, use_conv_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    config = MambaConfig(
        hidden_size=20,
        state_size=6,
        conv_kernel=4,
        expand=2,
        use_bias=use_bias,
        use_conv_bias=use_conv_bias,
        num_hidden_layers=2,
    )
    torch.manual_seed(3)
    hf = MambaMixer(config, 0).double().eval()
    torch.nn.init.normal_(hf.D)
    ours = Mamba(20, d_state=6, use_bias=use_bias, use_conv_bias=use_conv_bias)
    assert ours.load_state_dict(hf.state_dict(), strict=True)
    x = torch.randn(2, 17, 20)
    with torch.no_grad():
        cast = relative(hf(x), ours(x)[0])
        monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
        exact = relative(hf(x), ours(x)[0])
    assert exact < 1e-12
    assert 1e-10 < cast < 1e-5  # A, B, x and D pass through float32 there
