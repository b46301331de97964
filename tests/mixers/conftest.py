from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from mixerzoo.mixers import REGISTRY, Mixer, build

Make = Callable[..., Mixer]


@pytest.fixture(scope="session")
def make() -> Make:
    """A mixer in float64 whose parameters are all of order one, so that every term counts."""

    def made(name: str, d_model: int = 6, seed: int = 0, **options) -> Mixer:
        torch.manual_seed(seed)
        mixer = build(name, d_model, **options).double()
        with torch.no_grad():
            for p in mixer.parameters():
                p.add_(torch.randn_like(p) * (0.5 if p.ndim == 1 else p.shape[-1] ** -0.5))
        return mixer

    return made


@pytest.fixture(params=[name for name, entry in REGISTRY.items() if entry.causal])
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The mixers with a state and a step; for the others there is test_bidirectional.py."""
    yield request.param


@pytest.fixture(params=list(REGISTRY))
def any_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every mixer of the registry."""
    yield request.param
