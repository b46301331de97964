"""Numba's kernels against the torch forms: every decay, layout and option; and when they are taken."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mixerzoo.kernels import OuterDecay, numba_core, ops, recurrence
from oracle import DECAYS, VALUE_DECAYS, arguments, error

numba = pytest.importorskip("numba")

from mixerzoo.kernels.numba_core import launch, problem, threads, vectors  # noqa: E402


@pytest.fixture(autouse=True)
def divided(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Several threads however small the problem, and NaN in memory that a kernel fails to write."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(launch, "SHARE", 1)
    real = launch._memory

    def memory(x: Any, *shape: int, zero: bool = False) -> Tensor:
        return real(x, *shape, zero=zero) if zero else real(x, *shape).fill_(math.nan)

    monkeypatch.setattr(launch, "_memory", memory)
    yield
    torch.set_num_threads(before)


def operands(*args: Any, sequences: int | None = None, **named: Any) -> list[Any]:
    """q, k, v, log_decay, A, log_decay_v, initial_state."""
    torch.manual_seed(0)
    q, k, v, la, lb, state = arguments(*args, **named)
    if sequences is not None:
        state = torch.randn(sequences, *state.shape[1:], dtype=torch.float64).to(state.dtype)
    la, A = la if isinstance(la, OuterDecay) else (la, None)
    return [q, k, v, la, A, lb, state]


def run(xs: list[Any], backend: str, **options: Any) -> list[Tensor]:
    """Outputs, final state and the gradients of all operands."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in xs]
    q, k, v, la, A, lb, state = leaves
    decay = la if A is None else OuterDecay(la, A)
    form = "recurrent"
    found = recurrence(
        q, k, v, decay, lb, initial_state=state, scale=0.7, backend=backend, form=form, **options
    )
    g = torch.Generator().manual_seed(1)
    given = [torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype) for y in found]
    return [*found, *torch.autograd.grad(found, [x for x in leaves if x is not None], given)]


def same(xs: list[Any], most: float = 1e-13, **options: Any) -> None:
    for got, want in zip(run(xs, "numba", **options), run(xs, "torch", **options), strict=True):
        assert error(got, want) < most


# ------------------------------------------------------------------ the same function


@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_every_decay(decay: str, value_decay: str) -> None:
    """Channels of several heads in one vector, which share keys and have queries of their own."""
    same(operands(2, 40, 3, 5, 2, decay, value_decay, heads=(3, 1)), read="before")


@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_every_decay_packed_and_reversed(decay: str, value_decay: str) -> None:
    """Heads that fill vectors; sequences that begin within blocks, one of them empty."""
    xs = operands(1, 70, 3, 5, 20, decay, value_decay, heads=(3, 1), sequences=4)
    same(xs, reverse=True, cu_seqlens=torch.tensor([0, 33, 33, 34, 70]))


@pytest.mark.parametrize(
    "H,K,V,heads,decay,value_decay",
    [
        (150, 6, 1, (1, 1), "outer", "none"),  # Mamba-1: ranges of channels, the last one ragged
        (1, 1, 150, (1, 1), "none", "BTHV"),  # HGRN: one key
        (1, 1, 150, (1, 1), "BTH", "BTHV"),  # two decays of the one key
        (1, 1, 20, (1, 1), "none", "none"),
        (70, 3, 1, (2, 35), "outer", "none"),  # groups of 35 and of 2 heads
        (40, 3, 2, (2, 1), "BTHK", "none"),  # ranges within the heads that share a query
        (2, 4, 100, (2, 2), "BTHK", "none"),  # several ranges of a head
        (2, 4, 100, (1, 2), "BTH", "HV"),
        (5, 20, 3, (5, 5), "BTHK", "none"),  # more keys than values
    ],
)
def test_every_layout(H: int, K: int, V: int, heads: Any, decay: str, value_decay: str) -> None:
    for B, T in ((2, 33), (1, 1)):
        same(operands(B, T, H, K, V, decay, value_decay, heads=heads))


