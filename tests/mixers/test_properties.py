"""What holds for every mixer: one function, however it is cut, padded, packed or batched."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixerzoo.kernels import OuterDecay, recurrence, step
from mixerzoo.mixers import HGRN, REGISTRY, LowerBounds, MixerState, RecurrentMixer, base, build, rg_lru
from mixerzoo.mixers.base import Tokens

D = 6
few = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    same = torch.isinf(a) & (a == b)  # the stabiliser of what has seen no token is -inf
    a, b = a[~same], b[~same]
    if a.numel():
        error = (a - b).abs().max()
        assert error <= tol * (1 + b.abs().max()), float(error)


def close_states(a: MixerState, b: MixerState, tol: float = 1e-12) -> None:
    assert torch.equal(a.position, b.position)
    for f in ("recurrent", "window", "stabiliser", "angle"):
        x, y = getattr(a, f), getattr(b, f)
        assert (x is None) == (y is None)
        if x is not None:
            close(x, y, tol)
    if a.keys is not None:
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            for row, n in enumerate(a.position.tolist()):
                close(x[row, :n], y[row, :n], tol)
                assert not x[row, n:].any()  # unused places hold zeros


def test_long_sequences_are_taken_in_pieces(make, name: str, monkeypatch) -> None:
    """Without gradients, with padding or not, to the last number of the last piece; softmax attention, whose
    state grows, never."""
    mixer = make(name)
    x, mask = torch.randn(3, 21, D, dtype=torch.float64), torch.rand(3, 21) < 0.6
    mask[2] = torch.arange(21) < 2  # a row that ends in the first piece
    calls = []
    mix = type(mixer).mix

    def counted(self, x, *rest):
        calls.append(x.shape[1])
        return mix(self, x, *rest)

    with torch.no_grad():
        whole, masked = mixer(x), mixer(x, mask=mask)
        for constant, small in (("PIECE", 0), ("FEWEST", 8), ("WHOLE_CHUNKS", 4)):
            monkeypatch.setattr(base, constant, small)
        monkeypatch.setattr(type(mixer), "mix", counted)
        got, got_masked = mixer(x), mixer(x, mask=mask)
    grows = mixer.initial_state(1).recurrent is None
    assert calls == ([21, 21] if grows else [8, 8, 5] * 2)
    for (y, state), (y_whole, state_whole) in ((got, whole), (got_masked, masked)):
        close(y, y_whole)
        close_states(state, state_whole)
    calls.clear()
    mixer(x)
    with torch.no_grad():
        mixer(x, form="parallel")
    assert calls == [21, 21]


def row(state: MixerState, i: int) -> MixerState:
    parts = (getattr(state, f.name) for f in fields(state))
    return MixerState(*(None if p is None else p[i : i + 1] for p in parts))


def has_heads(name: str) -> bool:
    """Whether heads are chosen freely: any number that divides d_model, or any with a head_dim."""
    options = inspect.signature(REGISTRY[name].factory).parameters
    return {"num_heads", "head_dim"} <= options.keys()


def token_by_token(mixer, x: Tensor, state=None, mask=None):
    ys = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state, None if mask is None else mask[:, t])
        ys.append(y)
    return torch.stack(ys, 1), state


@pytest.mark.parametrize("form", ["auto", "parallel", "chunk", "recurrent", "scan"])
def test_forward_is_steps(make, name: str, form: str) -> None:
    mixer = make(name)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    if form not in mixer.forms:
        with pytest.raises(ValueError, match=f"^form is '{form}'; accepted: 'auto'"):
            mixer(x, form=form)
        return
    y, state = mixer(x, form=form)
    ys, stepped = token_by_token(mixer, x)
    close(y, ys)
    close_states(state, stepped)


@few
@given(cuts=st.lists(st.integers(0, 12), max_size=4), seed=st.integers(0, 99))
def test_forward_is_any_split(make, name: str, cuts: list[int], seed: int) -> None:
    mixer = make(name, seed=seed)
    x = torch.randn(2, 12, D, dtype=torch.float64)
    whole, final = mixer(x)
    state, ys = None, []
    edges = [0, *sorted(cuts), 12]
    for a, b in pairwise(edges):
        y, state = mixer(x[:, a:b], state)
        ys.append(y)
    close(torch.cat(ys, 1), whole)
    close_states(state, final)


@few
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=10, max_size=10), min_size=1, max_size=3),
    split=st.integers(0, 10),
    seed=st.integers(0, 99),
)
def test_padding_changes_nothing(make, name: str, mask: list[list[bool]], split: int, seed: int) -> None:
    mixer = make(name, seed=seed)
    valid = torch.tensor(mask)
    x = torch.randn(len(mask), 10, D, dtype=torch.float64)
    dirty = torch.where(valid[..., None], x, torch.nan)
    y, state = mixer(dirty, mask=valid)
    first, carried = mixer(dirty[:, :split], mask=valid[:, :split])
    rest, carried = mixer(dirty[:, split:], carried, mask=valid[:, split:])
    stepped, after = token_by_token(mixer, dirty, mask=valid)
    assert not y[~valid].any() and not stepped[~valid].any()  # exactly zero
    for i in range(len(mask)):
        alone, last = mixer(x[i : i + 1, valid[i]])
        for got in (y, torch.cat([first, rest], 1), stepped):
            close(got[i, valid[i]], alone[0])
        for s in (state, carried, after):
            close_states(row(s, i), last)


@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding_gradients(make, name: str, side: str) -> None:
    """NaN in padding reaches no gradient, and the gradients are those without padding."""
    mixer = make(name)
    valid = torch.ones(1, 9, dtype=torch.bool)
    valid[0, {"left": [0, 1, 2], "right": [6, 7, 8], "inside": [1, 4, 5]}[side]] = False
    x = torch.randn(1, 9, D, dtype=torch.float64)
    target = torch.randn(1, 6, D, dtype=torch.float64)

    def gradients(x: Tensor, mask: Tensor | None) -> list[Tensor]:
        x = x.detach().requires_grad_()
        y, state = mixer(x, mask=mask)
        kept = y if mask is None else y[mask][None]
        last = state.recurrent if state.recurrent is not None else state.keys
        loss = (kept * target).sum() + last.square().sum()
        dx, *rest = torch.autograd.grad(loss, [x, *mixer.parameters()])
        return [dx if mask is None else dx[mask][None], *rest]

    padded = gradients(torch.where(valid[..., None], x, torch.nan), valid)
    for a, b in zip(padded, gradients(x[valid][None], None), strict=True):
        close(a, b, 1e-10)


@few
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_packed_is_separate(make, name: str, lengths: list[int], seed: int) -> None:
    """Two packed calls, the second with other lengths, against every sequence by itself."""
    mixer = make(name, seed=seed)
    state, alone = None, [None] * len(lengths)
    for ns in (lengths, lengths[::-1]):
        cu = torch.tensor([0, *torch.tensor(ns).cumsum(0).tolist()])
        x = torch.randn(1, sum(ns), D, dtype=torch.float64)
        y, state = mixer(x, state, cu_seqlens=cu)
        for i, n in enumerate(ns):
            piece, alone[i] = mixer(x[:, cu[i] : cu[i] + n], alone[i])
            close(y[:, cu[i] : cu[i] + n], piece)
            close_states(row(state, i), alone[i])


class Sizes(TorchDispatchMode):
    """The elements of the largest tensor made, and of all queries handed to attention."""

    largest = queries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor):
                self.largest = max(self.largest, made.numel())
        if "scaled_dot_product" in str(func):
            self.queries += args[0].numel()
        return out


def test_packing_is_not_quadratic(make) -> None:
    """Nothing grows with the square of the tokens, and a long sequence does not stretch short ones."""
    mixer = make("softmax")
    x = torch.randn(1, 3500, D, dtype=torch.float64)
    cu = torch.arange(501) * 7
    with Sizes() as first:
        _, state = mixer(x, cu_seqlens=cu)
    with Sizes() as second:
        mixer(x, state, cu_seqlens=cu)
    assert first.largest <= 2 * x.numel()
    assert second.largest <= 8 * x.numel()  # keys of both pieces, for a head of each query
    uneven = torch.cat([torch.arange(101), torch.tensor([600])])
    with Sizes() as sizes:
        mixer(x[:, :600], cu_seqlens=uneven)
    assert 0 < sizes.queries <= 2 * 600 * D


def test_packed_sequences_do_not_attend_to_each_other(make) -> None:
    """Not even to a NaN, and not in gradients."""
    mixer = make("softmax")
    x = torch.randn(1, 9, D, dtype=torch.float64)
    cu = torch.tensor([0, 3, 5, 9])
    _, state = mixer(x, cu_seqlens=cu)
    x[0, 3:5] = torch.nan
    x.requires_grad_()
    for carried in (None, state.detach()):
        y, _ = mixer(x, carried, cu_seqlens=cu)
        others = torch.cat([y[0, :3], y[0, 5:]])
        (dx,) = torch.autograd.grad(others.square().sum(), x)
        assert torch.isfinite(others).all()
        assert torch.isfinite(dx[0, :3]).all() and torch.isfinite(dx[0, 5:]).all()


def test_batch_is_single(make, any_name: str) -> None:
    mixer = make(any_name)
    x = torch.randn(3, 8, D, dtype=torch.float64)
    y, state = mixer(x)
    for i in range(3):
        single, last = mixer(x[i : i + 1])
        close(y[i : i + 1], single)
        close_states(row(state, i), last)


def test_rows_of_different_age_go_on_together(make, name: str) -> None:
    """A state whose rows have seen different numbers of tokens serves all the same."""
    mixer = make(name)
    x = torch.randn(2, 7, D, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [False] * 5 + [True] * 2])
    _, state = mixer(x, mask=mask)
    more = torch.randn(2, 4, D, dtype=torch.float64)
    y, state = mixer(more, state)
    assert state.position.tolist() == [11, 6]
    for i in range(2):
        alone, _ = mixer(torch.cat([x[i, mask[i]], more[i]])[None])
        close(y[i : i + 1], alone[:, -4:])


def test_state_is_left_alone(make, name: str) -> None:
    mixer = make(name)
    x = torch.randn(2, 5, D, dtype=torch.float64)
    _, state = mixer(x)
    parts = {f.name: getattr(state, f.name) for f in fields(state)}
    before = {n: p.clone() for n, p in parts.items() if p is not None}
    buffers = {n: b.clone() for n, b in [*mixer.named_buffers(), *mixer.named_parameters()]}
    mixer(x, state)
    mixer(x, state, mask=torch.rand(2, 5) > 0.5)
    mixer.step(x[:, 0], state)
    mixer(x[:1], row(state, 0), cu_seqlens=torch.tensor([0, 5]))
    for n, b in before.items():
        assert parts[n] is getattr(state, n) and torch.equal(b, parts[n])
    for n, b in buffers.items():
        assert torch.equal(b, dict([*mixer.named_buffers(), *mixer.named_parameters()])[n])
    with pytest.raises(AttributeError):
        state.position = state.position + 1


def test_no_tokens(make, name: str) -> None:
    mixer = make(name)
    _, state = mixer(torch.randn(2, 3, D, dtype=torch.float64))
    y, same = mixer(torch.randn(2, 0, D, dtype=torch.float64), state, mask=torch.ones(2, 0, dtype=torch.bool))
    assert y.shape == (2, 0, D)
    close_states(same, state)
    _, fresh = mixer(torch.randn(2, 0, D, dtype=torch.float64))
    close_states(fresh, mixer.initial_state(2, dtype=torch.float64))


def test_gradients_reach_every_parameter(make, any_name: str) -> None:
    options = {"layer_idx": 1, "num_layers": 3} if "hgrn" in any_name else {}
    if options:
        options["lower_bound"] = LowerBounds(3, D)
    mixer = make(any_name, **options)
    x = torch.randn(2, 8, D, dtype=torch.float64, requires_grad=True)
    y, _ = mixer(x)
    y.square().sum().backward()
    for n, p in [("x", x), *mixer.named_parameters()]:
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), n


def test_gradients_through_the_state(make, name: str) -> None:
    """Pieces and steps have the gradients of the whole."""
    mixer = make(name)
    x = torch.randn(2, 7, D, dtype=torch.float64, requires_grad=True)
    wanted = [x, *mixer.parameters()]
    w = torch.randn(2, 7, D, dtype=torch.float64)
    whole = torch.autograd.grad((mixer(x)[0] * w).sum(), wanted)
    a, state = mixer(x[:, :3])
    b, state = mixer(x[:, 3:5], state)
    c, _ = token_by_token(mixer, x[:, 5:], state)
    pieces = torch.autograd.grad((torch.cat([a, b, c], 1) * w).sum(), wanted)
    for p, q in zip(pieces, whole, strict=True):
        close(p, q, 1e-11)


def test_gradcheck(make, any_name: str) -> None:
    mixer = make(any_name, 4, **({"num_heads": 2} if has_heads(any_name) else {}))
    x = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, mask=mask)[0], x)


def test_dtypes(make, name: str) -> None:
    """float64 is float64 everywhere; bfloat16 runs, and is as near to float64 as its digits allow."""
    exact = make(name, d_model=16)
    x = torch.randn(2, 12, 16)
    y, state = exact(x.double())
    assert y.dtype == torch.float64
    for part in (state.recurrent, state.window, state.keys):
        assert part is None or part.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16):
        rounded = make(name, d_model=16).to(dtype)
        xr = x.to(dtype)
        reference, _ = rounded.double()(xr.double())
        low = make(name, d_model=16).to(dtype)
        y, state = low(xr)
        ys, _ = token_by_token(low, xr)
        assert y.dtype == ys.dtype == dtype
        if state.recurrent is not None:
            assert state.recurrent.dtype == torch.float32
        for got in (y, ys):
            assert (got - reference).abs().max() <= 16 * torch.finfo(dtype).eps * reference.abs().max()


def decays(mixer: RecurrentMixer, x: Tensor) -> list[Tensor]:
    """Of the core; and β, where it is no factor of an erasure, which is an operand like any other."""
    tokens = Tokens(torch.arange(x.shape[1]).expand(x.shape[:2]), None)
    with torch.no_grad():
        core = mixer.operands(x, mixer.initial_state(len(x), dtype=x.dtype), tokens)
    la = core.log_decay
    found = [*(la if isinstance(la, OuterDecay) else (la,)), core.log_decay_v]
    found.append(core.beta if core.erase is None else None)
    return [d for d in found if d is not None]


def test_decays_are_never_low(make, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 they are the float32 functions of what the maps before them, rounded, return."""
    mixer = make(name, d_model=16).bfloat16()
    if not isinstance(mixer, RecurrentMixer):
        pytest.skip("no core")
    x = torch.randn(4, 6, 16).bfloat16()
    found = decays(mixer, x)
    assert all(d.dtype == torch.float32 for d in found)
    if name in ("rwkv4", "rwkv6", "mamba", "longhorn"):
        return  # whose maps are not all layers of torch

    def rounded(module, inputs, output):
        window = output[1:] if isinstance(output, tuple) else ()
        y = (output[0] if window else output).bfloat16().float()
        return (y, *window) if window else y

    blocks = rg_lru.block_linear
    monkeypatch.setattr(rg_lru, "block_linear", lambda *args: blocks(*args).bfloat16().float())
    for layer in mixer.float().modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv1d)):
            layer.register_forward_hook(rounded)
    for a, b in zip(found, decays(mixer, x.float()), strict=True):
        assert ((a - b).abs() <= 1e-5 * b.abs()).double().mean() > 0.5  # a tie may be rounded either way


