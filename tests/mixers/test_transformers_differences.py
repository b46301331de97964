"""Where transformers' mixers are not the function that they are in prefill: see docs/transformers.md.

Every case is measured: theirs against their own prefill of a row without padding, in exact float64 unless
the difference is one of rounding, and ours in their place. A case that fails here because theirs is right by
now is one to take out of the table there.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_transformers import CONFIGS, ExactFloat64, first_mixer, logits, relative, toy

from mixerzoo.mixers import from_transformers
from mixerzoo.mixers.transformers.table import RECIPES

pytest.importorskip("transformers")

CLASSES = {recipe.model_type: recipe.name for recipe in RECIPES.values()}
MAMBA2 = ("mamba2", "bamba", "falcon_h1", "nemotron_h", "granitemoehybrid", "zamba2")
BIASED = {
    "mamba": "use_bias",
    "falcon_mamba": "use_bias",
    "jamba": "mamba_proj_bias",
    "zamba": "mamba_proj_bias",
    "mamba2": "use_bias",
    "bamba": "mamba_proj_bias",
    "falcon_h1": "mamba_proj_bias",
    "nemotron_h": "use_bias",
    "granitemoehybrid": "mamba_proj_bias",
    "zamba2": "add_bias_linear",
}


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def both(theirs: Any) -> tuple[Any, Any]:
    theirs(torch.tensor([[3]]))  # RWKV scales its weights in its first call
    return theirs, from_transformers(copy.deepcopy(theirs))


def ids_of(rows: int, length: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(3, 50, (rows, length))


def cache_of(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config) if model.config.model_type == "recurrent_gemma" else None


def errors_in_pieces(theirs: Any, sizes: list[int], rows: int = 1) -> list[float]:
    """Theirs and ours, against their prefill of the whole."""
    ids = ids_of(rows, sum(sizes))
    with ExactFloat64():
        models = both(theirs)
        whole = theirs(ids, use_cache=False).logits
        pieces = list(ids.split(sizes, 1))
        return [relative(logits(m, pieces, cache=cache_of(m)), whole) for m in models]


def errors_with_padding(theirs: Any, sizes: list[int], left: int = 6) -> list[float]:
    """Theirs and ours on the padded row of two, against their prefill of it alone."""
    ids = ids_of(2, sum(sizes))
    mask = torch.ones_like(ids)
    mask[1, :left] = 0
    ids = ids * mask
    with ExactFloat64():
        models = both(theirs)
        alone = theirs(ids[1:, left:], use_cache=False).logits
        pieces = list(ids.split(sizes, 1))
        return [relative(logits(m, pieces, mask, cache_of(m))[1:, left:], alone) for m in models]


# ------------------------------------------------------------------ rounding


@pytest.mark.parametrize("model_type", CONFIGS)
def test_float64_is_float32_inside(model_type: str) -> None:
    theirs = toy(model_type)
    ids = ids_of(1, 20)
    with ExactFloat64():
        models = both(theirs)
        exact = theirs(ids, use_cache=False).logits
    ours = models[1](ids, use_cache=False).logits  # their norms and heads still cast
    mixer = first_mixer(theirs, CLASSES[model_type])
    x = torch.randn(1, 20, from_transformers(mixer).d_model, dtype=torch.float64)
    assert 1e-12 < relative(theirs(ids, use_cache=False).logits, exact) < 1e-5
    assert relative(ours, exact) < 1e-5
    assert from_transformers(mixer)(x)[0].dtype == torch.float64


def test_softplus_has_a_threshold() -> None:
    """torch's softplus is the identity above 20, where it is still off by 2e-9."""
    mixer = first_mixer(toy("mamba"), "MambaMixer")
    mixer.dt_proj.bias.fill_(20.5)
    mixer.dt_proj.weight.zero_()
    mixer.A_log.fill_(-3.0)
    x = torch.randn(1, 12, 32, dtype=torch.float64)
    with ExactFloat64():
        found = mixer(x)
    assert 1e-11 < relative(found, from_transformers(mixer)(x)[0]) < 1e-8


