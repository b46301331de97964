"""Gates at the ends of their range: no NaN where the mathematics is finite, and the limits are right."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mixerzoo.kernels import recurrence
from mixerzoo.mixers import MixerState, build, rwkv4, sequences
from mixerzoo.mixers.base import Tokens
from mixerzoo.mixers.longhorn import log_one_minus
from mixerzoo.mixers.parts import zero_order_hold
from mixerzoo.mixers.rg_lru import root_one_minus_square

D = 8
# The parameters that drive a mixer's gates, and what it is built with.
GATES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "mamba2": ({"d_state": 4}, ("dt_bias",)),
    "mamba3": ({"d_state": 4}, ("dt_bias",)),
    "rg-lru": ({}, ("rg_lru.recurrent_gate_bias", "rg_lru.input_gate_bias", "rg_lru.recurrent_param")),
    "mingru": ({}, ("gate_proj.bias",)),
    "minlstm": ({}, ("gate_proj.bias",)),
    "gateloop": ({}, ("size_proj.bias", "angle_proj.bias")),
    "mlstm": ({"gate_soft_cap": None}, ("igate_preact.bias", "fgate_preact.bias")),
    "rwkv4": ({}, ("time_first", "time_decay")),
    "longhorn": ({"d_state": 4}, ("dt_head.bias",)),
}
EXTREMES = [
    (name, signs)
    for name, (_, parameters) in GATES.items()
    for signs in itertools.product((-1, 1), repeat=len(parameters))
]


def saturated(name: str, signs: tuple[int, ...], dtype: torch.dtype, size: float = 1e3) -> torch.nn.Module:
    options, parameters = GATES[name]
    torch.manual_seed(0)
    mixer = build(name, D, **options).to(dtype)
    with torch.no_grad():
        for parameter, sign in zip(parameters, signs, strict=True):
            mixer.get_parameter(parameter).fill_(sign * size)
    return mixer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name, signs", EXTREMES)
def test_saturated(name: str, signs: tuple[int, ...], dtype: torch.dtype) -> None:
    mixer = saturated(name, signs, dtype)
    x = torch.randn(2, 9, D, dtype=dtype, requires_grad=True)
    leaves = [x, *mixer.parameters()]
    for form in ("chunk", "recurrent", None):
        y, state = mixer.step(x[:, 0]) if form is None else mixer(x, form=form)
        gradients = torch.autograd.grad(y.sum(), leaves, allow_unused=True)
        for part in (y, state.recurrent, *gradients):
            assert part is None or torch.isfinite(part).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", GATES)
def test_gates_that_differ_by_channel_and_token(name: str, dtype: torch.dtype) -> None:
    """Inputs so large that every gate is at one end or the other, changing from token to token."""
    options, _ = GATES[name]
    torch.manual_seed(1)
    mixer = build(name, D, **options).to(dtype)
    x = (1e3 * torch.randn(2, 9, D, dtype=dtype)).requires_grad_()
    y, _ = mixer(x)
    gradients = torch.autograd.grad(y.sum(), [x, *mixer.parameters()])
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in gradients)


def alone(mixer: torch.nn.Module, x: Tensor) -> Tensor:
    """Every token as if there had been none before it."""
    return mixer(x.reshape(-1, 1, x.shape[-1]))[0].reshape(x.shape)


@pytest.mark.parametrize("name, signs", [("mingru", (1,)), ("gateloop", (-1, 1)), ("mlstm", (1, -1))])
def test_what_forgets_everything_sees_one_token(name: str, signs: tuple[int, ...]) -> None:
    mixer = saturated(name, signs, torch.float64)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    y = mixer(x)[0]
    assert (y - alone(mixer, x)).abs().max() <= 1e-12 * y.abs().max()
    assert y.abs().max() > 0.01


@pytest.mark.parametrize("name, signs", [("mingru", (-1,)), ("mamba2", (-1,)), ("longhorn", (-1,))])
def test_what_keeps_everything_writes_nothing(name: str, signs: tuple[int, ...]) -> None:
    mixer = saturated(name, signs, torch.float64)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    _, fresh = mixer(x)
    assert not fresh.recurrent.any()
    state = torch.randn_like(fresh.recurrent)
    _, after = mixer(x, type(fresh)(fresh.position, state, fresh.window))
    assert torch.equal(after.recurrent, state)


def test_mlstm_without_input() -> None:
    """Nothing over nothing is nothing, whatever the stabiliser."""
    for signs in ((1, 1), (-1, -1), (1, -1)):
        mixer = saturated("mlstm", signs, torch.float64)
        x = torch.zeros(1, 5, D, dtype=torch.float64)
        assert not mixer(x)[0].any()


def test_mlstm_does_not_depend_on_its_stabiliser() -> None:
    """Outputs and gradients are those of the exponentials as they are; only the state is scaled."""
    torch.manual_seed(0)
    mixer = build("mlstm", D, num_heads=2, gate_soft_cap=None).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    x = torch.randn(2, 9, D, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        _, state = mixer(x[:, :4])
    found = []
    for shift in (0.0, 3.0, -3.0):
        moved = type(state)(
            state.position, state.recurrent * math.exp(-shift), stabiliser=state.stabiliser + shift
        )
        y, _ = mixer(x[:, 4:], moved)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert (a - b).abs().max() <= 1e-11 * (1 + b.abs().max())


def test_mlstm_gradient_through_the_stabiliser() -> None:
    """An ε beside the divisor makes outputs depend on the maximum, and gradients go through it."""
    torch.manual_seed(0)
    mixer = build("mlstm", 4, num_heads=2, gate_soft_cap=None, normaliser_eps=0.5).double()
    with torch.no_grad():
        for p in (mixer.igate_preact, mixer.fgate_preact):
            p.weight.normal_()
            p.bias.normal_()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mixer(x)[0], x)


def test_rwkv4_with_keys_beyond_the_range_of_exp() -> None:
    """A mean of values, by a softmax: keys of any size."""
    torch.manual_seed(0)
    mixer = build("rwkv4", D)
    with torch.no_grad():
        mixer.key.weight.mul_(1e4)
    x = torch.randn(2, 9, D)
    y = mixer(x)[0]
    exact = mixer.double()(x.double())[0]
    assert torch.isfinite(y).all()
    assert (y - exact).abs().max() <= 1e-3 * exact.abs().max()


@pytest.mark.parametrize("size", [1.0, 3.0, 40.0])
@pytest.mark.parametrize("bonus", [0.0, 15.0, -15.0, 1000.0, -1000.0])
def test_rwkv4_with_one_maximum_or_a_running_one(size: float, bonus: float, monkeypatch) -> None:
    """Outputs, states and gradients do not depend on which, and sequences go on from one to the other."""
    torch.manual_seed(0)
    mixer = build("rwkv4", D).double()
    with torch.no_grad():
        mixer.key.weight.mul_(4)
        mixer.time_first.add_(bonus)
    x = torch.randn(2, 40, D, dtype=torch.float64)
    x[:, 20:30] *= size
    levels = []

    def counted(*args: object) -> object:
        levels.append(sequences.level(*args))
        return levels[-1]

    def found(cuts: list[int]) -> list[torch.Tensor]:
        given = x.clone().requires_grad_()
        state, ys = None, []
        for i, j in zip([0, *cuts], [*cuts, 40], strict=True):
            y, state = mixer(given[:, i:j], state)
            ys.append(y)
        y = torch.cat(ys, 1)
        assert state is not None and state.recurrent is not None
        return [
            y,
            state.recurrent,
            state.stabiliser,
            *torch.autograd.grad(y.square().sum() + state.recurrent.sum(), [given, *mixer.parameters()]),
        ]

    with monkeypatch.context() as m:
        m.setattr(rwkv4, "level", lambda *args: None)
        want = found([])
    monkeypatch.setattr(rwkv4, "level", counted)
    for cuts in ([], [20, 30], [7, 24]):
        for a, b in zip(found(cuts), want, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
    assert any(x is not None for x in levels) and (size < 40 or any(x is None for x in levels))


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_rwkv4_in_half_precision_after_one_large_key(dtype: torch.dtype, error: float) -> None:
    """Weights far below the largest, which has decayed, are those that count."""
    k = torch.full((1, 12, 2), -22.0)
    k[:, 0] = 0
    v = torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(0))
    w, u, tokens = torch.full((2,), 5.0), torch.zeros(2), Tokens(torch.arange(12)[None], None)

    def found(v: torch.Tensor) -> torch.Tensor:
        m = torch.full((1, 2), -math.inf, dtype=torch.float64)
        state = MixerState(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 1, 4), stabiliser=m)
        core = rwkv4.attend(k, v, w, u, state, tokens)
        o, _ = recurrence(
            core.q, core.k, core.v, None, core.log_decay_v, initial_state=core.initial, read=core.read
        )
        return rwkv4.mean(o, *core.rest).float()

    assert (found(v.to(dtype)) - found(v)).abs().max() < error


# ------------------------------------------------------------------ functions with digits to lose


def test_root_near_one() -> None:
    """√(1 - a²) of log(-log a): relative precision from a = 1 - 1e-35 to a = 0, gradient included."""
    exact = torch.linspace(-80, 6, 200, dtype=torch.float64)
    log_rate = exact.float().requires_grad_()
    root = root_one_minus_square(log_rate)
    (gradient,) = torch.autograd.grad(root.sum(), log_rate)
    rate = log_rate.detach().double().exp()
    expected = torch.sqrt(-torch.expm1(-2 * rate))
    slope = rate * torch.exp(-2 * rate) / expected
    assert ((root - expected) / expected).abs().max() < 1e-5  # the exponential of -80 has 40 ulps
    assert ((gradient - slope).abs() / expected).max() < 1e-5
    wide = root_one_minus_square(exact)
    rate = exact.exp()
    expected = torch.sqrt(-torch.expm1(-2 * rate))
    assert ((wide - expected) / expected).abs().max() < 1e-13


def test_longhorn_decay_of_large_keys() -> None:
    torch.manual_seed(0)
    k = torch.randn(50, 1, 6, dtype=torch.float64) * 10.0 ** torch.randint(-6, 7, (50, 1, 6)).double()
    k[0, 0] = torch.tensor([1e8, 0, 0, 0, 0, 0])  # all but all is forgotten
    beta = torch.rand(50, 3, 1, dtype=torch.float64)

    def decay(beta: Tensor, k: Tensor) -> Tensor:
        k2 = k.square()
        return log_one_minus(beta, k2, torch.log1p(beta * k2.sum(-1, keepdim=True)))

    exact, found = decay(beta, k), decay(beta.float(), k.float())
    k2 = k.square()
    others = torch.stack([k2[..., [i for i in range(6) if i != n]].sum(-1) for n in range(6)], -1)
    expected = (1 + beta * others) / (1 + beta * k2.sum(-1, keepdim=True))
    assert ((exact.exp() - expected) / expected).abs().max() < 1e-12
    assert ((found.exp() - expected) / expected).abs().max() < 1e-4
    assert (exact <= 0).all() and (found <= 0).all()
    small = beta * k2 * 1e-12 / (1 + beta * k2.sum(-1, keepdim=True) * 1e-12)
    almost = decay(beta, k * 1e-6)
    near = small < 1e-3
    assert ((almost + small + small**2 / 2) / small.clamp(min=1e-300))[near].abs().max() < 1e-6


def test_zero_order_hold_of_small_steps() -> None:
    """(e^{Δλ} - 1)/λ tends to Δ, without the digits that the difference loses."""
    dt = torch.logspace(-14, 0, 30, dtype=torch.float64)
    re, im = torch.tensor(-0.5).double(), torch.tensor(3.0).double()
    z = dt * torch.complex(re, im)
    series = sum(z**n / float(math.factorial(n + 1)) for n in range(40)) * dt
    a, b = zero_order_hold(dt, re, im)
    assert ((torch.complex(a, b) - series).abs() / series.abs()).max() < 1e-14
