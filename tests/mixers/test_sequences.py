"""The stabiliser, by steps in lockstep and by passes over everything, is the recurrence of its definition."""

import math

import pytest
import torch

from mixerzoo.mixers.base import Tokens
from mixerzoo.mixers.sequences import stabilise


def by_definition(log_f, log_i, start):
    m, found = start, []
    for f, i in zip(log_f.unbind(1), log_i.unbind(1), strict=True):
        m = torch.maximum(f + m, i)
        found.append(m)
    return torch.stack(found, 1)


def operands(B, T, D, dtype=torch.float64):
    g = torch.Generator().manual_seed(T)
    log_f = -torch.rand(B, T, D, generator=g, dtype=torch.float64)
    log_f = torch.where(torch.rand(B, T, D, generator=g) < 0.1, -math.inf, log_f)
    log_i = 3 * torch.randn(B, T, D, generator=g, dtype=torch.float64)
    log_i = torch.where(torch.rand(B, T, D, generator=g) < 0.3, -math.inf, log_i)
    log_i[:, : T // 3] = -math.inf  # nothing is written for a while
    return log_f.to(dtype), log_i.to(dtype)


def whole(B, T):
    return Tokens(torch.arange(T).expand(B, T), None)


@pytest.mark.parametrize("T", [1, 2, 3, 16, 17, 64, 65, 300])
@pytest.mark.parametrize("first", [-math.inf, 0.5])
def test_in_lockstep_and_differentiated(T, first):
    log_f, log_i = operands(2, T, 3)
    start = torch.full((2, 3), first, dtype=torch.float64)
    want = by_definition(log_f, log_i, start)
    with torch.no_grad():
        there = stabilise(log_f, log_i, start, whole(2, T))
    recorded = stabilise(log_f.clone().requires_grad_(), log_i, start, whole(2, T), constant=False)
    for s in (there, recorded):
        assert torch.allclose(s.m, want, rtol=1e-13, atol=1e-13) and torch.equal(s.end, s.m[:, -1])
        before = torch.cat([start[:, None], s.m[:, :-1]], 1)
        top = torch.where(s.m.isneginf(), 0.0, s.m)
        assert torch.equal(s.ago.nan_to_num(), (before - log_i).nan_to_num())
        assert torch.allclose(s.log_decay, log_f + before - top, rtol=1e-13, atol=1e-13)
        assert torch.allclose(s.log_write, log_i - top, rtol=1e-13, atol=1e-13)
        assert not s.log_decay.isnan().any() and not s.log_write.isnan().any()


def test_many_blocks_are_one():
    log_f, log_i = operands(1, 3000, 64, torch.float32)
    start = torch.full((1, 64), -math.inf, dtype=torch.float64)
    with torch.no_grad():
        s = stabilise(log_f, log_i, start, whole(1, 3000))
    want = by_definition(log_f.double(), log_i.double(), start)
    assert torch.allclose(s.m, want, rtol=1e-12, atol=1e-12) and s.log_decay.dtype == torch.float32


def test_a_constant_m_has_no_gradient():
    log_f, log_i = operands(1, 20, 2)
    log_f, log_i = (x.where(x.isfinite(), torch.tensor(-1.0).double()) for x in (log_f, log_i))
    # As where it is broadcast: a decay of every channel for all steps.
    rate = log_f[0, 0].clone().requires_grad_()
    log_i = log_i.requires_grad_()
    s = stabilise(rate.expand(1, 20, 2), log_i, torch.zeros(1, 2).double(), whole(1, 20))
    given = torch.rand(1, 20, 2, dtype=torch.float64), torch.rand(1, 20, 2, dtype=torch.float64)
    of_rate, of_write = torch.autograd.grad((s.log_decay, s.log_write), (rate, log_i), given)
    assert torch.allclose(of_rate, given[0].sum((0, 1))) and torch.equal(of_write, given[1])
    assert not s.m.requires_grad


def test_packed_in_lockstep_is_apart():
    log_f, log_i = operands(1, 50, 3)
    offsets = torch.tensor([0, 17, 17, 50])
    segment = torch.tensor([0] * 17 + [2] * 33)
    start = torch.tensor([[0.0] * 3, [1.0] * 3, [-math.inf] * 3], dtype=torch.float64)
    position = torch.cat([torch.arange(17), torch.arange(33)])[None]
    with torch.no_grad():
        s = stabilise(log_f, log_i, start, Tokens(position, offsets.diff(), None, offsets, segment))
    want = torch.cat(
        [
            by_definition(log_f[:, :17], log_i[:, :17], start[:1]),
            by_definition(log_f[:, 17:], log_i[:, 17:], start[2:]),
        ],
        1,
    )
    assert torch.allclose(s.m, want, rtol=1e-13, atol=1e-13)
