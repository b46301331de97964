"""The Triton kernels in Triton's interpreter, on the CPU, against a plain loop and autograd of that loop.

TRITON_INTERPRET must be set before Triton is imported, so these tests run in their own process, which
test_triton.py starts. By hand: TRITON_INTERPRET=1 pytest tests/kernels/test_triton_interpreted.py
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: test_triton.py runs it so", allow_module_level=True)
pytest.importorskip("triton")

from mixerzoo.kernels import triton_core
from mixerzoo.kernels.triton_core import chunk_launch, launch, problem

Inputs = list[Any]  # q, k, v, log_decay, outer, log_decay_v, beta, x, y, initial_state, cu_seqlens
DEFAULTS: dict[str, Any] = {
    "scale": 0.7, "read": "after", "reverse": False, "precision": None, "schedule": "fused",
    "chunk_size": None,
}  # fmt: skip


def loop(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, outer: Tensor | None,
    log_decay_v: Tensor | None, beta: Tensor | None, x: Tensor | None, y: Tensor | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, scale: float, read: str, reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition, step by step."""
    B, T, H, V = v.shape
    K = q.shape[-1]
    q, k = (z.repeat_interleave(H // z.shape[2], 2) for z in (q, k))
    x, y = (None if z is None else z.repeat_interleave(H // z.shape[2], 2) for z in (x, y))
    a, b = v.new_zeros(B, T, H, K), v.new_zeros(B, T, H, V)
    if outer is not None and log_decay is not None:
        reset = log_decay.isinf()[..., None]  # kept apart: inf * 0 would make autograd's dA NaN
        a = torch.where(reset, -torch.inf, log_decay.masked_fill(reset[..., 0], 0.0)[..., None] * outer)
    elif log_decay is not None:
        a = log_decay if log_decay.dim() == 4 else log_decay.expand(B, T, H)[..., None].expand(B, T, H, K)
    if log_decay_v is not None:
        b = log_decay_v.expand(B, T, H, V)
    bounds = [0, T] if cu_seqlens is None else cu_seqlens.tolist()
    outputs: dict[int, Tensor] = {}
    states = []
    for n, (start, stop) in enumerate(itertools.pairwise(bounds)):
        S = v.new_zeros(B, H, K, V)
        if initial_state is not None:
            S = initial_state if cu_seqlens is None else initial_state[n : n + 1]
        for t in reversed(range(start, stop)) if reverse else range(start, stop):
            before = S
            S = a[:, t].exp()[..., None] * b[:, t].exp()[..., None, :] * S
            write = v[:, t]
            if beta is not None:
                write = beta[:, t, :, None] * (write - torch.einsum("bhk,bhkv->bhv", k[:, t], S))
            if x is not None and y is not None:
                S = S + x[:, t, :, :, None] * torch.einsum("bhk,bhkv->bhv", y[:, t], before)[:, :, None]
            S = S + k[:, t, :, :, None] * write[:, :, None]
            outputs[t] = scale * torch.einsum("bhk,bhkv->bhv", q[:, t], S if read == "after" else before)
        states.append(S)
    return torch.stack([outputs[t] for t in range(T)], 1) if T else v, torch.cat(states)


def make(
    decay: str | None, decay_v: str | None, B: int, T: int, H: int, K: int, V: int, *, Hq: int | None = None,
    Hk: int | None = None, initial: bool = True, cu_seqlens: list[int] | None = None, odd: bool = True, seed:
    int = 0, erase: str | None = None,
) -> Inputs:  # fmt: skip
    """Random float64 inputs. odd: some log-decays are 0, -inf, -1000 and -12. erase: "delta", with keys of
    length 1 and beta in [0, 2], or "general"."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def logs(*shape: int) -> Tensor:
        x = -normal(*shape).abs() / 2
        if odd:
            u = torch.rand(shape, generator=g)
            for i, value in enumerate((0.0, -torch.inf, -1000.0, -12.0)):
                x[(u >= i * 0.08) & (u < (i + 1) * 0.08)] = value
        return x

    log_decay = outer = log_decay_v = None
    if decay == "head":
        log_decay = logs(H)
    elif decay == "scalar":
        log_decay = logs(B, T, H)
    elif decay == "vector":
        log_decay = logs(B, T, H, K)
    elif decay == "outer":
        log_decay, outer = -logs(B, T, H), -normal(H, K).abs() - 0.1
    if decay_v is not None:
        log_decay_v = logs(H, V) if decay_v == "constant" else logs(B, T, H, V)
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    state = normal(N, H, K, V) if initial else None
    packed = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    q, k, v = normal(B, T, Hq or H, K), normal(B, T, Hk or H, K), normal(B, T, H, V)
    beta = x = y = None
    if erase == "delta":
        k = torch.nn.functional.normalize(k, dim=-1)
        beta = 2 * torch.rand(B, T, H, generator=g, dtype=torch.float64)
    if erase == "general":
        x, y = (torch.nn.functional.normalize(normal(B, T, heads or H, K), dim=-1) for heads in (Hq, Hk))
    return [q, k, v, log_decay, outer, log_decay_v, beta, x, y, state, packed]


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Largest error, relative to the largest value."""
    assert got.shape == want.shape
    if want.numel():
        assert got.isfinite().all()
        error = (got.double() - want.double()).abs().max().item()
        assert error <= tolerance * max(want.double().abs().max().item(), 1e-30), error


def check(inputs: Inputs, tolerance: float, dtype: torch.dtype = torch.float64, **options: Any) -> None:
    """Outputs, states and all gradients against the loop in float64 (on the rounded inputs)."""
    options = DEFAULTS | options
    given = cast(inputs, dtype)
    exact = cast(given, torch.float64)
    leaves = [x.detach().requires_grad_() for x in exact[:10] if x is not None]
    waiting = iter(leaves)
    exact = [next(waiting) if x is not None else None for x in exact[:10]] + exact[10:]
    o, state = loop(*exact, options["scale"], options["read"], options["reverse"])
    got_o, got_state, _ = launch.forward(*given, **options)
    assert got_o.dtype == given[2].dtype and got_o.is_contiguous()
    assert got_state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(got_o, o, tolerance)
    close(got_state, state, tolerance)
    g = torch.Generator().manual_seed(1)
    do = torch.randn(o.shape, generator=g, dtype=torch.float64).to(dtype)
    dstate = torch.randn(state.shape, generator=g, dtype=torch.float64).to(got_state.dtype)
    want = torch.autograd.grad((o * do).sum() + (state * dstate).sum(), leaves, allow_unused=True)
    got = launch.backward(do, dstate, None, *given, **options)
    assert [x is None for x in got] == [x is None for x in given[:10]]
    present = [x for x in given[:10] if x is not None]
    for x, got_x, want_x in zip(present, [x for x in got if x is not None], want, strict=True):
        assert got_x.dtype == x.dtype
        close(got_x, torch.zeros_like(got_x) if want_x is None else want_x, tolerance)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel fails to write is NaN, not what memory happened to hold."""
    real = problem.Problem.empty
    monkeypatch.setattr(
        problem.Problem, "empty", lambda *args, **kwargs: real(*args, **kwargs).fill_(torch.nan)
    )


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """plans(field=value, ...): override fields of every plan of the chunk regime."""
    real = chunk_launch.chunk_plan

    def override(**fields: Any) -> None:
        monkeypatch.setattr(
            chunk_launch, "chunk_plan", lambda *a, **b: dataclasses.replace(real(*a, **b), **fields)
        )

    yield override


KINDS = [
    (decay, decay_v)
    for decay in (None, "head", "scalar", "vector", "outer")
    for decay_v in (None, "constant", "full")
]
ORDERS = [("after", False), ("before", False), ("after", True), ("before", True)]


@pytest.mark.parametrize("read,reverse", ORDERS)
@pytest.mark.parametrize("decay,decay_v", KINDS)
def test_chunk(decay: str | None, decay_v: str | None, read: str, reverse: bool) -> None:
    """Every kind of decay, order and direction; in turn fused and split."""
    schedule = ("fused", "split")[(KINDS.index((decay, decay_v)) + ORDERS.index((read, reverse))) % 2]
    inputs = make(decay, decay_v, 1, 41, 2, 5, 3, Hq=1)
    check(inputs, 1e-12, read=read, reverse=reverse, schedule=schedule, regime="chunk", chunk_size=16)


@pytest.mark.parametrize("read,reverse", ORDERS)
@pytest.mark.parametrize("decay,decay_v", KINDS)
def test_recurrent(decay: str | None, decay_v: str | None, read: str, reverse: bool) -> None:
    inputs = make(decay, decay_v, 1, 18, 2, 3, 2, Hk=1)
    check(inputs, 1e-12, read=read, reverse=reverse, regime="recurrent")


ERASED = [
    (erase, decay) for erase in ("delta", "general") for decay in (None, "head", "scalar", "vector", "outer")
]


@pytest.mark.parametrize("schedule,read", [("fused", "after"), ("split", "before")])
@pytest.mark.parametrize("erase,decay", ERASED)
def test_erased(erase: str, decay: str | None, read: str, schedule: str) -> None:
    """The delta rule and the general form of it, with every kind of decay; in turn both ways in time."""
    reverse = (ERASED.index((erase, decay)) + (read == "after")) % 2 == 0
    inputs = make(decay, None, 1, 20, 2, 5, 3, Hk=1, erase=erase)
    check(inputs, 1e-11, read=read, reverse=reverse, schedule=schedule, chunk_size=16)


@pytest.mark.parametrize("T", [0, 1, 17, 65])
@pytest.mark.parametrize("erase,decay", [("delta", "scalar"), ("general", "scalar"), ("delta", "vector")])
def test_lengths_erased_float32(erase: str, decay: str, T: int) -> None:
    check(make(decay, None, 1, T, 1, 16, 17, initial=T != 65, erase=erase), 1e-5, torch.float32)


@pytest.mark.parametrize("decay,schedule", [(None, "fused"), ("vector", "split")])
@pytest.mark.parametrize("beta", [2.0, None])
def test_identical_keys(beta: float | None, decay: str | None, schedule: str) -> None:
    """The system is then as far from the identity as it gets: with beta = 2 each step is a reflection."""
    inputs = make(decay, None, 1, 65, 1, 16, 16, odd=False, erase="delta")
    inputs[1] = inputs[1][:, :1].expand_as(inputs[1]).clone()
    if beta is not None:
        inputs[6] = torch.full_like(inputs[6], beta)
    if decay is not None:
        inputs[3] = inputs[3] / 100
    # The interpreter's products round as numpy's on this CPU do: 1.1e-5 on one of them.
    check(inputs, 2e-5, torch.float32, schedule=schedule)


@pytest.mark.parametrize("C", [16, 32])
@pytest.mark.parametrize("erase,decay", [("delta", "scalar"), ("delta", "vector"), ("general", "vector")])
def test_blocks_of_erasure(erase: str, decay: str, C: int, plans: Any) -> None:
    """Chunks of 16 and 32 steps, several blocks of values, keys that do not fill a block."""
    plans(C=C, segment=C, BV=16)
    inputs = make(decay, None, 1, 50, 1, 17, 18, erase=erase)
    inputs = [x.mT.contiguous().mT if isinstance(x, Tensor) and x.dim() > 2 else x for x in inputs]
    check(inputs, 1e-11, read="before" if C == 16 else "after")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("erase,schedule", [("delta", "split"), ("general", "fused")])
def test_packed_erased(erase: str, schedule: str, reverse: bool) -> None:
    inputs = make("scalar", None, 1, 43, 2, 3, 4, cu_seqlens=[0, 0, 5, 22, 22, 43, 43], erase=erase)
    check(inputs, 1e-11, schedule=schedule, reverse=reverse, chunk_size=16)


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("erase", ["delta", "general"])
def test_half_erased(erase: str, dtype: torch.dtype, tolerance: float) -> None:
    check(make("scalar", None, 1, 33, 1, 16, 16, odd=False, erase=erase), tolerance, dtype)


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("erase,decay", [("delta", "scalar"), ("general", "vector"), ("delta", "vector")])
def test_resets_of_erasure(erase: str, decay: str, read: str) -> None:
    """A log-decay of -inf has gradient exactly 0, and the sizes of others do not matter to it."""
    inputs = make(decay, None, 1, 40, 1, 3, 2, erase=erase)
    inputs = cast(inputs, torch.float32)
    o, state, _ = launch.forward(*inputs, **DEFAULTS)
    grads = launch.backward(torch.randn_like(o), state, None, *inputs, **(DEFAULTS | {"read": read}))
    assert inputs[3].isinf().any()
    assert all(x.isfinite().all() for x in grads if x is not None)
    assert (grads[3][inputs[3].isinf()] == 0).all()
    assert (grads[3][inputs[3] == -12] != 0).any()


@pytest.mark.parametrize("schedule", ["fused", "split"])
@pytest.mark.parametrize("erase,decay,reverse", [("delta", "vector", True), ("general", "scalar", False)])
def test_masked_steps_erase_nothing(erase: str, decay: str, reverse: bool, schedule: str) -> None:
    """As if they were not there, whatever they hold; of them only the query has a gradient."""
    inputs = make(decay, None, 1, 40, 1, 16, 17, erase=erase)
    mask = torch.rand(1, 40, generator=torch.Generator().manual_seed(5)) < 0.7

    def kept(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, mask[0]]

    dirty = [
        torch.where(mask.reshape(1, 40, *(1 for _ in x.shape[2:])), x, torch.nan) if x is not None else None
        for x in inputs[:9]
    ]
    dirty[0] = inputs[0]
    options = DEFAULTS | {"reverse": reverse, "schedule": schedule}
    do = torch.randn(1, 40, 1, 17, dtype=torch.float64)
    do[:, ~mask[0]] = 0
    short = [*map(kept, inputs[:9]), *inputs[9:]]
    o, state, _ = launch.forward(*short, **options)
    want = launch.backward(kept(do), state, None, *short, **options)
    got_o, got_state, _ = launch.forward(*dirty, *inputs[9:], mask, **options)
    got = launch.backward(do, state, None, *dirty, *inputs[9:], mask, **options)
    assert got_o.isfinite().all()
    close(kept(got_o), o, 1e-11)
    close(got_state, state, 1e-11)
    close(got[9], want[9], 1e-11)
    for x, y in zip(got[:9], want[:9], strict=True):
        if x is not None:
            close(kept(x), y, 1e-11)
            assert not x[:, ~mask[0]].any()


@pytest.mark.parametrize("erase", ["delta", "general"])
def test_missing_gradients_of_erasure(erase: str) -> None:
    """do or dstate may be None: as zeros."""
    inputs = make("scalar", None, 1, 20, 1, 3, 4, erase=erase)
    o, state, _ = launch.forward(*inputs, **DEFAULTS)
    for do, dstate in ((o, None), (None, state)):
        got = launch.backward(do, dstate, None, *inputs, **DEFAULTS)
        zeros = [torch.zeros_like(x) if y is None else y for x, y in ((o, do), (state, dstate))]
        want = launch.backward(*zeros, None, *inputs, **DEFAULTS)
        for x, y in zip(got, want, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)


@pytest.mark.parametrize("decay,decay_v,read", [("vector", None, "after"), ("outer", "full", "before")])
def test_longer_tree(decay: str, decay_v: str | None, read: str, plans: Any) -> None:
    """Chunks of 32 steps, which wide heads take: one more level."""
    plans(C=32, segment=32)
    for schedule in ("fused", "split"):
        check(make(decay, decay_v, 1, 71, 1, 5, 3), 1e-12, read=read, schedule=schedule, regime="chunk")


@pytest.mark.parametrize("T", [0, 1, 2, 17, 63, 64, 65, 100])
@pytest.mark.parametrize("decay,decay_v", [("scalar", None), ("vector", None), ("vector", "full")])
def test_lengths_float32(decay: str, decay_v: str | None, T: int) -> None:
    check(make(decay, decay_v, 1, T, 1, 16, 17, initial=T % 2 == 0), 1e-5, torch.float32)


@pytest.mark.parametrize("T", [0, 1, 2, 17, 65])
@pytest.mark.parametrize("K,V", [(1, 4), (4, 1), (3, 2)])
def test_lengths_elementwise(T: int, K: int, V: int) -> None:
    check(make("vector", "full", 1, T, 1, K, V, initial=T % 2 == 0), 1e-5, torch.float32)


@pytest.mark.parametrize("regime", ["chunk", "recurrent"])
@pytest.mark.parametrize("K,V", [(1, 1), (1, 20), (20, 1), (17, 18)])
def test_shapes(K: int, V: int, regime: str, plans: Any) -> None:
    """Several blocks of keys and values, the last one ragged; heads that do not fill a block."""
    plans(BK=16, BV=16)
    T, H = (20, 3) if regime == "chunk" else (9, 3) if K * V <= 20 else (3, 1)
    check(make("vector", "full", 1, T, H, K, V, Hq=1, Hk=H), 1e-12, regime=regime)
    check(make("scalar", None, 2, T, 1, K, V), 1e-12, regime=regime)
    check(make("outer", None, 1, T, H, K, V, Hk=1), 1e-12, regime=regime)


def test_mamba_shape() -> None:
    """Heads are channels, all of which share one q and one k: several blocks of heads, one of them ragged."""
    check(make("outer", None, 1, 10, 9, 16, 1, Hq=1, Hk=1), 1e-12)
    check(make("outer", None, 1, 10, 8, 16, 1, Hq=2, Hk=4), 1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("schedule", ["fused", "split"])
@pytest.mark.parametrize("decay,decay_v", [("scalar", None), ("vector", "full")])
def test_packed(decay: str, decay_v: str | None, schedule: str, reverse: bool) -> None:
    """Sequences of any length, empty ones too, keep to themselves."""
    inputs = make(decay, decay_v, 1, 67, 2, 3, 4, cu_seqlens=[0, 0, 5, 37, 37, 67, 67])
    check(inputs, 1e-12, schedule=schedule, reverse=reverse, regime="chunk", chunk_size=16)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_elementwise(reverse: bool) -> None:
    check(make("vector", None, 1, 23, 2, 3, 2, cu_seqlens=[0, 9, 9, 10, 23]), 1e-12, reverse=reverse)


@pytest.mark.parametrize("regime", ["chunk", "recurrent"])
def test_strides(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any strides, read in place; and the 64-bit offsets that only huge tensors need."""
    q, k, v, log_decay, _, log_decay_v, *_, state, _ = make("vector", "full", 2, 12, 2, 3, 4)
    inputs: Inputs = [
        q.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), k[:, :, :1].expand(2, 12, 2, 3),
        torch.stack([v, v], -1)[..., 1], log_decay.transpose(1, 2).contiguous().transpose(1, 2), None,
        log_decay_v[:1].expand(2, 12, 2, 4), None, None, None, state.mT.contiguous().mT, None,
    ]  # fmt: skip
    check([x.detach().clone() if isinstance(x, Tensor) else x for x in inputs], 1e-12, regime=regime)
    check(inputs, 1e-12, regime=regime)
    monkeypatch.setattr(problem.Problem, "near", lambda self, C: False)
    check(inputs, 1e-12, regime=regime)


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("decay,K,V", [("scalar", 16, 16), ("vector", 16, 16), ("vector", 4, 4)])
def test_half(decay: str, K: int, V: int, dtype: torch.dtype, tolerance: float) -> None:
    check(make(decay, None, 1, 33, 1, K, V, odd=False), tolerance, dtype)


def test_mixed_dtypes() -> None:
    """Each gradient has the dtype of its input; float64 anywhere means float64 sums."""
    inputs = make("vector", None, 1, 20, 1, 16, 16)
    mixed = [inputs[0].bfloat16(), inputs[1].bfloat16(), inputs[2].bfloat16(), inputs[3].float(), *inputs[4:]]
    o, state, _ = launch.forward(*mixed, **DEFAULTS)
    assert o.dtype == torch.bfloat16 and state.dtype == torch.float64
    grads = launch.backward(o, state, None, *mixed, **DEFAULTS)
    assert [x.dtype for x in grads if x is not None] == [x.dtype for x in mixed if x is not None]


@pytest.mark.parametrize("regime", ["chunk", "recurrent"])
def test_missing_gradients(regime: str) -> None:
    """do or dstate may be None: as zeros."""
    inputs = make("vector", None, 1, 20, 1, 3, 4)
    options = DEFAULTS | {"regime": regime}
    o, state, _ = launch.forward(*inputs, **options)
    for do, dstate in ((o, None), (None, state)):
        want = launch.backward(
            torch.zeros_like(o) if do is None else do, torch.zeros_like(state) if dstate is None else dstate,
            None, *inputs, **options,
        )  # fmt: skip
        got = launch.backward(do, dstate, None, *inputs, **options)
        for x, y in zip(got, want, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)


@pytest.mark.parametrize("regime", ["chunk", "recurrent"])
@pytest.mark.parametrize("decay,decay_v", [("scalar", None), ("vector", "full"), ("outer", None)])
@pytest.mark.parametrize("read", ["after", "before"])
def test_resets(decay: str, decay_v: str | None, read: str, regime: str) -> None:
    """A log-decay of -inf has gradient exactly 0; that of e^-12 is accurate relative to its own size."""
    inputs = make(decay, decay_v, 1, 40, 1, 3, 2)
    if decay != "outer":
        inputs[3] = torch.where(torch.rand(inputs[3].shape) < 0.3, -torch.inf, -12.0).double()
    inputs = cast(inputs, torch.float32)
    exact = [x.double().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    options = DEFAULTS | {"read": read, "regime": regime, "chunk_size": 16}
    o, _ = loop(*exact, options["scale"], read, False)
    do = torch.randn_like(o)
    grads = launch.backward(do.float(), None, None, *inputs, **options)
    for i in (3, 4, 5):
        if inputs[i] is not None:
            assert grads[i].isfinite().all()
            assert (grads[i][inputs[i].isinf()] == 0).all()
    if decay == "outer":
        return
    (want,) = torch.autograd.grad((o * do).sum(), [exact[3]])
    # accurate to the size of the gradient's own terms: those of a twin problem on absolute values
    sizes = [x.detach().abs() if i in (0, 1, 2, 9) and x is not None else x for i, x in enumerate(exact)]
    sizes[3] = exact[3].detach().requires_grad_()
    bound, _ = loop(*sizes, options["scale"], read, False)
    (bound,) = torch.autograd.grad((bound * do.abs()).sum(), [sizes[3]])
    assert ((grads[3] - want).abs() <= 3e-6 * bound).all()


@pytest.mark.parametrize("decay,decay_v", [("scalar", None), ("vector", None), ("vector", "full")])
@pytest.mark.parametrize("read", ["after", "before"])
def test_bitwise_on_a_lattice(decay: str, decay_v: str | None, read: str) -> None:
    """q, k, v in {-1, 0, 1}, decays in {1, 1/2, 0}: everything is a small dyadic rational, so equal means
    equal."""
    g = torch.Generator().manual_seed(3)
    inputs = make(decay, decay_v, 1, 64, 1, 16, 16, initial=False)
    for i in (0, 1, 2):
        inputs[i] = torch.randint(-1, 2, inputs[i].shape, generator=g).double()
    for i in (3, 5):
        if inputs[i] is not None:
            halvings = torch.tensor([0.0, -1.0, -torch.inf], dtype=torch.float64)
            inputs[i] = (
                halvings[torch.randint(0, 3, inputs[i].shape, generator=g)] * torch.tensor(2.0).double().log()
            )
    want, want_state = loop(*inputs, 1.0, read, False)
    o, state, _ = launch.forward(*cast(inputs, torch.float32), **(DEFAULTS | {"scale": 1.0, "read": read}))
    assert torch.equal(o.double(), want) and torch.equal(state.double(), want_state)


def bits(*results: tuple[Tensor | None, ...]) -> bool:
    """Whether all results are the same to the last bit."""
    return all(
        (x is None and y is None) or torch.equal(x, y)
        for other in results[1:]
        for x, y in zip(results[0], other, strict=True)
    )


@pytest.mark.parametrize(
    "decay,decay_v,erase",
    [
        ("scalar", None, None), ("vector", None, None), ("vector", "full", None), ("scalar", None, "delta"),
        ("vector", None, "delta"), ("scalar", None, "general"),
    ],
)  # fmt: skip
def test_bits_do_not_depend_on_schedule_batch_or_run(
    decay: str, decay_v: str | None, erase: str | None, plans: Any
) -> None:
    """fused and split, a row alone and among others, now and again."""
    T = 34
    plans(C=16, segment=16)
    inputs = cast(make(decay, decay_v, 2, T, 1, 16, 20, odd=False, erase=erase), torch.float32)
    do = torch.randn(2, T, 1, 20)
    found = {}
    for schedule in ("fused", "split"):
        options = DEFAULTS | {"schedule": schedule}
        o, state, _ = launch.forward(*inputs, **options)
        found[schedule] = (o, state, *launch.backward(do, state, None, *inputs, **options))
        row = [x[1:2] if isinstance(x, Tensor) else x for x in inputs]
        o1, state1, _ = launch.forward(*row, **options)
        alone = (o1, state1, *launch.backward(do[1:2], state1, None, *row, **options))
        assert bits(alone, tuple(None if x is None else x[1:2] for x in found[schedule]))
    o, state, _ = launch.forward(*inputs, **DEFAULTS)
    assert bits(found["fused"], found["split"], (o, state, *found["fused"][2:]))


@pytest.mark.parametrize("schedule", ["fused", "split"])
@pytest.mark.parametrize("read,reverse", [("after", False), ("before", True)])
@pytest.mark.parametrize(
    "decay,decay_v", [("scalar", None), ("vector", None), ("outer", "full"), ("head", None)]
)
def test_masked_steps(decay: str, decay_v: str | None, read: str, reverse: bool, schedule: str) -> None:
    """A masked step neither writes nor decays, whatever it holds; of it only the query has a gradient."""
    inputs = make(decay, decay_v, 2, 36, 1, 16, 5)
    mask = torch.rand(2, 36, generator=torch.Generator().manual_seed(5)) < 0.7

    def kept(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if x.shape[:2] != mask.shape:  # constant decays
            x = x.expand(*mask.shape, *x.shape)
        here = mask.reshape(*mask.shape, *(1 for _ in x.shape[2:]))
        return torch.where(here, x, torch.zeros((), dtype=x.dtype))

    plain = [
        inputs[0],
        kept(inputs[1]),
        kept(inputs[2]),
        kept(inputs[3]),
        inputs[4],
        kept(inputs[5]),
        *(kept(x) for x in inputs[6:9]),
        *inputs[9:],
    ]
    dirty = list(inputs)
    for i in (1, 2):
        dirty[i] = torch.where(mask[..., None, None], inputs[i], torch.nan)
    options = {"read": read, "reverse": reverse, "schedule": schedule, "regime": "chunk", "chunk_size": 16}
    options = DEFAULTS | options
    do = torch.randn(inputs[2].shape, dtype=torch.float64)
    o, state, _ = launch.forward(*plain, **options)
    want = launch.backward(do, state, None, *plain, **options)
    got_o, got_state, _ = launch.forward(*dirty, mask, **options)
    got = launch.backward(do, state, None, *dirty, mask, **options)
    close(got_o, o, 1e-12)
    close(got_state, state, 1e-12)
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        if x is None:
            continue
        y = y if i in (0, 4, 9) else kept(y)
        if x.shape != y.shape:
            y = y.sum((0, 1))
        close(x, y, 1e-12)


class Recurrence(torch.autograd.Function):
    """The public pair forward, backward as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        ctx.options = options
        return triton_core.forward(*inputs, **options)[:2]

    @staticmethod
    def backward(ctx: Any, do: Tensor, dstate: Tensor) -> tuple[Any, ...]:
        return (None, *triton_core.backward(do, dstate, None, *ctx.saved_tensors, **ctx.options), None)


@pytest.mark.parametrize("K,V", [(16, 16), (1, 2)])
@pytest.mark.parametrize(
    "decay,decay_v,read", [("scalar", None, "before"), ("vector", "full", "after"), ("outer", None, "after")]
)
def test_gradcheck(decay: str, decay_v: str | None, read: str, K: int, V: int) -> None:
    inputs = make(decay, decay_v, 1, 4, 1, K, V, odd=False)
    if inputs[5] is not None:
        inputs[5][0, 1] = -torch.inf
    if decay == "vector":
        inputs[3][0, 2] = -torch.inf
    options = DEFAULTS | {"read": read}
    leaves = [x.requires_grad_() if x is not None and not x.isinf().any() else x for x in inputs[:10]]

    def function(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        return Recurrence.apply(options, *tensors, None)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_available() -> None:
    x = torch.zeros(1)
    assert triton_core.available() and triton_core.available(x, None)
    assert not triton_core.available(x, x.to("meta"))


def test_too_many_heads_for_a_grid() -> None:
    q = torch.zeros(1, 1, 1, 16)
    v = torch.zeros(1, 1, 65536, 16)
    with pytest.raises(ValueError, match="65536 heads"):
        launch.forward(q, q, v, *[None] * 8, **DEFAULTS)
