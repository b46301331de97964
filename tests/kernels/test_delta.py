"""The delta rule and the general erasure: every form is the loop, to second order, whatever the keys."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mixerzoo.kernels import delta, recurrence, step
from mixerzoo.kernels.ops import backward_op, recurrence_op
from mixerzoo.kernels.scores import scores_of
from mixerzoo.kernels.steps import Slice
from oracle import DECAYS, arguments, error, leaves, log_decays, loop

FORMS = ("parallel", "chunk", "recurrent", "auto")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}


def erasing(kind, B, T, H, K, dtype=torch.float64, heads=(1, 1)):
    """beta in [0, 2], or a pair (x, y) of moderate size."""
    if kind == "beta":
        return {"beta": (2 * torch.rand(B, T, H, dtype=torch.float64)).to(dtype)}
    x, y = (torch.randn(B, T, h, K, dtype=torch.float64) for h in heads)
    return {"erase": (F.normalize(x, dim=-1).to(dtype), F.normalize(y, dim=-1).to(dtype))}


def unit_keys(args):
    """Transitions of a norm near 1, so that states stay of order one."""
    q, k, v, *rest = args
    return (q, F.normalize(k.double(), dim=-1).to(k.dtype), v, *rest)


def agree(args, extra, tolerance, forms=FORMS, chunk_size=None, **options):
    *operands, s0 = args
    want_o, want_s = loop(*operands, s0, **extra, **options)
    for form in forms:
        o, s = recurrence(*operands, initial_state=s0, form=form, chunk_size=chunk_size, **extra, **options)
        assert o.dtype == operands[2].dtype
        assert error(o, want_o) < tolerance, form
        assert error(s, want_s) < tolerance, form


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["beta", "erase"])
@pytest.mark.parametrize("decay", DECAYS)
def test_every_length_and_decay(decay, kind, dtype):
    torch.manual_seed(0)
    for T in (0, 1, 2, 63, 64, 65):
        args = unit_keys(arguments(2, T, 4, 5, 3, decay, dtype=dtype, heads=(2, 1)))
        agree(args, erasing(kind, 2, T, 4, 5, dtype, (4, 2)), TOLERANCE[dtype])


@given(
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(0, 40),
        st.sampled_from([1, 2, 6]),
        st.integers(1, 5),
        st.integers(1, 5),
    ),
    decay=st.sampled_from(DECAYS),
    kind=st.sampled_from(["beta", "erase"]),
    read=st.sampled_from(["after", "before"]),
    reverse=st.booleans(),
    masked=st.booleans(),
    chunk_size=st.sampled_from([None, 1, 3, 8, 16]),
    share=st.tuples(*(st.sampled_from([1, 2, 3, 6]) for _ in range(4))),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100, deadline=None)
def test_everything_together(shape, decay, kind, read, reverse, masked, chunk_size, share, seed):
    torch.manual_seed(seed)
    B, T, H, K, V = shape
    hq, hk, hx, hy = (h if H % h == 0 else H for h in share)
    args = unit_keys(arguments(B, T, H, K, V, decay, heads=(hq, hk)))
    extra = erasing(kind, B, T, H, K, heads=(hx, hy))
    mask = torch.rand(B, T) < 0.6 if masked else None
    agree(args, extra, 1e-11, chunk_size=chunk_size, read=read, reverse=reverse, mask=mask, scale=0.7)


@pytest.mark.parametrize("keys", ["identical", "alike", "any"])
@pytest.mark.parametrize("beta", [1.0, 2.0, "random"])
@pytest.mark.parametrize("decay", ["none", "BTH", "BTHK", "BTH, strong", "BTHK, strong"])
def test_float32_keeps_its_digits(keys, beta, decay):
    """Identical keys and β = 2 are reflections, which hand every rounding error on. Products of powers of the
    system (Neumann) lose everything there."""
    torch.manual_seed(1)
    B, T, H, K = 1, 256, 2, 64
    one = torch.randn(1, 1, H, K)
    k = one + {"identical": 0.0, "alike": 0.3, "any": 100.0}[keys] * torch.randn(B, T, H, K)
    q, k, v = torch.randn(B, T, H, K), F.normalize(k, dim=-1), torch.randn(B, T, H, K)
    la = None
    if decay != "none":
        la = (-3 if "strong" in decay else -0.1) * torch.rand(B, T, H, *([K] if "BTHK" in decay else []))
    b = 2 * torch.rand(B, T, H) if beta == "random" else torch.full((B, T, H), beta)
    # Where every step overwrites all there is of the only key, decays do not matter: their gradient is 0.
    overwritten = keys == "identical" and beta == 1.0
    found = {}
    for form, dtype in (("exact", torch.float64), *((f, torch.float32) for f in FORMS[:3])):
        xs = [x.to(dtype).requires_grad_() for x in (q, k, v, b, *(() if la is None else (la,)))]
        decays = xs[4] if la is not None else None
        how = {"form": "recurrent" if form == "exact" else form}
        o, s = recurrence(*xs[:3], decays, beta=xs[3], **how)
        found[form] = [o, s, *torch.autograd.grad(o.sum() + s.sum(), xs)]
    for form in FORMS[:3]:
        for i, (got, want) in enumerate(zip(found[form], found["exact"], strict=True)):
            if not (overwritten and i == 6):
                assert error(got, want) < 1e-5, (form, i)


def test_neumann_products_fail_where_we_do_not():
    """What test_float32_keeps_its_digits would see of the usual inverse: (I + L)⁻¹ = Π (I + (-L)^(2^j))."""
    torch.manual_seed(2)
    k = F.normalize(torch.randn(1, 16), dim=-1).expand(64, 16)
    L = (2 * k @ k.T).tril(-1)
    powers, inverse = -L, torch.eye(64) - L
    for _ in range(5):
        powers = powers @ powers
        inverse = inverse + inverse @ powers
    exact = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + L.double())
    assert error(inverse, exact) > 1


@pytest.mark.parametrize("form", ["chunk", "recurrent", "parallel"])
@pytest.mark.parametrize("kind", ["beta", "erase"])
@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_to_second_order(decay, kind, form):
    torch.manual_seed(3)
    for read, reverse, T in (("after", False, 9), ("before", True, 6), ("before", False, 1)):
        args = unit_keys(arguments(2, T, 4, 3, 2, decay, heads=(2, 1)))
        extra = erasing(kind, 2, T, 4, 3, heads=(1, 4))
        mask = torch.rand(2, T) < 0.8
        xs = [x.detach().requires_grad_() for x in leaves(*args, *extra.values(), *extra.get("erase", ()))]
        got, want = [], []
        w = None
        for run, out in ((loop, want), (recurrence, got)):
            left = iter(xs)
            template = [
                x if x is None else (type(x)(next(left), next(left)) if isinstance(x, tuple) else next(left))
                for x in args
            ]
            *operands, s0 = template
            named = {"beta": next(left)} if kind == "beta" else {"erase": (next(left), next(left))}
            how = {} if run is loop else {"form": form, "chunk_size": 4}
            o, s = run(*operands, initial_state=s0, read=read, reverse=reverse, mask=mask, **named, **how)
            w = w or (torch.randn_like(o), torch.randn_like(s))
            first = torch.autograd.grad((o * w[0]).sum() + (s * w[1]).sum(), xs, create_graph=True)
            torch.manual_seed(4)
            total = sum((g * torch.randn_like(g)).sum() for g in first)
            second = torch.autograd.grad(total, xs, allow_unused=True)
            out += [
                *first,
                *(torch.zeros_like(x) if g is None else g for g, x in zip(second, xs, strict=True)),
            ]
        for a, b in zip(got, want, strict=True):
            assert torch.isfinite(a).all()
            assert float((a - b).detach().abs().max()) < 1e-11 * (1 + float(b.detach().abs().max()))


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize("kind", ["beta", "erase"])
def test_zero_decay_has_gradient_exactly_zero(kind, form):
    torch.manual_seed(5)
    q, k, v, la, *_ = unit_keys(arguments(1, 70, 2, 4, 5, "BTHK", dtype=torch.float32))
    la = la.requires_grad_()
    o, s = recurrence(q, k, v, la, form=form, **erasing(kind, 1, 70, 2, 4, torch.float32))
    (o.sum() + s.sum()).backward()
    assert torch.isneginf(la).any()
    assert (la.grad[torch.isneginf(la)] == 0).all() and la.grad.isfinite().all()


WAYS = {
    "BTH": {0.0: "Folded", -0.1: "Folded", -4.0: "Shared", -60.0: "Shared", -math.inf: "Shared"},
    "BTHK": {0.0: "Folded", -0.1: "Folded", -4.0: "Wide", -60.0: "Levels", -math.inf: "Levels"},
}


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("kind", ["beta", "erase"])
@pytest.mark.parametrize("decay", WAYS)
def test_strengths_from_chunk_to_chunk(decay, kind, read, dtype, together, monkeypatch):
    """Each way to the maps of a chunk, one after the other in one sequence whose last chunk is shorter; and
    several chunks at once, which all go the way of the strongest decays among them."""
    monkeypatch.setattr(delta, "MOST_TOGETHER", together)
    torch.manual_seed(12)
    C, H, K, V = 16, 4, 6, 5
    strengths = [*WAYS[decay], -4.0, -0.1]
    T = C * (len(strengths) - 1) + 5
    q, k, v, *_, s0 = unit_keys(arguments(2, T, H, K, V, heads=(2, 1)))
    by_step = torch.tensor(strengths, dtype=torch.float64).repeat_interleave(C)[:T]
    la = by_step[None, :, None, None] * (1 + torch.rand(2, T, H, 1 if decay == "BTH" else K)) / 2
    extra = erasing(kind, 2, T, H, K, heads=(1, 4))
    if dtype == torch.float32:
        ways = [type(scores_of(x.transpose(1, 2).float())).__name__ for x in la.split(C, 1)]
        assert ways == [WAYS[decay][strength] for strength in strengths]
    la = la[..., 0] if decay == "BTH" else la
    found = {}
    for form, to in (("recurrent", torch.float64), ("chunk", dtype)):
        xs = [
            x.to(to).requires_grad_()
            for x in (q, k, v, la, s0, *leaves(*extra.values(), *extra.get("erase", ())))
        ]
        named = {"beta": xs[5]} if kind == "beta" else {"erase": (xs[5], xs[6])}
        o, s = recurrence(*xs[:4], initial_state=xs[4], read=read, form=form, chunk_size=C, **named)
        w = torch.linspace(-1, 1, o.numel(), dtype=to).reshape(o.shape)
        found[form] = [o, s, *torch.autograd.grad((o * w).sum() + s.sum(), xs)]
    for i, (got, want) in enumerate(zip(found["chunk"], found["recurrent"], strict=True)):
        assert error(got.detach(), want.detach()) < TOLERANCE[dtype], i
    assert (found["chunk"][5][la.isneginf()] == 0).all()


@pytest.mark.parametrize("reflected", [None, 40])
def test_one_step_that_reflects_counts_for_all_chunks_at_once(reflected):
    """The system is in float64 where it has to be, and only there."""
    torch.manual_seed(13)
    k, beta = F.normalize(torch.randn(1, 96, 2, 8), dim=-1), torch.rand(1, 96, 2)
    if reflected is not None:
        beta[:, reflected] = 2.0
    c = Slice(*(x.transpose(1, 2) for x in (k, k, k)), beta=beta[..., None].transpose(1, 2))
    system = delta.erasing(delta.chunked(c, 32)).L
    assert system.shape == (3, 1, 2, 32, 32)
    assert system.dtype == (torch.float32 if reflected is None else torch.float64)


def test_few_tiny_heads_have_longer_chunks():
    assert delta.chunk_length(4, 8) == delta.chunk_length(1, 128) == 64
    assert delta.chunk_length(16, 8) == delta.chunk_length(8, 64) == delta.chunk_length(8, 128) == 32


@pytest.mark.parametrize("kind", ["beta", "erase"])
def test_steps_are_the_sequence(kind):
    torch.manual_seed(6)
    B, T, H, K = 2, 7, 4, 3
    q, k, v, la, _, s0 = unit_keys(arguments(B, T, H, K, 5, "BTHK", heads=(2, 1)))
    extra = erasing(kind, B, T, H, K, heads=(1, 2))
    mask = torch.rand(B, T) < 0.7
    for read in ("after", "before"):
        o, s = recurrence(q, k, v, la, initial_state=s0, read=read, mask=mask, **extra)
        state, outs = s0, []
        for t in range(T):
            now = {f"{n}_t": x[:, t] if n == "beta" else (x[0][:, t], x[1][:, t]) for n, x in extra.items()}
            o_t, state = step(
                q[:, t], k[:, t], v[:, t], la[:, t], state=state, read=read, mask=mask[:, t], **now
            )
            outs.append(o_t)
        assert error(torch.stack(outs, 1), o) < 1e-12 and error(state, s) < 1e-12


@pytest.mark.parametrize("kind", ["beta", "erase"])
def test_packed(kind):
    torch.manual_seed(7)
    q, k, v, la, *_ = unit_keys(arguments(1, 17, 2, 3, 3, "BTHK"))
    extra = erasing(kind, 1, 17, 2, 3)
    s0 = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    xs = list(leaves(q, k, v, la, s0, *leaves(*extra.values(), *extra.get("erase", ()))))
    for x in xs:
        x.requires_grad_()
    o, s = recurrence(q, k, v, la, initial_state=s0, cu_seqlens=torch.tensor([0, 5, 5, 11, 17]), **extra)
    pieces = []
    for n, (i, j) in enumerate([(0, 5), (5, 5), (5, 11), (11, 17)]):
        piece = {m: x[:, i:j] if m == "beta" else tuple(z[:, i:j] for z in x) for m, x in extra.items()}
        pieces.append(loop(*(x[:, i:j] for x in (q, k, v, la)), initial_state=s0[n : n + 1], **piece))
    want = torch.cat([p[0] for p in pieces], 1), torch.cat([p[1] for p in pieces])
    assert error(o, want[0]) < 1e-12 and error(s, want[1]) < 1e-12
    w = torch.randn_like(o)
    got, want = (torch.autograd.grad((a * w).sum() + b.sum(), xs) for a, b in ((o, s), want))
    assert all(error(b, a) < 1e-11 for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    torch.manual_seed(8)
    args = unit_keys(arguments(1, 100, 2, 16, 8, "BTH", dtype=dtype, extremes=False))
    extra = erasing("beta", 1, 100, 2, 16)
    *operands, s0 = args
    want, _ = loop(*(x if x is None else x.double() for x in operands), s0.double(), **extra)
    for form in FORMS:
        o, s = recurrence(*operands, initial_state=s0.float(), beta=extra["beta"].float(), form=form)
        assert o.dtype == dtype and s.dtype == torch.float32
        assert error(o, want) < {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] * 1.1


@pytest.mark.parametrize("kind", ["beta", "erase"])
def test_masked_steps_are_not_looked_at(kind):
    torch.manual_seed(9)
    q, k, v, la, *_ = unit_keys(arguments(1, 8, 2, 3, 3, "BTHK", extremes=False))
    extra = erasing(kind, 1, 8, 2, 3)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1]]).bool()

    def dirty(x):
        return x.masked_fill(~mask.reshape(1, 8, *(1 for _ in x.shape[2:])), math.nan).requires_grad_()

    spoiled = {n: dirty(x) if n == "beta" else tuple(map(dirty, x)) for n, x in extra.items()}
    xs = [dirty(x) for x in (k, v, la)]
    o, s = recurrence(q, *xs, mask=mask, **spoiled)
    want = recurrence(
        *(x[:, mask[0]] for x in (q, k, v, la)),
        **{n: x[:, mask[0]] if n == "beta" else tuple(z[:, mask[0]] for z in x) for n, x in extra.items()},
    )
    assert error(o[:, mask[0]], want[0]) < 1e-12 and error(s, want[1]) < 1e-12
    for g in torch.autograd.grad(
        o.sum() + s.sum(), [*xs, *leaves(*spoiled.values(), *spoiled.get("erase", ()))]
    ):
        assert g.isfinite().all() and not g[~mask].any()


@pytest.mark.parametrize("kind", ["beta", "erase"])
def test_opcheck(kind):
    torch.manual_seed(10)
    q, k, v, la, _, s0 = arguments(1, 2, 1, 2, 2, "BTH", extremes=False)
    extra = erasing(kind, 1, 2, 1, 2)
    pair = extra.get("erase", (None, None))
    xs = [q, k, v, la, None, None, extra.get("beta"), *pair, s0]
    xs = [x if x is None else x.detach().requires_grad_() for x in xs]
    options = (0.5, "after", False, "chunk", "torch", "auto", None, 2, False)
    torch.library.opcheck(recurrence_op, (*xs, None, None, *options))
    cotangents = torch.randn_like(v), torch.randn_like(s0), torch.zeros(0, dtype=s0.dtype)
    torch.library.opcheck(backward_op, (*cotangents, *xs, None, None, *options, [True] * 10))


def test_log_decays_have_resets():
    assert torch.isneginf(log_decays(1000)).any()
