"""Gradients are those of the loop, to second order, and lose no digits where decays are strong."""

import math
import subprocess
import sys

import pytest
import torch

from mixerzoo.kernels import OuterDecay, recurrence, step
from oracle import DECAYS, VALUE_DECAYS, arguments, error, leaves, log_decays, loop

FORMS = ("parallel", "chunk", "recurrent", "scan")


def rebuild(template, tensors):
    """The arguments again, with other tensors in the places of theirs."""
    tensors = iter(tensors)
    out = []
    for x in template:
        if isinstance(x, OuterDecay):
            out.append(OuterDecay(next(tensors), next(tensors)))
        else:
            out.append(None if x is None else next(tensors))
    return out


def both(args, options, **extra):
    """Gradients through the operator and through the loop, of one random functional."""
    xs = [x.detach().requires_grad_() for x in leaves(*args)]
    *operands, s0 = rebuild(args, xs)
    results = []
    torch.manual_seed(99)
    w = None
    for f in (
        lambda: loop(*operands, s0, **options),
        lambda: recurrence(*operands, initial_state=s0, **options, **extra),
    ):
        o, s = f()
        w = w or (torch.randn_like(o), torch.randn_like(s))
        grads = torch.autograd.grad((o * w[0]).sum() + (s * w[1]).sum(), xs, allow_unused=True)
        results.append([torch.zeros_like(x) if g is None else g for g, x in zip(grads, xs, strict=True)])
    return results


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_first_order(decay, value_decay, form):
    torch.manual_seed(0)
    for T, chunk_size in ((0, None), (1, None), (21, 8), (65, None)):
        for read in ("after", "before"):
            for reverse in (False, True):
                args = arguments(2, T, 6, 3, 4, decay, value_decay, heads=(2, 3))
                want, got = both(
                    args, {"read": read, "reverse": reverse, "scale": 0.7}, form=form, chunk_size=chunk_size
                )
                for a, b in zip(want, got, strict=True):
                    assert b.shape == a.shape
                    assert torch.isfinite(b).all()
                    assert float((a - b).abs().max() if a.numel() else 0) < 1e-11 * (
                        1 + float(a.abs().max() if a.numel() else 0)
                    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_gradcheck_and_gradgradcheck(decay, value_decay, form):
    torch.manual_seed(1)
    args = list(arguments(1, 5, 2, 2, 3, decay, value_decay, heads=(1, 2), extremes=False))
    for i in (3, 4):  # some decays exactly 0
        if isinstance(args[i], torch.Tensor):
            args[i] = args[i] - 0.01
            args[i].view(-1)[::4] = -math.inf
    xs = [x.detach().requires_grad_() for x in leaves(*args)]

    def f(*tensors):
        *operands, s0 = rebuild(args, tensors)
        return recurrence(
            *operands, initial_state=s0, form=form, chunk_size=2, read="before" if decay == "H" else "after"
        )

    assert torch.autograd.gradcheck(f, xs)
    assert torch.autograd.gradgradcheck(f, xs, fast_mode=True)


def test_third_order():
    torch.manual_seed(2)
    q, k, v, la, _, _ = arguments(1, 4, 1, 2, 2, "BTHK", extremes=False)
    orders = []
    for f in (loop, recurrence):
        x = la.detach().requires_grad_()
        y = f(q, k, v, x)[0].pow(2).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, x, create_graph=True)
            y = (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()
        orders.append(y)
    assert error(orders[1][None], orders[0][None]) < 1e-10


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize("decay", ["H", "BTH", "BTHK"])
def test_zero_decay_has_gradient_exactly_zero(decay, form):
    torch.manual_seed(3)
    q, k, v, la, lb, _ = arguments(1, 130, 3, 4, 5, decay, "BTHV", dtype=torch.float32)
    la, lb = la.requires_grad_(), lb.requires_grad_()
    o, s = recurrence(q, k, v, la, lb, form=form)
    (o.sum() + s.sum()).backward()
    assert torch.isneginf(lb).any()
    assert (la.grad[torch.isneginf(la)] == 0).all()
    assert (lb.grad[torch.isneginf(lb)] == 0).all()
    assert la.grad.isfinite().all()


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_strong_decay_keeps_its_digits(form):
    """Relative error of dlog a at a = e^-12 in float32: a difference of cumulative sums has none left."""
    torch.manual_seed(4)
    T, K = 512, 16
    q, k, v = (torch.randn(1, T, 1, K) for _ in range(3))
    do = torch.randn(1, T, 1, K)
    grads = {}
    for name, dtype, f in (
        ("exact", torch.float64, loop),
        ("ours", torch.float32, lambda *a: recurrence(*a, form=form)),
    ):
        la = torch.full((1, T, 1, K), -12.0, dtype=dtype, requires_grad=True)
        o, _ = f(q.to(dtype), k.to(dtype), v.to(dtype), la)
        grads[name] = torch.autograd.grad((o * do.to(dtype)).sum(), la)[0].double()
    # the formula that the straddle form replaces, in the same precision
    x = [t[:, :, 0] for t in (q, k, v, do)]
    decay = torch.exp(
        torch.full((T, T), -12.0) * (torch.arange(T)[:, None] - torch.arange(T)).clamp_min(0)
    ).tril()
    P, dP = (x[0] @ x[1].mT) * decay, (x[3] @ x[2].mT) * decay
    dq, dk = dP @ x[1], dP.mT @ x[0]
    assert P.isfinite().all()
    difference = (x[0] * dq - x[1] * dk).flip(1).cumsum(1).flip(1)[:, :, None].double()

    def relative(g):
        # Entries that cancel to nearly nothing say nothing about the formula.
        big = grads["exact"].abs() > 1e-2 * grads["exact"].abs().median()
        return float(((g - grads["exact"]).abs() / grads["exact"].abs())[big].median())

    assert relative(grads["ours"]) < 1e-6
    assert relative(difference) > 1e-3


def test_second_order_matches_the_loop():
    torch.manual_seed(5)
    for decay, value_decay in (("outer", "HV"), ("BTHK", "BTHV"), ("BTH", "none"), ("H", "BTHV")):
        args = arguments(2, 11, 4, 3, 2, decay, value_decay, heads=(1, 2))
        xs = [x.detach().requires_grad_() for x in leaves(*args)]
        *operands, s0 = rebuild(args, xs)
        seconds = []
        for f, options in ((loop, {}), (recurrence, {"form": "chunk", "chunk_size": 4})):
            torch.manual_seed(6)
            o, s = f(*operands, initial_state=s0, **options)
            do, ds = torch.randn_like(o).requires_grad_(), torch.randn_like(s).requires_grad_()
            first = torch.autograd.grad((o * do).sum() + (s * ds).sum(), xs, create_graph=True)
            functional = sum((g * torch.randn_like(g)).sum() for g in first)
            seconds.append(torch.autograd.grad(functional, [*xs, do, ds], allow_unused=True))
        for a, b in zip(*seconds, strict=True):
            a = torch.zeros_like(b) if a is None else a
            b = torch.zeros_like(a) if b is None else b
            assert error(b, a) < 1e-10 or float((a - b).abs().max()) < 1e-12


def test_step_has_gradients():
    torch.manual_seed(7)
    q, k, v, la, lb, s0 = (
        x.requires_grad_() for x in arguments(2, 1, 2, 3, 4, "BTHK", "BTHV", extremes=False)
    )

    def f(*xs):
        return step(*(x[:, 0] for x in xs[:5]), state=xs[5])

    assert torch.autograd.gradcheck(f, (q, k, v, la, lb, s0))


MEMORY = """
import resource, sys, torch
from mixerzoo.kernels import recurrence
form, T, H, D = sys.argv[1], 8192, 2, 64
q, k, v = (torch.randn(1, T, H, D, requires_grad=True) for _ in range(3))
la = (-torch.rand(1, T, H, D)).requires_grad_()
recurrence(*(x[:, :256] for x in (q, k, v, la)), form=form)[0].sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
recurrence(q, k, v, la, form=form)[0].sum().backward()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024), T * H * D * 4)
"""


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_backward_keeps_no_state_per_token(form):
    run = subprocess.run([sys.executable, "-c", MEMORY, form], capture_output=True, text=True, check=True)
    extra, one_operand = map(int, run.stdout.split())
    # T·K·V/C is one operand here, a state per token would be 64 of them; gradients and pieces are about 12.
    assert extra < 25 * one_operand


def test_gradient_of_masked_and_packed():
    torch.manual_seed(8)
    args = arguments(2, 17, 2, 3, 3, "H", "HV")
    mask = torch.rand(2, 17) < 0.5
    want, got = both(args, {"mask": mask}, form="chunk", chunk_size=4)
    assert all(error(b, a) < 1e-11 for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "decay, value_decay", [("BTHK", "BTHV"), ("BTH", "HV"), ("H", "none"), ("outer", "HV")]
)
def test_gradient_of_packed(decay, value_decay, reverse):
    """Constants collect the gradients of all sequences, what varies in time that of its own."""
    torch.manual_seed(9)
    *operands, _ = arguments(1, 17, 2, 3, 3, decay, value_decay)
    args = (*operands, torch.randn(4, 2, 3, 3, dtype=torch.float64))
    xs = [x.detach().requires_grad_() for x in leaves(*args)]
    *operands, s0 = rebuild(args, xs)
    cu = torch.tensor([0, 5, 5, 11, 17])
    o, s = recurrence(*operands, initial_state=s0, cu_seqlens=cu, reverse=reverse)
    w = torch.randn_like(o)
    got = torch.autograd.grad((o * w).sum() + s.sum(), xs)

    def cut(x, i, j):
        if isinstance(x, OuterDecay):
            return OuterDecay(x.dt[:, i:j], x.A)
        return x if x is None or x.ndim < 3 else x[:, i:j]

    total = 0.0
    for n, (i, j) in enumerate([(0, 5), (5, 5), (5, 11), (11, 17)]):
        o, s = loop(*(cut(x, i, j) for x in operands), initial_state=s0[n : n + 1], reverse=reverse)
        total = total + (o * w[:, i:j]).sum() + s.sum()
    want = torch.autograd.grad(total, xs)
    assert all(error(b, a) < 1e-11 for a, b in zip(want, got, strict=True))


def test_log_decays_helper_has_extremes():
    x = log_decays(1000)
    assert torch.isneginf(x).any() and (x == 0).any() and (x == -1000).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "decay, value_decay", [("outer", "none"), ("BTHK", "BTHV"), ("BTHK", "none"), ("H", "HV")]
)
def test_gradients_that_no_one_asks_for_change_no_other(decay, value_decay, form):
    """Each operand alone, and all but it; the second derivatives too."""
    torch.manual_seed(8)
    args = arguments(2, 21, 3, 3, 4, decay, value_decay, heads=(1, 3))
    xs = list(leaves(*args))

    def found(wanted):
        ys = [x.detach().requires_grad_(w) for x, w in zip(xs, wanted, strict=True)]
        *operands, s0 = rebuild(args, ys)
        o, s = recurrence(*operands, initial_state=s0, form=form, chunk_size=8)
        asked = [y for y, w in zip(ys, wanted, strict=True) if w]
        first = torch.autograd.grad((o**3).sum() + (s**3).sum(), asked, create_graph=True)
        return first, torch.autograd.grad(sum((g**2).sum() for g in first), asked)

    every = [True] * len(xs)
    want = found(every)[0]
    for i in range(len(xs)):
        for wanted in ([j == i for j in range(len(xs))], [j != i for j in range(len(xs))]):
            firsts, seconds = found(wanted)
            for w, a in zip([w for w, asked in zip(want, wanted, strict=True) if asked], firsts, strict=True):
                assert error(a, w) < 1e-12
            assert all(torch.isfinite(g).all() and g.any() for g in seconds)
