"""Field elements and formal logarithms which plain torch code accepts in place of tensors.

The forms of the recurrence are polynomials in (q, k, v, S_0) and in the decays a = exp(log a). Run on
random elements of the field GF(p), p = 2^61 - 1, two of them that differ as polynomials of degree
d agree with a probability of at most d / p (Schwartz and Zippel), so one run is a proof up to that
probability: no rounding, no tolerance. Nothing is translated for it. The elements implement
`__torch_function__`, so the functions that run in production run on them.

- `Field`: elements of GF(p), with +, -, *, @, sums and cumulative sums.
- `Log`: the formal logarithm of a field element. It holds the element itself; + multiplies, a sum is a
  product, 0 is 1, -inf is 0, and exp drops the logarithm. Mixing it with linear values is a TypeError.
- `Integer`: whole numbers, by which a Log may be multiplied: n · log a = log aⁿ.
- `Interval`: elements of the free monoid, whose + joins neighbours: tells whether a network of
  compositions keeps their order, whatever is composed.

A `Field` or `Log` made with `dual=True` carries a tangent beside its value (dual numbers), which gives
derivatives without any formula for them.
"""

from __future__ import annotations

import math
import operator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

MODULUS = (1 << 61) - 1

Words = npt.NDArray[np.uint64]

_U = np.uint64
_P, _LOW30, _LOW31 = _U(MODULUS), _U((1 << 30) - 1), _U((1 << 31) - 1)
_30, _31, _61 = _U(30), _U(31), _U(61)

# ------------------------------------------------------------------ arithmetic of words below p


def _reduce(x: Words) -> Words:
    """x mod p, for any 64-bit x."""
    x = (x & _P) + (x >> _61)
    return x - _P * (x >= _P)


def add(x: Words, y: Words) -> Words:
    return _reduce(x + y)


def subtract(x: Words, y: Words) -> Words:
    return _reduce(x + (_P - y))


def multiply(x: Words, y: Words) -> Words:
    # Limbs of 31 bits; 2^62 = 2 mod p folds the high product back, 2^61 = 1 the middle one.
    x1, x0, y1, y0 = x >> _31, x & _LOW31, y >> _31, y & _LOW31
    middle = x1 * y0 + x0 * y1
    high = (x1 * y1) * _U(2) + (middle >> _30) + ((middle & _LOW30) << _31)
    return _reduce(_reduce(high) + _reduce(x0 * y0))


def total(x: Words, axis: int, keepdims: bool = False) -> Words:
    low = (x & _LOW31).sum(axis=axis, keepdims=keepdims, dtype=_U)
    high = (x >> _31).sum(axis=axis, keepdims=keepdims, dtype=_U)
    return _reduce(_reduce(low) + multiply(_reduce(high), np.full_like(high, 1 << 31)))


def power(x: Words, n: int) -> Words:
    result = np.ones_like(x)
    while n:
        if n & 1:
            result = multiply(result, x)
        x = multiply(x, x)
        n >>= 1
    return result


def inverse(x: Words) -> Words:
    """1/x, and 0 for 0."""
    return power(x, MODULUS - 2)


def product(x: Words, y: Words) -> Words:
    """The matrix product of the last two axes."""
    return total(multiply(x[..., :, :, None], y[..., None, :, :]), -2)


# ------------------------------------------------------------------ what stands in for a tensor

E = TypeVar("E", bound="Element")


