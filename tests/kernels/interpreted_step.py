"""`step` on the Triton backend, under Triton's interpreter. Run by test_step.py, in a process of its own."""

import math

import pytest
import torch

from mixerzoo.equivalence.cost import count
from mixerzoo.kernels import OuterDecay, recurrence, step
from mixerzoo.kernels.one_step import step_in_place_op, step_op
from oracle import DECAYS, VALUE_DECAYS, arguments, error, leaves

TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def at(t, q, k, v, la, lb):
    """The arguments of step t."""
    if isinstance(la, OuterDecay):
        la = OuterDecay(la.dt[:, t], la.A)
    elif la is not None and la.ndim > 1:
        la = la[:, t]
    return q[:, t], k[:, t], v[:, t], la, lb if lb is None or lb.ndim == 2 else lb[:, t]


def one(*args, **options):
    """Arguments of one step, and a state."""
    *operands, state = arguments(args[0], 1, *args[1:], **options)
    return at(0, *operands), state


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_is_the_formula(decay, value_decay, dtype):
    """For every decay, read, mask, shared heads, dtype, with a state or without."""
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True])
    for i, options in enumerate(({}, {"mask": mask}, {"read": "before"}, {"read": "before", "mask": mask})):
        shared = ((None, None), (2, 1))[i % 2]
        xs, state = one(3, 4, 5, 3, decay=decay, value_decay=value_decay, dtype=dtype, heads=shared)
        state = None if i == 2 else state.to(torch.float64 if dtype == torch.float64 else torch.float32)
        given = None if state is None else state.clone()
        o, s = step(*xs, state=state, scale=0.3, backend="triton", **options)
        want, want_s = step(*xs, state=state, scale=0.3, backend="torch", **options)
        assert o.dtype == want.dtype == dtype
        assert s.dtype == want_s.dtype
        assert error(o, want) < TOLERANCE[dtype]
        assert error(s, want_s) < min(TOLERANCE[dtype], 2e-6)
        if state is not None:
            assert torch.equal(state, given)


SHAPES = {
    "Mamba-1": ((2, 300, 16, 1), {"decay": "outer", "heads": (1, 1)}),
    "HGRN": ((2, 1, 1, 700), {"value_decay": "BTHV"}),
    "one of everything": ((1, 1, 1, 1), {"decay": "BTH"}),
    "heads shared by some of a block": ((2, 12, 8, 8), {"decay": "BTHK", "heads": (4, 3)}),
    "many keys": ((1, 2, 1100, 70), {"decay": "BTHK", "value_decay": "HV", "heads": (1, 2)}),
    "many keys, outer": ((1, 2, 1100, 3), {"decay": "outer"}),
    "no rows": ((0, 2, 4, 4), {"decay": "BTHK"}),
}


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, read):
    torch.manual_seed(1)
    sizes, options = SHAPES[shape]
    xs, state = one(*sizes, **options)
    got = step(*xs, state=state, scale=0.3, read=read, backend="triton")
    for a, b in zip(got, step(*xs, state=state, scale=0.3, read=read), strict=True):
        assert error(a, b) < 1e-14


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("decay", DECAYS)
def test_step_by_step_is_the_whole(decay, read):
    torch.manual_seed(2)
    *operands, s0 = arguments(2, 9, 4, 3, 5, decay, "BTHV", heads=(2, 1))
    mask = torch.rand(2, 9) < 0.7
    options = {"read": read, "scale": 0.3}
    want, want_s = recurrence(*operands, initial_state=s0, mask=mask, **options)
    state, outs = s0.clone(), []
    for t in range(9):
        o, after = step(
            *at(t, *operands), state=state, mask=mask[:, t], inplace=True, backend="triton", **options
        )
        assert after is state
        outs.append(o)
    assert error(torch.stack(outs, 1), want) < 1e-13
    assert error(state, want_s) < 1e-13


ERASURES = ["beta", "erase"]


def erasure(name, B, H, K, dtype, heads=(None, None)):
    """beta_t, or erase_t."""
    if name == "beta":
        return {"beta_t": 2 * torch.rand(B, H, dtype=torch.float64).to(dtype)}
    x, y = (torch.randn(B, h or H, K, dtype=torch.float64) / K**0.5 for h in heads)
    return {"erase_t": (x.to(dtype), y.to(dtype))}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", ERASURES)
