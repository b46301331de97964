"""Weights of a hybrid: to files and back, and from transformers' MiniMax.

Theirs casts to float32 in its norms, its router, its rotary angles and (in the default dtype) its
decays. The comparisons at 1e-12 take those casts out; what they cost is measured beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixerzoo.mixers import HGRN, HybridConfig, HybridLM, LowerBounds
from mixerzoo.mixers.parts import rms_norm

V = 11
CONFIG = HybridConfig(vocab_size=V, d_model=8, num_layers=3, period=2, linear_options={"num_heads": 2})

# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True},
        {"num_experts": 3, "layer_types": ("softmax", "linear", "softmax"), "mlp_alpha": 1.5},
        {"linear": "hgrn-complex", "linear_options": {"lower_bound": 0.25}},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_load_is_what_was_saved(changes: dict, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HybridLM(replace(CONFIG, **changes)).to(dtype)
    model.save(tmp_path / "new" / "folder")
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}
    before = torch.get_rng_state()
    loaded = HybridLM.load(str(tmp_path / "new" / "folder"))
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == model.config
    ids = torch.randint(V, (2, 9))
    # Weights that lie otherwise in memory may be summed in another order.
    torch.testing.assert_close(loaded(ids)[0], model(ids)[0])
    own, saved = loaded.state_dict(), model.state_dict()
    assert own.keys() == saved.keys()
    for name, x in own.items():
        assert x.dtype == saved[name].dtype and torch.equal(x, saved[name])
    assert all(p.requires_grad for p in loaded.parameters())


def test_dtypes_are_kept_one_by_one(tmp_path: Path) -> None:
    model = HybridLM(CONFIG).bfloat16()
    model.norm.float()
    model.save(tmp_path)
    loaded = HybridLM.load(tmp_path)
    assert loaded.norm.weight.dtype == torch.float32 and loaded.embedding.weight.dtype == torch.bfloat16


def test_saving_again_replaces(tmp_path: Path) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = HybridLM(replace(CONFIG, num_layers=seed + 1))
        model.save(tmp_path)
    ids = torch.randint(V, (1, 4))
    assert torch.equal(HybridLM.load(tmp_path)(ids)[0], model(ids)[0])


def test_load_errors(tmp_path: Path) -> None:
    HybridLM(CONFIG).save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    name = "layers.1.mixer.k_proj.weight"
    for changed, message in (
        ({k: x for k, x in tensors.items() if k != name}, f"model.safetensors lacks {name}; accepted: all"),
        ({**tensors, "layers.9.x": torch.ones(1)}, "model.safetensors has layers.9.x; accepted: the tensors"),
        (
            {**tensors, name: torch.ones(3, 8)},
            rf"model.safetensors has {name} of shape \[3, 8\]; accepted: \[8, 8\]",
        ),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"^{message}"):
            HybridLM.load(tmp_path)
    for changed, message in (
        ({**config, "hidden_size": 4}, "config has 'hidden_size'; accepted: vocab_size, d_model, "),
        ({k: x for k, x in config.items() if k != "d_model"}, "config lacks 'd_model'; accepted: at least"),
        ({**config, "tied": 3}, "tied is 3"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises((ValueError, TypeError), match=f"^{message}"):
            HybridLM.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        HybridLM.load(tmp_path / "nowhere")


def test_options_that_json_cannot_hold(tmp_path: Path) -> None:
    """A module shared by layers makes a model, but no file."""
    bounds = LowerBounds(3, 8)
    model = HybridLM(replace(CONFIG, linear="hgrn", linear_options={"lower_bound": bounds}))
    shared = [block.mixer.lower_bound for block in model.layers if isinstance(block.mixer, HGRN)]
    assert shared == [bounds, bounds]
    with pytest.raises(
        TypeError, match=r"^linear_options\['lower_bound'\] is LowerBounds; accepted: what JSON"
    ):
        model.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------ MiniMax


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """Their decays are computed in the default dtype at construction."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def theirs(float64_by_default: None):
    pytest.importorskip("transformers")
    from transformers.models.minimax import modeling_minimax

    return modeling_minimax


def minimax(theirs, **changes):
    """MiniMax-01's shape at toy width: softmax attention in layers 7 and 15, its factors, its router."""
    layers = 16
    options = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": layers,
        "block_size": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention" if i % 8 == 7 else "linear_attention" for i in range(layers)],
        "full_attn_alpha_factor": 3.5565588200778455,
        "linear_attn_alpha_factor": 3.5565588200778455,
        "mlp_alpha_factor": 3.5565588200778455,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
    }
    torch.manual_seed(0)
    model = theirs.MiniMaxForCausalLM(theirs.MiniMaxConfig(**{**options, **changes})).eval()
    model.set_experts_implementation("eager")  # the default one takes no float64
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 1))
    return model


