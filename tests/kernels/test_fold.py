"""Chunks whose decays per key are weak: folded into queries and keys."""

import itertools

import numpy as np
import pytest
import torch

from mixerzoo.equivalence.algebra import Log
from mixerzoo.kernels import OuterDecay, fold, forms, recurrence
from mixerzoo.kernels.order import AFTER


@pytest.fixture
def folds(monkeypatch):
    """How often chunks were folded."""
    found = []
    real = forms.folded
    monkeypatch.setattr(forms, "folded", lambda *x: (found.append(x), real(*x))[1])
    return found


def operands(T, H, Hq, K, V, keys="vector"):
    """In float64, with decays of at most e^-0.4 a step."""
    g = torch.Generator().manual_seed(0)

    def normal(*sizes):
        return torch.randn(*sizes, generator=g, dtype=torch.float64)

    def rand(*sizes):
        return torch.rand(*sizes, generator=g, dtype=torch.float64)

    la = -0.4 * rand(2, T, H, K) if keys == "vector" else OuterDecay(rand(2, T, H), -0.4 * rand(H, K))
    return normal(2, T, Hq, K), normal(2, T, Hq, K), normal(2, T, H, V), la, normal(2, H, K, V)


@pytest.mark.parametrize("read, reverse", list(itertools.product(("after", "before"), (False, True))))
@pytest.mark.parametrize("sizes", [(21, 2, 1, 5, 3, 6), (130, 2, 2, 16, 17, 16), (300, 4, 2, 16, 16, 64)])
@pytest.mark.parametrize("keys", ["vector", "outer"])
def test_folded_is_the_recurrence(folds, keys, sizes, read, reverse):
    *sizes, chunk = sizes
    q, k, v, la, S = operands(*sizes, keys)
    found, want = (
        recurrence(
            q, k, v, la, initial_state=S, read=read, reverse=reverse, form=form, chunk_size=size, scale=0.7,
            backend="torch",
        )
        for form, size in (("chunk", chunk), ("recurrent", None))
    )  # fmt: skip
    assert folds
    for a, b in zip(found, want, strict=True):
        assert (a - b).abs().max() <= 1e-13 * (1 + b.abs().max())


def test_one_strong_decay_and_the_tree_is_taken(folds):
    q, k, v, la, S = operands(64, 2, 2, 16, 17)
    for value, expected in ((-29.0, True), (-31.0, False), (-torch.inf, False)):
        folds.clear()
        strong = la * 0
        strong[1, 30, 1, 3] = value
        o, _ = recurrence(q, k, v, strong, initial_state=S, form="chunk", chunk_size=64, backend="torch")
        want, _ = recurrence(q, k, v, strong, initial_state=S, form="recurrent", backend="torch")
        assert bool(folds) == expected
        assert (o - want).abs().max() <= 1e-12 * want.abs().max()


def test_weights_of_near_steps_keep_their_digits():
    """Of late ones, too, whose decays since the start are 1e-13: a few roundings of each weight."""
    g = torch.Generator().manual_seed(0)
    la = -0.45 * torch.rand(1, 1, 64, 1, generator=g) * torch.ones(8)
    la = la * (29.9 / -la.sum(-2, keepdim=True))
    one = torch.ones(1, 1, 64, 8) / 8
    P, side = fold.folded(one, one * 8, la, la.sum(-2, keepdim=True), AFTER)
    sums = la.double().cumsum(-2)[..., 0]
    want = torch.exp(sums[..., :, None] - sums[..., None, :])
    error = ((P - want) / want).tril().abs().max()
    assert P.dtype == torch.float32 and error <= 40 * 2**-24
    for found, true in ((side.reads * 8, sums), (side.writes, sums[..., -1:] - sums)):
        assert (found[..., 0] / true.exp() - 1).abs().max() <= 70 * 2**-24


def test_masked_and_packed_steps(folds):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 90, 2, 16, generator=g) for _ in range(3))
    la = -0.2 * torch.rand(1, 90, 2, 16, generator=g)
    mask, cu = torch.rand(1, 90, generator=g) < 0.7, torch.tensor([0, 31, 31, 90])
    la[~mask] = -torch.inf  # what is masked means nothing
    found, want = (
        recurrence(q, k, v, la, mask=mask, cu_seqlens=cu, form=form, backend="torch")
        for form in ("chunk", "recurrent")
    )
    assert folds
    for a, b in zip(found, want, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_what_is_looked_at(monkeypatch):
    """Numbers that are there, on the CPU; and field elements, so that proofs run both ways."""
    total = torch.tensor([-29.0, 0.0])
    assert fold.weak(total) and not fold.weak(total - 2)
    rng = np.random.default_rng(0)
    for zeros, expected in ((0.0, True), (0.5, False)):
        assert fold.weak(torch.sum(Log.random(rng, 4, 8, zeros=zeros), -2, True)) == expected

    class Other(torch.Tensor):
        pass

    assert not fold.weak(total.as_subclass(Other)) and not fold.weak(total.to("meta"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fold.weak(total)