def test_one_key_from_memory_to_memory() -> None:
    """Whole vectors, side by side in memory; the same where they are not, and where sequences are packed."""
    for V in (64, 70):
        for decay, value_decay in (("none", "BTHV"), ("none", "HV")):
            xs = operands(1, 70, 1, 1, V, decay, value_decay, sequences=3)
            packed = torch.tensor([0, 33, 40, 70])
            same(xs, read="before", reverse=True, cu_seqlens=packed)
            same(
                [x if x is None or x.ndim < 4 else x.repeat(1, 1, 1, 2)[..., ::2] for x in xs],
                cu_seqlens=packed,
            )
    same(operands(2, 40, 64, 1, 1, "BTH", heads=(1, 1)))


@pytest.mark.parametrize("H,V,decay,value_decay", [(20, 1, "outer", "none"), (1, 20, "none", "BTHV")])
def test_padding_may_hold_anything(H: int, V: int, decay: str, value_decay: str) -> None:
    xs = operands(2, 40, H, 3, V, decay, value_decay, heads=(1, 1))
    mask = torch.rand(2, 40) < 0.6
    dirty = [x.clone() if x is not None and x.shape[:2] == (2, 40) else x for x in xs]
    for i in (1, 2, 3, 5):
        if dirty[i] is not None:
            dirty[i][~mask] = math.nan
    for got, want in zip(run(dirty, "numba", mask=mask), run(xs, "torch", mask=mask), strict=True):
        assert error(got, want) < 1e-13


def test_any_strides_and_no_steps() -> None:
    q, k, v, la, A, lb, state = operands(2, 35, 3, 4, 5, "BTHK", "BTHV")
    crossed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, la, lb)]
    same([crossed[0], crossed[1], crossed[2], crossed[3], A, crossed[4], state.mT.contiguous().mT])
    xs = [None if x is None or x.ndim < 3 else x[:, :0] for x in (q, k, v, la, A, lb)]
    out, final = recurrence(*xs[:4], xs[5], initial_state=state, backend="numba")
    assert out.shape == (2, 0, 3, 5) and torch.equal(final, state)