class Element:
    """An array of things, with the part of a tensor's interface that only moves them about.

    `parts` are arrays of one shape: the values, then (dual numbers) their tangents.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def _each(self: E, f: Any) -> E:
        return type(self)(*(f(x) for x in self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def mT(self: E) -> E:
        return self.transpose(-1, -2)

    def __getitem__(self: E, index: Any) -> E:
        return self._each(lambda x: x[index])

    def transpose(self: E, i: int, j: int) -> E:
        return self._each(lambda x: np.swapaxes(x, i, j))

    def permute(self: E, *dims: int) -> E:
        return self._each(lambda x: np.transpose(x, dims))

    def unbind(self: E, dim: int = 0) -> tuple[E, ...]:
        return tuple(self[(slice(None),) * dim + (i,)] for i in range(self.shape[dim]))

    def movedim(self: E, source: int, destination: int) -> E:
        return self._each(lambda x: np.moveaxis(x, source, destination))

    def reshape(self: E, *sizes: int) -> E:
        return self._each(lambda x: x.reshape(sizes))

    def contiguous(self: E) -> E:
        return self

    def expand(self: E, *sizes: int) -> E:
        return self._each(lambda x: np.broadcast_to(x, sizes))

    def flip(self: E, dim: int) -> E:
        return self._each(lambda x: np.flip(x, dim))

    def sum(self: E, dim: int, keepdim: bool = False) -> E:
        raise self._refused("sum")

    def cumsum(self: E, dim: int) -> E:
        raise self._refused("cumsum")

    def exp(self) -> Element:
        raise self._refused("exp")

    def reciprocal(self) -> Element:
        raise self._refused("reciprocal")

    def zeros_like(self: E) -> E:
        raise self._refused("zeros_like")

    def amin(self) -> float:
        raise self._refused("amin")

    def amax(self) -> float:
        raise self._refused("amax")

    def _refused(self, operation: str, other: object = None) -> TypeError:
        of = type(self).__name__ + ("" if other is None else f" and {type(other).__name__}")
        return TypeError(f"{operation} has no meaning for {of}")

    def _same(self: E, other: object, operation: str) -> E:
        """`other`, which must be of one's own kind."""
        if type(other) is not type(self):
            raise self._refused(operation, other)
        return other

    def value(self: E) -> E:
        """Without tangents."""
        return type(self)(self.parts[0])

    def tangent(self) -> Words:
        return self.parts[1]

    @classmethod
    def __torch_function__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(f, "__name__", str(f))
        if name not in _TORCH:
            raise TypeError(f"torch.{name} has no meaning for {cls.__name__}")
        return _TORCH[name](*args, **(kwargs or {}))


def _joined(xs: Any, dim: int, join: Any, operation: str) -> Any:
    first = xs[0]
    columns = zip(*(first._same(x, operation).parts for x in xs), strict=True)
    return type(first)(*(join(column, axis=dim) for column in columns))


def _where(condition: Any, x: Any, y: Any) -> Any:
    c = condition.numpy() if isinstance(condition, torch.Tensor) else condition
    pairs = zip(x.parts, x._same(y, "where").parts, strict=True)
    return type(x)(*(np.where(c, a, b) for a, b in pairs))


def _solve_triangular(L: Any, b: Any, *, upper: bool, unitriangular: bool) -> Any:
    """x with L x = b, by substitution; L counts as having ones on its diagonal."""
    if not unitriangular:
        raise TypeError("solve_triangular has no meaning here but for a unit diagonal: it would divide")
    n = b.shape[-2]
    rows: list[Any] = []
    for i in reversed(range(n)) if upper else range(n):
        row = b[..., i : i + 1, :]
        if rows:
            known = torch.cat(rows[::-1] if upper else rows, -2)
            row = row - (L[..., i : i + 1, i + 1 :] if upper else L[..., i : i + 1, :i]) @ known
        rows.append(row)
    return torch.cat(rows[::-1] if upper else rows, -2)


def _tril(x: Any, diagonal: int = 0) -> Any:
    """What is above the diagonal becomes 0 (for a Log, the log of 1)."""
    return _where(np.tri(x.shape[-2], x.shape[-1], diagonal) == 1, x, x.zeros_like())


def fresh(f: Any) -> Any:
    """f, whose results here are new ones: the memory that torch may be given for them is None."""

    def run(*xs: Any, out: None = None, **options: Any) -> Any:
        if out is not None:
            raise TypeError("elements are not written over")
        return f(*xs, **options)

    return run


