"""Fresh mixers start where their papers have them start."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mixerzoo.mixers import (
    HGRN,
    LRU,
    MLSTM,
    RGLRU,
    RWKV4,
    S4D,
    S5,
    Longhorn,
    LowerBounds,
    Mamba,
    Mamba2,
    Mamba3,
    TransNormerLLM,
)
from mixerzoo.mixers.s5 import hippo


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def spread(x: torch.Tensor, low: float, high: float) -> None:
    """Inside the range, and all over it."""
    assert low <= x.min() and x.max() <= high
    assert x.quantile(0.1) < low + 0.25 * (high - low) and x.quantile(0.9) > low + 0.75 * (high - low)


def test_step_sizes_are_log_uniform() -> None:
    for mixer in (Mamba2(512, num_heads=256), Mamba3(512, num_heads=256, d_state=4)):
        spread(F.softplus(mixer.dt_bias.detach()).log(), math.log(1e-3) - 1e-4, math.log(0.1) + 1e-4)
    for dt in (S4D(400, d_state=2).log_dt, S5(4, d_state=400).log_dt):
        spread(dt.detach(), math.log(1e-3) - 1e-4, math.log(0.1) + 1e-4)
    narrow = Mamba2(64, dt_min=0.01, dt_max=0.02)
    assert F.softplus(narrow.dt_bias).min() > 0.0099 and F.softplus(narrow.dt_bias).max() < 0.0201


def test_mamba2() -> None:
    mixer = Mamba2(512, num_heads=256)
    spread(mixer.A_log.detach().exp(), 1, 16)
    assert (mixer.D == 1).all()


def test_mamba3() -> None:
    mixer = Mamba3(32, d_state=4)
    assert (mixer.B_bias == 1).all() and (mixer.C_bias == 1).all() and (mixer.D == 1).all()


def test_rg_lru() -> None:
    """a^{1/8} at r = 1 in [0.9, 0.999], its square uniform."""
    mixer = RGLRU(512)
    spread(
        torch.exp(-F.softplus(mixer.rg_lru.recurrent_param.detach())).square(), 0.9**2 - 1e-4, 0.999**2 + 1e-4
    )
    assert mixer.linear_x.weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
    for weight in (mixer.rg_lru.input_gate_weight, mixer.rg_lru.recurrent_gate_weight):
        assert weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert not mixer.linear_out.bias.any() and not mixer.conv_1d.bias.any()


@pytest.mark.parametrize("layer_idx", [0, 2])
def test_rwkv4(layer_idx: int) -> None:
    mixer = RWKV4(6, layer_idx=layer_idx, num_layers=3)
    depth, height = layer_idx / 2, 1 - layer_idx / 3
    for i in range(6):
        assert mixer.time_decay[i].item() == pytest.approx(-5 + 8 * (i / 5) ** (0.7 + 1.3 * depth), abs=1e-5)
        assert mixer.time_first[i].item() == pytest.approx(
            math.log(0.3) + (0.5, 0, -0.5)[(4 - i) % 3], abs=1e-6
        )
        assert mixer.time_mix_key[0, 0, i].item() == pytest.approx((i / 6) ** height, abs=1e-6)
        assert mixer.time_mix_value[0, 0, i].item() == pytest.approx(
            (i / 6) ** height + 0.3 * depth, abs=1e-6
        )
        assert mixer.time_mix_receptance[0, 0, i].item() == pytest.approx((i / 6) ** (height / 2), abs=1e-6)
    RWKV4(1)  # one channel, one layer: no division by 0


def test_mlstm() -> None:
    """Gates do not look at the input at first: nearly nothing is written, nearly all is kept."""
    mixer = MLSTM(32, num_heads=4)
    assert not mixer.igate_preact.weight.any() and not mixer.fgate_preact.weight.any()
    assert (mixer.igate_preact.bias == -10).all()
    assert mixer.fgate_preact.bias.tolist() == [3.0, 4.0, 5.0, 6.0]


def test_lru() -> None:
    mixer = LRU(300, r_min=0.6, r_max=0.9, max_phase=1.5)
    size = torch.exp(-mixer.nu_log.detach().exp())
    spread(size.square(), 0.36 - 1e-5, 0.81 + 1e-5)
    spread(mixer.theta_log.detach().exp(), 0, 1.5)
    assert (mixer.gamma_log.exp().square() + size.square() - 1).abs().max() < 1e-5
    assert mixer.input_proj.weight.std().item() == pytest.approx(600**-0.5, rel=0.02)
    assert mixer.output_proj.weight.std().item() == pytest.approx(300**-0.5, rel=0.02)
    full = LRU(300)
    assert all(torch.isfinite(p).all() for p in full.parameters())


def test_s4d() -> None:
    lin, inv = S4D(3, d_state=8), S4D(3, d_state=8, init="inv")
    assert torch.allclose(lin.log_A_real.exp(), torch.full((3, 4), 0.5))
    for n in range(4):
        assert lin.A_imag[1, n].item() == pytest.approx(math.pi * n, rel=1e-6)
        assert inv.A_imag[1, n].item() == pytest.approx(8 / math.pi * (8 / (2 * n + 1) - 1), abs=1e-5)
    assert torch.view_as_complex(S4D(200).C).abs().square().mean().item() == pytest.approx(1, rel=0.05)


def test_s5_is_the_normal_part_of_hippo() -> None:
    """Its eigenvalues, in pairs; and two real matrices seen through one of each pair are the real system."""
    n = 6
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            size = math.sqrt((2 * i + 1) * (2 * j + 1)) / 2
            matrix[i, j] = -0.5 if i == j else -size if i > j else size
    angle, basis = hippo(n)
    eigenvalues = torch.complex(torch.full_like(angle, -0.5), angle)
    assert (basis @ torch.diag(eigenvalues) @ basis.mH - matrix).abs().max() < 1e-12
    B, C = torch.randn(n, 3, dtype=torch.float64), torch.randn(3, n, dtype=torch.float64)
    kept, rates = basis[:, n // 2 :], eigenvalues[n // 2 :]
    for t in (0.0, 0.3, 2.0):
        half = (C + 0j) @ kept @ torch.diag(torch.exp(t * rates)) @ kept.mH @ (B + 0j)
        assert (2 * half.real - C @ torch.linalg.matrix_exp(t * matrix) @ B).abs().max() < 1e-11
    mixer = S5(3, d_state=n)
    assert torch.allclose(mixer.A_imag.double(), angle[n // 2 :]) and (mixer.A_imag > 0).all()
    assert torch.allclose(mixer.log_A_real.exp(), torch.full((3,), 0.5))


def test_s5_maps() -> None:
    """B and C of one real system, in its eigenvectors: their sizes are those of the real ones."""
    mixer = S5(64, d_state=256)
    assert mixer.input_proj.weight.square().sum().item() == pytest.approx(256 / 2, rel=0.1)
    assert mixer.output_proj.weight.square().sum().item() == pytest.approx(64 / 2, rel=0.1)


def test_longhorn() -> None:
    mixer = Longhorn(32, use_bias=True)
    assert (mixer.D == 1).all()
    for layer in (mixer.in_proj, mixer.dt_head, mixer.out_proj):
        assert not layer.bias.any()


def test_hgrn() -> None:
    theta = HGRN(6, complex=True).theta
    assert all(theta[j].item() == pytest.approx(10000 ** (-2 * j / 6), rel=1e-6) for j in range(6))
    assert not LowerBounds(3, 4).gamma.any()


def test_mamba_groups() -> None:
    """Steps' weights within rank^-1/2."""
    spread(Mamba(64).dt_proj.weight.detach(), -0.5, 0.5)


def test_transnormer_llm() -> None:
    mixer = TransNormerLLM(6, num_heads=2)
    wanted = [10000 ** (-2 * j / 6) for j in range(6)]
    assert mixer.theta.flatten().tolist() == pytest.approx(wanted, rel=1e-6)
