"""Fresh delta-rule and gated mixers start where their papers, or their released code, have them start."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.mixers import RWKV6, RWKV7, BailingLightningAttention, Comba, RetNet, build
from mixerzoo.mixers.base import Tokens


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def spread(x: Tensor, low: float, high: float) -> None:
    """Inside the range, and all over it."""
    x = x.detach()
    assert low <= x.min() and x.max() <= high
    assert x.quantile(0.1) < low + 0.25 * (high - low) and x.quantile(0.9) > low + 0.75 * (high - low)


@pytest.mark.parametrize(
    "name, lowest", [("gated-deltanet", 0.01), ("gated-deltaproduct", 0.01), ("comba", 0.01), ("kda", 1.0)]
)
def test_decays(name: str, lowest: float) -> None:
    """exp(A_log) uniform, softplus(dt_bias) log-uniform."""
    mixer = build(name, 16, num_heads=400, head_dim=1)
    spread(mixer.A_log.exp(), lowest * (1 - 1e-5), 16 * (1 + 1e-5))
    assert mixer.A_log.exp().min() < lowest + 0.5
    spread(F.softplus(mixer.dt_bias).log(), math.log(1e-3) - 1e-4, math.log(0.1) + 1e-4)


def test_comba() -> None:
    mixer = Comba(8, correction=0.02)
    assert (mixer.decay == 1).all() and torch.allclose(mixer.D, torch.tensor(0.02))
    assert (Comba(8).D == 1).all()


def test_bailing_weights() -> None:
    mixer = BailingLightningAttention(64)
    for linear in (mixer.query_key_value, mixer.g_proj, mixer.dense):
        assert 0.017 < linear.weight.std() < 0.023


def decays(mixer: torch.nn.Module) -> Tensor:
    x = torch.randn(1, 1, mixer.d_model)
    return mixer.operands(x, mixer.initial_state(1), Tokens(torch.zeros(1, 1).long(), None)).log_decay


def test_retnet_decays() -> None:
    gamma = decays(RetNet(16, num_heads=4)).exp()
    assert torch.allclose(gamma, torch.tensor([1 - 2.0**-5, 1 - 2.0**-6, 1 - 2.0**-7, 1 - 2.0**-8]))


@pytest.mark.parametrize("layer_idx", [0, 1, 4])
def test_bailing_decays(layer_idx: int) -> None:
    """Of six heads, four have the slopes of four, and two every other one of eight; layer 1 as they are."""
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    factor = {0: 1.25, 1: 1.0, 4: 0.25}[layer_idx] + 1e-5
    mixer = BailingLightningAttention(12, num_heads=6, layer_idx=layer_idx, num_layers=5)
    assert torch.allclose(decays(mixer), -slopes * factor)


def test_rwkv6() -> None:
    d = 64
    for layer_idx, depth, height in ((0, 0.0, 1.0), (2, 1.0, 1 / 3)):
        mixer = RWKV6(d, num_heads=4, layer_idx=layer_idx, num_layers=3)
        assert math.isclose(float(mixer.time_decay.detach()[0]), -6, rel_tol=1e-6)
        assert math.isclose(float(mixer.time_decay.detach()[-1]), -1, rel_tol=1e-6)
        middle = -6 + 5 * (20 / 63) ** (0.7 + 1.3 * depth)
        assert math.isclose(float(mixer.time_decay.detach()[20]), middle, rel_tol=1e-5)
        share = torch.arange(d) / d
        w, k, v, r, g = mixer.time_maa
        for mu in (mixer.time_maa_x, w, k):
            assert torch.allclose(mu, 1 - share**height, atol=1e-6)
        assert torch.allclose(v, 1 - share**height - 0.3 * depth, atol=1e-6)
        assert torch.allclose(r, 1 - share ** (height / 2), atol=1e-6) and torch.equal(r, g)
        u = mixer.time_faaaa.flatten()
        assert torch.allclose(u[:3] - depth * (1 - torch.arange(3) / 63), torch.tensor([0.0, 0.1, -0.1]))
        assert not mixer.time_maa_w1.any() and not mixer.time_decay_w1.any()
        spread(mixer.time_maa_w2.flatten(), -0.01, 0.01)
        spread(mixer.time_decay_w2.flatten(), -0.01, 0.01)


def test_rwkv7() -> None:
    d = 64
    mixer = RWKV7(d, num_heads=4, layer_idx=1, num_layers=2)
    share = torch.arange(d) / d
    for mu, power in zip(mixer.shifts, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
        assert torch.allclose(mu, 1 - share ** (power / 2), atol=1e-6)
    line, zigzag = torch.arange(d) / (d - 1), torch.linspace(-1, 1, 16).repeat(4)
    zigzag = zigzag * zigzag.abs()
    assert torch.allclose(mixer.w_lora[2].bias, -5.5 + 6 * line**2 + 2.5 * zigzag, atol=1e-5)
    assert torch.allclose(mixer.a_lora[1].bias, -0.39 + 0.4 * line + 0.3 * zigzag, atol=1e-6)
    assert torch.allclose(mixer.k_k, 0.76 - 0.1 * line) and (mixer.k_a == 1.02).all()
    assert torch.allclose(mixer.r_k, torch.tensor(-0.04)) and (mixer.ln_x.weight == 1).all()
    assert torch.allclose(RWKV7(d, num_layers=2).ln_x.weight, torch.tensor(0.5**0.7))
    for low in (mixer.w_lora, mixer.a_lora, mixer.g_lora):
        assert not low[0].weight.any()
        gram = low[-1].weight.mT @ low[-1].weight
        assert torch.allclose(gram, 0.01 * torch.eye(len(gram)), atol=1e-6)
    spread(mixer.r_proj.weight.flatten(), -0.5 / 8, 0.5 / 8)
    spread(mixer.k_proj.weight.flatten(), -0.05 / 8, 0.05 / 8)
    assert not mixer.o_proj.weight.any()


def test_low_ranks_of_rwkv7() -> None:
    """As released: about 2.5 √d_model and 5 √d_model, in multiples of 32."""
    for d_model, small, large in ((64, 32, 32), (1024, 64, 160), (4096, 160, 320)):
        with torch.device("meta"):
            mixer = RWKV7(d_model, num_heads=1)
        sizes = [low[0].weight.shape[0] for low in (mixer.w_lora, mixer.a_lora, mixer.g_lora)]
        assert sizes == [small, small, large]
