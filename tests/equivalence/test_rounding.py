"""Running error bounds: those of every operation hold and are not idle, and broken code exceeds them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mixerzoo.equivalence.algebra import Element
from mixerzoo.equivalence.rounding import (
    ERRORS_OF_OPERANDS,
    FLOAT32,
    FLOAT64,
    HALF_PRODUCTS,
    Bounded,
    Fixed,
    distance,
)
from mixerzoo.equivalence.theorem import Budget, Counterexample, Side, Tally
from mixerzoo.equivalence.theorems import catalogue, delta_rounding, rounding
from mixerzoo.equivalence.theorems.problems import Problem, steps
from mixerzoo.kernels import delta, forms, gradients, scores
from mixerzoo.kernels.memory import copied
from mixerzoo.kernels.steps import Gradients

X, Y = np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(np.float32).astype(np.float64)
LOGS = np.array([[-0.5, -1e-3, -math.inf], [-60.0, -2.0, -1.0], [0.0, -1e30, -100.0]])
NONE = np.zeros_like(LOGS)

OPERATIONS = {
    "+": (lambda x, y: x + y, X, Y),
    "-": (lambda x, y: x - y, X, Y),
    "*": (lambda x, y: x * y, X, Y),
    "constants": (lambda x, y: x * 0.1 + y * -3, X, Y),
    "@": (lambda x, y: x @ y.mT, X, Y),
    "sum": (lambda x, y: torch.sum(x * y, -2, True), X, Y),
    "cumsum": (lambda x, y: torch.cumsum(x + y, -2), X, Y),
    "cumsum from the end": (lambda x, y: torch.cumsum((x + y).flip(0), 0).flip(0), X, Y),
    "exp": (lambda x, y: torch.exp(x), LOGS, NONE),
    "exp of sums": (lambda x, y: torch.exp(torch.cumsum(x, -1)) + y, LOGS, NONE),
    "reciprocal": (lambda x, y: torch.reciprocal(x * x + 1 + y * y), X, Y),
    "cat": (lambda x, y: torch.cat([x * y, y], 1), X, Y),
    "where": (lambda x, y: torch.where(torch.arange(7) > 2, x * y, torch.zeros_like(x)), X, Y),
}


def largest(arithmetic, f, x, y):
    """Of f in an arithmetic: the largest error and the largest bound, as parts of the largest result."""
    true = f(Fixed.of(x), Fixed.of(y))
    bounded = f(Bounded.of(x, arithmetic), Bounded.of(y, arithmetic))
    error = distance(bounded.computed, true)
    assert (error <= bounded.error).all()
    size = np.abs(true.floats()).max()
    return error.max() / size, bounded.error.max() / size


@pytest.mark.parametrize("arithmetic", [FLOAT32, FLOAT64], ids=lambda a: a.name)
@pytest.mark.parametrize("name", OPERATIONS)
def test_bounds_of_operations(name, arithmetic):
    f, x, y = OPERATIONS[name]
    if arithmetic == FLOAT64:
        x, y = x / 3, y / 3  # no sum of these is exact
    error, bound = largest(arithmetic, f, x, y)
    assert bound <= 30 * arithmetic.unit  # sums of 7 terms, exp
    if name not in ("exp", "exp of sums"):  # whose largest results are 1
        assert error > 0
    # The same on tensors, whose sums are taken in another order.
    tensors = [torch.from_numpy(z).to(arithmetic.dtype) for z in (x, y)]
    bounded = f(Bounded.of(x, arithmetic), Bounded.of(y, arithmetic))
    assert (distance(f(*tensors).numpy(), f(Fixed.of(x), Fixed.of(y))) <= bounded.error).all()


def test_errors_of_operands_are_carried():
    """Through every operation, as far as they can reach."""
    for name, (f, x, y) in OPERATIONS.items():
        near = x * (1 + 1e-4 * np.sign(X.ravel()[: x.size].reshape(x.shape)))
        reach = f(Bounded.of(x, ERRORS_OF_OPERANDS, 1.1e-4), Bounded.of(y, ERRORS_OF_OPERANDS))
        moved = distance(f(Fixed.of(near), Fixed.of(y)).floats(), f(Fixed.of(x), Fixed.of(y)))
        assert (moved <= reach.error + 1e-12).all(), name
        assert moved.max() > 1e-6, name
        assert reach.error.max() < 100 * moved.max(), name


def test_products_in_half_precision():
    f, x, y = OPERATIONS["@"]
    error, bound = largest(HALF_PRODUCTS, f, x, y)
    assert 1e-3 < error < bound < 0.1
    assert largest(HALF_PRODUCTS, OPERATIONS["*"][0], x, y)[0] < 1e-6


def test_what_is_exact_has_no_error():
    x = Bounded.of(X, FLOAT32)
    zero = torch.zeros_like(x)
    for y in (
        x * zero,
        zero @ x.mT,
        x * -1,
        torch.sum(zero, -1),
        torch.exp(Bounded.of(NONE - math.inf, FLOAT32)),
    ):
        assert not y.error.any()
    logs = Bounded.of(LOGS, FLOAT64)
    for y in (logs + logs, torch.cumsum(logs, 0), torch.sum(logs, 0)):
        assert (y.error[np.isneginf(y.computed)] == 0).all() and np.isneginf(y.computed).any()


def test_what_may_be_zero_has_no_reciprocal():
    x = Bounded.of(np.array([1e-3, 1.0]), FLOAT32, 1e-2) + 1.0 + -1.0
    assert np.isfinite(torch.reciprocal(x).error).all()
    assert np.isinf(torch.reciprocal(x * Bounded.of(np.array([1e-6, 0.0]), FLOAT32) + 1.0 + -1.0).error).all()


def test_dtypes_meet_in_the_wider():
    single, double = Bounded.of(X, FLOAT32), Bounded.of(Y, FLOAT64)
    assert (single * double).dtype == torch.float64
    assert (single.double() @ double.mT).to(torch.float32).dtype == torch.float32
    lost = Bounded.of(Y / 3, FLOAT64).to(torch.float32)
    assert (distance(lost.computed, Fixed.of(Y / 3)) <= lost.error).all()
    with pytest.raises(TypeError, match="no meaning for Bounded and Fixed"):
        single + Fixed.of(Y)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("alike", [False, True])
def test_triangular_systems(alike, upper):
    """Also where the entries are 2, whose absolute values alone would say 3^24."""
    n = 24
    L = np.full((n, n), 2.0) if alike else np.random.default_rng(1).standard_normal((n, n))
    L = L.astype(np.float32).astype(np.float64)
    b = X.reshape(-1)[: 2 * n].reshape(n, 2)
    solved = torch.linalg.solve_triangular(
        Bounded.of(L, FLOAT32), Bounded.of(b, FLOAT32), upper=upper, unitriangular=True
    )
    true = {}
    for i in reversed(range(n)) if upper else range(n):
        known = range(i + 1, n) if upper else range(i)
        for j in range(2):
            true[i, j] = Fraction(b[i, j]) - sum(Fraction(L[i, s]) * true[s, j] for s in known)
    tensors = (torch.from_numpy(z).float() for z in (L, b))
    by_torch = torch.linalg.solve_triangular(*tensors, upper=upper, unitriangular=True)
    for (i, j), x in true.items():
        for found in (solved.computed[i, j], float(by_torch[i, j])):
            assert abs(Fraction(float(found)) - x) <= Fraction(solved.error[i, j])
    if alike:
        assert solved.error.max() < 1e-3 * np.abs(solved.computed).max()


def test_a_system_beyond_all_bounds():
    n = 80
    L = Bounded.of(np.full((n, n), -2.0), FLOAT32)  # whose inverse has entries of 3^79
    solved = torch.linalg.solve_triangular(
        L, Bounded.of(np.ones((n, 1)), FLOAT32), upper=False, unitriangular=True
    )
    assert np.isinf(solved.error).all()
    # Entries known to a half: what 3/2 and 1/2 of them give lies within the bound.
    L, b = np.tril(np.full((8, 8), -2.0), -1) + np.eye(8), np.ones((8, 1))
    known = Bounded.of(L, FLOAT32, 0.5), Bounded.of(b, FLOAT32)
    solved = torch.linalg.solve_triangular(*known, upper=False, unitriangular=True)
    assert solved.error.max() < 1e6
    for factor in (0.5, 1.5):
        other = np.linalg.solve(np.eye(8) + factor * np.tril(L, -1), b)
        assert (np.abs(other - solved.computed) <= solved.error).all()


def test_fixed_point_is_exact():
    x, y = X * 2.0**-150, Y / 3
    found = (Fixed.of(x) @ Fixed.of(y).mT).parts[0].ravel()
    exact = [
        sum(Fraction(p) * Fraction(q) for p, q in zip(x[i, j], y[i, k], strict=True))
        for i in range(5)
        for j in range(6)
        for k in range(6)
    ]
    assert all(
        abs(Fraction(x, 1 << 256) - y) <= Fraction(1, 1 << 255) for x, y in zip(found, exact, strict=True)
    )
    assert Fixed.of(LOGS).exp().floats() == pytest.approx(np.exp(LOGS), rel=1e-15)
    assert np.isnan(distance(np.array([math.nan, math.inf]), Fixed.of(np.zeros(2)))).all()


# ------------------------------------------------------------------ what fails


def failure(name):
    """What the evidence of kind bound says is wrong with a theorem, "" if nothing is."""
    budget = Budget(quick=True, name=name)
    try:
        theorem = catalogue()[name]
        theorem.evidence["bound"](budget, Tally(theorem.left and (theorem.left, theorem.right)))
    except Counterexample as e:
        return str(e)
    return ""


def test_every_form_and_gradient_has_a_bound():
    names = [
        *(f"forms/{n}" for n in forms.FORMS),
        *(f"gradients/{n}" for n in gradients.GRADIENTS),
        *(f"delta/{n}" for n in delta.FORMS),
        *(f"delta/gradient-{n}" for n in delta.GRADIENTS),
    ]
    assert all("bound" in catalogue()[n].evidence for n in names)
    assert not failure("forms/chunk") and not failure("delta/gradient-chunk")


def subtracting(x, i, order):
    """Sums over segments as differences of cumulative sums."""
    first = torch.zeros_like(x[..., :1, :])
    own, before = torch.cumsum(x, -2), torch.cumsum(torch.cat([first, x[..., :-1, :]], -2), -2)
    t = own if order.query_decayed else before
    s = before if order.key_decayed else own
    return t[..., i:, None, :] - s[..., None, :, :]


def hold(form, size, arithmetic=FLOAT32, **options):
    case = rounding.Case(Problem(64, 64, key_decay="[B,T,H]", value_decay="none", batch=1, **options), size)
    found = rounding.compare_form(form, case, np.random.default_rng(0), arithmetic)
    rounding._hold(found, case, arithmetic, form, Tally())


@pytest.mark.parametrize("form", ["parallel", "chunk"])
def test_subtracted_sums_exceed_their_roundings(form, monkeypatch):
    """Their bound holds, as it grows with the error; the operands and the roundings do not explain it."""
    hold(form, "strong")
    monkeypatch.setattr(forms, "segment_sums", subtracting)
    with pytest.raises(Counterexample, match="roundings do not account"):
        hold(form, "strong")
    with pytest.raises(Counterexample, match="nan times its bound"):  # -inf less -inf
        hold(form, "resets")


def subtracting_gradient(c, S, G, do, order):
    """dlog a as a difference of two cumulative sums, of q∘dq and of k∘dk."""
    kept = copied(G)  # whose memory the gradient at the start may take
    g, start = gradients.chunk_gradient(c, S, G, do, order)
    end = forms.chunk(c, S, order)[1]
    if c.la is None:
        return g, start
    difference = forms.suffix(c.q * g.q, order.query_decayed) - forms.suffix(c.k * g.k, not order.key_decayed)
    la = gradients._like(difference + (end * kept).sum(-1)[..., None, :], c.la)
    return Gradients(g.q, g.k, g.v, la, g.lb), start


def test_a_subtracting_gradient_exceeds_its_roundings(monkeypatch):
    monkeypatch.setitem(gradients.GRADIENTS, "chunk", subtracting_gradient)
    reason = failure("gradients/chunk")
    assert "roundings do not account" in reason and "gradient of log_decay" in reason


@pytest.mark.parametrize("form, part", [("chunk", "plus_product"), ("parallel", "read_entry")])
def test_a_product_accumulated_in_half_precision(form, part, monkeypatch):
    real = getattr(forms, part)

    def rounded(*operands):
        o = real(*operands)
        return o if isinstance(o, Element) else o.bfloat16().to(o.dtype)

    monkeypatch.setattr(forms, part, rounded)
    assert "the error of torch is" in failure(f"forms/{form}")


def test_a_wrong_form(monkeypatch):
    real = forms.suffix
    monkeypatch.setattr(forms, "suffix", lambda x, inclusive: real(x, True))
    for name in ("forms/chunk", "gradients/chunk"):
        assert "the error of the carried computation is" in failure(name)


def test_a_wrong_map_of_the_delta_rule(monkeypatch):
    monkeypatch.setattr(scores, "later", lambda x: x)  # rows that read before the decay of their step
    assert "the error of the carried computation is" in failure("delta/chunk")


def test_a_system_in_single_precision_is_seen_in_the_bound(monkeypatch):
    """Forming and solving it in float64 is worth digits: the bound without that says so."""

    def part():
        p = Problem(32, 32, key_decay="none", value_decay="none", batch=1, key_dim=8, erasing="beta")
        case = rounding.Case(p, alike=True)
        found = rounding.compare_form("chunk", case, np.random.default_rng(0), FLOAT32)
        rounding._hold(found, case, FLOAT32, "chunk", Tally())
        return max(c.part for c in found)

    wide = part()
    monkeypatch.setattr(scores, "wide", lambda name, x: x)
    assert part() > 2 * wide


def test_a_bound_that_says_nothing_is_no_evidence(monkeypatch):
    assert not failure("delta/recurrent")
    monkeypatch.setattr(rounding, "_longest", lambda *_: 64)
    assert "the bound says nothing" in failure("delta/recurrent")


def test_a_system_solved_by_powers(monkeypatch):
    """The product of I + N^(2^j), N = -L, is the inverse; where keys are alike its factors outgrow it."""
    real = delta.solve

    def solve(L, b, transposed=False, out=None):
        if isinstance(L, Element):
            return real(L, b, transposed)
        N, x = -(L.mT if transposed else L).to(b.dtype), b
        for _ in range(6):
            x, N = x + N @ x, N @ N
        return x if out is None else out.copy_(x)

    assert not failure("rounding/delta-blocks")
    monkeypatch.setattr(delta, "solve", solve)
    assert "times its bound: the chunk form" in failure("rounding/delta-blocks")


def test_a_state_in_half_precision_between_blocks(monkeypatch):
    real = forms.walk

    def walk(c, S, order):
        o, end = real(c, S, order)
        return o, end if isinstance(end, Element) else end.bfloat16().to(end.dtype)

    monkeypatch.setitem(delta_rounding.BODIES, "recurrent", walk)
    assert "times its bound: the recurrent form" in failure("rounding/delta-blocks")


def test_what_blocks_got_wrong_is_carried_on(monkeypatch):
    """By the norm of the exact transitions: 1 with β = 2, where a step is a reflection, and 2 with β = 3."""
    p = Problem(32, 1, key_decay="none", value_decay="none", batch=1, key_dim=8, erasing="beta")
    x = rounding.operands(rounding.Case(p, alike=True), np.random.default_rng(0))
    _, seen = delta_rounding._run("chunk", p, x, FLOAT32)
    states = [S.numpy().astype(np.float64) for S, _, _ in seen]

    def bound():
        return delta_rounding.bounds("chunk", p, x, states, FLOAT32).state.max()

    real, norms = delta_rounding._transitions, []
    for beta in (2.0, 3.0):
        wrong = steps(rounding._as(x._replace(beta=np.full_like(x.beta, beta)), torch.from_numpy))
        norms.append(real(wrong.slice(0, 1), p)[0].max())
    assert norms == pytest.approx([1, 2], abs=1e-6)
    once = bound()
    monkeypatch.setattr(delta_rounding, "_transitions", lambda c, p: (2 * real(c, p)[0], real(c, p)[1]))
    assert bound() > 1e6 * once


def test_a_rough_exp():
    theorem = catalogue()["rounding/exp"]
    assert not failure("rounding/exp")
    for rough, reason in (
        (lambda x: torch.exp(x) * torch.where(x < 0, 1 + 1e-6, 1.0), "ulp off"),
        (lambda x: torch.exp(x) + torch.where(x.isinf(), 1e-30, 0.0), "exp of 0 and -inf"),
    ):
        tally = Tally((Side("rough", rough), theorem.right))
        with pytest.raises(Counterexample, match=reason):
            theorem.evidence["bound"](Budget(name="rounding/exp"), tally)