def test_erasing_is_the_formula(name, decay, dtype):
    torch.manual_seed(7)
    mask = torch.tensor([True, False, True])
    for i, options in enumerate(({}, {"mask": mask}, {"read": "before"}, {"read": "before", "mask": mask})):
        shared = ((None, None), (2, 1))[i % 2]
        xs, state = one(3, 4, 5, 3, decay=decay, dtype=dtype, heads=shared)
        state = None if i == 2 else state.to(torch.float64 if dtype == torch.float64 else torch.float32)
        options |= erasure(name, 3, 4, 5, dtype, shared)
        o, s = step(*xs, state=state, scale=0.3, backend="triton", **options)
        want, want_s = step(*xs, state=state, scale=0.3, backend="torch", **options)
        assert o.dtype == want.dtype == dtype
        assert s.dtype == want_s.dtype
        assert error(o, want) < TOLERANCE[dtype]
        assert error(s, want_s) < min(TOLERANCE[dtype], 2e-6)
        if i == 1:
            assert torch.equal(s[1], state[1])


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("sizes", [(1, 2, 1100, 7), (2, 12, 8, 8), (1, 1, 1, 40)], ids=str)
@pytest.mark.parametrize("name", ERASURES)
def test_shapes_of_erasure(name, sizes, read):
    """All keys at once, however many: fewer values."""
    torch.manual_seed(8)
    B, H, K, _ = sizes
    xs, state = one(*sizes, decay="BTHK")
    options = {"read": read, "scale": 0.3} | erasure(name, B, H, K, torch.float64, (1, H // 2 or 1))
    want = step(*xs, state=state, **options)
    got = step(*xs, state=state.clone(), inplace=True, backend="triton", **options)
    for a, b in zip(got, want, strict=True):
        assert error(a, b) < 1e-13


def test_any_strides():
    """Everything read through transposed and sliced views; the state written through one too."""
    torch.manual_seed(3)
    for decay in ("BTH", "BTHK", "outer"):
        xs, state = one(2, 4, 5, 3, decay=decay, value_decay="BTHV", heads=(2, 4))

        def scattered(x):
            wide = x.new_full((*reversed(x.shape), 2), math.nan)
            view = wide[..., 0].permute(*reversed(range(x.ndim)))
            view.copy_(x)
            return view

        xs_there = [OuterDecay(*map(scattered, x)) if isinstance(x, tuple) else scattered(x) for x in xs]
        there = scattered(state)
        mask = torch.tensor([True, False, False])[::2]
        o, s = step(*xs_there, state=there, mask=mask, inplace=True, backend="triton")
        want, want_s = step(*xs, state=state, mask=mask)
        assert s is there
        assert error(o, want) < 1e-14
        assert error(there, want_s) < 1e-14


def test_offsets_beyond_32_bits():
    try:
        far = torch.empty(3 << 30, dtype=torch.float16)  # pages that nobody touches are not there
    except RuntimeError:
        pytest.skip("no 6 GiB of address space")
    v = far.as_strided((1, 2, 1), (1, (3 << 30) - 8, 1))
    middle = far.as_strided((1, 3, 1), (1, (3 << 29) - 8, 1))  # the index times a stride of 31 bits
    for view in (v, middle):
        value = torch.arange(1.0, view.shape[1] + 1).half().view(1, -1, 1)
        view.copy_(value)
        one = torch.ones_like(value)
        for xs in ((one, one, view), (view, one, one), (one, view, one)):
            o, _ = step(*xs, backend="triton")
            assert torch.equal(o, value)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_masked_row_is_not_there(decay, inplace):
    """The state keeps every bit of it, and the output is q read from it, whatever the row brings."""
    torch.manual_seed(4)
    (q, k, v, la, lb), state = one(2, 4, 5, 3, decay=decay, value_decay="BTHV", heads=(4, 1))
    for x in (k, v, lb, la.dt if isinstance(la, OuterDecay) else la):
        if x is not None and x.ndim > 1:
            x[1] = math.nan
    before, mask = state.clone(), torch.tensor([True, False])
    for read in ("after", "before"):
        o, s = step(q, k, v, la, lb, state=state, mask=mask, read=read, inplace=inplace, backend="triton")
        assert torch.equal(s[1], before[1])
        assert not torch.equal(s[0], before[0])
        assert error(o[1], torch.einsum("hk,hkv->hv", q[1], before[1])) < 1e-14


def test_resets():
    """A log-decay of -inf forgets everything; A = -inf does so for any dt above 0, and nothing at 0."""
    inf = math.inf
    dt = torch.tensor([0.0, 1e-38, 0.5, inf, -1e-5, 0.5, inf, 0.0])
    A = torch.tensor([-inf, -inf, -inf, -inf, -inf, -2.0, -2.0, -2.0])
    x = torch.zeros(1, 8, 1)
    for a in (A, A.double()):
        state = torch.full((1, 8, 1, 1), 3.0, dtype=a.dtype)
        la = OuterDecay(dt[None], a[:, None])
        _, s = step(x, x, x, la, state=state, backend="triton")
        assert s.flatten().tolist() == [3.0, 0.0, 0.0, 0.0, 3.0, pytest.approx(3 * math.exp(-1)), 0.0, 3.0]
        want = step(x, x, x, la, state=state)[1]
        assert error(s, want) < 1e-6
        never = torch.full((8,), -inf, dtype=a.dtype)
        assert not step(x, x, x, never, state=state, backend="triton")[1].any()
        assert not step(x, x, x, None, never[:, None], state=state, backend="triton")[1].any()


def test_in_place_is_seen_by_autograd():
    xs, state = one(1, 2, 3, 3)
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    y = (w * state).sum()  # keeps the state for its gradient
    with torch.no_grad():
        step(*xs, state=state, inplace=True, backend="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with torch.inference_mode():
        s = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
        assert step(*xs, state=s, inplace=True, backend="triton")[1] is s


def test_a_gradient_is_refused():
    xs, state = one(1, 2, 3, 3, decay="BTHK")
    xs[3].requires_grad_()
    with pytest.raises(ValueError, match=r"backend is 'triton' where a gradient is needed.*no_grad"):
        step(*xs, state=state, backend="triton")
    with torch.no_grad():
        step(*xs, state=state, backend="triton")


@pytest.mark.parametrize("decay", ["none", "BTHK", "outer"])
def test_opcheck(decay):
    torch.manual_seed(5)
    xs, state = one(2, 2, 3, 4, decay=decay, value_decay="HV", extremes=False)
    q, k, v, la, lb = xs
    la, A = la if isinstance(la, OuterDecay) else (la, None)
    mask = torch.tensor([True, False])
    torch.library.opcheck(step_op, (q, k, v, la, A, lb, None, None, None, state, mask, 0.3, "after"))
    torch.library.opcheck(step_op, (q, k, v, la, A, lb, None, None, None, None, None, 0.3, "before"))
    torch.library.opcheck(step_in_place_op, (q, k, v, la, A, lb, None, None, None, state, mask, 0.3, "after"))
    q, k, v, state = (x.bfloat16() for x in (q, k, v, state))
    la, A, lb = (None if x is None else x.float() for x in (la, A, lb))
    torch.library.opcheck(step_op, (q, k, v, la, A, lb, None, None, None, state, mask, 0.3, "after"))


def test_compiled():
    torch.manual_seed(6)
    xs, state = one(2, 2, 3, 4, decay="BTHK", value_decay="HV")
    want, want_s = step(*xs, state=state, scale=0.3)

    def f(*xs, state, inplace):
        return step(*xs, state=state, scale=0.3, inplace=inplace, backend="triton")

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for inplace in (False, True):
        given = state.clone()
        o, s = compiled(*xs, state=given, inplace=inplace)
        assert error(o, want) < 1e-14
        assert error(s, want_s) < 1e-14
        assert (s is given) == inplace
        assert torch.equal(given, state) != inplace


def nbytes(*xs):
    return sum(x.untyped_storage().nbytes() for x in leaves(*xs))


TRAFFIC = [
    ((2, 2, 64, 64), {"decay": "BTHK"}),
    ((2, 2, 128, 128), {"decay": "BTHK", "value_decay": "BTHV"}),
    ((1, 1, 256, 256), {"decay": "BTHK", "value_decay": "BTHV"}),
    ((2, 4, 128, 64), {"decay": "BTH", "heads": (1, 2)}),
    ((1, 2048, 16, 1), {"decay": "outer", "heads": (1, 1)}),
    ((4, 1, 1, 1024), {"value_decay": "BTHV"}),
    ((2, 64, 16, 16), {"decay": "BTH"}),
]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes, options", TRAFFIC, ids=lambda x: str(x))
def test_traffic(sizes, options, dtype, inplace):
    """One launch and nothing around it: the state is read once and written once, and all together is within
    2% of every input read once and every output written once."""
    xs, state = one(*sizes, dtype=dtype, **options)
    q, k, v, la, lb = xs
    la, lb = (OuterDecay(*(y.float() for y in x)) if isinstance(x, tuple) else x for x in (la, lb))
    la, lb = (x.float() if isinstance(x, torch.Tensor) else x for x in (la, lb))
    state = state.float()
    with count() as cost:
        o, new = step(q, k, v, la, lb, state=state, backend="triton", inplace=inplace)
    (kernel,) = cost.kernels.values()
    assert cost.launches == kernel.launches == 1
    assert cost.moved == kernel.moved
    assert kernel.written == kernel.distinct_written == nbytes(o, new)
    assert kernel.distinct_read == nbytes(q, k, v, la, lb, state)
    assert kernel.moved <= 1.02 * (nbytes(q, k, v, la, lb, state) + nbytes(o, new))


@pytest.mark.parametrize("name", ERASURES)
@pytest.mark.parametrize("sizes", [(2, 2, 64, 64), (1, 2, 128, 128)], ids=str)
def test_traffic_of_erasure(sizes, name):
    """The state is read once and written once here too."""
    B, H, K, _ = sizes
    (q, k, v, la, _), state = one(*sizes, decay="BTHK", dtype=torch.float32)
    options = erasure(name, B, H, K, torch.float32)
    erased = leaves(*options.values()) if name == "beta" else leaves(*options["erase_t"])
    with count() as cost:
        o, new = step(q, k, v, la, state=state, backend="triton", inplace=True, **options)
    assert cost.launches == 1
    assert cost.moved <= 1.03 * (nbytes(q, k, v, la, state, *erased) + nbytes(o, new))


def test_traffic_without_a_state():
    """Neither a state nor decays are read."""
    (q, k, v, la, lb), _ = one(2, 2, 64, 64, decay="BTHK", value_decay="BTHV", dtype=torch.float32)
    with count() as cost:
        step(q, k, v, la, lb, backend="triton")
    assert cost.read == nbytes(q, k, v)