def without_casts(theirs, model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their formulas in float64: norms, router (`.float()`) and rotary angles."""

    class Rotary(torch.nn.Module):
        def forward(self, x, position_ids):
            half = model.config.head_dim // 2
            i = torch.arange(half, dtype=torch.float64)
            freqs = position_ids[..., None].double() * 1e7 ** (-i / half)
            emb = torch.cat((freqs, freqs), -1)
            return emb.cos(), emb.sin()

    model.model.rotary_emb = Rotary()
    monkeypatch.setattr(
        theirs.MiniMaxRMSNorm, "forward", lambda self, x: self.weight * rms_norm(x, self.variance_epsilon)
    )
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "linear_attention"] * 2,  # the order of their default
            "tie_word_embeddings": True,
            "num_local_experts": 1,
            "num_experts_per_tok": 1,
            "full_attn_beta_factor": 0.5,
            "linear_attn_beta_factor": 0.7,
            "mlp_beta_factor": 1.3,
            "linear_attn_alpha_factor": 1.1,
            "rms_norm_eps": 1e-2,
        },
    ],
)
def test_minimax_logits(theirs, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = minimax(theirs, **changes)
    ours = HybridLM.from_minimax(model)
    assert ours.config.types().count("softmax") == 2
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in model.parameters())
    ids = torch.randint(50, (2, 21))
    with torch.no_grad():
        logits, _ = ours(ids)
        cast = relative(model(ids).logits, logits)
        without_casts(theirs, model, monkeypatch)
        exact = relative(model(ids).logits, logits)
        # Padding on the left: theirs counts positions through it, which turns all by the same angle.
        mask = torch.arange(21) >= torch.tensor([[0], [6]])
        padded = model(ids, attention_mask=mask.long()).logits
    assert exact < 1e-12
    assert 1e-10 < cast < 1e-4
    assert relative(ours(ids, mask=mask)[0][mask], padded[mask]) < 1e-12


def test_minimax_gradients(theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = minimax(theirs)
    ours = HybridLM.from_minimax(model)
    without_casts(theirs, model, monkeypatch)
    ids, w = torch.randint(50, (2, 9)), torch.randn(2, 9, 50)
    (model(ids).logits * w).sum().backward()
    (ours(ids)[0] * w).sum().backward()
    pairs = (
        (model.model.embed_tokens.weight, ours.embedding.weight),
        (model.model.layers[0].self_attn.qkv_proj.weight, ours.layers[0].mixer.qkv_proj.weight),
        (model.model.layers[7].self_attn.k_proj.weight, ours.layers[7].mixer.k_proj.weight),
        (model.model.layers[3].mlp.gate.weight, ours.layers[3].mlp.gate.weight),
        (model.model.layers[3].mlp.experts.gate_up_proj, ours.layers[3].mlp.experts["gate_up_proj"]),
    )
    for a, b in pairs:
        assert relative(b.grad, a.grad) < 1e-10


def test_minimax_generates_the_same(theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = minimax(theirs)
    ours = HybridLM.from_minimax(model)
    without_casts(theirs, model, monkeypatch)
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    ids = torch.randint(1, 50, (2, 11))
    expected = model.generate(ids, **options, eos_token_id=None)
    assert torch.equal(ours.generate(ids, 30), expected)
    eos = int(expected[0, 17])
    expected = model.generate(ids[:1], **options, eos_token_id=eos)
    assert expected.shape[1] < 41 and torch.equal(ours.generate(ids[:1], 30, eos_token_id=eos), expected)


def test_minimax_generates_from_prompts_of_two_lengths(theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded on the left, which is what their generate takes. With their cache, though, the second row goes
    wrong: the mask of a decoded token is made for the length the cache counts in layer 0, which is linear
    and counts none, and the padding is attended to."""
    model = minimax(theirs)
    ours = HybridLM.from_minimax(model)
    without_casts(theirs, model, monkeypatch)
    ids = torch.randint(1, 50, (2, 11))
    mask = torch.arange(11) >= torch.tensor([[0], [4]])
    options = {"attention_mask": mask.long(), "max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    new = ours.generate(ids, 30, mask=mask)
    assert torch.equal(new, model.generate(ids, **options, eos_token_id=None, use_cache=False))
    cached = model.generate(ids, **options, eos_token_id=None)
    assert torch.equal(new[0], cached[0]) and not torch.equal(new[1], cached[1])
    alone = model.generate(ids[1:, 4:], max_new_tokens=30, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(new[1, 4:], alone[0])


def test_minimax_decode_needs_positions(theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their cache counts tokens in layer 0. Where that is linear it counts none, and a call that goes on
    from a cache without position_ids (generate gives them) turns its queries and keys by the wrong angles."""
    model = minimax(theirs)
    without_casts(theirs, model, monkeypatch)
    ours = HybridLM.from_minimax(model)
    ids = torch.randint(50, (1, 12))
    with torch.no_grad():
        _, state = ours(ids[:, :11])
        wanted, _ = ours.step(ids[:, 11], state)

        def decoded(**given) -> torch.Tensor:
            cache = model(ids[:, :11], use_cache=True, cache=theirs.MiniMaxCache()).cache
            return model(ids[:, 11:], cache=cache, **given).logits[:, 0]

        assert relative(decoded(position_ids=torch.tensor([[11]])), wanted) < 1e-12
        assert relative(decoded(), wanted) > 1e-3


def test_minimax_weights_are_copies(theirs) -> None:
    model = minimax(theirs, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    ours = HybridLM.from_minimax(model.float())
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    memory = {p.data_ptr() for p in model.parameters()}
    assert not memory & {p.data_ptr() for p in ours.parameters()}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sliding_window": 5}, "model.config.sliding_window is 5; accepted: None"),
        ({"hidden_act": "gelu"}, "model.config.hidden_act is 'gelu'; accepted: 'silu'"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            r"model.config.rope_parameters\['rope_type'\] is 'linear'; accepted: 'default'",
        ),
    ],
)
def test_minimax_options_that_are_not_here(theirs, changes: dict, message: str) -> None:
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    with pytest.raises(ValueError, match=f"^{message}"):
        HybridLM.from_minimax(minimax(theirs, **layers, **changes))


def test_other_models_are_refused(theirs) -> None:
    model = minimax(theirs, num_hidden_layers=1, layer_types=["linear_attention"])
    for other in (model.model, torch.nn.Linear(2, 2), HybridLM(CONFIG)):
        with pytest.raises(
            TypeError, match=f"^model is {type(other).__name__}; accepted: transformers' MiniMax"
        ):
            HybridLM.from_minimax(other)
