"""Generation: prompts of any lengths side by side, one cache, constant work where mixers are linear."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixerzoo.mixers import HybridConfig, HybridLM
from mixerzoo.mixers.hybrid.generation import Sampling

V = 23
CONFIG = HybridConfig(
    vocab_size=V, d_model=8, num_layers=4, period=2, softmax_options={"num_heads": 4, "num_kv_heads": 2}
)


def made(config: HybridConfig = CONFIG) -> HybridLM:
    torch.manual_seed(0)
    model = HybridLM(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.5 if p.ndim == 1 else 2 * p.shape[-1] ** -0.5))
    return model


@pytest.fixture(scope="module")
def model() -> HybridLM:
    return made()


def by_repeated_forward(model: HybridLM, row: list[int], n: int) -> list[int]:
    row = list(row)
    for _ in range(n):
        row.append(int(model(torch.tensor([row]))[0][0, -1].argmax()))
    return row


def prompts() -> list[list[int]]:
    g = torch.Generator().manual_seed(1)
    return [torch.randint(V, (n,), generator=g).tolist() for n in (1, 9, 4, 6)]


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    g = torch.Generator().manual_seed(2)
    for i, row in enumerate(rows):
        places = {
            "left": torch.arange(width - len(row), width),
            "right": torch.arange(len(row)),
            "inside": torch.randperm(width, generator=g)[: len(row)].sort().values,
        }[side]
        mask[i, places] = True
    ids = torch.full((len(rows), width), -1).masked_scatter(
        mask, torch.tensor([token for row in rows for token in row])
    )
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right", "inside"])
@pytest.mark.parametrize("linear", ["lightning", "mamba"])
def test_batched_is_each_row_alone_is_repeated_forward(side: str, linear: str) -> None:
    """80 tokens, so that the cache outgrows its room."""
    model = made(replace(CONFIG, linear=linear))
    ids, mask = padded(prompts(), side)
    out = model.generate(ids, 80, mask=mask)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    new = out[:, ids.shape[1] :]
    assert len(set(new.flatten().tolist())) > 5  # not one token over and over
    for i, row in enumerate(prompts()):
        alone = model.generate(torch.tensor([row]), 80)[0].tolist()
        assert row + new[i].tolist() == alone == by_repeated_forward(model, row, 80)


def test_stream_gives_tokens_as_they_come(model) -> None:
    ids = torch.randint(V, (2, 5))
    calls = []
    step = model.step
    model.step = lambda *a, **k: calls.append(1) or step(*a, **k)
    try:
        tokens = model.stream(ids, 6)
        first = next(tokens)
        assert not calls  # the first needs the prompt alone
        rest = list(tokens)
    finally:
        del model.step
    assert len(calls) == 5  # one step for each further token, none for what is not asked
    assert torch.equal(torch.stack([first, *rest], 1), model.generate(ids, 6)[:, 5:])
    assert not first.requires_grad
    assert torch.is_grad_enabled()


def test_gradients_stay_on_between_tokens(model) -> None:
    for _ in model.stream(torch.randint(V, (1, 2)), 3):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("several", [False, True])
def test_rows_end_by_themselves(model, several: bool) -> None:
    ids, mask = padded(prompts(), "left")
    free = model.generate(ids, 30, mask=mask)[:, ids.shape[1] :].tolist()
    ends = tuple(free[i][3 + 2 * i] for i in (0, 2)) if several else (free[0][4],)
    out = model.generate(ids, 30, mask=mask, eos_token_id=list(ends) if several else ends[0])
    new = out[:, ids.shape[1] :].tolist()
    stops = [next((t for t, token in enumerate(row) if token in ends), None) for row in free]
    longest = max(30 if stop is None else stop + 1 for stop in stops)
    assert any(stop is not None for stop in stops) and len({*stops}) > 1
    for row, expected, stop in zip(new, free, stops, strict=True):
        assert len(row) == longest
        if stop is None:
            assert row == expected[:longest]
        else:
            assert row == [*expected[: stop + 1], *[expected[stop]] * (longest - stop - 1)]


def test_all_rows_ended_ends_the_call(model) -> None:
    ids = torch.randint(V, (1, 4))
    free = model.generate(ids, 12)[0, 4:].tolist()
    eos = free[5]
    out = model.generate(ids, 12, eos_token_id=eos)[0, 4:].tolist()
    assert out == free[: free.index(eos) + 1]


class Work(TorchDispatchMode):
    """Elements that come out of all operators."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor):
                self.elements += made.numel()
        return out


