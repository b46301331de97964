"""Mixers in both directions: what holds without a state, and what they refuse."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mixerzoo.mixers import (
    GLA,
    REGISTRY,
    Bidirectional,
    Mamba,
    MixerState,
    RetNet,
    SoftmaxAttention,
    bidirectional,
    build,
)
from mixerzoo.mixers.gated_delta_net import GatedDeltaNet
from mixerzoo.mixers.linear_attention import LinearAttention

D = 6


@pytest.fixture(params=[name for name, entry in REGISTRY.items() if not entry.causal])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def close(a: torch.Tensor, b: torch.Tensor, tol: float = 1e-12) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= tol * (1 + b.abs().max())


def test_both_directions_are_the_mixer_on_both_orders(make) -> None:
    """Forwards, plus, without the token itself, what the mixer does to the reversed sequence."""
    both = make("gla-bidirectional")
    x = torch.randn(2, 9, D, dtype=torch.float64)
    weights = both.attention_map(x)
    forwards, backwards = both.mixer.attention_map(x), both.mixer.attention_map(x.flip(1)).flip(2, 3)
    close(weights, forwards + backwards.triu(1))
    assert weights.triu(1).any() and weights.tril(-1).any()


def test_the_map_weighs_values_into_outputs(make, name: str) -> None:
    both = make(name)
    x = torch.randn(1, 7, D, dtype=torch.float64)
    v = both.mixer.v_proj(x).unflatten(-1, (both.mixer.num_heads, -1))
    o = torch.einsum("bhts,bshv->bthv", both.attention_map(x), v)
    close(both.mixer.readout(o, x, None), both(x)[0])


@pytest.mark.parametrize("form", ["auto", "parallel", "chunk", "scan"])
def test_forms(make, name: str, form: str) -> None:
    both = make(name)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    close(both(x, form=form)[0], both(x, form="recurrent")[0])


def test_the_form_reaches_the_core_in_both_directions(make, name: str, monkeypatch) -> None:
    asked = []
    real = bidirectional.recurrence

    def recurrence(*args, **options):
        asked.append((options["form"], options.get("reverse", False)))
        return real(*args, **options)

    monkeypatch.setattr(bidirectional, "recurrence", recurrence)
    make(name)(torch.randn(1, 3, D, dtype=torch.float64), form="scan")
    assert asked == [("scan", False), ("scan", True)]


class OneQuery(GLA):
    """All heads share the first one's queries."""

    def operands(self, x, state, tokens):
        core = super().operands(x, state, tokens)
        return core._replace(q=core.q[:, :, :1])


def test_shared_heads() -> None:
    torch.manual_seed(0)
    shared, repeated = OneQuery(8, num_heads=2).double(), GLA(8, num_heads=2).double()
    repeated.load_state_dict(shared.state_dict())
    with torch.no_grad():
        first, second = repeated.q_proj.weight.chunk(2)
        second.copy_(first)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    close(Bidirectional(shared)(x)[0], Bidirectional(repeated)(x)[0])


@pytest.mark.parametrize("side", ["left", "right", "inside", "all"])
def test_padding_changes_nothing(make, name: str, side: str) -> None:
    both = make(name)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, {"left": [0, 1, 2], "right": [6, 7, 8], "inside": [1, 4, 5], "all": list(range(9))}[side]] = False
    parameters = list(both.parameters())
    y, state = both(torch.where(mask[..., None], x, torch.nan), mask=mask)
    assert not y[~mask].any() and state.position.tolist() == mask.sum(1).tolist()
    alone = [both(x[i : i + 1, mask[i]])[0][0] for i in range(2)]
    close(y[mask], torch.cat(alone))
    padded = torch.autograd.grad(y.square().sum(), parameters)
    apart = torch.autograd.grad(torch.cat(alone).square().sum(), parameters)
    for a, b in zip(padded, apart, strict=True):
        close(a, b, 1e-11)


def test_packed_is_separate(make, name: str) -> None:
    both = make(name)
    x = torch.randn(1, 9, D, dtype=torch.float64)
    cu = [0, 3, 3, 4, 9]
    y, state = both(x, cu_seqlens=torch.tensor(cu))
    assert state.position.tolist() == [3, 0, 1, 5]
    close(y, torch.cat([both(x[:, a:b])[0] for a, b in pairwise(cu)], 1))