def test_autocast(name: str) -> None:
    mixer = build(name, 16)
    x = torch.randn(2, 6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
        z, _ = mixer.step(x[:, 0], state)
    assert torch.isfinite(y).all() and torch.isfinite(z).all()


@pytest.mark.parametrize("d_model", [1, 7, 24, 64, 96])
def test_any_width(name: str, d_model: int) -> None:
    mixer = build(name, d_model=d_model)
    y, state = mixer(torch.randn(1, 3, d_model))
    assert y.shape == (1, 3, d_model)
    mixer.step(torch.randn(1, d_model), state)


def test_state_can_be_cut_from_its_history(make, any_name: str) -> None:
    _, state = make(any_name)(torch.randn(1, 3, D, dtype=torch.float64, requires_grad=True))
    for f in fields(state):
        part = getattr(state.detach(), f.name)
        assert part is None or not part.requires_grad


# ------------------------------------------------------------------ the map


def test_map_is_the_core(make, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the map weigh the core's values into its outputs, before `weigh` adds what the readout does."""
    mixer = make(name)
    if not isinstance(mixer, RecurrentMixer):
        pytest.skip("has no core")
    if any(getattr(type(mixer), f) is not getattr(RecurrentMixer, f) for f in ("attention_map", "core_map")):
        pytest.skip("has a map of its own, tested in test_maps.py")
    x = torch.randn(2, 7, D, dtype=torch.float64)
    monkeypatch.setattr(type(mixer), "weigh", RecurrentMixer.weigh)
    weights = mixer.attention_map(x)
    groups = weights.shape[1]
    assert weights.shape == (2, groups, 7, 7)
    assert not weights.triu(1).any()
    core = mixer.operands(
        x, mixer.initial_state(2, dtype=x.dtype), Tokens(torch.arange(7).expand(2, 7), None)
    )
    v = core.v
    single = core.log_decay_v is None and groups == v.shape[2]  # a map for every head, or means of them
    if not single:
        # A mean over channels weighs values that are the same in all of them.
        v = torch.randn(2, 7, 1, 1, dtype=torch.float64).expand_as(v)
    options = {"beta": core.beta, "erase": core.erase, "scale": core.scale, "read": core.read}
    o, _ = recurrence(core.q, core.k, v, core.log_decay, core.log_decay_v, **options)
    if not single:
        o = o.flatten(2).unflatten(-1, (groups, -1)).mean(-1, keepdim=True)
        v = v[:, :, :1, :1].expand(2, 7, groups, 1)
    close(torch.einsum("bhts,bshv->bthv", weights, v), o)


@pytest.mark.parametrize("d_model", [6, 64])
def test_map_of_no_tokens(make, any_name: str, d_model: int) -> None:
    mixer = make(any_name, d_model)
    x = torch.randn(2, 3, d_model, dtype=torch.float64)
    nothing = mixer.attention_map(x[:, :0])
    assert nothing.shape == (2, mixer.attention_map(x).shape[1], 0, 0)
    assert nothing.dtype == x.dtype


def test_rows_of_normalised_maps_sum_to_one(make) -> None:
    for name in ("linear-attention", "softmax"):
        rows = make(name).attention_map(torch.randn(1, 6, D, dtype=torch.float64)).sum(-1)
        close(rows, torch.ones_like(rows))


# ------------------------------------------------------------------ errors


def test_errors(name: str) -> None:
    mixer = build(name, 8)
    x = torch.randn(2, 5, 8)
    _, state = mixer(x)
    mask = torch.ones(2, 5, dtype=torch.bool)
    for call, message in (
        (
            lambda: mixer(torch.randn(2, 5, 9)),
            r"x has shape \[2, 5, 9\]; accepted: \[B, T, d_model\] with d_model = 8",
        ),
        (lambda: mixer(x[0]), "x has shape"),
        (lambda: mixer.step(x), "x_t has shape"),
        (lambda: mixer(x, mask=mask[:, 1:]), "mask has shape"),
        (lambda: mixer.step(x[:, 0], mask=mask), "mask has shape"),
        (lambda: mixer(x[:1], state), r"state.position has shape \[2\]; accepted: \[N\] = \[1\]"),
        (
            lambda: mixer(x[:1], mask=mask[:1], cu_seqlens=torch.tensor([0, 5])),
            "mask was given together with cu_seqlens",
        ),
        (lambda: mixer(x, cu_seqlens=torch.tensor([0, 5])), "batch size 2"),
        (lambda: mixer(x[:1], cu_seqlens=torch.tensor([0, 4])), "cu_seqlens is"),
        (lambda: mixer(x, form="fast"), "form is 'fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"mask has dtype torch.float32; accepted: bool"):
        mixer(x, mask=mask.float())
    with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
        mixer(x.long())
    with pytest.raises(TypeError, match="state is tuple; accepted: a MixerState"):
        mixer(x, (state.position,))
    part = "keys" if state.recurrent is None else "recurrent"
    with pytest.raises(ValueError, match=rf"state\.{part} has shape"):
        mixer(x, replace(state, **{part: getattr(state, part)[..., 1:]}))
    if state.window is not None:
        short = replace(state, window=state.window[:, 1:])
        with pytest.raises(ValueError, match=r"state.window has shape"):
            mixer(x, short)


def test_input_is_like_the_parameters(name: str) -> None:
    mixer = build(name, 8)
    x = torch.randn(1, 5, 8)
    wide = "has dtype torch.float64; accepted: the dtype of the mixer's parameters, torch.float32"
    away = "is on meta; accepted: the device of the mixer's parameters, cpu"
    for argument, call in (
        ("x", mixer),
        ("x", mixer.attention_map),
        ("x_t", lambda x: mixer.step(x[:, 0])),
    ):
        with pytest.raises(TypeError, match=f"^{argument} {wide}"):
            call(x.double())
        with pytest.raises(TypeError, match=f"^{argument} has dtype torch.bfloat16"):
            call(x.bfloat16())
        with pytest.raises(ValueError, match=f"^{argument} {away}"):
            call(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            call(x.bfloat16())
            with pytest.raises(TypeError, match=f"^{argument} {wide}"):  # autocast leaves it as it is
                call(x.double())


def test_parts_of_the_state_have_their_dtypes(name: str) -> None:
    mixer = build(name, 8)
    x = torch.randn(2, 5, 8)
    _, state = mixer(x)
    for f in fields(state):
        part = getattr(state, f.name)
        if part is None:
            continue
        changed = replace(state, **{f.name: part.int()})
        accepted = "int64" if f.name == "position" else "float64, float32, bfloat16 or float16"
        message = rf"^state\.{f.name} has dtype torch.int32; accepted: {accepted}"
        with pytest.raises(TypeError, match=message):
            mixer(x, changed)
        with pytest.raises(TypeError, match=message):
            mixer.step(x[:, 0], changed)


def test_constructor_errors(any_name: str) -> None:
    with pytest.raises(ValueError, match="d_model is 0"):
        build(any_name, 0)
    if not has_heads(any_name):
        return
    with pytest.raises(ValueError, match=r"num_heads is 3; accepted: a divisor of .*d_model = (8|16)"):
        build(any_name, 8, num_heads=3)
    with pytest.raises(ValueError, match="num_heads is 0"):
        build(any_name, 8, num_heads=0)
    assert build(any_name, 8, num_heads=3, head_dim=4)(torch.randn(1, 2, 8))[0].shape == (1, 2, 8)


def test_options_are_checked() -> None:
    for options, message in (
        ({"lower_bound": 1.0}, "lower_bound is 1.0; accepted: from 0 to below 1"),
        ({"layer_idx": 3, "num_layers": 3}, "layer_idx is 3; accepted: from 0 to num_layers - 1 = 2"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"lower_bound": LowerBounds(2, 5)}, r"lower_bound holds \[2, 5\] bounds"),
        ({"expand": 0}, "expand is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            HGRN(8, **options)
    with pytest.raises(ValueError, match="conv_width is 0"):
        build("mamba", 8, conv_width=0)
    with pytest.raises(ValueError, match="num_kv_heads is 3; accepted: a divisor of num_heads = 4"):
        build("softmax", 8, num_heads=4, num_kv_heads=3)


def test_registry() -> None:
    with pytest.raises(ValueError, match=r"name is 'mambo'; accepted: 'linear-attention', .*'softmax'"):
        build("mambo", 8)
    for name, entry in REGISTRY.items():
        assert entry.name == name
        assert entry.family and entry.decay and entry.gating and "arXiv:" in entry.paper


def test_backend_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "torch" reaches the core; "triton" must not refuse a step that needs a gradient."""
    seen = []

    def note(*args, backend, **options):  # type: ignore[no-untyped-def]
        seen.append(backend)
        return step(*args, **options)

    monkeypatch.setattr(base, "step", note)
    layer = build("linear-attention", 8)
    for layer.backend in ("auto", "torch", "triton"):
        layer.step(torch.randn(1, 8))
    assert seen == ["auto", "torch", "auto"]