@pytest.mark.parametrize("linear", ["lightning", "mamba", "hgrn"])
def test_a_token_costs_the_same_after_any_number_of_others(linear: str) -> None:
    model = made(replace(CONFIG, linear=linear, period=9))
    work = []
    with torch.no_grad():
        for n in (3, 300):
            _, state = model(torch.randint(V, (1, n)))
            with Work() as counted:
                model.step(torch.tensor([1]), state, inplace=True)
            work.append(counted.elements)
    assert work[0] == work[1] > 0


def test_one_state_holds_recurrent_states_and_keys_side_by_side(model) -> None:
    _, state = model(torch.randint(V, (3, 7)))
    assert [layer.recurrent is None for layer in state.layers] == [False, True, False, True]
    assert [layer.keys is None for layer in state.layers] == [True, False, True, False]
    for layer in state.layers:
        assert layer.position.tolist() == [7] * 3
    fresh = model.initial_state(3, dtype=torch.float64)
    ids = torch.randint(V, (3, 2))
    assert torch.equal(model(ids, fresh)[0], model(ids)[0])


# ------------------------------------------------------------------ sampling

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5, -torch.inf], dtype=torch.float64)


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"temperature": 0.7}, [0, 1, 2, 3, 4]),
        ({"temperature": 2.0, "top_k": 3}, [1, 4, 2]),
        ({"temperature": 1.0, "top_p": 0.6}, [1, 4]),
        ({"temperature": 1.0, "top_p": 1e-9}, [1]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 100}, [0, 1, 2, 3, 4]),
        # top_p counts within the two that top_k leaves: the first alone has 0.62 of them.
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.61}, [1]),
        ({"temperature": 1e-310}, [1]),
        ({"temperature": 0}, [1]),
    ],
)
def test_sampling(options: dict, kept: list[int]) -> None:
    """Frequencies of 20000 draws against probabilities, within five deviations."""
    n = 20000
    choose = Sampling(**options, generator=torch.Generator().manual_seed(0))
    counts = Counter(choose(LOGITS.expand(n, -1)).tolist())
    weights = torch.full_like(LOGITS, -torch.inf)
    weights[kept] = LOGITS[kept]
    p = torch.softmax(weights / max(options["temperature"], 1e-3), -1)
    assert set(counts) <= set(kept)
    for token in range(len(p)):
        sigma = float(n * p[token] * (1 - p[token])) ** 0.5
        assert abs(counts[token] - n * float(p[token])) <= 5 * sigma + 1e-6


def test_ties_do_not_widen_top_k() -> None:
    choose = Sampling(temperature=1.0, top_k=2)
    assert len(set(choose(torch.zeros(200, 5)).tolist())) == 2


def test_sampling_in_low_precision() -> None:
    choose = Sampling(temperature=0.5, top_p=0.9)
    assert set(choose(LOGITS.bfloat16().expand(50, -1)).tolist()) <= {0, 1, 2, 4}


def test_samples_depend_on_the_generator_alone(model) -> None:
    ids = torch.randint(V, (2, 4))

    def sample(seed: int) -> Tensor:
        return model.generate(ids, 20, temperature=1.0, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.generate(ids, 9, temperature=1.0, top_k=1), model.generate(ids, 9))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0; accepted: a whole number from 1"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens is 2.0"),
        ({"temperature": -1.0}, ValueError, "temperature is -1.0; accepted: from 0"),
        ({"temperature": True}, TypeError, "temperature is True"),
        ({"top_k": 0}, ValueError, "top_k is 0; accepted: a whole number from 1, or None"),
        ({"top_p": 0.0}, ValueError, "top_p is 0.0; accepted: above 0 to 1, or None"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5; accepted: above 0 to 1, or None"),
        ({"top_p": "0.5"}, TypeError, "top_p is '0.5'; accepted: a number above 0 to 1, or None"),
        ({"eos_token_id": V}, ValueError, f"eos_token_id is {V}; accepted: tokens from 0 to .* = {V - 1}"),
        ({"eos_token_id": [3, -1]}, ValueError, "eos_token_id is -1"),
        ({"eos_token_id": "2"}, TypeError, "eos_token_id is '2'"),
        ({"eos_token_id": True}, TypeError, "eos_token_id is True"),
        ({"generator": 3}, TypeError, "generator is 3; accepted: a torch.Generator, or None"),
    ],
)
def test_errors_come_with_the_call(model, options: dict, error: type[Exception], message: str) -> None:
    """Not with the first token."""
    options = {"max_new_tokens": 3, **options}
    with pytest.raises(error, match=f"^{message}"):
        model.stream(torch.randint(V, (1, 3)), **options)