def test_dtypes(make, name: str) -> None:
    x = torch.randn(2, 12, 16)
    assert make(name, d_model=16)(x.double())[0].dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16):
        low = make(name, d_model=16).to(dtype)
        reference, _ = make(name, d_model=16).to(dtype).double()(x.to(dtype).double())
        y, _ = low(x.to(dtype))
        assert y.dtype == dtype
        assert (y - reference).abs().max() <= 16 * torch.finfo(dtype).eps * reference.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(build(name, 16)(x)[0]).all()


def test_a_decay_of_nothing() -> None:
    """Saturated gates: decays of 0 in both directions, with gradients."""
    both = Bidirectional(GLA(8, gate_divisor=1.0))
    with torch.no_grad():
        both.mixer.gk_proj[1].bias.fill_(-1e4)
    x = torch.randn(1, 5, 8, requires_grad=True)
    both(x)[0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [x, *both.parameters()] if p.grad is not None)
    weights = both.attention_map(x.detach())
    assert torch.equal(weights, torch.diag_embed(weights.diagonal(dim1=2, dim2=3)))


def test_one_graph(make, name: str) -> None:
    torch.compiler.reset()
    both = make(name)
    x = torch.randn(2, 6, D, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]]).bool()
    forward = torch.compile(both, fullgraph=True, backend="aot_eager")
    close(forward(x, mask=mask)[0], both(x, mask=mask)[0])


def test_any_width_and_no_tokens(name: str) -> None:
    for d_model in (1, 7, 24):
        both = build(name, d_model)
        assert both(torch.randn(2, 3, d_model))[0].shape == (2, 3, d_model)
        y, state = both(torch.randn(2, 0, d_model))
        assert y.shape == (2, 0, d_model) and state.position.tolist() == [0, 0]


def test_errors(name: str) -> None:
    both = build(name, 8)
    x = torch.randn(2, 5, 8)
    _, state = both(x)
    assert isinstance(state, MixerState) and state.recurrent is None
    with pytest.raises(ValueError, match=r"^state was given to a bidirectional mixer; accepted: None"):
        both(x, state)
    with pytest.raises(
        TypeError, match=r"^a bidirectional mixer has no step; accepted: a call with the whole"
    ):
        both.step(x[:, 0])
    with pytest.raises(ValueError, match=r"^x has shape \[2, 5, 9\]"):
        both(torch.randn(2, 5, 9))
    with pytest.raises(ValueError, match=r"^d_model is 0"):
        build(name, 0)
    with pytest.raises(ValueError, match=r"^num_heads is 3; accepted: a divisor of d_model = 8"):
        build(name, 8, num_heads=3)


def test_what_has_no_second_direction() -> None:
    for mixer in (GatedDeltaNet(8), Mamba(8), SoftmaxAttention(8), None):
        with pytest.raises(
            TypeError, match=rf"^mixer is {type(mixer).__name__}; accepted: a RecurrentMixer without"
        ):
            Bidirectional(mixer)
    with pytest.raises(TypeError, match=r"^mixer is HGRN; accepted: one that reads after it writes"):
        Bidirectional(build("hgrn", 8))(torch.randn(1, 2, 8))


def test_normalised() -> None:
    """The readout divides by the weights of both directions: equal values stay as they are."""
    inner = LinearAttention(8, num_heads=2).double()
    both = Bidirectional(inner)
    weights = both.attention_map(torch.randn(2, 5, 8, dtype=torch.float64))
    close(weights.sum(-1), torch.ones(2, 2, 5, dtype=torch.float64))


def test_padding_writes_nothing() -> None:
    """Where padding has keys and values that are not 0: elu(0) + 1, and the 1 that the divisor adds up."""
    torch.manual_seed(0)
    both = Bidirectional(LinearAttention(8, num_heads=2).double())
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    mask = torch.tensor([[False, True, True, False, True, False]])
    close(both(x, mask=mask)[0][mask], both(x[mask][None])[0][0])


def test_retention_is_a_power_of_the_distance() -> None:
    """Fan et al. 2023: D_ts = γ^|t - s|."""
    inner = RetNet(8, num_heads=2, head_dim=1).double()  # one channel: nothing to turn
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    q, k = (p(x)[0].T for p in (inner.q_proj, inner.k_proj))
    steps = torch.arange(6)
    gamma = torch.tensor([1 - 2.0**-5, 1 - 2.0**-6], dtype=torch.float64)[:, None, None]
    wanted = q[:, :, None] * k[:, None, :] * gamma ** (steps[:, None] - steps).abs()
    close(Bidirectional(inner).attention_map(x)[0], wanted)
