"""One step: in place, by which backend, refusals; and what the kernel compiles to. What it computes is tested
in interpreted_step.py, which needs a process of its own."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from interpreter import passed_interpreted
from torch._subclasses.fake_tensor import FakeTensorMode

from mixerzoo.kernels import OuterDecay, operator, step
from oracle import DECAYS, VALUE_DECAYS, arguments, error, leaves, loop

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def one(*sizes, **options):
    """Arguments of one step, and a state."""
    q, k, v, la, lb, state = arguments(sizes[0], 1, *sizes[1:], **options)
    if isinstance(la, OuterDecay):
        la = OuterDecay(la.dt[:, 0], la.A)
    elif la is not None and la.ndim > 1:
        la = la[:, 0]
    return (q[:, 0], k[:, 0], v[:, 0], la, lb if lb is None or lb.ndim == 2 else lb[:, 0]), state


@needs_triton
def test_under_the_interpreter():
    passed_interpreted(Path(__file__).with_name("interpreted_step.py"))


@pytest.mark.parametrize("erasing", ["beta", "erase"])
@pytest.mark.parametrize("read", ["after", "before"])
def test_in_place_with_an_erasure(erasing, read):
    torch.manual_seed(0)
    xs, state = one(2, 3, 5, 4, decay="BTHK")
    x, y = torch.randn(2, 3, 5, dtype=state.dtype) / 3, torch.randn(2, 3, 5, dtype=state.dtype) / 3
    how = {"beta_t": torch.rand(2, 3, dtype=state.dtype)} if erasing == "beta" else {"erase_t": (x, y)}
    o, s = step(*xs, state=state, read=read, **how)
    mine = state.clone()
    at = mine.data_ptr()
    p, t = step(*xs, state=mine, read=read, inplace=True, **how)
    assert t is mine
    assert t.data_ptr() == at
    assert torch.allclose(o, p, rtol=1e-14, atol=1e-14)
    assert torch.allclose(s, t, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_in_place(decay, value_decay):
    torch.manual_seed(0)
    mask = torch.tensor([True, False])
    for read in ("after", "before"):
        xs, state = one(2, 4, 3, 5, decay=decay, value_decay=value_decay, heads=(2, 1))
        want, want_s = step(*xs, state=state, read=read, mask=mask)
        storage = state.untyped_storage().data_ptr()
        o, s = step(*xs, state=state, read=read, mask=mask, inplace=True)
        assert s is state
        assert state.untyped_storage().data_ptr() == storage
        assert torch.equal(o, want)
        assert torch.equal(s, want_s)


@pytest.mark.parametrize("heads", [(4, 4), (2, 2), (1, 1), (2, 4)])
@pytest.mark.parametrize("sizes", [(16, 17), (16, 3), (1, 5)])
@pytest.mark.parametrize("value_decay", [*VALUE_DECAYS, "beta"])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_plain_token(decay, value_decay, sizes, heads):
    """The short way that most tokens take, against the definition, with states however they lie in memory."""
    torch.manual_seed(0)
    B, H, (K, V) = 2, 4, sizes
    beta = torch.rand(B, H, dtype=torch.float64) if value_decay == "beta" else None
    value_decay = "none" if beta is not None else value_decay
    xs, state = one(B, H, K, V, decay=decay, value_decay=value_decay, heads=heads)
    q, k, v, la, lb = xs
    la_T = (
        OuterDecay(la.dt[:, None], la.A)
        if decay == "outer"
        else la
        if decay in ("none", "H")
        else la[:, None]
    )
    lb_T = lb if value_decay in ("none", "HV") else lb[:, None]
    apart = torch.zeros(B, 2, H, K, V, dtype=state.dtype)[:, 1]
    turned = torch.zeros(B, H, V, K, dtype=state.dtype).mT
    beta_T = None if beta is None else beta[:, None]
    for read in ("after", "before"):
        o, s = loop(q[:, None], k[:, None], v[:, None], la_T, lb_T, state, scale=0.3, read=read, beta=beta_T)
        for given in (state.clone(), apart.copy_(state), turned.copy_(state)):
            for inplace in (False, True):
                found, new = step(
                    *xs, beta_t=beta, state=given, scale=0.3, read=read, inplace=inplace, backend="torch"
                )
                assert error(found, o[:, 0]) < 1e-14
                assert error(new, s) < 1e-14
                assert (new is given) == inplace
                assert inplace or torch.equal(given, state)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    xs, state = one(2, 4, 32, 32, decay="BTH", dtype=torch.float32)
    want = step(*xs, state=state)
    for mask in (None, torch.ones(2, dtype=torch.bool)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = step(*xs, state=state, mask=mask)
        assert all(error(a, b) < 1e-6 for a, b in zip(found, want, strict=True))


def test_in_place_keeps_a_wider_state():
    xs, state = one(1, 2, 3, 3, dtype=torch.bfloat16)
    for dtype in (torch.float32, torch.float64):
        s = state.to(dtype)
        assert step(*xs, state=s, inplace=True)[1] is s


@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_of_any_order(decay):
    torch.manual_seed(1)
    xs, state = one(1, 2, 2, 2, decay=decay, value_decay="BTHV", heads=(1, 2), extremes=False)
    inputs = [x.detach().requires_grad_() for x in leaves(*xs, state)]

    def f(q, k, v, *rest):
        *la, lb, state = rest
        la = OuterDecay(*la) if decay == "outer" else (la[0] if la else None)
        return step(q, k, v, la, lb, state=state, scale=0.3)

    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


CASES = [
    ({"state": None}, ValueError, ["state is None", "inplace=True", "[B, H, K, V]"]),
    (
        {"state": torch.zeros(2, 6, 3, 5).bfloat16()},
        TypeError,
        ["state has dtype torch.bfloat16", "inplace=True", "torch.float32"],
    ),
    (
        {"log_decay_t": torch.zeros(6).double()},
        TypeError,
        ["state has dtype torch.float32", "inplace=True", "torch.float64"],
    ),
    (
        {"state": torch.zeros(1, 6, 3, 5).expand(2, 6, 3, 5)},
        ValueError,
        ["state has strides [0, 15, 5, 1]", "inplace=True", "do not share memory"],
    ),
    (
        {"v_t": torch.zeros(2, 6, 5, requires_grad=True)},
        ValueError,
        ["inplace is True where a gradient is needed", "no_grad"],
    ),
    (
        {"state": torch.zeros(2, 6, 3, 5, requires_grad=True)},
        ValueError,
        ["inplace is True where a gradient is needed", "no_grad"],
    ),
    ({"inplace": 1}, TypeError, ["inplace is 1", "True or False"]),
    ({"backend": "cuda"}, ValueError, ["backend is 'cuda'", "'auto', 'torch', 'triton'"]),
    ({"backend": "triton"}, ValueError, ["backend is 'triton'", "cpu", "TRITON_INTERPRET=1"]),
    (
        {"inplace": False, "backend": "triton", "v_t": torch.zeros(2, 6, 5, requires_grad=True)},
        ValueError,
        ["backend is 'triton' where a gradient is needed", "'auto' or 'torch'", "no_grad"],
    ),
]


@pytest.mark.parametrize("changed, kind, says", CASES, ids=lambda x: None)
def test_refuses(changed, kind, says):
    for heads in (2, 3):  # the longer way to look at arguments and the shorter one
        good = {
            "q_t": torch.randn(2, heads, 3),
            "k_t": torch.randn(2, 3, 3),
            "v_t": torch.randn(2, 6, 5),
            "state": torch.zeros(2, 6, 3, 5),
            "inplace": True,
        }
        step(**good)
        written = good["state"].clone()
        assert not torch.equal(written, torch.zeros(2, 6, 3, 5))
        with pytest.raises(kind, match=".*".join(map(re.escape, says))):
            step(**{**good, **changed})
        assert torch.equal(good["state"], written)


def test_without_a_gradient_a_leaf_is_written():
    xs, state = one(1, 2, 3, 3)
    state.requires_grad_()
    with torch.no_grad():
        assert step(*xs, state=state, inplace=True)[1] is state


@needs_triton
def test_auto_on_a_gpu(monkeypatch):
    """The kernel where no gradient is needed, the formula where one is. (No GPU needed: tensors without data,
    and note taken of what was called with them.)"""
    called = []

    def note(name, op=None):
        def run(*args):
            called.append(name)
            return op(*args) if op else (args[2], args[9])

        return run

    for name in ("step_op", "step_in_place_op"):
        monkeypatch.setattr(operator, name, note(name, getattr(operator, name)))
    monkeypatch.setattr(operator, "formula", note("formula"))

    def call(grad=False, **options):
        called.clear()
        with FakeTensorMode():
            q, k, v = (torch.empty(2, 4, 8, device="cuda", requires_grad=grad) for _ in range(3))
            state = torch.empty(2, 4, 8, 8, device="cuda")
            o, s = step(q, k, v, state=state, **options)
            assert (o.shape, s.shape, o.device.type) == ((2, 4, 8), (2, 4, 8, 8), "cuda")
            assert (s is state) == (options.get("inplace", False) or called == ["formula"])
        return called

    assert call() == ["step_op"]
    assert call(inplace=True) == ["step_in_place_op"]
    assert call(grad=True) == ["formula"]
    assert call(backend="torch") == ["formula"]
    with torch.no_grad():
        assert call(grad=True, backend="triton") == ["step_op"]


def test_compiled_in_place():
    """Under torch.compile the formula is traced, and the given state written."""
    torch.manual_seed(2)
    xs, state = one(2, 2, 3, 4, decay="BTHK", value_decay="HV")
    want, want_s = step(*xs, state=state)
    f = torch.compile(
        lambda *xs, state: step(*xs, state=state, inplace=True), fullgraph=True, backend="aot_eager"
    )
    o, s = f(*xs, state=state)
    assert s is state
    assert error(o, want) < 1e-14
    assert error(state, want_s) < 1e-14


def meta(dtype, B, H, K, V, kind):
    """Arguments of a launch, without data."""
    wide = torch.promote_types(dtype, torch.float32)

    def tensor(*shape, dtype=wide):
        return torch.empty(shape, dtype=dtype, device="meta")

    heads = 1 if kind == "outer" else H
    la = {"scalar": (B, H), "key": (B, H, K), "outer": (B, H), "erase": (B, H, K)}.get(kind)
    pair = (tensor(B, H, K, dtype=dtype),) * 2 if kind == "erase" else (None, None)
    return (
        tensor(B, heads, K, dtype=dtype),
        tensor(B, heads, K, dtype=dtype),
        tensor(B, H, V, dtype=dtype),
        None if la is None else tensor(*la),
        tensor(H, K) if kind == "outer" else None,
        tensor(B, H, V) if kind in ("value", "key") else None,
        tensor(B, H) if kind == "beta" else None,
        *pair,
        tensor(B, H, K, V),
        tensor(B, dtype=torch.bool),
    )


def launched(*case, target):
    from mixerzoo.kernels.triton_core import one_step

    found = []
    one_step.step(*meta(*case), scale=0.3, read="after", target=target, run=lambda *a: found.append(a))
    return found[0]


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_compiles_without_spills(target):
    from mixerzoo.kernels.triton_core import aot

    for case in (
        (torch.float32, 8, 16, 256, 256, "key"),
        (torch.bfloat16, 8, 2048, 16, 1, "outer"),
        (torch.bfloat16, 8, 16, 128, 128, "beta"),
        (torch.bfloat16, 8, 16, 128, 128, "erase"),
    ):
        kernel, _, arguments, plan = launched(*case, target=aot.TARGETS[target])
        compiled = aot.compile_launch(kernel, arguments, plan, aot.TARGETS[target])
        machine = aot.inspect(compiled, aot.TARGETS[target])
        assert machine.spills == 0
        assert 0 < machine.registers < 256
        if target == "sm_90":  # sixteen bytes at a time
            assert re.search(r"ld\.global[\w.]*\.v[24]\.b(32|64)", compiled.asm["ptx"])


@needs_triton
def test_the_batch_does_not_specialise():
    """One compiled kernel for every batch size: only the grid changes."""
    from mixerzoo.kernels.triton_core import config

    def rest(B):
        _, grid, arguments, plan = launched(torch.bfloat16, B, 16, 64, 64, "key", target=config.SM_90)
        same = {name: x for name, x in arguments.items() if not isinstance(x, torch.Tensor)}
        return grid, same, plan

    first, *same = rest(1)
    for B in (2, 3, 64):
        grid, *other = rest(B)
        assert grid == B * first
        assert other == same
