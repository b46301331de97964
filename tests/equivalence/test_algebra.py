"""The arithmetic that proofs rest on: against Python's integers, and with its types kept apart."""

import numpy as np
import pytest
import torch

from mixerzoo.equivalence import algebra
from mixerzoo.equivalence.algebra import MODULUS, Field, Integer, Interval, Log

EDGES = [0, 1, 2, MODULUS - 1, MODULUS - 2, 1 << 30, (1 << 31) - 1, 1 << 31, 1 << 60, (1 << 60) + 12345]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def words(rng, n):
    """Random elements, and every pair of the edges."""
    x, y = np.meshgrid(np.array(EDGES, np.uint64), np.array(EDGES, np.uint64))
    more = [rng.integers(0, MODULUS, n, dtype=np.uint64) for _ in range(2)]
    return np.concatenate([x.ravel(), more[0]]), np.concatenate([y.ravel(), more[1]])


def integers(x):
    return [int(i) for i in np.ravel(x)]


def field(values):
    return Field(np.array(values, dtype=np.uint64))


@pytest.mark.parametrize(
    ("ours", "python"),
    [
        (algebra.add, lambda a, b: a + b),
        (algebra.subtract, lambda a, b: a - b),
        (algebra.multiply, lambda a, b: a * b),
    ],
)
def test_arithmetic_is_that_of_integers(rng, ours, python):
    x, y = words(rng, 2000)
    expected = [python(a, b) % MODULUS for a, b in zip(integers(x), integers(y), strict=True)]
    assert integers(ours(x, y)) == expected


def test_sums_powers_and_inverses(rng):
    x = rng.integers(0, MODULUS, (7, 500), dtype=np.uint64)
    x[0] = MODULUS - 1
    assert integers(algebra.total(x, 0)) == [sum(integers(column)) % MODULUS for column in x.T]
    assert integers(algebra.power(x[1], 12)) == [pow(a, 12, MODULUS) for a in integers(x[1])]
    assert set(integers(algebra.multiply(x, algebra.inverse(x)))) == {1}
    assert int(algebra.inverse(np.zeros(1, np.uint64))[0]) == 0


def test_matrix_products(rng):
    x, y = Field.random(rng, 2, 3, 4), Field.random(rng, 1, 4, 5)
    a, b = (z.parts[0].astype(object) for z in (x, y))
    assert ((a @ b) % MODULUS == (x @ y).parts[0].astype(object)).all()


def test_logarithms_multiply(rng):
    x = Log.random(rng, 4, 2)
    a = x.parts[0].astype(object)
    assert integers((x + x).exp().parts[0]) == integers(a * a % MODULUS)
    assert integers(torch.cumsum(x, 0).parts[0][2]) == integers(a[0] * a[1] * a[2] % MODULUS)
    assert integers(torch.sum(x, 0, True).parts[0]) == integers(a[0] * a[1] * a[2] * a[3] % MODULUS)
    assert integers(torch.zeros_like(x).exp().parts[0]) == [1] * 8
    assert integers(((x + x) - x).parts[0]) == integers(a)
    assert integers((x * Integer(np.array([0, 3]))).parts[0]) == integers(a ** np.array([0, 3]) % MODULUS)


def test_a_logarithm_of_zero_absorbs_and_has_no_derivative(rng):
    reset = Log.random(rng, 3, dual=True, zeros=1.0)
    other = Log.random(rng, 3, dual=True)
    value, tangent = (reset + other).exp().parts
    assert not value.any() and not tangent.any()


def test_tangents_are_derivatives(rng):
    """(x + y) * x at matrices: d = (dx + dy) x + (x + y) dx."""
    x, y = Field.random(rng, 3, 3, dual=True), Field.random(rng, 3, 3, dual=True)
    a, da, b, db = (z.astype(object) for z in (*x.parts, *y.parts))
    expected = ((da + db) @ a + (a + b) @ da) % MODULUS
    assert (((x + y) @ x).tangent().astype(object) == expected).all()
    la = Log.random(rng, 3, dual=True)
    value, tangent = (la + la).exp().parts
    twice = 2 * value.astype(object) * la.tangent().astype(object) % MODULUS
    assert (tangent.astype(object) == twice).all()


def test_reciprocals(rng):
    """1/x has -dx/x²; 0 has none."""
    x = Field.random(rng, 3, 4, dual=True)
    one, change = (x * torch.reciprocal(x)).parts
    assert set(integers(one)) == {1} and not change.any()
    assert torch.reciprocal(x).tangent().any()
    with pytest.raises(TypeError, match="reciprocal of 0"):
        torch.reciprocal(torch.zeros_like(x))


def test_constants_have_no_tangent(rng):
    x, constant = Field.random(rng, 2, dual=True), Field.random(rng, 2)
    assert integers((x + constant).tangent()) == integers(x.tangent())
    expected = [
        a * b % MODULUS for a, b in zip(*map(integers, (x.tangent(), constant.parts[0])), strict=True)
    ]
    assert integers((constant * x).tangent()) == expected


def misuse(rng):
    x, la = Field.random(rng, 2, 2), Log.random(rng, 2, 2)
    return {
        "log + linear": lambda: la + x,
        "linear + log": lambda: x + la,
        "log · linear": lambda: la * x,
        "linear · log": lambda: x * la,
        "log · log": lambda: la * la,
        "log @ linear": lambda: x @ la,
        "exp of linear": lambda: torch.exp(x),
        "where": lambda: torch.where(torch.ones(2, 2, dtype=torch.bool), la, x),
        "cat": lambda: torch.cat([la, x]),
        "a fraction": lambda: x * 0.5,
        "a float": lambda: x + 1.0,
        "tanh": lambda: torch.tanh(x),
        "a tensor": lambda: x * torch.ones(2, 2),
    }


@pytest.mark.parametrize("kind", list(misuse(np.random.default_rng(0))))
def test_mixing_logarithms_with_linear_values_is_an_error(rng, kind):
    with pytest.raises(TypeError):
        misuse(rng)[kind]()


def test_intervals_join_neighbours_only():
    start = np.arange(3)
    x = Interval(start, start + 1)
    assert (x[:1] + x[1:2]).tolist() == [(0, 2)]
    with pytest.raises(ValueError, match="follow"):
        x[:1] + x[2:]


def test_differences_are_found():
    x, y = field([[1, 2], [3, 4]]), field([[1, 2], [3, 5]])
    assert algebra.differs(x, x) is None
    assert algebra.differs(x, y) == (1, 1)
    assert algebra.differs(x, x[:1]) == ()
    assert algebra.differs(x, Log(*x.parts)) == ()
