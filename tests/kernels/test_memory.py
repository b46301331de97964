"""Memory that results use again: whose it is, and for how long."""

import pytest
import torch

from mixerzoo.kernels import memory, recurrence


def test_a_result_takes_the_memory_of_the_last_of_its_name():
    x, y = torch.randn(3, 3), torch.randn(3, 3)
    with memory.reusing():
        first = memory.into("sum", torch.add, x, y)
        at = first.data_ptr()
        second = memory.into("sum", torch.add, x, x)
        assert second.data_ptr() == at
        assert torch.equal(second, x + x)
        other = (
            memory.into("sum", torch.add, x[:2], y[:2]),
            memory.into("sum", torch.add, x.double(), y.double()),
        )
        assert at not in (z.data_ptr() for z in other)
        assert other[1].dtype == torch.float64
    outside = memory.into("sum", torch.add, x, y)
    assert outside.data_ptr() != at


def test_inside_no_reuse_every_result_is_new():
    x = torch.randn(3)
    with memory.reusing(), memory.reusing(False):
        assert memory.into("sum", torch.add, x, x) is not memory.into("sum", torch.add, x, x)
        assert not memory.reuses()


def test_once_is_for_one_object():
    calls = []

    def double(x):
        calls.append(x)
        return 2 * x

    x = torch.ones(2)
    with memory.reusing():
        for _ in range(3):
            memory.once(double, x)
        assert len(calls) == 1
        assert memory.once(double, torch.ones(2) * 5)[0] == 10
        assert len(calls) == 2
    memory.once(double, x)
    assert len(calls) == 3


def test_constant_decays_of_calls_do_not_mix():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 130, 2, 16, generator=g, dtype=torch.float64) for _ in range(3))
    for slope in (0.1, 0.7, 0.0):
        decay = torch.full((2,), -slope, dtype=torch.float64)
        got = recurrence(q, k, v, decay, form="chunk")[0]
        want = recurrence(q, k, v, decay.expand(1, 130, 2), form="recurrent")[0]
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)


def test_outputs_of_reversed_time_lie_where_their_steps_do():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 130, 2, 16, generator=g, dtype=torch.float64) for _ in range(3))
    decay = torch.full((2,), -0.1, dtype=torch.float64)
    for form in ("chunk", "recurrent", "scan", "parallel"):
        got = recurrence(q, k, v, decay, form=form, reverse=True)[0]
        want = recurrence(q.flip(1), k.flip(1), v.flip(1), decay, form=form)[0].flip(1)
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", [None, "constant", "scalar"])
def test_states_of_heads_that_share_queries_and_keys_pass_through_blocks(decay):
    """One state for all heads' values, handed from block to block and back."""
    g = torch.Generator().manual_seed(0)
    shapes = (2, 330, 1, 20), (2, 330, 1, 20), (2, 330, 3, 24), (2, 3, 20, 24)
    operands = [torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]
    if decay is not None:
        sizes = (3,) if decay == "constant" else (2, 330, 3)
        operands.append((-torch.rand(*sizes, generator=g, dtype=torch.float64)).requires_grad_())
    found = []
    for form in ("recurrent", "chunk"):
        q, k, v, S, *la = operands
        o, end = recurrence(q, k, v, *la, initial_state=S, form=form)
        loss = (o * o.detach().cos()).sum() + (end * end.detach().sin()).sum()
        found.append([o, end, *torch.autograd.grad(loss, operands)])
    for want, got in zip(*found, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)
