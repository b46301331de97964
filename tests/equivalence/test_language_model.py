"""The language model: every way of running it is one function; training is a function of its seed."""

from __future__ import annotations

import itertools

import pytest
import torch

from mixerzoo.equivalence.language_model import agreement, generation, language_model, numbers
from mixerzoo.equivalence.training import Corpus, Settings, rate, train, train_all
from mixerzoo.mixers import HybridLM
from mixerzoo.mixers.registry import REGISTRY

CAUSAL = [name for name, entry in REGISTRY.items() if entry.causal]


def model(name: str, **options: int) -> HybridLM:
    torch.manual_seed(0)
    return language_model(name, **{"d_model": 32, "layers": 2, **options})


@pytest.mark.parametrize("name", CAUSAL)
def test_prefill_in_pieces_and_decode_are_one_function(name: str) -> None:
    found = agreement(model(name).double(), torch.randint(256, (2, 40)))
    assert found.relative < 1e-12, found


@pytest.mark.parametrize("name", CAUSAL)
def test_generation_carries_a_constant_state_except_by_softmax(name: str) -> None:
    m = model(name, layers=1)
    made = generation(m, b"The ", 12, temperature=0)
    assert made == generation(m, b"The ", 12, temperature=0) and len(made.text) == 12
    if "softmax" in REGISTRY[name].family:
        assert made.state_at_end > made.state_after_prompt
    else:
        assert made.state_at_end == made.state_after_prompt == numbers(m(torch.zeros(1, 7).long())[1])


def test_generation_is_what_repeated_prefill_gives() -> None:
    m, text = model("lightning"), b"The "
    for _ in range(6):
        logits, _ = m(torch.tensor([list(text)]))
        text += bytes([int(logits[0, -1].argmax())])
    assert b"The " + generation(m, b"The ", 6, temperature=0).text == text


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        generation(model("hgrn"), b"", 3)


def test_attention_maps_are_causal_and_belong_to_each_layer() -> None:
    maps = model("softmax").attention_maps(torch.randint(256, (1, 10)))
    assert len(maps) == 2
    for w in maps:
        assert w.shape[-2:] == (10, 10)
        assert not w.triu(1).any()


def test_training_is_deterministic_and_leaves_the_callers_random_state_alone(
    text: bytes, tiny: Settings
) -> None:
    corpus = Corpus(text, tiny.length)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    calls: list[int] = []
    a = train("hgrn", corpus, tiny, advance=lambda: calls.append(1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    b = train("hgrn", corpus, tiny)
    assert len(calls) == tiny.steps and a.steps == [0, 1, 2, 3]
    assert a.validation_bits == b.validation_bits and a.sample == b.sample
    assert a.agrees and a.parameters > 0


def test_workers_give_what_one_process_gives(text: bytes, tiny: Settings) -> None:
    corpus = Corpus(text, tiny.length)
    alone = train_all(["hgrn", "lightning"], corpus, tiny)
    steps: list[str] = []
    together = train_all(["hgrn", "lightning"], corpus, tiny, advance=steps.append, workers=2)
    assert sorted(steps) == ["hgrn"] * 3 + ["lightning"] * 3
    for name, training in alone.items():
        assert together[name].validation_bits == training.validation_bits


def test_validation_text_is_never_trained_on(text: bytes) -> None:
    repeated = Corpus(text * 3, 24)
    train_text, held_out = bytes(repeated.train.tolist()), bytes(repeated.validation.tolist())
    paragraphs = [p for p in held_out.split(b"\n\n")[1:] if p]  # the first may be cut in two
    assert paragraphs and not any(p in train_text for p in paragraphs)


def test_a_short_text_is_refused_with_the_length_it_needs() -> None:
    with pytest.raises(ValueError, match=r"the text has 1000 bytes.*more than 1290"):
        Corpus(b"x" * 1000, 128)


def test_the_learning_rate_warms_up_and_comes_down() -> None:
    s = Settings(steps=100, learning_rate=1.0)
    rates = [rate(i, s) for i in range(100)]
    assert rates[9] == 1.0 and rates[0] == pytest.approx(0.1) and rates[99] < 0.11
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
