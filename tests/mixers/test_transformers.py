"""Mixers of transformers against ours with their weights: outputs, final state and gradients, to 1e-12.

Their modules cast to float32 inside whatever their dtype; the comparison takes those casts out
(`ExactFloat64`). What they cost is in test_transformers_differences.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_transformers import CONFIGS, ExactFloat64, first_mixer, relative, toy

from mixerzoo.mixers import LightningAttention, Mamba, MixerState, from_transformers
from mixerzoo.mixers.transformers.table import RECIPES

pytest.importorskip("transformers")

CLASSES = {recipe.model_type: recipe.name for recipe in RECIPES.values()}

# By model type, the options to try besides those of the toy.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((model_type, {}) for model_type in CONFIGS),
    ("minimax", {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 2 + ["linear_attention"]}),
    ("mamba", {"use_bias": True, "use_conv_bias": False}),
    ("falcon_mamba", {"use_bias": True, "mixer_rms_eps": 0.1}),
    ("jamba", {"mamba_proj_bias": True, "mamba_conv_bias": False, "rms_norm_eps": 0.1}),
    ("zamba", {"mamba_proj_bias": True, "n_mamba_heads": 4}),
    ("zamba", {"n_mamba_heads": 1}),
    ("mamba2", {"use_bias": True, "n_groups": 1, "time_step_limit": (0.5, 0.9)}),
    ("bamba", {"mamba_proj_bias": True, "mamba_conv_bias": False}),
    ("falcon_h1", {"mamba_rms_norm": False, "projectors_bias": True}),
    ("falcon_h1", {"mamba_norm_before_gate": False, "mamba_proj_bias": True}),
    ("nemotron_h", {"use_bias": True, "time_step_min": 0.5}),
    ("granitemoehybrid", {"mamba_proj_bias": True}),
    ("zamba2", {"add_bias_linear": True, "time_step_min": 0.5}),
    ("recurrent_gemma", {"lru_width": 48}),
    ("xlstm", {"use_bias": True, "gate_soft_cap": 2.0, "eps": 0.1, "norm_eps": 0.1}),
    ("rwkv", {"attention_hidden_size": 48}),
    ("qwen3_next", {"linear_num_key_heads": 4}),
    ("qwen3_5", {"linear_num_key_heads": 1}),
    ("olmo_hybrid", {"linear_allow_neg_eigval": False}),
    ("bailing_hybrid", {"kda_safe_gate": False}),
]


def named(options: tuple[str, dict[str, Any]]) -> str:
    return "-".join([options[0], *(f"{k}={v}" for k, v in options[1].items())]).replace(" ", "")


@pytest.fixture(params=OPTIONS, ids=named)
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, Any, Any]:
    """Model type, its model, a mixer of it, and ours of that."""
    model_type, options = request.param
    model = toy(model_type, **options)
    theirs = first_mixer(model, CLASSES[model_type])
    return model_type, model, theirs, from_transformers(theirs)


# ------------------------------------------------------------------ their calls, and what they remember


def call(model_type: str, theirs: nn.Module, x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[1])[None]
    with ExactFloat64():
        if model_type == "minimax":
            return theirs(x, None, None)[0]
        if model_type == "recurrent_gemma":
            return theirs(x, positions, None, use_cache=False)[0]
        y = theirs(x)
    return y[0] if model_type in ("xlstm", "rwkv") else y


def final_state(model_type: str, model: Any, theirs: Any, x: Tensor) -> dict[str, Tensor]:
    """As their caches hold it."""
    from transformers import DynamicCache

    with ExactFloat64():
        if model_type == "minimax":
            return {"recurrent": theirs(x, None, None)[1]}
        if model_type == "recurrent_gemma":
            theirs(x, torch.arange(x.shape[1])[None], None, use_cache=True)
            return {"recurrent": theirs.rg_lru.recurrent_states, "conv": theirs.conv1d_state}
        if model_type == "xlstm":
            return dict(zip(("C", "n", "m"), theirs(x)[1], strict=True))
        if model_type == "rwkv":
            widths = (32, 32, *[theirs.attention_hidden_size] * 3)
            state = [torch.zeros(x.shape[0], n, 2, dtype=torch.float64) for n in widths]
            state[4] -= 1e30
            theirs(x, state=state, use_cache=True)
            return dict(
                zip(("last", "above", "below", "maximum"), (s[..., 0] for s in state[1:]), strict=True)
            )
        cache = DynamicCache(config=model.config)
        theirs(x, cache=cache)
    layer = cache.layers[theirs.layer_idx]
    return {"recurrent": layer.recurrent_states[0], "conv": layer.conv_states[0][..., 1:]}


def laid_out(model_type: str, theirs: Any, state: MixerState) -> dict[str, Tensor]:
    """Ours as theirs: the table of docs/transformers.md."""
    S = state.recurrent
    assert S is not None
    if model_type == "minimax":
        return {"recurrent": S}
    if model_type == "xlstm":
        return {"C": S[..., :-1], "n": S[..., -1], "m": state.stabiliser[..., None]}
    if model_type == "rwkv":
        above, below = S[:, 0, 0].chunk(2, -1)
        return {"last": state.window[:, 0], "above": above, "below": below, "maximum": state.stabiliser}
    if model_type in ("mamba", "falcon_mamba", "jamba"):
        S = S[..., 0]
    elif model_type == "zamba":
        S = S[..., 0].unflatten(1, (theirs.n_mamba_heads, -1))
    elif model_type in ("mamba2", "bamba", "falcon_h1", "nemotron_h", "granitemoehybrid", "zamba2"):
        S = S.transpose(2, 3)
    elif model_type == "recurrent_gemma":
        S = S[:, 0, 0]
    return {"recurrent": S, "conv": state.window.transpose(1, 2)}


# ------------------------------------------------------------------ one mixer


def test_outputs_and_state(pair: tuple[str, Any, Any, Any]) -> None:
    model_type, model, theirs, ours = pair
    x = torch.randn(2, 21, ours.d_model, dtype=torch.float64)
    with torch.no_grad():
        y, state = ours(x)
        assert relative(y, call(model_type, theirs, x)) < 1e-12
        expected = final_state(model_type, model, theirs, x)
    found = laid_out(model_type, theirs, state)
    assert found.keys() == expected.keys()
    for name in expected:
        assert relative(found[name], expected[name]) < 1e-12, name


def test_gradients(pair: tuple[str, Any, Any, Any]) -> None:
    """Of the inputs and of every weight; ours are taken back to their layout by the map's own derivative."""
    model_type, _, theirs, ours = pair
    x = torch.randn(2, 13, ours.d_model, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 13, ours.d_model, dtype=torch.float64)
    parameters = dict(theirs.named_parameters())
    leaves = [x, *parameters.values()]
    expected = torch.autograd.grad((call(model_type, theirs, x) * weight).sum(), leaves)

    own = dict(ours.named_parameters())
    dx, *gradients = torch.autograd.grad((ours(x)[0] * weight).sum(), [x, *own.values()])
    recipe = RECIPES[model_type, CLASSES[model_type]]
    mapped = recipe.weights(theirs, parameters)
    back = torch.autograd.grad([mapped[name] for name in own], list(parameters.values()), gradients)
    largest = max(float(g.abs().max()) for g in expected)
    for name, found, g in zip(["x", *parameters], [dx, *back], expected, strict=True):
        assert float((found - g).abs().max()) < 1e-12 * largest, name
        assert relative(found, g) < 1e-10, name