@pytest.mark.parametrize("dtype,most", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_other_dtypes(dtype: torch.dtype, most: float) -> None:
    for shape, decays in (((20, 4, 1), ("outer", "none")), ((1, 1, 40), ("none", "BTHV"))):
        xs = operands(1, 300, *shape, *decays, dtype=dtype, heads=(1, 1))
        exact = run([None if x is None else x.double() for x in xs], "torch")
        for got, want in zip(run(xs, "numba"), exact, strict=True):
            assert error(got.double(), want) < most


def test_a_reset_is_one() -> None:
    """exp(dt·A) at A = -inf: 0 for dt > 0, however small, 1 for dt = 0; and both gradients are 0 there."""
    dt = torch.tensor([1.0, 0.0, 1e-30, 0.5])[None, :, None].requires_grad_()
    A = torch.tensor([[-math.inf]]).requires_grad_()
    one = torch.ones(1, 4, 1, 1)
    o, _ = recurrence(one, one, one, OuterDecay(dt, A), backend="numba")
    assert o.flatten().tolist() == [1.0, 2.0, 1.0, 1.0]
    for g in torch.autograd.grad(o.sum(), (dt, A)):
        assert not g.any()


def test_no_gradient_where_the_decay_is_zero() -> None:
    q, k, v, _, _, lb, _ = operands(1, 40, 1, 1, 30, "none", "BTHV", dtype=torch.float32)
    lb.requires_grad_()
    (g,) = torch.autograd.grad(recurrence(q, k, v, None, lb, backend="numba")[0].sum(), lb)
    gone = torch.isneginf(lb) | (lb == -1000)
    assert gone.any() and not g[gone].any() and g[~gone].any()


def test_derivatives_of_the_gradient() -> None:
    q, k, v, la, A, _, state = operands(1, 5, 2, 2, 2, "outer", extremes=False)
    xs = [x.requires_grad_() for x in (q, k, v, la, A, state)]

    def f(q: Tensor, k: Tensor, v: Tensor, la: Tensor, A: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return recurrence(q, k, v, OuterDecay(la, A), initial_state=state, backend="numba")

    assert torch.autograd.gradcheck(f, xs) and torch.autograd.gradgradcheck(f, xs)


# ------------------------------------------------------------------ how it is computed


@pytest.mark.parametrize("dtype,most", [(torch.float32, 2.0), (torch.float64, 2.0)])
def test_exp_is_accurate(dtype: torch.dtype, most: float) -> None:
    """In ulps, over all arguments with a normal result."""
    lowest = vectors.LOWEST[torch.finfo(dtype).bits]
    x = torch.linspace(lowest + 1e-3, 1.0, 100_000, dtype=dtype)
    x = torch.cat([x, -torch.logspace(-12, 0, 999, dtype=dtype), torch.zeros(1, dtype=dtype)])
    x = torch.cat([x, torch.tensor([-math.inf, -1e4, -1e30, 0.0], dtype=dtype)])
    x = x[: len(x) // 16 * 16] if len(x) % 16 == 0 else torch.cat([x, x.new_zeros(16 - len(x) % 16)])

    @numba.njit
    def over(values):
        for i in range(0, len(values), vectors.lanes(values)):
            vectors.store(values, i, vectors.exp(vectors.load(values, i)))

    got = x.clone()
    over(got.numpy())
    want = x.double().exp() if dtype == torch.float32 else x.exp()  # the machine's own, to an ulp
    there = x > lowest
    ulps = (got.double() - want).abs() / (want * torch.finfo(dtype).eps)
    assert ulps[there].max() < most
    assert (got[x == 0] == 1).all() and not got[~there].any()


@pytest.mark.parametrize("kind", [("outer", "none", 70, 1), ("none", "BTHV", 1, 150)])
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Torch's threads or others, or one: what is no sum over channels is the same in every bit."""
    decay, value_decay, H, V = kind
    xs = operands(2, 70, H, 3, V, decay, value_decay, heads=(1, 1), dtype=torch.float32)
    ours = run(xs, "numba")
    monkeypatch.setattr(threads, "_team", lambda: None)
    for got, want in zip(run(xs, "numba"), ours, strict=True):
        assert torch.equal(got, want)
    torch.set_num_threads(1)
    alone = run(xs, "numba")
    assert all(torch.equal(a, b) for a, b in zip(alone[:2], ours[:2], strict=True))
    assert all(error(a, b) < 1e-6 for a, b in zip(alone, ours, strict=True))


def test_states_are_kept_for_the_gradient() -> None:
    """One in 32, and the same gradients without them."""
    xs = operands(2, 70, 20, 3, 1, "outer", heads=(1, 1), dtype=torch.float32)
    q, k, v, la, A, _, state = xs
    options = {"scale": 1.0, "read": "after", "reverse": False}
    given = (q, k, v, la, A, None, state, None)
    o, _, saved, legal = numba_core.forward(*given, save=True, **options)
    assert legal and saved.shape == (2 * 3, 3, 20) == numba_core.saved_shape(v.shape, 3, None)
    assert problem.BLOCK >= 16
    kept = numba_core.backward(o, None, saved, *given, **options)
    again = numba_core.backward(o, None, None, *given, **options)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_without_a_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written, kernels are compiled for the process."""
    from numba.core import caching

    launch._kernel.cache_clear()
    monkeypatch.setattr(caching.CodeLibraryCacheImpl, "_locator_classes", [])
    same(operands(1, 5, 1, 1, 20, "none", "BTHV"))
    launch._kernel.cache_clear()


def test_importing_imports_no_numba() -> None:
    code = "import sys, mixerzoo.mixers; print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# ------------------------------------------------------------------ as torch sees it, and when it is taken


def test_what_torch_asks_of_an_operator() -> None:
    q, k, v, _, _, lb, state = operands(1, 40, 1, 1, 20, "none", "BTHV", dtype=torch.float32)
    xs = [x.requires_grad_() for x in (q, k, v)]
    args = (*xs, None, None, lb.requires_grad_(), None, None, None, state.requires_grad_(), None, None)
    options = (1.0, "after", False, "auto", "numba", "auto", None, None, True)
    torch.library.opcheck(ops.recurrence_op, (*args, *options))

    def f(v: Tensor) -> Tensor:
        return recurrence(q, k, v, None, lb, backend="numba")[0]

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(v), f(v))


@pytest.mark.parametrize("bad", [0.5, math.nan])
@pytest.mark.parametrize(
    "decay,value_decay", [("BTH", "none"), ("BTHK", "none"), ("outer", "none"), ("none", "BTHV")]
)
def test_bad_values_are_refused(bad: float, decay: str, value_decay: str) -> None:
    for K in (1, 3):
        q, k, v, la, A, lb, _ = operands(1, 40, 2, K, 3, decay, value_decay)
        worse = lb if la is None else A if A is not None else la
        worse.view(-1)[-1] = bad
        said = []
        for backend in ("torch", "numba"):
            with pytest.raises(ValueError, match="accepted: natural logs of decays") as e:
                recurrence(q, k, v, la if A is None else OuterDecay(la, A), lb, backend=backend)
            said.append(str(e.value))
        assert said[0] == said[1]


@pytest.mark.parametrize("bad", [-0.5, math.inf, math.nan])
def test_bad_steps_are_refused(bad: float) -> None:
    """dt of dt · A; rounding below 0 is none."""
    q, k, v, dt, A, _, _ = operands(1, 40, 20, 3, 1, "outer", heads=(1, 1), extremes=False)
    dt[0, 33, 7] = -1e-6
    recurrence(q, k, v, OuterDecay(dt, A), backend="numba")
    dt[0, 33, 7] = bad
    with pytest.raises(ValueError, match=r"log_decay\.dt contains .*; accepted: finite and not negative"):
        recurrence(q, k, v, OuterDecay(dt, A), backend="numba")
    mask = torch.ones(1, 40, dtype=torch.bool)
    mask[0, 33] = False
    recurrence(q, k, v, OuterDecay(dt, A), mask=mask, backend="numba")


def test_auto_takes_it_for_long_elementwise_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = numba_core.forward

    def forward(*args: Any, **named: Any) -> Any:
        calls.append("numba")
        return real(*args, **named)

    monkeypatch.setattr(numba_core, "forward", forward)

    def taken(T: int = 4096, H: int = 1, K: int = 1, V: int = 128, **named: Any) -> bool:
        calls.clear()
        x, y = torch.ones(1, T, 1, K), torch.zeros(1, T, H, V)
        recurrence(x, x, y, None, y, **named)
        return bool(calls)

    assert taken() and taken(H=128, V=1)
    assert not taken(T=16)
    assert not taken(backend="torch") and not taken(form="scan") and not taken(chunk_size=16)
    assert not taken(T=256, K=16, V=64)
    beta = torch.ones(1, 4096, 1)
    calls.clear()
    x, y = torch.ones(1, 4096, 1, 1), torch.zeros(1, 4096, 1, 128)
    recurrence(x, x, y, beta=beta)
    assert not calls
    monkeypatch.setattr(numba_core, "FOUND", False)
    assert not taken()
    with pytest.raises(
        ValueError, match=r"backend is 'numba' where Numba is not installed.*mixerzoo\[numba\]"
    ):
        recurrence(x, x, y, backend="numba")


def test_what_it_does_not_do() -> None:
    x = torch.ones(1, 3, 1, 4)
    with pytest.raises(
        ValueError, match="form is 'chunk' with backend 'numba'; accepted: 'auto' or 'recurrent'"
    ):
        recurrence(x, x, x, backend="numba", form="chunk")
    with pytest.raises(ValueError, match="backend is 'numba' with beta or erase"):
        recurrence(x, x, x, backend="numba", beta=torch.ones(1, 3, 1))
    with pytest.raises(
        ValueError, match="backend is 'numba' with tensors on meta; accepted: tensors on the CPU"
    ):
        recurrence(*(x.to("meta"),) * 3, backend="numba")
