"""Softmax attention with a window: a state of constant size, and the same function whichever way it runs."""

from __future__ import annotations

import pytest
import torch

from mixerzoo.mixers import HybridConfig, HybridLM, build, sliding_window


def made(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("softmax", 16, num_heads=4, **options).double()


@pytest.mark.parametrize("window", [1, 2, 5, 40])
@pytest.mark.parametrize("size", [1, 3, 256])
def test_blocks_of_queries_change_nothing(monkeypatch, window: int, size: int) -> None:
    mixer, x = made(window=window), torch.randn(2, 33, 16, dtype=torch.float64)
    whole, end = mixer(x)
    monkeypatch.setattr(sliding_window, "BLOCK", size)
    again, same = mixer(x)
    assert (again - whole).abs().max() < 1e-12
    assert torch.equal(end.keys, same.keys)


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_pieces_padding_and_packing(window: int) -> None:
    mixer, x = made(window=window, num_kv_heads=2), torch.randn(2, 23, 16, dtype=torch.float64)
    whole, end = mixer(x)
    state, pieces = None, []
    for piece in x.split([7, 1, 9, 6], 1):
        y, state = mixer(piece, state)
        pieces.append(y)
        assert state.keys.shape == (2, window - 1, 2, 4)
        assert state.keys.untyped_storage().nbytes() == state.keys.numel() * 8  # nothing behind it
    assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-12
    assert torch.allclose(state.keys, end.keys, rtol=0, atol=1e-12)
    assert torch.allclose(state.values, end.values, rtol=0, atol=1e-12)
    # Padding anywhere, rows of different lengths, then further tokens.
    mask = torch.rand(2, 23) > 0.4
    y, after = mixer(x, mask=mask)
    more = torch.randn(2, 3, 16, dtype=torch.float64)
    z, _ = mixer(more, after)
    for b in range(2):
        alone, before = mixer(x[b : b + 1, mask[b]])
        assert (y[b, mask[b]] - alone[0]).abs().max() < 1e-12
        assert (z[b : b + 1] - mixer(more[b : b + 1], before)[0]).abs().max() < 1e-12
    # Packed, from states of their own.
    flat, ends = x[:1], torch.tensor([0, 4, 4, 23])
    _, starts = mixer(torch.randn(3, 6, 16, dtype=torch.float64))
    y, after = mixer(flat, starts, cu_seqlens=ends)
    for n, (i, j) in enumerate(((0, 4), (4, 4), (4, 23))):
        start = type(starts)(*(None if p is None else p[n : n + 1] for p in vars(starts).values()))
        alone, kept = mixer(flat[:, i:j], start)
        assert torch.allclose(y[:, i:j], alone, rtol=0, atol=1e-12)
        assert torch.allclose(after.keys[n], kept.keys[0], rtol=0, atol=1e-12)
        assert after.position[n] == kept.position[0]


def test_a_window_as_long_as_the_sequence_is_none() -> None:
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    near, far = made(window=20), made()
    assert (near(x)[0] - far(x)[0]).abs().max() < 1e-12
    assert (near.attention_map(x) - far.attention_map(x)).abs().max() < 1e-12
    seen = made(window=4).attention_map(x) > 0
    steps = torch.arange(20)
    distance = steps[:, None] - steps
    assert torch.equal(seen, ((distance >= 0) & (distance < 4)).expand_as(seen))


def test_a_hybrid_with_a_window_does_not_grow() -> None:
    config = HybridConfig(
        vocab_size=20, d_model=16, num_layers=2, period=2, softmax_options={"window": 4, "num_heads": 2}
    )
    model = HybridLM(config).double()
    ids = torch.randint(0, 20, (2, 30))
    whole, _ = model(ids)
    state, found, sizes = None, [], set()
    for t in range(30):
        logits, state = model.step(ids[:, t], state)
        found.append(logits)
        sizes.add(sum(p.numel() for s in state.layers for p in vars(s).values() if p is not None))
    assert (torch.stack(found, 1) - whole).abs().max() < 1e-12 and len(sizes) == 1


def test_a_state_of_another_window_is_refused() -> None:
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    _, state = made(window=3)(x)
    with pytest.raises(ValueError, match=r"state.keys has shape .*window - 1"):
        made(window=5)(x, state)
