"""What `from_transformers` does not take, and what it says about it."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from toy_transformers import CONFIGS, first_mixer, toy

from mixerzoo.mixers import from_transformers
from mixerzoo.mixers.transformers.convert import recipe_of
from mixerzoo.mixers.transformers.table import RECIPES

CLASSES = {recipe.model_type: recipe.name for recipe in RECIPES.values()}


def mixer(model_type: str, **options: Any) -> Any:
    return first_mixer(toy(model_type, **options), CLASSES[model_type])


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys, mixerzoo.mixers; assert not any(m.split('.')[0] == 'transformers' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", [None, 3, "mamba", nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_unknown(module: Any) -> None:
    with pytest.raises(TypeError, match=f"^module is {type(module).__name__}; accepted: ") as raised:
        from_transformers(module)
    for model_type, name in RECIPES:
        assert f"{name} ({model_type})" in str(raised.value)


def test_all_model_types_are_named() -> None:
    pytest.importorskip("transformers")
    assert {model_type for model_type, _ in RECIPES} == set(CONFIGS)
    documented = from_transformers.__doc__ or ""
    assert all(f"{model_type}," in documented or f"{model_type}\n" in documented for model_type in CONFIGS)


def test_softmax_attention_is_not_one() -> None:
    pytest.importorskip("transformers")
    attention = first_mixer(toy("kimi_linear"), "KimiLinearAttention")
    with pytest.raises(TypeError, match=r"^module is KimiLinearAttention; accepted: a mixer of transformers"):
        from_transformers(attention)


def test_a_class_of_the_same_name_is_not_one() -> None:
    class MambaMixer(nn.Module):
        pass

    assert recipe_of(MambaMixer()) is None


def test_a_class_derived_from_one_is() -> None:
    pytest.importorskip("transformers")
    theirs = mixer("mamba")
    theirs.__class__ = type("Mine", (type(theirs),), {})
    assert recipe_of(theirs) is RECIPES["mamba", "MambaMixer"]


ACTIVATIONS = [
    ("minimax", "hidden_act", "GELUActivation"),
    ("mamba", "hidden_act", "gelu"),
    ("jamba", "hidden_act", "gelu"),
    ("zamba", "hidden_mamba_act", "gelu"),
    ("mamba2", "hidden_act", "gelu"),
    ("nemotron_h", "mamba_hidden_act", "gelu"),
    ("qwen3_next", "hidden_act", "gelu"),
    ("kimi_linear", "hidden_act", "gelu"),
    ("bailing_hybrid", "hidden_act", "gelu"),
]


@pytest.mark.parametrize("model_type, option, found", ACTIVATIONS)
def test_activations(model_type: str, option: str, found: str) -> None:
    pytest.importorskip("transformers")
    message = f"^hidden_act of {CLASSES[model_type]} is '{found}'; accepted: 'silu'|'SiLUActivation'"
    with pytest.raises(ValueError, match=message):
        from_transformers(mixer(model_type, **{option: "gelu"}))


def test_gelu_of_recurrent_gemma() -> None:
    pytest.importorskip("transformers")
    message = "^hidden_activation of RecurrentGemmaRecurrentBlock is 'GELUActivation'; accepted: 'GELUTanh'"
    with pytest.raises(ValueError, match=message):
        from_transformers(mixer("recurrent_gemma", hidden_activation="gelu"))


def test_slopes() -> None:
    pytest.importorskip("transformers")
    theirs = mixer("minimax")
    theirs.slope_rate.mul_(1.01)
    with pytest.raises(ValueError, match=r"^slope_rate of MiniMaxLightningAttention is \[0.25"):
        from_transformers(theirs)


def test_a_mixer_of_falcon_h1_alone() -> None:
    pytest.importorskip("transformers")
    theirs = mixer("falcon_h1")
    del theirs.mup_vector
    with pytest.raises(
        ValueError, match=r"^mup_vector of FalconH1Mixer is missing; accepted: a mixer in its model"
    ):
        from_transformers(theirs)


def test_quantised() -> None:
    """Another linear map, another kind of parameter, another dtype."""
    pytest.importorskip("transformers")

    class Linear4bit(nn.Linear):
        pass

    theirs = mixer("mamba")
    theirs.in_proj.__class__ = Linear4bit
    message = r"^in_proj of MambaMixer is .*\.Linear4bit; accepted: torch.nn.Linear \(not quantised"
    with pytest.raises(TypeError, match=message):
        from_transformers(theirs)

    theirs = mixer("mamba2")
    theirs.out_proj.weight = nn.Parameter(theirs.out_proj.weight.to(torch.float8_e4m3fn), requires_grad=False)
    message = "^out_proj.weight of Mamba2Mixer is Parameter of torch.float8_e4m3fn; accepted: a Parameter"
    with pytest.raises(TypeError, match=message):
        from_transformers(theirs)


def test_weights_elsewhere() -> None:
    pytest.importorskip("transformers")
    theirs = mixer("jamba").to("meta")
    with pytest.raises(ValueError, match=r"^A_log of JambaMambaMixer is on the meta device; accepted"):
        from_transformers(theirs)


def test_weights_besides() -> None:
    pytest.importorskip("transformers")
    theirs = mixer("mamba")
    theirs.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"^weights of MambaMixer are \[.*'extra'.*\], .*; accepted: \["):
        from_transformers(theirs)
    theirs = mixer("mamba")
    theirs.D = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"^D of MambaMixer has shape \[2\]; accepted: \[64\]"):
        from_transformers(theirs)


def test_a_block_without_its_place() -> None:
    pytest.importorskip("transformers")
    layer = next(
        m for m in toy("recurrent_gemma").modules() if type(m).__name__ == "RecurrentGemmaDecoderLayer"
    )
    with pytest.raises(
        ValueError, match=r"^layer_idx of RecurrentGemmaRecurrentBlock is None; accepted: a whole"
    ):
        from_transformers(layer)


def test_a_model_that_is_refused_is_as_it_was() -> None:
    pytest.importorskip("transformers")
    model = toy("mamba")
    model.backbone.layers[1].mixer.activation = "gelu"
    before = list(model.modules())
    with pytest.raises(ValueError, match="hidden_act"):
        from_transformers(model)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


def test_a_cache_that_takes_tokens_back() -> None:
    transformers = pytest.importorskip("transformers")
    model = from_transformers(toy("mamba2"))
    cache = transformers.DynamicCache(config=model.config)
    cache.activate_past_recording()
    with pytest.raises(
        NotImplementedError, match=r"^the cache records its past .*; accepted: a cache that does not"
    ):
        model(torch.tensor([[3, 4]]), cache=cache, use_cache=True)


def test_a_part_of_a_model() -> None:
    """One block has its mixer replaced; the rest of the model goes on as it was."""
    pytest.importorskip("transformers")
    model = toy("mamba")
    ids = torch.randint(3, 50, (1, 9))
    with torch.no_grad():
        expected = copy.deepcopy(model)(ids).logits
        assert from_transformers(model.backbone.layers[0]) is model.backbone.layers[0]
        assert type(model.backbone.layers[1].mixer).__name__ == "MambaMixer"
        assert torch.allclose(model(ids).logits, expected, atol=1e-4)
