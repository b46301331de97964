"""The elementwise regime of the Triton kernels (K or V below 16), in Triton's interpreter on the CPU.

test_recurrent.py runs this file in a process of its own: the interpreter is chosen when Triton is imported.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: test_recurrent.py runs it so", allow_module_level=True)
pytest.importorskip("triton")

from mixerzoo.equivalence.cost import count
from mixerzoo.kernels import OuterDecay, recurrence
from mixerzoo.kernels.triton_core import launch, problem, recurrent_launch
from oracle import error

OPTIONS: dict[str, Any] = {
    "scale": 0.7, "read": "after", "reverse": False, "precision": None, "schedule": "fused",
    "chunk_size": None, "regime": "recurrent",
}  # fmt: skip


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel fails to write is NaN, not what memory happened to hold."""
    real = problem.Problem.empty
    monkeypatch.setattr(
        problem.Problem, "empty", lambda *args, **kwargs: real(*args, **kwargs).fill_(torch.nan)
    )


def operands(
    B: int,
    T: int,
    H: int,
    K: int,
    V: int,
    kind: str,
    dtype: torch.dtype = torch.float64,
    shared: bool = False,
) -> list[Any]:
    """q, k, v, log_decay, outer, log_decay_v, initial_state. kind: outer; both (over keys and values);
    constant (one per head, and one per head and value). Some decays are 0, some 1."""
    g = torch.Generator().manual_seed(T * H * K + V)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def logs(*shape: int) -> Tensor:
        x, u = -normal(*shape).abs() / 2, torch.rand(shape, generator=g)
        return x.masked_fill(u < 0.1, -torch.inf).masked_fill(u > 0.9, 0.0)

    log_decay = outer = log_decay_v = None
    if kind == "outer":
        log_decay, outer = -logs(B, T, H).clamp_min(-1e3), logs(H, K)
    if kind == "both":
        log_decay, log_decay_v = logs(B, T, H, K), logs(B, T, H, V)
    if kind == "constant":
        log_decay, log_decay_v = -normal(H).abs(), -normal(H, V).abs()
    heads = 1 if shared else H
    return [
        normal(B, T, heads, K), normal(B, T, heads, K), normal(B, T, H, V), log_decay, outer, log_decay_v,
        normal(B, H, K, V),
    ]  # fmt: skip


def run(xs: list[Any], cotangents: tuple[Tensor, Tensor], **options: Any) -> list[Tensor]:
    """Outputs, final state and all gradients of the public operator."""
    leaves = [None if x is None else x.clone().requires_grad_() for x in xs]
    q, k, v, log_decay, outer, log_decay_v, state = leaves
    decay = log_decay if outer is None else OuterDecay(log_decay, outer)
    found = recurrence(q, k, v, decay, log_decay_v, initial_state=state, scale=0.5, **options)
    grads = torch.autograd.grad(found, [x for x in leaves if x is not None], cotangents)
    return [*found, *grads]


