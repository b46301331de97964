"""Chunks, several at a time, with decays per channel: the tree, its levels, its memory."""

import itertools

import pytest
import torch

from mixerzoo.kernels import OuterDecay, decays, memory, ops, recurrence, tree
from mixerzoo.kernels.order import AFTER, BEFORE, Order

KEYS = ("none", "constant", "scalar", "vector", "outer")
VALUES = ("none", "constant", "vector")
# T, H, Hq, K, V, chunk: one step, chunks that are no power of two, several to a block, a ragged tail, K = V
SIZES = ((1, 1, 1, 3, 4, None), (21, 2, 1, 5, 3, 6), (130, 2, 2, 16, 17, 16), (300, 4, 2, 16, 16, 64))


def operands(T, H, Hq, K, V, keys, values, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)

    def normal(*sizes):
        return torch.randn(*sizes, generator=g, dtype=dtype)

    def decay(*sizes):
        x = -torch.rand(*sizes, generator=g, dtype=dtype)
        r = torch.rand(*sizes, generator=g)
        return x * torch.where(r < 0.2, 60.0, 1.0) + torch.where(r > 0.9, -torch.inf, 0.0)

    la = {
        "none": lambda: None,
        "constant": lambda: -torch.rand(H, generator=g, dtype=dtype),
        "scalar": lambda: decay(2, T, H),
        "vector": lambda: decay(2, T, H, K),
        "outer": lambda: OuterDecay(
            -decay(2, T, H).clamp(min=-9), -torch.rand(H, K, generator=g, dtype=dtype)
        ),
    }[keys]()
    lb = {"none": lambda: None, "constant": lambda: -torch.rand(H, V, generator=g, dtype=dtype)}
    lb["vector"] = lambda: decay(2, T, H, V)
    return normal(2, T, Hq, K), normal(2, T, Hq, K), normal(2, T, H, V), la, lb[values](), normal(2, H, K, V)


def results(form, chunk, x, read="after", reverse=False, given=None):
    q, k, v, la, lb, S = x
    leaves = [
        y.requires_grad_()
        for y in (q, k, v, *(la if isinstance(la, tuple) else (la,)), lb, S)
        if y is not None
    ]
    o, end = recurrence(
        q, k, v, la, lb, initial_state=S, read=read, reverse=reverse, form=form, chunk_size=chunk,
        backend="torch", scale=0.7,
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    given = [torch.randn(y.shape, generator=g, dtype=y.dtype) for y in (o, end)]
    return [y.detach() for y in (o, end, *torch.autograd.grad([o, end], leaves, given))]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("keys, values", list(itertools.product(KEYS, VALUES)))
def test_chunks_are_the_recurrence(sizes, keys, values):
    """Outputs, state and the gradients of all operands; a tenth of the decays 0."""
    *sizes, chunk = sizes
    for read, reverse in (("after", False), ("before", True)):
        x = operands(*sizes, keys, values)
        got = results("chunk", chunk, x, read, reverse)
        want = results("recurrent", None, x, read, reverse)
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= 1e-12 * (1 + b.abs().max())


@pytest.mark.parametrize("keys, values", list(itertools.product(KEYS, VALUES)))
def test_reused_memory_changes_nothing(keys, values):
    """The gradient that is differentiated again takes new memory for each result."""
    q, k, v, la, lb, S = operands(130, 4, 2, 16, 16, keys, values)
    la, outer = la if isinstance(la, tuple) else (la, None)
    x = ops.Operands(q, k, v, la, outer, lb, None, None, None, S, None)
    o = ops.Options(1.0, "after", False, "chunk", "torch", "auto", None, 16)
    do, dS = torch.randn_like(v), torch.randn_like(S)
    found, start = ops.torch_backward(do, dS, x, o, reuse=True)
    again, start_again = ops.torch_backward(do, dS, x, o, reuse=False)
    for a, b in zip((*found, start), (*again, start_again), strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= 1e-13 * (1 + b.abs().max())


def test_a_decay_close_to_one_is_not_rounded_away_chunk_by_chunk():
    """exp(-1e-7) has one digit left in float32. A chunk's decays are exp of their sum."""
    T, K = 1 << 16, 16
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.zeros(1, T, 1, K) for _ in range(3))
    k[:, 0], v[:, 0] = (torch.randn(1, 1, K, generator=g) for _ in range(2))
    la = torch.full((1, T, 1, K), -1e-7)
    end = recurrence(q, k, v, la, form="chunk", backend="torch")[1]
    want = recurrence(*(y.double() for y in (q, k, v, la)), form="chunk", backend="torch")[1]
    assert (end - want).abs().max() < 1e-4 * want.abs().max()


def test_levels_stay_as_they_are_where_they_are_kept():
    g = torch.Generator().manual_seed(0)
    q, k, la = (torch.randn(2, 3, 8, 4, generator=g) for _ in range(3))
    la = -la.abs()
    with memory.reusing():
        *_, levels = tree.tree_map("reused", q, k, la, AFTER, keep=True)
    *_, expected = tree.tree_map("new", q, k, la, AFTER, keep=True)
    for a, b in zip(levels, expected, strict=True):
        for x, y in zip(a[1:], b[1:], strict=True):
            assert torch.allclose(x, y)


@pytest.mark.parametrize("order", [AFTER, BEFORE, Order("ADR")])
def test_writes_until_the_end_of_any_number_of_steps(order):
    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 5, 8, 13):
        x, la = torch.randn(2, n, 3, generator=g), -torch.rand(2, n, 3, generator=g)
        sums = la.flip(-2).cumsum(-2).flip(-2)
        want = x * torch.exp(sums if order.key_decayed else sums - la)
        assert torch.allclose(tree.until_end("x", x, la, order), want, rtol=1e-5)


def test_products_of_strided_operands():
    """Leading axes that are no view of one are multiplied one by one."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(3, 1, 4, 6, 5, generator=g).movedim(-2, 1).contiguous().movedim(1, -2)
    b = torch.randn(3, 1, 1, 5, 2, generator=g)
    with memory.reusing():
        for _ in range(2):
            assert torch.allclose(memory.matmul("x", a, b), a @ b, atol=1e-6)
        assert memory.matmul("x", a, b).is_contiguous()


def test_exp_is_exp():
    x = torch.tensor([0.0, -1.0, -30.5, -87.0, -1e4, -torch.inf])
    assert torch.allclose(decays.exp(x), torch.exp(x), rtol=1e-5, atol=0)
    assert decays.exp(x)[0] == 1
    assert (decays.exp(x)[-2:] == 0).all()