def test_xlstm_rounds_its_maximum_in_the_cache() -> None:
    """In a bfloat16 cache m moves in steps of 0.008 near 1: smaller decays are lost, token by token."""
    mixer, length = first_mixer(toy("xlstm"), "xLSTMLayer"), 600
    for gate, bias in ((mixer.igate_preact, -4.0), (mixer.fgate_preact, 6.0)):  # about as initialised
        gate.weight.zero_()
        gate.bias.fill_(bias)
    x = torch.randn(1, length, 128, dtype=torch.float64)
    with ExactFloat64():
        exact = mixer(x)[0]
    small = copy.deepcopy(mixer).bfloat16()
    errors = []
    for layer in (small, from_transformers(torch.nn.Sequential(copy.deepcopy(small)))[0]):
        y, state = layer(x[:, :1].bfloat16())
        for t in range(1, length):
            state = tuple(part.bfloat16() for part in state)
            y, state = layer(x[:, t : t + 1].bfloat16(), state)
        errors.append(relative(y[:, 0].double(), exact[:, -1]))
    assert errors[0] > 0.1 and errors[1] < 0.04, errors


def test_recurrent_gemma_cuts_off_a_gradient() -> None:
    """That of sqrt(1 - a²), at 1000: where a is closer to 1, theirs is smaller than the derivative."""
    mixer = first_mixer(toy("recurrent_gemma"), "RecurrentGemmaRecurrentBlock")
    mixer.rg_lru.recurrent_param.fill_(-22.0)
    x, positions = torch.randn(1, 6, 32, dtype=torch.float64), torch.arange(6)[None]
    parameter = mixer.rg_lru.recurrent_param
    with torch.enable_grad(), ExactFloat64():
        ours = from_transformers(mixer)
        g = torch.autograd.grad(mixer(x, positions, None, use_cache=False)[0].sum(), parameter)[0]
        expected = torch.autograd.grad(ours(x)[0].sum(), parameter)[0]
    assert relative(g, expected) > 0.1


# ------------------------------------------------------------------ pieces


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba", "jamba", "zamba"])
def test_mamba_begins_again_with_every_piece(model_type: str) -> None:
    """A piece of more than one token starts from a state of 0."""
    theirs, ours = errors_in_pieces(toy(model_type), [11, 9])
    assert theirs > 0.05 and ours < 1e-12


def test_recurrent_gemma_convolves_every_piece_alone() -> None:
    theirs, ours = errors_in_pieces(toy("recurrent_gemma"), [11, 9])
    assert theirs > 0.05 and ours < 1e-12


@pytest.mark.parametrize("model_type", MAMBA2)
def test_step_sizes_are_clamped_in_prefill_alone(model_type: str) -> None:
    options = {"time_step_limit": (0.5, 0.9)}
    if model_type in ("nemotron_h", "zamba2"):
        options = {"time_step_min": 0.5}
    theirs, ours = errors_in_pieces(toy(model_type, **options), [11, *[1] * 9])
    assert theirs > 0.01 and ours < 1e-12


def test_rwkv_mixes_the_rows_of_a_batch() -> None:
    """Going on by one token, [B, channels] is added to [B, 1, channels]."""
    ids = ids_of(2, 12)
    with ExactFloat64():
        theirs, ours = both(toy("rwkv"))
        whole = theirs(ids, use_cache=False).logits
        state = theirs(ids[:, :11], use_cache=True).state
        assert theirs(ids[:, 11:], state=state, use_cache=True).logits.shape == (2, 2, 50)
        found = logits(ours, list(ids.split([11, 1], 1)))
    assert relative(found, whole) < 1e-12


def test_minimax_cache_does_not_know_its_length() -> None:
    """Where layer 0 is linear: positions that are not given start at 0 with every piece."""
    ids = ids_of(1, 20)
    with ExactFloat64():
        theirs, ours = both(toy("minimax"))
        whole = theirs(ids, use_cache=False).logits
        errors = []
        for model in (theirs, ours):
            first = model(ids[:, :15], use_cache=True)
            assert first.cache.get_seq_length() == (0 if model is theirs else 15)
            second = model(ids[:, 15:], use_cache=True, cache=first.cache)
            errors.append(relative(second.logits, whole[:, 15:]))
    assert errors[0] > 0.1 and errors[1] < 1e-12


def test_minimax_beams_are_not_reordered() -> None:
    """`MiniMaxCache` keeps every linear state with the row it came from, in theirs and in ours."""
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    cache = MiniMaxCache()
    cache.set_linear_cache(0, torch.tensor([[1.0], [2.0]]))
    cache.reorder_cache(torch.tensor([1, 1]))
    assert cache.get_linear_cache(0).tolist() == [[1.0], [2.0]]


