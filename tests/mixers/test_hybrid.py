"""The hybrid: one function however it is run, the blocks it says it has, trainable."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from mixerzoo.mixers import (
    REGISTRY,
    HybridConfig,
    HybridLM,
    HybridState,
    LightningAttention,
    SoftmaxAttention,
)
from mixerzoo.mixers.parts import layer_factor, rms_norm

V = 11
SMALL = HybridConfig(vocab_size=V, d_model=8, num_layers=3, period=2)
CONFIGS = {
    "lightning": replace(SMALL, softmax_options={"num_heads": 4, "num_kv_heads": 2, "rotary_dim": 2}),
    "experts": replace(SMALL, num_experts=5, experts_per_token=2, mlp_dim=6, postnorm=True, linear_alpha=1.5),
    "mamba": replace(SMALL, linear="mamba", tied=True, linear_options={"d_state": 3}),
    "hgrn": replace(
        SMALL, linear="hgrn", softmax="transnormer-llm", layer_types=("softmax", "linear", "linear")
    ),
}
few = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def made(config: HybridConfig, seed: int = 0) -> HybridLM:
    """In float64, with parameters of order one."""
    torch.manual_seed(seed)
    model = HybridLM(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.5 if p.ndim == 1 else p.shape[-1] ** -0.5))
    return model


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    if a.numel():
        error = (a - b).abs().max()
        assert error <= tol * (1 + b.abs().max()), float(error)


def token_by_token(model: HybridLM, ids: Tensor, state=None, mask=None):
    rows = []
    for t in range(ids.shape[1]):
        logits, state = model.step(ids[:, t], state, None if mask is None else mask[:, t])
        rows.append(logits)
    return torch.stack(rows, 1), state


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> HybridLM:
    return made(CONFIGS[request.param])


# ------------------------------------------------------------------ one function


@few
@given(cuts=st.lists(st.integers(0, 12), max_size=4), seed=st.integers(0, 99))
def test_whole_is_pieces_is_tokens(model, cuts: list[int], seed: int) -> None:
    ids = torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(seed))
    whole, end = model(ids)
    state, pieces = None, []
    for a, b in pairwise([0, *sorted(cuts), 12]):
        logits, state = model(ids[:, a:b], state)
        pieces.append(logits)
    stepped, after = token_by_token(model, ids)
    close(torch.cat(pieces, 1), whole)
    close(stepped, whole)
    assert isinstance(state, HybridState)
    for s in (end, state, after):
        assert s.position.tolist() == [12, 12]
        close(model.step(ids[:, 0], s)[0], model(torch.cat([ids, ids[:, :1]], 1))[0][:, -1])


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.causal])
def test_any_mixer_in_either_place(name: str) -> None:
    for config in (replace(SMALL, linear=name), replace(SMALL, softmax=name, period=3)):
        m = made(config)
        ids = torch.randint(V, (2, 7))
        whole, _ = m(ids)
        close(token_by_token(m, ids)[0], whole, 1e-11)


@few
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=3),
    split=st.integers(0, 8),
)
def test_padding_changes_nothing(model, mask: list[list[bool]], split: int) -> None:
    """Whatever its ids are, and wherever it is: left, right, inside."""
    valid = torch.tensor(mask)
    ids = torch.where(valid, torch.randint(V, valid.shape), -100)
    whole, _ = model(ids, mask=valid)
    first, carried = model(ids[:, :split], mask=valid[:, :split])
    rest, _ = model(ids[:, split:], carried, mask=valid[:, split:])
    stepped, _ = token_by_token(model, ids, mask=valid)
    for logits in (whole, torch.cat([first, rest], 1), stepped):
        assert not logits[~valid].any()  # exactly zero
        for i, row in enumerate(valid):
            close(logits[i, row], model(ids[i : i + 1, row])[0][0])


@few
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_packed_is_separate(model, lengths: list[int]) -> None:
    state, alone = None, [None] * len(lengths)
    for ns in (lengths, lengths[::-1]):
        cu = torch.tensor([0, *torch.tensor(ns).cumsum(0).tolist()])
        ids = torch.randint(V, (1, sum(ns)))
        logits, state = model(ids, state, cu_seqlens=cu)
        for i, n in enumerate(ns):
            piece, alone[i] = model(ids[:, cu[i] : cu[i] + n], alone[i])
            close(logits[:, cu[i] : cu[i] + n], piece)


@pytest.mark.parametrize("form", ["parallel", "chunk", "recurrent", "scan"])
def test_forms_agree(model, form: str) -> None:
    ids = torch.randint(V, (2, 9))
    close(model(ids, form=form)[0], model(ids)[0])


def test_prefill_is_the_last_of_forward(model) -> None:
    ids = torch.randint(V, (3, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0]]).bool()
    every, _ = model(ids, mask=mask)
    last, state = model.prefill(ids, mask=mask)
    close(last, every[torch.arange(3), torch.tensor([5, 2, 4])])
    assert state.position.tolist() == [4, 3, 3]
    close(model.prefill(ids)[0], model(ids)[0][:, -1])


# ------------------------------------------------------------------ what it is made of


def test_softmax_in_every_period() -> None:
    m = HybridLM(replace(SMALL, num_layers=17, period=8))
    softmax = [i for i, block in enumerate(m.layers) if isinstance(block.mixer, SoftmaxAttention)]
    assert softmax == [7, 15]
    for i, block in enumerate(m.layers):
        if i not in softmax:
            assert isinstance(block.mixer, LightningAttention)
            assert block.mixer.factor == layer_factor(i, 17)  # its place in the model
    assert HybridLM(replace(SMALL, period=1)).config.types() == ("softmax",) * 3
    assert HybridLM(replace(SMALL, period=4)).config.types() == ("linear",) * 3
    chosen = replace(SMALL, linear_options={"layer_idx": 0, "num_layers": 1})
    assert HybridLM(chosen).layers[2].mixer.factor == layer_factor(0, 1)


@pytest.mark.parametrize("postnorm", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_blocks(postnorm: bool, tied: bool) -> None:
    """The model written out from its parameters, mixers apart."""
    factors = {
        name: 0.5 + 0.3 * i
        for i, name in enumerate(
            ("linear_alpha", "linear_beta", "softmax_alpha", "softmax_beta", "mlp_alpha", "mlp_beta")
        )
    }
    m = made(replace(SMALL, postnorm=postnorm, tied=tied, mlp_dim=5, norm_eps=0.1, **factors))
    ids = torch.randint(V, (2, 7))
    x = m.embedding.weight[ids]
    for i, block in enumerate(m.layers):
        kind = "softmax" if i == 1 else "linear"
        h = rms_norm(x, 0.1) * block.mixer_norm.weight
        x = factors[f"{kind}_alpha"] * (h if postnorm else x) + factors[f"{kind}_beta"] * block.mixer(h)[0]
        h = rms_norm(x, 0.1) * block.mlp_norm.weight
        mlp = (F.silu(h @ block.mlp.gate_proj.weight.T) * (h @ block.mlp.up_proj.weight.T)) @ (
            block.mlp.down_proj.weight.T
        )
        x = factors["mlp_alpha"] * (h if postnorm else x) + factors["mlp_beta"] * mlp
    assert block.mlp.gate_proj.weight.shape == (5, 8)
    head = m.embedding.weight if tied else m.head.weight
    assert len([n for n, p in m.named_parameters() if p.shape == (V, 8)]) == (1 if tied else 2)
    close(m(ids)[0], (rms_norm(x, 0.1) * m.norm.weight) @ head.T)


@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_experts(per_token: int) -> None:
    """Token by token, with every expert's weight from the router's softmax over the chosen ones."""
    m = made(replace(SMALL, num_experts=4, experts_per_token=per_token, mlp_dim=5))
    moe = m.layers[0].mlp
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    want = torch.zeros_like(x)
    for b in range(2):
        for t in range(9):
            scores = moe.gate.weight @ x[b, t]
            chosen = sorted(range(4), key=lambda e: -scores[e])[:per_token]
            for e, p in zip(chosen, scores[chosen].softmax(0), strict=True):
                gate, up = (moe.experts["gate_up_proj"][e] @ x[b, t]).split(5)
                want[b, t] += p * (moe.experts["down_proj"][e] @ (F.silu(gate) * up))
    close(moe(x), want)
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    close(compiled(x), want)
    assert moe(x[:, :0]).shape == (2, 0, 8)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    m = HybridLM(replace(SMALL, vocab_size=500, d_model=64, mlp_dim=100, num_experts=4, init_std=0.3))
    moe = m.layers[0].mlp
    for p in (m.embedding.weight.detach(), m.head.weight.detach(), *(p.detach() for p in moe.parameters())):
        assert abs(float(p.std()) - 0.3) < 0.03 and abs(float(p.mean())) < 0.03
    assert HybridLM(replace(SMALL, d_model=64)).layers[0].mlp.up_proj.weight.shape == (176, 64)  # 8/3 · 64


def test_sizes_of_minimax_01() -> None:
    """The published sizes (arXiv:2501.08313, section 2) come to the published 456 billion parameters."""
    heads = {"num_heads": 64, "head_dim": 128}
    config = HybridConfig(
        vocab_size=200_064,
        d_model=6144,
        num_layers=80,
        linear_options=heads,
        softmax_options={**heads, "num_kv_heads": 8, "rotary_base": 1e7, "rotary_dim": 64},
        mlp_dim=9216,
        num_experts=32,
    )
    with torch.device("meta"):
        m = HybridLM(config)
    assert 455e9 < sum(p.numel() for p in m.parameters()) < 457e9


# ------------------------------------------------------------------ training


def test_gradients_of_pieces_are_those_of_the_whole(model) -> None:
    ids = torch.randint(V, (2, 8))
    w = torch.randn(2, 8, V, dtype=torch.float64)
    parameters = list(model.parameters())
    whole = torch.autograd.grad((model(ids)[0] * w).sum(), parameters, allow_unused=True)
    a, state = model(ids[:, :3])
    b, state = model(ids[:, 3:6], state)
    c, _ = token_by_token(model, ids[:, 6:], state)
    pieces = torch.autograd.grad((torch.cat([a, b, c], 1) * w).sum(), parameters, allow_unused=True)
    for (name, _), p, q in zip(model.named_parameters(), pieces, whole, strict=True):
        assert q is not None and q.any(), name  # every parameter counts
        close(p, q, 1e-10)


def test_cut_state_carries_no_gradient() -> None:
    m = made(SMALL)
    _, state = m(torch.randint(V, (2, 4)))
    for layer in state.detach().layers:
        for part in (layer.recurrent, layer.keys, layer.values):
            assert part is None or not part.requires_grad


@pytest.mark.parametrize("config", ["lightning", "experts"])
def test_learns(config: str) -> None:
    """A few sequences of random tokens by heart: only a model that sees more than the last token can."""
    torch.manual_seed(0)
    m = HybridLM(replace(CONFIGS[config], d_model=32, mlp_dim=32))
    ids = torch.randint(V, (4, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = torch.arange(4)
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2)
    loss, steps = torch.tensor(torch.inf), 0
    while loss > 0.01 and (steps := steps + 1) <= 300:
        logits, _ = m(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss <= 0.01
    assert torch.equal(m.generate(ids[:, :1], 11), ids)


def test_autocast() -> None:
    m = HybridLM(CONFIGS["experts"])
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = m(torch.randint(V, (2, 6)))
        logits, _ = m.step(torch.randint(V, (2,)), state)
    assert torch.isfinite(logits).all()


# ------------------------------------------------------------------ compiled


@pytest.mark.parametrize("config", ["lightning", "experts"])
def test_one_graph(config: str) -> None:
    torch.compiler.reset()
    m = made(CONFIGS[config])
    ids = torch.randint(V, (2, 6))
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]]).bool()
    forward = torch.compile(m, fullgraph=True, backend="aot_eager")
    step = torch.compile(m.step, fullgraph=True, backend="aot_eager")
    close(forward(ids)[0], m(ids)[0])
    logits, state = m(ids, mask=mask)
    close(forward(ids, mask=mask)[0], logits)
    state = state.detach()
    after, compiled = m.step(ids[:, 0], state), step(ids[:, 0], state)
    close(compiled[0], after[0])
    close(compiled[1].layers[0].recurrent, after[1].layers[0].recurrent)
    parameters = list(m.parameters())
    found, want = (torch.autograd.grad(f(ids)[0].square().sum(), parameters) for f in (forward, m))
    for a, b in zip(found, want, strict=True):
        close(a, b, 1e-10)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"vocab_size": 0}, ValueError, "vocab_size is 0; accepted: a whole number from 1"),
        ({"d_model": 8.0}, TypeError, "d_model is 8.0; accepted: a whole number from 1"),
        ({"num_layers": True}, TypeError, "num_layers is True"),
        ({"period": 0}, ValueError, "period is 0"),
        ({"layer_types": "linear"}, TypeError, "layer_types is 'linear'; accepted: a tuple"),
        ({"layer_types": ("linear",)}, ValueError, "layer_types has 1 entries; .* num_layers = 3"),
        (
            {"layer_types": ("linear", "full", "linear")},
            ValueError,
            "layer_types has 'full'; accepted: 'linear'",
        ),
        ({"linear": "mambo"}, ValueError, "linear is 'mambo'; accepted: 'linear-attention', "),
        ({"softmax": None}, TypeError, "softmax is None; accepted: 'linear-attention', "),
        ({"linear_options": [4]}, TypeError, "linear_options is list; accepted: a dict"),
        ({"mlp_dim": -1}, ValueError, "mlp_dim is -1; accepted: a whole number from 1, or None"),
        (
            {"num_experts": 2, "experts_per_token": 3},
            ValueError,
            "experts_per_token is 3; .* num_experts = 2",
        ),
        ({"norm_eps": 0}, ValueError, "norm_eps is 0; accepted: above 0"),
        ({"mlp_alpha": "1"}, TypeError, "mlp_alpha is '1'; accepted: a number"),
        ({"tied": 1}, TypeError, "tied is 1; accepted: True or False"),
        ({"init_std": -1.0}, ValueError, "init_std is -1.0"),
    ],
)
def test_config_errors(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        replace(SMALL, **changes)


def test_config_is_not_its_callers() -> None:
    options = {"num_heads": 2}
    config = replace(SMALL, linear_options=options)
    options["num_heads"] = 3
    assert HybridLM(config).layers[0].mixer.num_heads == 2
    with pytest.raises(AttributeError):
        config.period = 2


def test_errors() -> None:
    m = HybridLM(SMALL)
    ids = torch.randint(V, (2, 5))
    _, state = m(ids)
    accepted = r"accepted: \[B, T\], int64 or int32, from 0 to vocab_size - 1 = 10"
    for call, error, message in (
        (lambda: HybridLM({"d_model": 8}), TypeError, "config is dict; accepted: a HybridConfig"),
        (lambda: m(ids.tolist()), TypeError, "ids is list; accepted: a tensor"),
        (lambda: m(ids.double()), TypeError, f"ids has dtype torch.float64; {accepted}"),
        (lambda: m(ids[0]), ValueError, rf"ids has shape \[5\]; {accepted}"),
        (lambda: m(ids + 10), ValueError, rf"ids has \d+; {accepted}"),
        (lambda: m(ids - 20), ValueError, rf"ids has -\d+; {accepted}"),
        (lambda: m.step(ids), ValueError, r"ids_t has shape \[2, 5\]; accepted: \[B\]"),
        (
            lambda: m(ids, mask=ids > 0, state=state.layers),
            TypeError,
            "state is tuple; accepted: a HybridState",
        ),
        (lambda: m(ids, HybridState(state.layers[:2])), ValueError, "state has 2 layers; .*num_layers = 3"),
        (lambda: m(ids[:1], state), ValueError, r"state.position has shape \[2\]"),
        (lambda: m(ids, mask=ids), TypeError, "mask has dtype torch.int64"),
        (lambda: m(ids, mask=ids[:, 1:] > 0), ValueError, r"mask has shape \[2, 4\]"),
        (
            lambda: m(ids, cu_seqlens=torch.tensor([0, 5])),
            ValueError,
            "cu_seqlens was given with batch size 2",
        ),
        (lambda: m(ids, form="fast"), ValueError, "form is 'fast'"),
        (lambda: m.prefill(ids[:, :0]), ValueError, r"ids has shape \[2, 0\]; accepted: at least one token"),
        (lambda: m.prefill(ids, mask=torch.zeros(2, 5).bool()), ValueError, "mask has a row without a token"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            call()
    with pytest.raises(TypeError, match="head_count"):
        HybridLM(replace(SMALL, linear_options={"head_count": 2}))


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_stays_zero(name: str) -> None:
    torch.manual_seed(0)
    model = HybridLM(CONFIGS[name]).double()
    mask = torch.tensor([[False, True, True, False], [True, True, True, False]])
    logits = model(torch.randint(V, (2, 4)), mask=mask)[0]
    assert logits[mask].any() and not logits[~mask].any()