_TORCH: dict[str, Any] = {
    "add": fresh(operator.add),
    "sub": operator.sub,
    "mul": fresh(operator.mul),
    "addcmul": fresh(lambda x, y, z: x + y * z),
    "neg": operator.neg,
    "matmul": fresh(operator.matmul),
    "tril": _tril,
    "amin": lambda x: x.amin(),
    "amax": lambda x: x.amax(),
    "diagonal": lambda x, offset, dim1, dim2: x._each(lambda y: np.diagonal(y, offset, dim1, dim2)),
    "cat": lambda xs, dim=0: _joined(xs, dim, np.concatenate, "cat"),
    "stack": lambda xs, dim=0: _joined(xs, dim, np.stack, "stack"),
    "where": _where,
    "flip": lambda x, dim: x.flip(dim),
    "movedim": lambda x, source, destination: x.movedim(source, destination),
    "sum": lambda x, dim, keepdim=False: x.sum(dim, keepdim),
    "cumsum": lambda x, dim: x.cumsum(dim),
    "exp": lambda x: x.exp(),
    "reciprocal": fresh(lambda x: x.reciprocal()),
    "zeros_like": lambda x: x.zeros_like(),
    "linalg_solve_triangular": fresh(_solve_triangular),
}


def _accumulate(x: Words, dim: int, f: Any) -> Words:
    x = np.moveaxis(x, dim, 0).copy()
    for i in range(1, len(x)):
        x[i] = f(x[i - 1], x[i])
    return np.moveaxis(x, 0, dim)


def _dual_product(x: Any, y: Any, f: Any) -> Any:
    """(x + x'ε)(y + y'ε) for a bilinear f; a part that is missing is zero."""
    if len(x) == 1 or len(y) == 1:
        return (f(x[0], y[0]), *(f(a, y[0]) for a in x[1:]), *(f(x[0], b) for b in y[1:]))
    return f(x[0], y[0]), add(f(x[0], y[1]), f(x[1], y[0]))


class Field(Element):
    """Elements of GF(2^61 - 1). They may be scaled by a Python int or an `Integer`."""

    @classmethod
    def random(cls, rng: np.random.Generator, *sizes: int, dual: bool = False) -> Field:
        """Uniform over the whole field, which is what the error probability rests on."""
        return cls(*(rng.integers(0, MODULUS, sizes, dtype=_U) for _ in range(2 if dual else 1)))

    @classmethod
    def zeros(cls, *sizes: int) -> Field:
        return cls(np.zeros(sizes, _U))

    def _termwise(self, y: object, operation: str, f: Any) -> Field:
        y = self._same(y, operation)
        if len(self.parts) == len(y.parts):
            return Field(*(f(a, b) for a, b in zip(self.parts, y.parts, strict=True)))
        sizes = np.broadcast_shapes(self.shape, y.shape)
        zero = np.zeros(sizes, _U)
        x, z = ((*(np.broadcast_to(p, sizes) for p in e.parts), zero)[:2] for e in (self, y))
        return Field(*(f(a, b) for a, b in zip(x, z, strict=True)))

    def __add__(self, y: object) -> Field:
        return self._termwise(y, "+", add)

    def __sub__(self, y: object) -> Field:
        return self._termwise(y, "-", subtract)

    def __neg__(self) -> Field:
        return self._each(lambda x: subtract(np.zeros_like(x), x))

    def __mul__(self, y: object) -> Field:
        if isinstance(y, int):
            return self._each(lambda x: multiply(x, np.full_like(x, y % MODULUS)))
        if isinstance(y, Integer):
            y = Field((y.parts[0] % MODULUS).astype(_U))
        return Field(*_dual_product(self.parts, self._same(y, "*").parts, multiply))

    __rmul__ = __mul__

    def __matmul__(self, y: object) -> Field:
        return Field(*_dual_product(self.parts, self._same(y, "@").parts, product))

    def sum(self, dim: int, keepdim: bool = False) -> Field:
        return self._each(lambda x: total(x, dim, keepdim))

    def cumsum(self, dim: int) -> Field:
        return self._each(lambda x: _accumulate(x, dim, add))

    def reciprocal(self) -> Field:
        """Of what has one."""
        value, *tangents = self.parts
        if (value == 0).any():
            raise self._refused("reciprocal of 0")
        found = inverse(value)
        of_tangents = (multiply(t, multiply(found, found)) for t in tangents)
        return Field(found, *(subtract(np.zeros_like(t), t) for t in of_tangents))

    def zeros_like(self) -> Field:
        return self._each(np.zeros_like)


