"""States that forward leaves for the gradient: which, and that they are the ones a sweep would find."""

import functools
from itertools import pairwise

import pytest
import torch

from mixerzoo.kernels import ops, recurrence
from mixerzoo.kernels.choose import Problem, scan_block
from mixerzoo.kernels.forms import carry
from mixerzoo.kernels.gradients import states_back
from mixerzoo.kernels.order import AFTER
from mixerzoo.kernels.steps import Saved


def problem(T, K, offsets=None, **options):
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, T, 2, K, generator=g, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, T, 2, 5, generator=g, dtype=torch.float64)
    la = -torch.rand(1, T, 2, K, generator=g, dtype=torch.float64)
    n = 1 if offsets is None else len(offsets) - 1
    S = torch.randn(n, 2, K, 5, generator=g, dtype=torch.float64)
    seqlens = None if offsets is None else torch.tensor(offsets)
    x = ops.Operands(q, k, v, la, None, None, None, None, None, S, seqlens)
    return x, ops.Options(
        **{
            "scale": 1.0, "read": "after", "reverse": False, "form": "chunk", "backend": "torch",
            "schedule": "auto", "precision": None, "chunk_size": 4, "save": True, **options,
        }
    )  # fmt: skip


@pytest.mark.parametrize("form", ["chunk", "recurrent", "scan"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "T, K, offsets",
    [(n, 3, None) for n in (0, 64, 65, 200)] + [(500, 300, None), (257, 3, [0, 64, 64, 133, 257])],
)
def test_the_gradient_from_saved_states(form, reverse, T, K, offsets, monkeypatch):
    """Ends before, at and after a state that is saved; fewer states than blocks; packed sequences."""
    x, o = problem(T, K, offsets, form=form, reverse=reverse)
    every = ops._every(x, o)
    _, _, kept = ops.torch_forward(x, o)
    assert kept.shape == ops.saved_shape(x, every)
    lengths = [T] if offsets is None else [b - a for a, b in pairwise(offsets)]
    assert len(kept) >= sum(max(0, n - 1) // every for n in lengths)
    do, dS = torch.randn_like(x.v), torch.randn_like(x.initial_state)
    carry, carried = ops.gradients.CARRIES[form], []

    def counted(*args):
        carried[-1] += 1
        return carry(*args)

    if form != "scan":  # known by its identity
        monkeypatch.setitem(ops.gradients.CARRIES, form, counted)
    found = []
    for states in (None, kept):
        carried.append(0)
        found.append(ops.torch_backward(do, dS, x, o, states))
    for a, b in zip((*found[1][0], found[1][1]), (*found[0][0], found[0][1]), strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    assert carried[0] == 0 or carried[1] < carried[0]


def erasing(kind, T, K, offsets=None, **options):
    x, o = problem(T, K, offsets, **options)
    g = torch.Generator().manual_seed(1)
    a, b = (torch.nn.functional.normalize(y, dim=-1) for y in (x.k, x.q))
    if kind == "beta":
        return x._replace(k=a, beta=2 * torch.rand(1, T, 2, generator=g, dtype=torch.float64)), o
    return x._replace(erase_x=-a, erase_y=b), o


@pytest.mark.parametrize("kind", ["beta", "erase"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "T, K, offsets",
    [(n, 3, None) for n in (0, 3, 64, 65, 203)] + [(500, 300, None), (257, 3, [0, 64, 64, 133, 257])],
)
def test_the_gradient_from_saved_solutions(kind, reverse, T, K, offsets, monkeypatch):
    """No system is solved again but by columns, for the gradient; states between those saved are found."""
    x, o = erasing(kind, T, K, offsets, reverse=reverse)
    _, _, kept = ops.torch_forward(x, o)
    assert kept.shape == ops.saved_shape(x, ops._every(x, o))
    do, dS = torch.randn_like(x.v), torch.randn_like(x.initial_state)
    swept = ops.torch_backward(do, dS, x, o)

    def never(*_):
        raise AssertionError("solved again")

    monkeypatch.setattr(ops.delta, "solution", never)
    found = ops.torch_backward(do, dS, x, o, kept)
    for a, b in zip((*found[0], found[1]), (*swept[0], swept[1]), strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("make", [problem, functools.partial(erasing, "beta")])
def test_at_most_twice_the_numbers_of_the_values(make):
    for K, T in ((3, 500), (40, 500), (300, 5000)):
        x, o = make(T, K)
        assert ops.torch_forward(x, o)[2].numel() <= 2 * x.v.numel()


def test_nothing_is_saved_without_a_gradient_or_where_blocks_differ():
    x, o = problem(100, 3)
    assert ops.torch_forward(x, o._replace(save=False))[2] is None
    assert ops.torch_forward(x, o._replace(form="parallel"))[2] is None
    x, o = erasing("beta", 100, 3)
    for form in ("parallel", "recurrent"):
        assert ops.torch_forward(x, o._replace(form=form))[2] is None


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_one_block_needs_no_state_but_its_start(form, monkeypatch):
    monkeypatch.setitem(ops.gradients.CARRIES, form, None)  # which is not called
    x, _ = problem(20, 3)
    q = x.q.clone().requires_grad_()
    recurrence(q, x.k, x.v, x.log_decay, initial_state=x.initial_state, form=form)[0].sum().backward()
    assert q.grad.any()


def test_states_inside_a_block_are_no_starts():
    """States that lie where no block of the gradient starts are an error, not another gradient."""
    steps = ops._steps(*problem(24, 3), 0, 24, torch.float64, None)
    saved = Saved(every=8, states=torch.zeros(2, 1, 2, 3, 5, dtype=torch.float64))
    with pytest.raises(AssertionError, match="inside a block"):
        list(states_back(steps, torch.zeros(1, 2, 3, 5), AFTER, 3, carry, saved))


@pytest.mark.parametrize("heads", [1, 100, 512, 1024, 1536, 40_000])
@pytest.mark.parametrize("K", [1, 16])
def test_blocks_of_a_scan_s_gradient_are_halves_of_its_own(heads, K):
    p = Problem(1, 4096, heads, K, 1, K > 1, K == 1)
    assert scan_block(p) == 2 * scan_block(p, gradient=True)
