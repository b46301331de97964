"""The public operator beyond the forms: masks, packing, sharing, steps, and torch's own contracts."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixerzoo.kernels import OuterDecay, recurrence, step
from mixerzoo.kernels.choose import Problem, choose_form, estimate
from mixerzoo.kernels.ops import backward_op, recurrence_op
from oracle import DECAYS, VALUE_DECAYS, arguments, error, loop

FORMS = ("parallel", "chunk", "recurrent", "scan")


@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_step_by_step_is_the_whole(decay, value_decay):
    torch.manual_seed(0)
    q, k, v, la, lb, s0 = arguments(2, 9, 4, 3, 5, decay, value_decay, heads=(2, 1))
    mask = torch.rand(2, 9) < 0.7
    for read in ("after", "before"):
        want, want_s = recurrence(q, k, v, la, lb, initial_state=s0, mask=mask, read=read, scale=0.3)
        state, outs = s0, []
        for t in range(9):
            if isinstance(la, OuterDecay):
                la_t = OuterDecay(la.dt[:, t], la.A)
            else:
                la_t = la if la is None or la.ndim == 1 else la[:, t]
            lb_t = lb if lb is None or lb.ndim == 2 else lb[:, t]
            o, state = step(
                q[:, t], k[:, t], v[:, t], la_t, lb_t, state=state, mask=mask[:, t], read=read, scale=0.3
            )
            outs.append(o)
        assert error(torch.stack(outs, 1), want) < 1e-13
        assert error(state, want_s) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_a_masked_step_is_not_there(form):
    """The state and the other outputs are those of the sequence without it, whatever it holds."""
    torch.manual_seed(1)
    q, k, v, la, lb, s0 = arguments(1, 12, 2, 3, 3, "BTHK", "BTHV")
    keep = torch.tensor([0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0], dtype=torch.bool)
    for x in (k, v, la, lb):
        x[:, ~keep] = float("nan")
    o, s = recurrence(q, k, v, la, lb, initial_state=s0, mask=keep[None], form=form)
    want, want_s = loop(*(x[:, keep] for x in (q, k, v, la, lb)), s0)
    assert error(o[:, keep], want) < 1e-13
    assert error(s, want_s) < 1e-13
    assert error(o[:, :2], torch.einsum("bthk,bhkv->bthv", q[:, :2], s0)) < 1e-13  # read from the state


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_packed_is_separate(form, reverse):
    torch.manual_seed(2)
    q, k, v, la, lb, _ = arguments(1, 20, 2, 3, 3, "BTH", "HV")
    s0 = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    cu = torch.tensor([0, 7, 7, 8, 19, 20], dtype=torch.int32)
    o, s = recurrence(q, k, v, la, lb, initial_state=s0, cu_seqlens=cu, form=form, reverse=reverse)
    for n, (i, j) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
        part, state = loop(
            *(x[:, i:j] for x in (q, k, v, la)), lb, initial_state=s0[n : n + 1], reverse=reverse
        )
        assert error(o[:, i:j], part) < 1e-13
        assert error(s[n : n + 1], state) < 1e-13


def test_packed_without_initial_state():
    q, k, v, *_ = arguments(1, 6, 1, 2, 2)
    o, s = recurrence(q, k, v, cu_seqlens=torch.tensor([0, 2, 6]))
    assert s.shape == (2, 1, 2, 2)
    assert error(o[:, 2:], loop(q[:, 2:], k[:, 2:], v[:, 2:])[0]) < 1e-13


@pytest.mark.parametrize("T", [0, 1, 64, 100])
def test_any_split_is_the_whole(T):
    torch.manual_seed(3)
    q, k, v, la, _, s0 = arguments(2, T, 2, 3, 4, "BTHK")
    want, want_s = recurrence(q, k, v, la, initial_state=s0)
    for cut in {0, T // 3, T}:
        first, s = recurrence(*(x[:, :cut] for x in (q, k, v, la)), initial_state=s0)
        second, s = recurrence(*(x[:, cut:] for x in (q, k, v, la)), initial_state=s)
        assert error(torch.cat([first, second], 1), want) < 1e-13
        assert error(s, want_s) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_outer_decay_of_zero(form):
    """exp(dt·A) is 0^dt for A = -inf: 1 where dt = 0, else 0."""
    x = torch.ones(1, 4, 1, 1)
    dt = torch.tensor([0.0, 0.5, 0.0, 0.0])[None, :, None].requires_grad_()
    A = torch.full((1, 1), -torch.inf, requires_grad=True)
    o, s = recurrence(x, x, x, OuterDecay(dt, A), form=form)
    assert o.flatten().tolist() == [1.0, 1.0, 2.0, 3.0]
    s.sum().backward()
    assert dt.grad.isfinite().all()
    assert A.grad.item() == 0
    state = None
    for t in range(4):
        one = x[:, 0]
        _, state = step(one, one, one, OuterDecay(dt[:, t], A), state=state)
    assert torch.equal(state, s)


@pytest.mark.parametrize("dt", [1e-38, 1e-31, 0.5])
def test_outer_decay_of_zero_for_any_step_size(dt):
    x = torch.ones(1, 2, 1, 1)
    o, _ = recurrence(x, x, x, OuterDecay(torch.full((1, 2, 1), dt), torch.full((1, 1), -torch.inf)))
    assert o.flatten().tolist() == [1.0, 1.0]


def test_masked_step_drops_what_padding_holds():
    torch.manual_seed(8)
    q, k, v, la, lb, s0 = (
        x[:, 0] if i < 5 else x for i, x in enumerate(arguments(2, 1, 2, 3, 3, "BTHK", "BTHV"))
    )
    mask = torch.tensor([True, False])
    for x in (k, v, la, lb):
        x[1] = float("nan")
    xs = [x.requires_grad_() for x in (k, v, la, lb, s0)]
    o, s = step(q, *xs[:4], state=xs[4], mask=mask)
    assert torch.equal(s[1], s0[1])
    for g in torch.autograd.grad(o.sum() + s.sum(), xs):
        assert g.isfinite().all()


@pytest.mark.parametrize("call", ["recurrence", "step"])
def test_forward_mode_is_refused(call):
    """It would come out as 0 without a word."""
    x = torch.randn(1, 5, 1, 2)

    def f(x):
        return recurrence(x, x, x)[0] if call == "recurrence" else step(x[:, 0], x[:, 0], x[:, 0])[0]

    with pytest.raises(NotImplementedError, match="accepted: reverse-mode"):
        torch.func.jvp(f, (x,), (torch.ones_like(x),))


def test_results_share_no_memory_with_arguments():
    q, k, v, _, _, s0 = arguments(1, 0, 1, 2, 2)
    _, s = recurrence(q, k, v, initial_state=s0)
    s += 1
    assert not torch.equal(s, s0)
    # Nor does the gradient, which is handed through like the state.
    _, s = recurrence(q, k, v, initial_state=s0.requires_grad_())
    weight = torch.ones_like(s)
    (g,) = torch.autograd.grad(s, s0, weight)
    g += 1
    assert (weight == 1).all()


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                # memory held, not the shape: an expanded view holds what it views
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_outer_decay_and_shared_heads_stay_small(form):
    """Nothing as large as [B, T, H, K] is made, forward or backward."""
    B, T, H, K = 1, 2048, 16, 16
    q, k = (torch.randn(B, T, 1, K, requires_grad=True) for _ in range(2))
    v = torch.randn(B, T, H, 1, requires_grad=True)
    dt, A = torch.rand(B, T, H, requires_grad=True), (-torch.rand(H, K)).requires_grad_()
    with Largest() as seen:
        o, _ = recurrence(q, k, v, OuterDecay(dt, A), form=form)
        o.sum().backward()
    assert T * H <= seen.elements < B * T * H * K // 4


def test_shared_heads_are_the_repeated_ones():
    torch.manual_seed(4)
    q, k, v, la, _, s0 = arguments(2, 30, 6, 3, 4, "BTHK", heads=(2, 3))
    o, s = recurrence(q, k, v, la, initial_state=s0)
    o2, s2 = recurrence(q.repeat_interleave(3, 2), k.repeat_interleave(2, 2), v, la, initial_state=s0)
    assert error(o, o2) < 1e-14
    assert error(s, s2) < 1e-14


@pytest.mark.parametrize("reverse", [False, True])
def test_bidirectional(reverse):
    """Reverse is flip, run, flip."""
    torch.manual_seed(5)
    q, k, v, la, lb, s0 = arguments(2, 33, 2, 3, 3, "BTHK", "BTHV")
    o, s = recurrence(q, k, v, la, lb, initial_state=s0, reverse=reverse)
    o2, s2 = recurrence(*(x.flip(1) for x in (q, k, v, la, lb)), initial_state=s0, reverse=not reverse)
    assert error(o, o2.flip(1)) < 1e-14
    assert error(s, s2) < 1e-14


OPTIONS = (1.0, "after", False, "auto", "auto", "auto", None, None, True)


@pytest.mark.parametrize("decay", ["none", "BTHK", "outer"])
def test_opcheck(decay):
    torch.manual_seed(6)
    q, k, v, la, lb, s0 = arguments(1, 5, 2, 2, 3, decay, "HV", extremes=False)
    outer = None
    if isinstance(la, OuterDecay):
        la, outer = la
    xs = [x if x is None else x.requires_grad_() for x in (q, k, v, la, outer, lb, None, None, None, s0)]
    torch.library.opcheck(recurrence_op, (*xs, None, None, *OPTIONS))
    do, dstate = torch.randn_like(v).detach(), torch.randn_like(s0).detach()
    saved = torch.zeros(0, dtype=s0.dtype)
    for wanted in ([True] * 10, [True] * 3 + [False] * 7):
        torch.library.opcheck(backward_op, (do, dstate, saved, *xs, None, None, *OPTIONS, wanted))


def test_opcheck_packed():
    q, k, v, la, _, _ = (x if x is None else x.requires_grad_() for x in arguments(1, 5, 2, 2, 3, "BTHK"))
    cu = torch.tensor([0, 2, 5])
    torch.library.opcheck(recurrence_op, (q, k, v, la, *(None,) * 6, cu, None, *OPTIONS))


def test_compile_sees_one_operator():
    torch.manual_seed(7)
    q, k, v, la, lb, s0 = arguments(2, 9, 2, 3, 4, "BTHK", "BTHV", extremes=False)
    xs = [x.requires_grad_() for x in (q, k, v, la, lb)]

    def f(q, k, v, la, lb, mask):
        o, s = recurrence(q, k, v, la, lb, initial_state=s0, mask=mask)
        o_t, s = step(q[:, 0], k[:, 0], v[:, 0], la[:, 0], lb[:, 0], state=s)
        return (o * o).sum() + o_t.sum() + s.sum()

    mask = torch.rand(2, 9) < 0.7
    want = f(*xs, mask)
    got = torch.compile(f, fullgraph=True)(*xs, mask)
    assert error(got[None], want[None]) < 1e-12
    for a, b in zip(torch.autograd.grad(want, xs), torch.autograd.grad(got, xs), strict=True):
        assert error(b, a) < 1e-12


def test_auto_weighs_costs():
    def choose(T, H, K, V, vector=False):
        return choose_form(Problem(1, T, H, K, V, vector, False), 64)

    assert choose(8192, 8, 128, 128) == "chunk"
    assert choose(1, 8, 128, 128) == "recurrent"
    assert choose(2048, 1536, 16, 1, vector=True) == "scan"  # Mamba-1: tiny states, no matrix products
    assert choose(2, 1536, 16, 1, vector=True) == "recurrent"
    assert choose(256, 1, 1, 1024, vector=True) == "scan"
    assert choose(1024, 4, 32, 32, vector=True) == "chunk"
    problem = Problem(1, 4096, 8, 64, 64, False, False)
    assert estimate("parallel", problem, 64) > estimate("chunk", problem, 64)