class Log(Element):
    """Formal logarithms: the element is held, its logarithm meant. The tangent is the logarithm's own."""

    @classmethod
    def random(cls, rng: np.random.Generator, *sizes: int, dual: bool = False, zeros: float = 0.0) -> Log:
        """Logs of uniform elements; the given share of them are logs of 0, that is -inf."""
        a = rng.integers(0, MODULUS, sizes, dtype=_U)
        a = np.where(rng.random(sizes) < zeros, _U(0), a)
        return cls(a, *(rng.integers(0, MODULUS, sizes, dtype=_U) for _ in range(dual)))

    def _combined(self, y: object, operation: str, of_values: Any, of_tangents: Any) -> Log:
        other = self._same(y, operation)
        a, *da = self.parts
        b, *db = other.parts
        return Log(of_values(a, b), *(of_tangents(s, t) for s, t in zip(da, db, strict=True)))

    def __add__(self, y: object) -> Log:
        return self._combined(y, "+", multiply, add)

    def __sub__(self, y: object) -> Log:
        """The quotient (by 0, it is 0): for checking formulas that subtract; the core never does."""
        return self._combined(y, "-", lambda a, b: multiply(a, inverse(b)), subtract)

    def __neg__(self) -> Log:
        """The reciprocal's, where no element is 0."""
        value, *tangents = self.parts
        if (value == 0).any():
            raise self._refused("- of -inf")
        return Log(inverse(value), *(subtract(np.zeros_like(t), t) for t in tangents))

    def amin(self) -> float:
        """-inf if that is among them. No other order is there."""
        return -math.inf if (self.parts[0] == 0).any() else 0.0

    def __mul__(self, n: object) -> Log:
        if not isinstance(n, Integer):
            raise self._refused("*", n)
        exponents = n.parts[0]
        result = np.ones(np.broadcast_shapes(self.shape, exponents.shape), _U)
        for i in range(int(exponents.max(initial=0))):
            result = np.where(exponents > i, multiply(result, self.parts[0]), result)
        return Log(result, *(Field(t).__mul__(n).parts[0] for t in self.parts[1:]))

    def sum(self, dim: int, keepdim: bool = False) -> Log:
        n = self.shape[dim]
        if n == 0:
            raise self._refused("the sum over no steps")
        last = self.cumsum(dim)._each(lambda x: np.take(x, [n - 1], dim))
        return last if keepdim else last._each(lambda x: np.squeeze(x, dim))

    def cumsum(self, dim: int) -> Log:
        value, *tangents = self.parts
        return Log(_accumulate(value, dim, multiply), *(_accumulate(t, dim, add) for t in tangents))

    def exp(self) -> Field:
        """d a = a · d log a, so that a decay of 0 has no derivative."""
        value, *tangents = self.parts
        return Field(value, *(multiply(value, t) for t in tangents))

    def zeros_like(self) -> Log:
        value, *tangents = self.parts
        return Log(np.ones_like(value), *map(np.zeros_like, tangents))


class Integer(Element):
    """Whole numbers, not negative as factors of a Log."""


class Interval(Element):
    """Half-open intervals [start, stop) of time: the free monoid on its steps. parts = (start, stop)."""

    def __add__(self, y: object) -> Interval:
        y = self._same(y, "+")
        if (self.parts[1] != y.parts[0]).any():
            raise ValueError("steps that do not follow each other were composed")
        return Interval(*np.broadcast_arrays(self.parts[0], y.parts[1]))

    def tolist(self) -> list[tuple[int, int]]:
        return list(zip(*(p.ravel().tolist() for p in self.parts), strict=True))


def differs(x: Element, y: Element) -> tuple[int, ...] | None:
    """The first index where x and y differ, in value or in shape (then ()); None if they are equal."""
    if type(x) is not type(y) or x.shape != y.shape:
        return ()
    unequal = np.zeros(x.shape, bool)
    for a, b in zip(x.parts, y.parts, strict=True):
        unequal |= a != b
    where = np.argwhere(unequal)
    return tuple(where[0].tolist()) if len(where) else None


def contract(x: Words, y: Words) -> int:
    """Σ x·y over everything."""
    if x.size == 0:
        return 0
    return int(total(multiply(x, y).reshape(-1), 0))