def test_recurrent_gemma_begins_with_the_last_call() -> None:
    """A prompt of one token finds the convolution's inputs of the prompt before it."""
    theirs, ours = (copy.deepcopy(m) for m in both(toy("recurrent_gemma")))
    errors = []
    with ExactFloat64():
        alone = toy("recurrent_gemma")(torch.tensor([[7]]), use_cache=False).logits
        for model in (theirs, ours):
            model.generate(ids_of(1, 9), max_new_tokens=2, do_sample=False)
            position = torch.zeros(1, 1, dtype=torch.long)
            found = model(torch.tensor([[7]]), position_ids=position, use_cache=True, cache=cache_of(model))
            errors.append(relative(found.logits, alone))
    assert errors[0] > 0.05 and errors[1] < 1e-12


def test_recurrent_gemma_beams_are_not_reordered() -> None:
    ids = ids_of(1, 9)
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 4, "do_sample": False}
    with ExactFloat64():
        theirs, ours = both(toy("recurrent_gemma"))
        expected = theirs.generate(ids, use_cache=False, **options)
        assert theirs.generate(ids, **options).tolist() != expected.tolist()
        assert ours.generate(ids, **options).tolist() == expected.tolist()


# ------------------------------------------------------------------ padding


@pytest.mark.parametrize("model_type", BIASED)
def test_a_bias_gets_into_the_convolution(model_type: str) -> None:
    """Padding on the left is 0 before W_in, and b_in after it, where the convolution looks back."""
    theirs, ours = errors_with_padding(toy(model_type, **{BIASED[model_type]: True}), [17])
    assert theirs > 1e-3 and ours < 1e-12


@pytest.mark.parametrize("model_type", ["xlstm", "rwkv"])
def test_the_mask_is_not_looked_at(model_type: str) -> None:
    theirs, ours = errors_with_padding(toy(model_type), [17])
    assert theirs > 0.05 and ours < 1e-12


def test_recurrent_gemma_convolves_padding() -> None:
    """The recurrence begins at position 0; the convolution looks at what is before."""
    theirs, ours = errors_with_padding(toy("recurrent_gemma"), [17])
    assert theirs > 0.01 and ours < 1e-12


def test_minimax_decodes_padded_rows_with_a_mask_too_short() -> None:
    """The length of its cache again."""
    theirs, ours = errors_with_padding(toy("minimax"), [14, 1, 1, 1])
    assert theirs > 0.1 and ours < 1e-12


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba"])
def test_mamba_takes_no_mask_of_the_whole(model_type: str) -> None:
    """A mask as long as the cache, which other models take, fails or multiplies one token by all of it."""
    ids = ids_of(1, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with ExactFloat64():
        theirs, ours = both(toy(model_type))
        alone = theirs(ids[:, 4:], use_cache=False).logits
        for model, right in ((theirs, False), (ours, True)):
            cache = model(ids[:, :9], attention_mask=mask[:, :9], use_cache=True).cache
            try:
                found = model(ids[:, 9:], attention_mask=mask, use_cache=True, cache=cache).logits
                assert (found.shape == (1, 3, 50) and relative(found, alone[:, 5:]) < 1e-12) == right
            except RuntimeError:
                assert not right


INSIDE = [m for m in CONFIGS if m not in ("recurrent_gemma", "xlstm", "rwkv")]


@pytest.mark.parametrize("model_type", INSIDE)
def test_padding_inside_a_row_decays_the_state(model_type: str) -> None:
    """Theirs takes padding on the left alone: elsewhere it decays, and fills the convolution."""
    theirs = toy(model_type)
    mixer = first_mixer(theirs, CLASSES[model_type])
    ours = from_transformers(mixer)
    x = torch.randn(1, 14, ours.d_model, dtype=torch.float64)
    mask = torch.ones(1, 14, dtype=torch.long)
    mask[0, 4:8] = 0
    valid = mask[0] == 1
    with ExactFloat64():
        args = (None,) if model_type == "minimax" else ()

        def call(x: Tensor, mask: Tensor | None) -> Tensor:
            y = mixer(x, *args, attention_mask=mask)
            return y[0] if model_type == "minimax" else y

        alone = call(x[:, valid], None)
        found = call(x, mask)[:, valid]
    assert relative(found, alone) > 1e-3
    assert relative(ours(x, mask=mask == 1)[0][:, valid], alone) < 1e-12