def cotangents(xs: list[Any], states: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    B, T, H, V = xs[2].shape
    dtype = xs[2].dtype
    do = torch.randn(B, T, H, V, generator=g, dtype=dtype)
    return do, torch.randn(states, H, xs[0].shape[3], V, generator=g, dtype=dtype)


SHAPES = [
    # H, K, V, decays, shared q and k.        groups of keys; blocks of channels
    (70, 6, 1, "outer", True),  # four, three in use; two of heads, the second ragged
    (3, 5, 30, "both", False),  # four, three in use; several of values
    (2, 1, 70, "both", True),  # one key, two blocks of values
    (3, 9, 2, "constant", True),
]


@pytest.mark.parametrize("H,K,V,kind,shared", SHAPES)
def test_is_the_torch_backend(H: int, K: int, V: int, kind: str, shared: bool) -> None:
    """Every block and group that a shape can have; 19 steps are three blocks, the last one ragged."""
    xs = operands(1, 19, H, K, V, kind, shared=shared)
    d = cotangents(xs, 1)
    want = run(xs, d, backend="torch", form="recurrent")
    for x, y in zip(run(xs, d, backend="triton", form="recurrent"), want, strict=True):
        assert error(x, y) < 1e-12


@pytest.mark.parametrize("read,reverse", [("after", False), ("before", True)])
@pytest.mark.parametrize("H,K,V,kind", [(3, 5, 1, "outer"), (2, 1, 4, "both"), (2, 5, 3, "constant")])
@pytest.mark.parametrize("packed", [False, True])
def test_padding_may_hold_anything(
    H: int, K: int, V: int, kind: str, read: str, reverse: bool, packed: bool
) -> None:
    """NaN in k, v and decays of masked steps reaches nothing, and their gradients are 0 exactly."""
    B, T = (1, 26) if packed else (2, 13)
    xs = operands(B, T, H, K, V, kind, shared=kind == "outer")
    mask = torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.6
    options: dict[str, Any] = {"form": "recurrent", "read": read, "reverse": reverse, "mask": mask}
    if packed:
        options["cu_seqlens"] = torch.tensor([0, 11, 11, 26])
        xs[6] = xs[6].expand(3, H, K, V)
    d = cotangents(xs, xs[6].shape[0])
    want = run(xs, d, backend="torch", **options)
    dirty = list(xs)
    for i in (1, 2, 3, 5):
        if xs[i] is not None and xs[i].shape[:2] == (B, T):
            dirty[i] = xs[i].clone()
            dirty[i][~mask] = torch.nan
    # the decays are looked at on the CPU, in the steps that count
    got = run(dirty, d, backend="triton", **options)
    for x, y in zip(got, want, strict=True):
        assert error(x, y) < 1e-12
    names = [i for i, x in enumerate(xs) if x is not None]
    for i, x in zip(names, got[2:], strict=True):
        if i in (1, 2, 3, 5) and xs[i].shape[:2] == (B, T):
            assert not x[~mask].any()


def arguments(xs: list[Any]) -> tuple[Any, ...]:
    """Of a launch: these operands, none that erase, not packed, no mask."""
    return (*xs[:6], None, None, None, xs[6], None, None)


def both_passes(xs: list[Any], save: bool) -> tuple[list[Tensor], Tensor | None]:
    if xs[4] is not None:
        xs = [*xs[:4], xs[4].clamp_min(-1e30), *xs[5:]]  # as the operator hands it over
    o, state, saved = launch.forward(*arguments(xs), save=save, **OPTIONS)
    do, dstate = torch.ones_like(o) + o, torch.ones_like(state) - state
    grads = launch.backward(do, dstate, saved, *arguments(xs), **OPTIONS)
    return [o, state, *(x for x in grads if x is not None)], saved


@pytest.mark.parametrize(
    "T,K,V,kind,dtype,plan",
    [
        (26, 1, 3, "constant", torch.float32, (24, 1)),
        (50, 5, 1, "outer", torch.float32, (16, 2)),
        (19, 5, 1, "outer", torch.float64, (8, 4)),
    ],
)
def test_saved_states_change_nothing(
    T: int, K: int, V: int, kind: str, dtype: torch.dtype, plan: tuple[int, int]
) -> None:
    """Bitwise the same gradients whether forward kept the states or backward makes them."""
    xs = operands(1, T, 32 if K > 1 else 2, K, V, kind, dtype, shared=True)
    options = {name: value for name, value in OPTIONS.items() if name != "regime"}
    found = recurrent_launch.plan(problem.Problem(*arguments(xs), **options))
    assert plan == (found.C, found.SUB)
    kept, saved = both_passes(xs, True)
    again, nothing = both_passes(xs, False)
    assert nothing is None and saved is not None and saved.isfinite().all()
    assert saved.shape == launch.saved_shape(*arguments(xs), **OPTIONS)
    assert saved.dtype == dtype
    for x, y in zip(kept, again, strict=True):
        assert torch.equal(x, y)


def test_a_row_is_the_same_alone() -> None:
    """Neither results nor gradients depend, in any bit, on what else is in the batch."""
    for K, V, kind in ((1, 5, "both"), (6, 1, "outer")):
        xs = operands(3, 21, 4, K, V, kind, torch.float32, shared=True)
        batch, _ = both_passes(xs, True)
        for b in (0, 2):
            row = [x if i == 4 or x is None else x[b : b + 1] for i, x in enumerate(xs)]
            alone, _ = both_passes(row, True)
            for x, y in zip(alone, batch, strict=True):
                if y.shape[0] == 3:  # that of A is a sum over the batch
                    assert torch.equal(x, y[b : b + 1])


def test_float32_is_accurate_over_segments() -> None:
    for H, K, V, kind in ((2, 1, 6, "both"), (33, 5, 2, "outer")):
        xs = operands(1, 55, H, K, V, kind, torch.float32, shared=True)
        d = cotangents(xs, 1)
        exact = [None if x is None else x.double() for x in xs]
        want = run(exact, (d[0].double(), d[1].double()), backend="torch", form="recurrent")
        for x, y in zip(run(xs, d, backend="triton", form="recurrent"), want, strict=True):
            assert error(x, y) < 2e-6


# Of the least possible, where every input is read once and every output written once.
BARS = {"hgrn": (1.02, 1.05), "mamba1": (1.2, 1.6)}


@pytest.mark.parametrize("operator", BARS)
def test_memory_traffic(operator: str) -> None:
    T = 96

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape).abs().requires_grad_()

    decay = log_decay_v = None
    if operator == "hgrn":
        q, k, v = torch.ones(1, T, 1, 1), torch.ones(1, T, 1, 1), normal(1, T, 1, 64)
        log_decay_v = normal(1, T, 1, 64).detach().neg().requires_grad_()
    else:
        q, k, v = normal(1, T, 1, 16), normal(1, T, 1, 16), normal(1, T, 64, 1)
        decay = OuterDecay(normal(1, T, 64), normal(64, 16).detach().neg().requires_grad_())
    tensors = [x for x in (q, k, v, *(decay or ()), log_decay_v) if x is not None]
    leaves = [x for x in tensors if x.requires_grad]
    inputs, most = sum(x.nbytes for x in tensors), BARS[operator]
    with count(operations=False) as forward:
        o, state = recurrence(q, k, v, decay, log_decay_v, backend="triton", schedule="fused")
    assert forward.moved <= most[0] * (inputs + o.nbytes + state.nbytes)
    do = torch.ones_like(o)
    with count(operations=False) as backward:
        grads = torch.autograd.grad(o, leaves, do)
    least = inputs + do.nbytes + sum(x.nbytes for x in grads)
    assert backward.moved <= most[1] * least
    largest = T * 64 * 4  # no T x channels x keys tensor is written
    assert backward.written <= 6 * largest
