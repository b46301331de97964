"""The operator on the Triton backend, under Triton's interpreter. Run by test_interpreted.py, in a process of
its own: the interpreter is chosen when triton is imported."""

import pytest
import torch

from mixerzoo.kernels import recurrence
from mixerzoo.kernels.ops import recurrence_op
from oracle import DECAYS, VALUE_DECAYS, arguments, error, leaves, loop

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_is_the_loop(decay, value_decay, dtype):
    torch.manual_seed(0)
    for T, K, V in ((0, 5, 3), (1, 16, 16), (33, 5, 3), (65, 16, 20)):
        *operands, s0 = arguments(1, T, 2, K, V, decay, value_decay, dtype, heads=(1, 2))
        read, reverse = ("before", True) if T == 33 else ("after", False)
        o, s = recurrence(
            *operands, initial_state=s0, backend="triton", read=read, reverse=reverse, scale=0.5
        )
        want, want_s = loop(*operands, s0, read=read, reverse=reverse, scale=0.5)
        assert error(o, want) < TOLERANCE[dtype]
        assert error(s, want_s) < TOLERANCE[dtype]


@pytest.mark.parametrize("decay", DECAYS)
def test_mask_and_packing(decay):
    torch.manual_seed(1)
    q, k, v, la, lb, _ = arguments(1, 40, 2, 16, 16, decay, "HV")
    mask = torch.rand(1, 40) < 0.7
    cu = torch.tensor([0, 17, 17, 18, 40])
    s0 = torch.randn(4, 2, 16, 16, dtype=torch.float64)
    both = [
        recurrence(q, k, v, la, lb, initial_state=s0, mask=mask, cu_seqlens=cu, backend=backend)
        for backend in ("torch", "triton")
    ]
    for a, b in zip(*both, strict=True):
        assert error(b, a) < 1e-12


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_are_those_of_the_loop(decay, dtype, form):
    torch.manual_seed(2)
    for value_decay, read, reverse in (("none", "after", False), ("BTHV", "before", True)):
        args = arguments(1, 37, 2, 4, 3, decay, value_decay, dtype, heads=(1, 2))
        xs = [x.requires_grad_() for x in leaves(*args)]
        *operands, s0 = args
        options = {"read": read, "reverse": reverse, "scale": 0.7}
        found = []
        for f in (
            lambda *a, s=s0, o=options: loop(*a, s, **o),
            lambda *a, s=s0, o=options: recurrence(*a, initial_state=s, backend="triton", form=form, **o),
        ):
            torch.manual_seed(3)
            o, s = f(*operands)
            loss = (o * torch.randn_like(o)).sum() + (s * torch.randn_like(s)).sum()
            found.append(torch.autograd.grad(loss, xs))
        for a, b in zip(*found, strict=True):
            assert error(b, a) < 10 * TOLERANCE[dtype]


def second_derivatives(f, xs):
    """Of a sum of squares of f's results: of its gradients, times random numbers, the gradients."""
    o, s = f()
    grads = torch.autograd.grad((o * o).sum() + (s * s).sum(), xs, create_graph=True)
    torch.manual_seed(5)
    return torch.autograd.grad(sum((g * torch.randn_like(g)).sum() for g in grads), xs)


@pytest.mark.parametrize("decay", DECAYS)
def test_second_derivatives_are_those_of_the_loop(decay):
    torch.manual_seed(4)
    args = arguments(1, 5, 2, 2, 2, decay, "BTHV", heads=(1, 2))
    xs = [x.requires_grad_() for x in leaves(*args)]
    *operands, s0 = args
    want = second_derivatives(lambda: loop(*operands, s0), xs)
    found = second_derivatives(lambda: recurrence(*operands, initial_state=s0, backend="triton"), xs)
    for a, b in zip(found, want, strict=True):
        assert error(a, b) < 1e-11


def erasing(kind, B, T, H, K, dtype=torch.float64):
    """beta in [0, 2], or a pair (x, y)."""
    if kind == "beta":
        return {"beta": 2 * torch.rand(B, T, H, dtype=torch.float64).to(dtype)}
    return {"erase": tuple(torch.randn(B, T, h, K, dtype=torch.float64).to(dtype) / K**0.5 for h in (1, H))}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("kind", ["beta", "erase"])
def test_erasing_is_what_torch_does(kind, decay):
    """Outputs, states and all gradients, masked and packed; heads of any size."""
    torch.manual_seed(6)
    dtype = torch.float64 if kind == "beta" else torch.float32
    mask = torch.rand(1, 24) < 0.8
    cu = torch.tensor([0, 9, 9, 24])
    for K, V, options in ((5, 3, {"read": "before", "reverse": True}), (16, 17, {"mask": mask})):
        args = arguments(1, 24, 2, K, V, decay, "none", dtype, heads=(1, 2))
        q, k, v, la, lb, _ = args
        k = torch.nn.functional.normalize(k, dim=-1)
        s0 = torch.randn(3, 2, K, V, dtype=torch.float64).to(dtype)
        extra = erasing(kind, 1, 24, 2, K, dtype)
        xs = [x.requires_grad_() for x in leaves(q, k, v, la, s0, *extra.get("erase", extra.values()))]
        found = []
        for backend in ("torch", "triton"):
            o, s = recurrence(
                q, k, v, la, lb, initial_state=s0, cu_seqlens=cu, backend=backend, **options, **extra
            )
            grads = torch.autograd.grad((o * o.detach().sin()).sum() + (s * s.detach().sin()).sum(), xs)
            found.append([o, s, *grads])
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            assert error(b, a) < (1 if i < 2 else 10) * TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["beta", "erase"])
def test_second_derivatives_of_erasing(kind):
    torch.manual_seed(7)
    q, k, v, la, _, s0 = arguments(1, 5, 1, 2, 2, "BTHK", "none")
    extra = erasing(kind, 1, 5, 1, 2)
    xs = [x.requires_grad_() for x in leaves(q, k, v, la, s0, *extra.get("erase", extra.values()))]

    want = second_derivatives(lambda: loop(q, k, v, la, None, s0, **extra), xs)
    found = second_derivatives(
        lambda: recurrence(q, k, v, la, initial_state=s0, backend="triton", **extra), xs
    )
    for a, b in zip(found, want, strict=True):
        assert error(a, b) < 1e-11


def test_erasing_has_no_walk():
    q, k, v, *_ = arguments(1, 3, 1, 2, 2)
    with pytest.raises(ValueError, match=r"form is 'recurrent' .*'triton' and beta or erase.*'chunk'"):
        recurrence(q, k, v, backend="triton", form="recurrent", beta=torch.ones(1, 3, 1))


def test_erasing_has_a_limit_of_keys():
    q = torch.randn(1, 3, 1, 129, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"k has 129 channels with backend 'triton', beta.*at most 128"):
        recurrence(q, q, q, backend="triton", beta=torch.ones(1, 3, 1))
    recurrence(q, q, q, backend="triton")


def test_opcheck():
    q, k, v, la, _, s0 = (
        x if x is None else x.requires_grad_() for x in arguments(1, 5, 2, 2, 3, "BTHK", extremes=False)
    )
    options = (1.0, "after", False, "auto", "triton", "auto", None, None, True)
    torch.library.opcheck(recurrence_op, (q, k, v, la, *[None] * 5, s0, None, None, *options))
    beta = torch.rand(1, 5, 2, dtype=torch.float64).requires_grad_()
    torch.library.opcheck(
        recurrence_op, (q, k, v, la, None, None, beta, None, None, s0, None, None, *options)
    )
