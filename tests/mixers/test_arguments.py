"""What a mixer is not made with, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from mixerzoo.mixers import HGRN, REGISTRY, LowerBounds, Mamba, TransNormerLLM, build

DELTA = ("deltanet", "gated-deltanet", "gated-deltaproduct", "kda", "comba")
GATED = ("retnet", "gla", "simple-gla", "hgrn2", "gated-slot-attention")
HEADS = (
    *DELTA,
    *GATED,
    "lightning-bailing",
    "cosformer",
    "rwkv6",
    "rwkv7",
    "linear-attention",
    "transnormer",
    "transnormer-llm",
    "lightning",
    "softmax",
    "mamba2",
    "mlstm",
    "mamba3",
    "gateloop",
)
LAYERS = (
    "transnormer-llm",
    "lightning",
    "hgrn",
    "hgrn-complex",
    "rwkv4",
    "lightning-bailing",
    "hgrn2",
    "rwkv6",
    "rwkv7",
)
STEPS = ("mamba", "mamba2", "mamba3", "s4d", "s5")
WHOLE = [
    *((name, "d_model") for name in REGISTRY),
    *((name, option) for name in HEADS for option in ("num_heads", "head_dim")),
    *((name, option) for name in LAYERS for option in ("layer_idx", "num_layers")),
    *(("softmax", option) for option in ("num_kv_heads", "rotary_dim", "window")),
    *((name, option) for name in DELTA for option in ("num_key_heads", "head_v_dim", "conv_width")),
    *((name, "head_v_dim") for name in GATED),
    *(("lightning-bailing", option) for option in ("rotary_dim", "norm_groups")),
    ("gated-deltaproduct", "num_householder"),
    ("cosformer", "max_length"),
    ("gla", "gate_rank"),
    ("gated-slot-attention", "num_slots"),
    *(("rwkv6", option) for option in ("mix_rank", "decay_rank")),
    *(("rwkv7", option) for option in ("decay_rank", "rate_rank", "gate_rank")),
    ("hgrn", "expand"),
    *(("mamba2", option) for option in ("d_state", "expand", "conv_width", "n_groups")),
    *(("mamba3", option) for option in ("d_state", "expand", "n_groups")),
    *(("longhorn", option) for option in ("d_state", "expand", "conv_width", "dt_rank")),
    ("lru", "d_state"),
    *((name, "expand") for name in ("mingru", "minlstm")),
    *(("rg-lru", option) for option in ("width", "num_heads", "conv_width")),
    ("mlstm", "key_dim"),
    ("rwkv4", "width"),
    *(("mamba", option) for option in ("d_state", "expand", "conv_width", "dt_rank", "num_heads")),
]
NUMBERS = [
    *((name, "eps") for name in ("transnormer", "transnormer-llm", "lightning")),
    *((name, "eps") for name in (*DELTA, *GATED, "lightning-bailing", "cosformer", "rwkv6", "rwkv7")),
    *((name, "rotary_base") for name in ("softmax", "retnet", "lightning-bailing")),
    *((name, "gate_divisor") for name in ("gla", "simple-gla", "gated-slot-attention")),
    ("hgrn2", "lower_bound"),
    ("comba", "correction"),
    ("hgrn", "lower_bound"),
    *((name, option) for name in STEPS for option in ("dt_min", "dt_max")),
    *(("mamba3", option) for option in ("rope_fraction", "A_floor")),
    *(("lru", option) for option in ("r_min", "r_max", "max_phase")),
    *((name, "eps") for name in ("mamba2", "mlstm")),
    ("mlstm", "gate_soft_cap"),
    ("mlstm", "normaliser_eps"),
    ("mamba", "norm_eps"),
]
ABOVE = (
    "rotary_base",
    "gate_divisor",
    "dt_min",
    "dt_max",
    "r_max",
    "max_phase",
    "rope_fraction",
    "gate_soft_cap",
)
FLAGS = [
    *((name, "bias") for name in ("linear-attention", "transnormer", "transnormer-llm", "hgrn", "softmax")),
    *((name, "use_conv_bias") for name in DELTA),
    *((name, "allow_neg_eigval") for name in DELTA if name != "comba"),
    *(("lightning-bailing", option) for option in ("silu", "qk_norm")),
    *((name, "bias") for name in ("hgrn2", "cosformer")),
    ("kda", "low_rank_gates"),
    ("comba", "erase_decayed"),
    ("transnormer-llm", "lrpe"),
    ("hgrn", "complex"),
    ("mamba", "use_bias"),
    ("mamba", "use_conv_bias"),
    *(("mamba2", option) for option in ("use_bias", "use_out_bias", "use_conv_bias", "use_norm")),
    ("mamba2", "norm_before_gate"),
    *((name, "bias") for name in ("mlstm", "mingru", "minlstm", "gateloop")),
    *((name, "positive_state") for name in ("mingru", "minlstm")),
    *(("longhorn", option) for option in ("use_bias", "use_conv_bias")),
    ("mamba3", "use_norm"),
    ("mamba", "norm_weights"),
]


def made(name: str, option: str, value: object) -> None:
    build(name, **{"d_model": 8, option: value})


@pytest.mark.parametrize("name, option", WHOLE)
def test_sizes(name: str, option: str) -> None:
    for value, words in ((2.0, "2.0"), (True, "True"), ("4", "'4'"), (torch.tensor(2), "Tensor")):
        with pytest.raises(TypeError, match=f"^{option} is {words}; accepted: a whole number from [01]"):
            made(name, option, value)
    for value in (-1,) if option == "layer_idx" else (0, -1):
        with pytest.raises(ValueError, match=f"^{option} is {value}; accepted: .*from [01]"):
            made(name, option, value)


@pytest.mark.parametrize("name, option", NUMBERS)
def test_numbers(name: str, option: str) -> None:
    for value, words in ((True, "True"), ("0.1", "'0.1'"), (torch.tensor(0.1), "Tensor")):
        with pytest.raises(TypeError, match=f"^{option} is {words}; accepted: a number (from|above) 0"):
            made(name, option, value)
    for value in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"^{option} is {value}; accepted: (from|above) 0"):
            made(name, option, value)
    if option in ABOVE or (name, option) == ("cosformer", "eps"):
        with pytest.raises(ValueError, match=f"^{option} is 0; accepted: above 0"):
            made(name, option, 0)
    else:
        made(name, option, 0)
    made(name, option, 0.05 if option == "dt_min" else 0.5)


@pytest.mark.parametrize("name, option", FLAGS)
def test_flags(name: str, option: str) -> None:
    for value, words in ((1, "1"), ("no", "'no'"), (torch.tensor(True), "Tensor")):
        with pytest.raises(TypeError, match=f"^{option} is {words}; accepted: True or False"):
            made(name, option, value)


@pytest.mark.parametrize("name", STEPS)
def test_step_sizes_rise(name: str) -> None:
    with pytest.raises(ValueError, match=r"^dt_min is 0.2; accepted: above 0 to dt_max = 0.1"):
        build(name, 8, dt_min=0.2)
    build(name, 8, dt_min=0.1)


def test_limits_of_step_sizes() -> None:
    accepted = "accepted: a pair of numbers from 0, the first not above the second"
    with pytest.raises(TypeError, match=f"^time_step_limit is 0.1; {accepted}"):
        build("mamba2", 8, time_step_limit=0.1)
    for limits in ((0.2, 0.1), (-1.0, 1.0), (0.1,), ("0", 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=f"^time_step_limit is .*; {accepted}"):
            build("mamba2", 8, time_step_limit=limits)
    build("mamba2", 8, time_step_limit=[0.1, float("inf")])


def test_bounds_of_forget_gates() -> None:
    for name in ("hgrn", "hgrn2"):
        with pytest.raises(ValueError, match=r"^lower_bound is 1; accepted: from 0 to below 1"):
            build(name, 8, lower_bound=1)


def test_forget_gate() -> None:
    accepted = "accepted: 'sigmoid' or 'exp'"
    with pytest.raises(ValueError, match=f"^forget_gate is 'tanh'; {accepted}"):
        build("mlstm", 8, forget_gate="tanh")
    with pytest.raises(TypeError, match=f"^forget_gate is None; {accepted}"):
        build("mlstm", 8, forget_gate=None)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"^num_heads is 3; accepted: a divisor of width = 8"):
        build("rg-lru", 4, width=8, num_heads=3)


@pytest.mark.parametrize("name", ["mamba2", "mamba3"])
def test_groups_divide_heads(name: str) -> None:
    with pytest.raises(ValueError, match=r"^n_groups is 3; accepted: a divisor of num_heads = 4"):
        build(name, 8, num_heads=4, n_groups=3)


@pytest.mark.parametrize("name", ["s4d", "s5"])
def test_even_states(name: str) -> None:
    for d_state in (3, 0, -2):
        with pytest.raises(ValueError, match=f"^d_state is {d_state}; accepted: an even number from 2"):
            build(name, 8, d_state=d_state)
    with pytest.raises(TypeError, match=r"^d_state is 4.0; accepted: an even number from 2"):
        build(name, 8, d_state=4.0)


def test_initialisation_of_s4d() -> None:
    with pytest.raises(ValueError, match=r"^init is 'legs'; accepted: 'lin' or 'inv'"):
        build("s4d", 8, init="legs")


def test_ring() -> None:
    for r_min, r_max in ((0.5, 0.5), (0.6, 0.5), (0.0, 1.5)):
        message = f"^r_min is {r_min}, r_max {r_max}; accepted: 0 <= r_min < r_max <= 1"
        with pytest.raises(ValueError, match=message):
            build("lru", 8, r_min=r_min, r_max=r_max)


def test_pairs_to_turn() -> None:
    for fraction, d_state in ((1.5, 8), (0.25, 4), (1.0, 1)):
        message = (
            f"^rope_fraction is {fraction}, d_state {d_state}; accepted: a share up to 1 that holds a pair"
        )
        with pytest.raises(ValueError, match=message):
            build("mamba3", 8, rope_fraction=fraction, d_state=d_state)


@pytest.mark.parametrize("name", ["softmax", "lightning-bailing"])
@pytest.mark.parametrize("rotary_dim", [3, 6])
def test_rotary_dim(name: str, rotary_dim: int) -> None:
    message = f"^rotary_dim is {rotary_dim}; accepted: an even number up to head_dim = 4"
    with pytest.raises(ValueError, match=message):
        build(name, 8, num_heads=2, rotary_dim=rotary_dim)


@pytest.mark.parametrize("name", DELTA)
def test_heads_of_keys_divide_heads(name: str) -> None:
    with pytest.raises(ValueError, match=r"^num_key_heads is 3; accepted: a divisor of num_heads = 4"):
        build(name, 8, num_heads=4, num_key_heads=3)
    build(name, 8, num_heads=4, num_key_heads=2)


def test_groups_of_a_norm() -> None:
    with pytest.raises(ValueError, match=r"^norm_groups is 3; accepted: a divisor of the 8 channels"):
        build("lightning-bailing", 8, norm_groups=3)


def test_bound_of_a_decay() -> None:
    accepted = "above -inf to below 0, or None"
    for value in (0, 0.1, float("-inf"), float("nan")):
        with pytest.raises(ValueError, match=f"^lower_bound is {value}; accepted: {accepted}"):
            build("kda", 8, lower_bound=value)
    with pytest.raises(TypeError, match=f"^lower_bound is '-5'; accepted: a number {accepted}"):
        build("kda", 8, lower_bound="-5")


def test_lower_bounds_of_hgrn2() -> None:
    message = r"^lower_bound holds \[2, 8\] bounds; accepted: \[num_layers, channels\] = \[2, 6\]"
    with pytest.raises(ValueError, match=message):
        build("hgrn2", 8, num_heads=2, head_dim=3, num_layers=2, lower_bound=LowerBounds(2, 8))


def test_sequences_of_cosformer_end() -> None:
    """Also where they are reached in pieces, and not by padding."""
    layer = build("cosformer", 8, max_length=4)
    _, state = layer(torch.randn(1, 3, 8))
    message = r"^x reaches position 4; accepted: positions below max_length = 4"
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 2, 8), state)
    _, state = layer(torch.randn(1, 2, 8), state, mask=torch.tensor([[False, True]]))
    with pytest.raises(ValueError, match=message):
        layer.step(torch.randn(1, 8), state)
    layer.step(torch.randn(1, 8), state, mask=torch.tensor([False]))


def test_none_is_a_default() -> None:
    for name in HEADS:
        build(name, 8, num_heads=None, head_dim=None)
    for name in DELTA:
        build(name, 8, num_key_heads=None, head_v_dim=None)
    for name in GATED:
        build(name, 8, head_v_dim=None)
    build("kda", 8, lower_bound=None)
    build("hgrn2", 8, lower_bound=None)
    build("gated-slot-attention", 8, num_slots=None)
    build("lightning-bailing", 8, rotary_dim=None)
    build("rwkv7", 8, decay_rank=None, rate_rank=None, gate_rank=None)
    build("softmax", 8, num_kv_heads=None, rotary_base=None, rotary_dim=None, window=None)
    Mamba(8, dt_rank=None)
    TransNormerLLM(8, lrpe=None)
    HGRN(8, lower_bound=None)


def test_lower_bounds() -> None:
    with pytest.raises(ValueError, match=r"^num_layers is 0; accepted: a whole number from 1"):
        LowerBounds(0, 8)
    with pytest.raises(TypeError, match=r"^channels is 8.0; accepted: a whole number from 1"):
        LowerBounds(2, 8.0)
    bounds = LowerBounds(2, 8)
    for layer_idx in (-1, 2):
        with pytest.raises(ValueError, match=f"^layer_idx is {layer_idx}; accepted: from 0 to .* = 1"):
            bounds(layer_idx)
    with pytest.raises(TypeError, match=r"^layer_idx is 1.0; accepted: a whole number from 0"):
        bounds(1.0)


def test_name() -> None:
    for name, words in (([], "list"), (None, "None"), (3, "3")):
        with pytest.raises(TypeError, match=f"^name is {words}; accepted: 'linear-attention', "):
            build(name, 8)
