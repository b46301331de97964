"""Delta-rule and gated mixers at the ends of their range: saturated gates, keys alike, keys of nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from mixerzoo.mixers import MixerState, build
from mixerzoo.mixers.base import Tokens

D = 8
# The parameters that drive a mixer's gates, and what it is built with.
GATES: dict[str, tuple[str, dict[str, object], tuple[str, ...]]] = {
    "gated-deltanet": ("gated-deltanet", {}, ("dt_bias",)),
    "gated-deltaproduct": ("gated-deltaproduct", {}, ("dt_bias",)),
    "comba": ("comba", {}, ("dt_bias", "decay")),
    "comba-undecayed": ("comba", {"erase_decayed": False}, ("dt_bias", "decay")),
    "kda": ("kda", {}, ("dt_bias",)),
    "kda-bounded": ("kda", {"lower_bound": -5.0}, ("dt_bias",)),
    "rwkv6": ("rwkv6", {}, ("time_decay",)),
    "rwkv7": ("rwkv7", {}, ("w_lora.2.bias", "a_lora.1.bias")),
    "gla": ("gla", {"gate_divisor": 1.0}, ("gk_proj.1.bias",)),
    "simple-gla": ("simple-gla", {"gate_divisor": 1.0}, ("gk_proj.bias",)),
    "hgrn2": ("hgrn2", {"bias": True}, ("f_proj.bias",)),
}
EXTREMES = [
    (kind, signs)
    for kind, (_, _, parameters) in GATES.items()
    for signs in itertools.product((-1, 1), repeat=len(parameters))
]
MIXERS = ("deltanet", "gated-slot-attention", "retnet", "cosformer", "lightning-bailing", *GATES)
DELTA = ("deltanet", "gated-deltanet", "gated-deltaproduct", "kda", "comba", "rwkv7")


def made(kind: str, dtype: torch.dtype = torch.float64, **more: object) -> nn.Module:
    name, options, _ = GATES.get(kind, (kind, {}, ()))
    torch.manual_seed(0)
    mixer = build(name, D, **options, **more).to(dtype)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return mixer


def saturated(kind: str, signs: tuple[int, ...], dtype: torch.dtype, size: float = 1e3, **more: object):
    mixer = made(kind, dtype, **more)
    with torch.no_grad():
        for parameter, sign in zip(GATES[kind][2], signs, strict=True):
            mixer.get_parameter(parameter).fill_(sign * size)
    return mixer


def finite(mixer: nn.Module, x: Tensor) -> Tensor:
    """Outputs, states and gradients, by every way through the core; the outputs."""
    leaves = [x, *mixer.parameters()]
    for form in ("chunk", "parallel", "recurrent", None):
        y, state = mixer.step(x[:, 0]) if form is None else mixer(x, form=form)
        gradients = torch.autograd.grad(y.sum(), leaves, allow_unused=True)
        for part in (y, state.recurrent, *gradients):
            assert part is None or torch.isfinite(part).all()
    return mixer(x)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind, signs", EXTREMES)
def test_saturated(kind: str, signs: tuple[int, ...], dtype: torch.dtype) -> None:
    finite(saturated(kind, signs, dtype), torch.randn(2, 9, D, dtype=dtype, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", MIXERS)
def test_gates_that_differ_by_channel_and_token(kind: str, dtype: torch.dtype) -> None:
    """Inputs so large that every gate is at one end or the other, changing from token to token."""
    finite(made(kind, dtype), (1e3 * torch.randn(2, 9, D, dtype=dtype)).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MIXERS)
def test_inputs_of_nothing(kind: str, dtype: torch.dtype) -> None:
    """Queries, keys and values of 0: no norm divides by them."""
    finite(made(kind, dtype), torch.zeros(1, 9, D, dtype=dtype, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", DELTA)
def test_keys_of_nothing(kind: str, dtype: torch.dtype) -> None:
    """They erase nothing and write nothing."""
    mixer = made(kind, dtype)
    with torch.no_grad():
        mixer.k_proj.weight.zero_()
        if hasattr(mixer, "conv1d") and mixer.conv1d.bias is not None:
            mixer.conv1d.bias.zero_()
    x = torch.randn(2, 9, D, dtype=dtype, requires_grad=True)
    finite(mixer, x)
    _, state = mixer(x)
    assert not state.recurrent.any()


@pytest.mark.parametrize("kind", ["deltanet", "gated-deltanet", "gated-deltaproduct", "kda"])
def test_keys_that_are_alike(kind: str) -> None:
    """Identical keys and β = 2, which flips what they retrieve at every step: in float32 as in float64."""
    exact = made(kind, allow_neg_eigval=True, conv_width=1)
    with torch.no_grad():
        exact.b_proj.weight.mul_(1e3)
        exact.b_proj.weight.abs_()  # with x > 0, β = 2
        if kind != "deltanet":
            exact.dt_bias.fill_(-1e3)  # no decay
    x = torch.rand(1, 1, D, dtype=torch.float64).expand(1, 201, D)  # an odd number of flips
    tokens = Tokens(torch.arange(201)[None], None)
    assert (exact.operands(x, exact.initial_state(1, dtype=x.dtype), tokens).beta > 2 - 1e-9).all()
    _, wanted = exact(x, form="recurrent")
    size = wanted.recurrent.abs().max()
    low = made(kind, allow_neg_eigval=True, conv_width=1)
    low.load_state_dict(exact.state_dict())
    low.float()
    rounding = 201 * 4 * torch.finfo(torch.float32).eps  # |k|² is 1 to a rounding, at every step
    for form in ("chunk", "parallel"):
        assert (exact(x, form=form)[1].recurrent - wanted.recurrent).abs().max() <= 1e-12 * size
        assert (low(x.float(), form=form)[1].recurrent - wanted.recurrent).abs().max() <= rounding * size


def alone(mixer: nn.Module, x: Tensor) -> Tensor:
    """Every token as if there had been none before it."""
    return mixer(x.reshape(-1, 1, x.shape[-1]))[0].reshape(x.shape)


@pytest.mark.parametrize(
    "kind, sign, options",
    [
        ("gla", -1, {}),
        ("simple-gla", -1, {}),
        ("hgrn2", -1, {}),
        ("gated-deltanet", 1, {"conv_width": 1}),
        ("gated-deltaproduct", 1, {"conv_width": 1}),
        ("kda", 1, {"conv_width": 1}),
    ],
)
def test_what_forgets_everything_sees_one_token(kind: str, sign: int, options: dict[str, object]) -> None:
    mixer = saturated(kind, (sign,), torch.float64, 1e6, **options)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    y = mixer(x)[0]
    assert (y - alone(mixer, x)).abs().max() <= 1e-12 * y.abs().max()
    assert y.abs().max() > 0.01


def test_what_keeps_everything_writes_nothing() -> None:
    mixer = saturated("hgrn2", (1,), torch.float64)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    _, fresh = mixer(x)
    assert not fresh.recurrent.any()
    state = torch.randn_like(fresh.recurrent)
    _, after = mixer(x, MixerState(fresh.position, state))
    assert torch.equal(after.recurrent, state)


def test_a_bound_of_a_decay() -> None:
    """Kimi's bounded gate: no decay is below e^lower_bound, however large its input, and it is reached."""
    mixer = made("kda-bounded")
    wide = mixer.log_decay(1e4 * torch.randn(3, 50, D, dtype=torch.float64))
    assert wide.min() == -5 and wide.max() <= 0


def test_rwkv6_decays_to_nothing_with_gradients() -> None:
    """e^{-e^d} for d so large that e^d is infinite."""
    mixer = saturated("rwkv6", (1,), torch.float32, 1e4)
    x = torch.randn(1, 5, D, requires_grad=True)
    finite(mixer, x)
    _, state = mixer(x)
    last = mixer(x[:, -1:], MixerState(state.position, torch.zeros_like(state.recurrent), x[:, -2:-1]))[1]
    assert (state.recurrent - last.recurrent).abs().max() <= 1e-5 * last.recurrent.abs().max()


def test_cosformer_without_weight() -> None:
    """relu leaves nothing: the sum of weights is 0, and so are outputs."""
    mixer = build("cosformer", D)
    with torch.no_grad():
        mixer.k_proj.bias.fill_(-1e4)
    x = torch.randn(1, 4, D, requires_grad=True)
    y, _ = mixer(x)
    assert torch.equal(y, mixer.out_proj.bias.expand_as(y))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not mixer.attention_map(x.detach()).any()