# ------------------------------------------------------------------ weights

COPIED = {
    "zamba": {"in_proj", "x_proj", "dt_proj", "A_log", "D"},
    "falcon_h1": {"in_proj"},
    "qwen3_next": {"q_proj", "k_proj", "v_proj", "g_proj", "a_proj", "b_proj"},
    "qwen3_5": {"q_proj", "k_proj", "v_proj"},
    "qwen3_5_moe": {"q_proj", "k_proj", "v_proj"},
    "kimi_linear": {"A_log"},
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_weights_are_shared_where_layouts_are_alike(model_type: str) -> None:
    theirs = first_mixer(toy(model_type), CLASSES[model_type])
    ours = from_transformers(theirs)
    shared = set(theirs.parameters())
    copied = {name.split(".")[0] for name, p in ours.named_parameters() if p not in shared}
    assert copied == COPIED.get(model_type, set())


@pytest.mark.parametrize("model_type", ["zamba", "qwen3_next", "falcon_h1", "olmo_hybrid"])
def test_dtype_training_and_frozen_weights(model_type: str) -> None:
    theirs = first_mixer(toy(model_type), CLASSES[model_type]).to(torch.bfloat16)
    assert not from_transformers(theirs).training
    ours = from_transformers(theirs.train())
    assert ours.training and all(m.training for m in ours.modules())
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in ours.parameters())
    assert not any(p.requires_grad for p in from_transformers(theirs.requires_grad_(False)).parameters())


def test_fused_xlstm() -> None:
    """weight_mode "fused" is the same layer with maps one below the other."""
    single = first_mixer(toy("xlstm"), "xLSTMLayer")
    config = copy.deepcopy(single.config)
    config.weight_mode = "fused"
    fused = type(single)(config).double().eval()
    parts = {
        "qkv_opreact": ("q", "k", "v", "ogate_preact"),
        "ifgate_preact": ("igate_preact", "fgate_preact"),
    }
    state = single.state_dict()
    for name, below in parts.items():
        for kind in ("weight", "bias"):
            if f"{below[0]}.{kind}" in state:
                state[f"{name}.{kind}"] = torch.cat([state.pop(f"{n}.{kind}") for n in below])
    fused.load_state_dict(state)
    x = torch.randn(2, 9, 128, dtype=torch.float64)
    with torch.no_grad():
        assert relative(from_transformers(fused)(x)[0], call("xlstm", fused, x)) < 1e-12
        assert relative(call("xlstm", fused, x), call("xlstm", single, x)) < 1e-12


LOADS: dict[str, Callable[[Any], Any]] = {
    "minimax": lambda m: LightningAttention(32, num_heads=4, head_dim=8, num_layers=2),
    "mamba": lambda m: Mamba(32, d_state=6),
}


@pytest.mark.parametrize("model_type", LOADS)
def test_state_dict_loads(model_type: str) -> None:
    theirs = first_mixer(toy(model_type), CLASSES[model_type])
    ours = LOADS[model_type](theirs).double()
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.missing_keys
    buffers = (
        {"slope_rate", "query_decay", "key_decay", "diagonal_decay"} if model_type == "minimax" else set()
    )
    assert set(missing.unexpected_keys) == buffers
    x = torch.randn(1, 9, 32, dtype=torch.float64)
    with torch.no_grad():
        assert relative(ours(x)[0], call(model_type, theirs, x)) < 1e-12
