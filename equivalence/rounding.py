"""Numbers that carry a bound on their own rounding error through plain torch code.

A `Bounded` is what an arithmetic computed and, beside it, a bound on how far that may be from the same code
in real numbers. Like the field elements of `algebra` it takes part in torch's functions, so what runs in
production runs on it, and every operation bounds its result's error from those of its operands and from its
own rounding (running error analysis: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
section 3.3).

What is assumed of an arithmetic with unit roundoff u (the standard model, section 2.2): a sum or product of
two numbers is (1 + δ) times the true one, |δ| ≤ u, and where a product or exp underflows also wrong by at
most the smallest normal number (which covers flushing to zero). Sums of n terms and inner products are taken
in any order, fused or not: γ(n) = n u / (1 - n u) of the sum of absolute values (sections 3.1 and 4.2). exp
and exp2 are wrong by at most 2 ulp, which `rounding/exp` and `rounding/exp2` check of torch. A triangular
system is solved by substitution in any order, so that the computed solution is that of a matrix wrong by γ(n)
of itself (section 8.1).

Every bound holds for *any* computation that keeps to this, not only for the one carried: operands count with
the largest magnitude that any could have. So it holds for torch on a CPU or a GPU, whose sums are ordered
otherwise. Bounds are computed in float64 and rounded outward.

`Fixed` are whole multiples of 2^-256, what errors are measured against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .algebra import Element, fresh

Floats = npt.NDArray[np.floating[Any]]
Bounds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arithmetic:
    """unit: the unit roundoff. tiny: the smallest normal number. operands: a relative rounding of the
    operands of matrix products before anything else, for those that are multiplied in fewer bits."""

    name: str
    dtype: torch.dtype
    unit: float
    tiny: float
    operands: float = 0.0

    @property
    def numpy(self) -> type[np.floating[Any]]:
        return np.float32 if self.dtype == torch.float32 else np.float64

    def gamma(self, n: Any) -> Any:
        """γ(n), for a number or an array of them."""
        return n * self.unit / (1 - n * self.unit)


FLOAT32 = Arithmetic("float32", torch.float32, 2.0**-24, 2.0**-126)
FLOAT64 = Arithmetic("float64", torch.float64, 2.0**-53, 2.0**-1022)
HALF_PRODUCTS = Arithmetic("float32 with products of bfloat16", torch.float32, 2.0**-24, 2.0**-126, 2.0**-8)

# An arithmetic without rounding, for what errors of the operands alone do: see `Bounded.of`.
ERRORS_OF_OPERANDS = Arithmetic("no rounding", torch.float64, 0.0, 2.0**-126)

EXP_UNITS = 4  # 2 ulp of a result in units of roundoff relative to it


def _outward(x: Bounds, terms: int = 1) -> Bounds:
    """x, a sum of so many terms that are not negative, rounded up."""
    return x * (1 + (terms + 8) * 2.0**-52)


def _settled(value: Floats, error: Bounds) -> Bounds:
    """A sum of log-decays that is -inf is so exactly."""
    return np.where(np.isneginf(value), 0.0, error)


class Bounded(Element):
    """parts: what was computed, and a bound on its error (float64)."""

    def __init__(self, value: Floats, error: Bounds, arithmetic: Arithmetic) -> None:
        error = np.asarray(error, np.float64)
        error = np.where(np.isnan(error), np.inf, error)  # inf times zero: no bound is known
        super().__init__(np.asarray(value, arithmetic.numpy), error)
        self.arithmetic = arithmetic

    @classmethod
    def of(cls, x: Floats, arithmetic: Arithmetic, relative: float = 0.0) -> Bounded:
        """Numbers (float64) that are known exactly, or up to a relative error."""
        finite = np.where(np.isfinite(x), x, 0.0)
        lost = np.abs(finite.astype(arithmetic.numpy) - finite)
        return cls(x, lost + relative * np.abs(finite), arithmetic)

    @property
    def computed(self) -> Floats:
        return self.parts[0]

    @property
    def error(self) -> Bounds:
        return self.parts[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.arithmetic.dtype

    def _magnitude(self) -> Bounds:
        """The largest absolute value that a computation may have here: it and this one are both within the
        error of the true one."""
        return np.abs(self.computed).astype(np.float64) + 2 * self.error

    def _each(self, f: Any) -> Bounded:
        return Bounded(f(self.computed), f(self.error), self.arithmetic)

    def to(self, dtype: torch.dtype) -> Bounded:
        if dtype == self.dtype:
            return self
        if dtype == torch.float64:
            return Bounded(self.computed, self.error, FLOAT64)
        lost = FLOAT32.unit * self._magnitude() + FLOAT32.tiny
        return Bounded(self.computed, _outward(self.error + lost), FLOAT32)

    def double(self) -> Bounded:
        return self if self.arithmetic.unit == 0 else self.to(torch.float64)

    def _in(self, y: object, operation: str) -> tuple[Bounded, Bounded, Arithmetic]:
        """Both operands as Bounded, and the arithmetic of the result: the wider."""
        if isinstance(y, (int, float)):
            near = float(self.arithmetic.numpy(y))
            y = Bounded(np.asarray(near), np.asarray(abs(near - y)), self.arithmetic)
        other = self._same(y, operation)
        return self, other, min(self.arithmetic, other.arithmetic, key=lambda a: a.unit)

    def __add__(self, y: object) -> Bounded:
        x, y, a = self._in(y, "+")
        with np.errstate(invalid="ignore"):
            value = x.computed.astype(a.numpy) + y.computed.astype(a.numpy)
            error = x.error + y.error
            rounding = a.unit * (1 + 2 * a.unit) * (np.abs(value).astype(np.float64) + 2 * error)
            return Bounded(value, _settled(value, _outward(error + rounding)), a)

    def __sub__(self, y: object) -> Bounded:
        return self + self._same(y, "-").__neg__()

    def __neg__(self) -> Bounded:
        return Bounded(-self.computed, self.error, self.arithmetic)

    def __mul__(self, y: object) -> Bounded:
        if isinstance(y, (int, float)) and math.frexp(y)[0] in (0.5, -0.5):  # ±1, ±2, ±1/2, ...
            return Bounded(self.computed * self.arithmetic.numpy(y), abs(y) * self.error, self.arithmetic)
        x, y, a = self._in(y, "*")
        with np.errstate(invalid="ignore"):
            value = x.computed.astype(a.numpy) * y.computed.astype(a.numpy)
            largest_x, largest_y = x._magnitude(), y._magnitude()
            carried = largest_x * y.error + x.error * largest_y
            rounding = a.unit * largest_x * largest_y + a.tiny
            exact = (x.computed == 0) & (x.error == 0) | (y.computed == 0) & (y.error == 0)
            error = np.where(exact, 0.0, _outward(carried + rounding, 2))
            return Bounded(value, _settled(value, error), a)

    __rmul__ = __mul__

    def _operand(self, a: Arithmetic) -> Bounded:
        """As a matrix product takes it."""
        if not a.operands:
            return self
        near = torch.from_numpy(self.computed.copy()).bfloat16().float().numpy()
        return Bounded(near, _outward(self.error + a.operands * self._magnitude() + a.tiny), a)

    def __matmul__(self, y: object) -> Bounded:
        x, y, a = self._in(y, "@")
        x, y = x._operand(a), y._operand(a)
        n = x.shape[-1]
        value = x.computed.astype(a.numpy) @ y.computed.astype(a.numpy)
        largest_x, largest_y = x._magnitude(), y._magnitude()
        with np.errstate(invalid="ignore"):
            carried = largest_x @ (y.error + a.gamma(n) * largest_y) + x.error @ largest_y
        products = (largest_x > 0).astype(np.float64) @ (largest_y > 0).astype(np.float64)
        return Bounded(value, _outward(carried + products * a.tiny, 3 * n), a)

    def sum(self, dim: int, keepdim: bool = False) -> Bounded:
        a, n = self.arithmetic, self.shape[dim]
        value = self.computed.sum(dim, keepdims=keepdim)
        with np.errstate(invalid="ignore"):
            error = (self.error + a.gamma(max(n - 1, 0)) * self._magnitude()).sum(dim, keepdims=keepdim)
        return Bounded(value, _settled(value, _outward(error, n)), a)

    def cumsum(self, dim: int) -> Bounded:
        a, n = self.arithmetic, self.shape[dim]
        value = np.cumsum(self.computed, dim, dtype=a.numpy)
        additions = np.arange(n).reshape([-1] + [1] * (-dim - 1 if dim < 0 else self.ndim - dim - 1))
        with np.errstate(invalid="ignore"):
            rounding = a.gamma(additions) * np.cumsum(self._magnitude(), dim)
            error = np.cumsum(self.error, dim) + rounding
        return Bounded(value, _settled(value, _outward(error, n)), a)

    def exp(self) -> Bounded:
        """An error of a logarithm is a relative one of the number."""
        a = self.arithmetic
        x = self.computed.astype(np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            largest = np.exp(x + 2 * self.error)  # of any computation, and of the true value
            relative = -np.expm1(-self.error) + EXP_UNITS * a.unit
            # As if of 4096 terms: x + 2 error is itself rounded, by up to |x| 2^-53.
            error = np.where(np.isneginf(x), 0.0, _outward(largest * relative + a.tiny, 4096))
            return Bounded(np.exp(x), error, a)

    def exp2(self) -> Bounded:
        """As exp, of a logarithm to base 2."""
        a, ln2 = self.arithmetic, math.log(2)
        x = self.computed.astype(np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            largest = np.exp2(x + 2 * self.error)
            relative = -np.expm1(-ln2 * self.error) + EXP_UNITS * a.unit
            error = np.where(np.isneginf(x), 0.0, _outward(largest * relative + a.tiny, 4096))
            return Bounded(np.exp2(x), error, a)

    def reciprocal(self) -> Bounded:
        """Of what is not 0 in any computation."""
        a = self.arithmetic
        x = self.computed.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.abs(x) - 2 * self.error  # of any computation, and of the true value
            error = np.where(least > 0, (self.error / np.abs(x) + a.unit) / least + a.tiny, np.inf)
            return Bounded(1 / self.computed, _outward(error, 4), a)

    def zeros_like(self) -> Bounded:
        return self._each(np.zeros_like)

    def amax(self) -> float:
        return -(-self).amin()

    def amin(self) -> float:
        """Of what any computation may have."""
        return float((self.computed - 2 * self.error).min())

    @classmethod
    def __torch_function__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = _TORCH.get(getattr(f, "__name__", ""))
        if own is not None:
            return own(*args, **(kwargs or {}))
        return super().__torch_function__(f, types, args, kwargs)


def _joined(xs: Any, dim: int, join: Any) -> Bounded:
    a = min((x.arithmetic for x in xs), key=lambda a: a.unit)
    value, error = (join(column, axis=dim) for column in zip(*(x.parts for x in xs), strict=True))
    return Bounded(value, error, a)


def _where(condition: Any, x: Bounded, y: Bounded) -> Bounded:
    x, y, a = x._in(y, "where")
    c = condition.numpy() if isinstance(condition, torch.Tensor) else condition
    return Bounded(np.where(c, x.computed, y.computed), np.where(c, x.error, y.error), a)


def _substitute(A: Floats, b: Floats, upper: bool) -> Floats:
    """x with A x = b, A unit triangular: row by row, in the dtype of b."""
    n = A.shape[-1]
    x = np.array(np.broadcast_to(b, (*np.broadcast_shapes(A.shape[:-2], b.shape[:-2]), *b.shape[-2:])))
    for i in reversed(range(n)) if upper else range(n):
        known = slice(i + 1, n) if upper else slice(0, i)
        x[..., i : i + 1, :] -= A[..., i : i + 1, known] @ x[..., known, :]
    return x


def _size_of_inverse(A: Floats, upper: bool) -> Bounds:
    """A bound on |A⁻¹|, entry by entry: of an approximate inverse, and of what it lacks."""
    n = A.shape[-1]
    A = A.astype(np.float64)
    X = _substitute(A, np.eye(n), upper)
    size = np.abs(X)
    residual = np.abs(np.eye(n) - A @ X) + (n + 2) * 2.0**-53 * (np.abs(A) @ size + 1)
    row = residual.sum(-1, keepdims=True)
    largest = row.max(-2, keepdims=True, initial=0.0)
    lacking = np.where(largest < 0.5, (size @ row) / (1 - np.minimum(largest, 0.5)), np.inf)
    return _outward(size + lacking, 3 * n)


def _solve_triangular(L: Bounded, b: Bounded, *, upper: bool, unitriangular: bool) -> Bounded:
    """x with L x = b, by substitution; L counts as having ones on its diagonal.

    With a true matrix A, a computed one within E of it, and a solution that is exact for a matrix within
    γ(n) of that: A (x' - x) = b' - b - (E + γ(n)|A'|) x', and x' is at most |x'| + 2e for an error e. That e
    is the smallest with e ≥ |A⁻¹| (|b' - b| + D (|x'| + 2e) + E e); one that is too large is as good, and is
    found by iteration (an e that exceeds its own image shows that the iteration contracts).
    """
    if not unitriangular:
        raise TypeError("solve_triangular has no meaning here but for a unit diagonal")
    L, b, a = L._in(b, "solve_triangular")
    n = b.shape[-2]
    keep = np.triu(np.ones((n, n)), 1) if upper else np.tril(np.ones((n, n)), -1)
    A = np.where(keep == 1, L.computed, 0).astype(a.numpy) + np.eye(n, dtype=a.numpy)
    E = np.where(keep == 1, L.error, 0.0)
    x = _substitute(A, b.computed.astype(a.numpy), upper)
    inverse = _size_of_inverse(A, upper)
    D = E + a.gamma(n) * (np.abs(A).astype(np.float64) + 2 * E)
    start = b.error + n * a.tiny
    size = np.abs(x).astype(np.float64)

    def image(e: Bounds) -> Bounds:
        with np.errstate(invalid="ignore", over="ignore"):
            return _outward(inverse @ (start + D @ (size + 2 * e) + E @ e), 4 * n)

    e = image(np.zeros_like(size))
    for _ in range(50):
        wider = e * (1 + 2.0**-20) + a.tiny
        e = image(wider)
        if (e <= wider).all():
            return Bounded(x, wider, a)
    return Bounded(x, np.full_like(size, np.inf), a)


_TORCH: dict[str, Any] = {
    "cat": lambda xs, dim=0: _joined(xs, dim, np.concatenate),
    "stack": lambda xs, dim=0: _joined(xs, dim, np.stack),
    "where": _where,
    "exp2": lambda x: x.exp2(),
    "tril": lambda x, diagonal=0: _where(np.tri(x.shape[-2], x.shape[-1], diagonal) == 1, x, x.zeros_like()),
    "linalg_solve_triangular": fresh(_solve_triangular),
}


# ------------------------------------------------------------------ what errors are measured against

BITS = 256
ONE = 1 << BITS
FORGET = -(1 << (BITS + 40))  # the log-decay -inf: its exp, and that of any sum with it, is 0
DECIMAL = Context(prec=90, Emin=-(10**9), Emax=10**9)

# The error of the definition in fixed point: some thousand roundings of 2^-256, of which none grows by more
# than the size of the operands.
FIXED_ERROR = 2.0**-200


def _exact(x: float) -> int:
    if x == -math.inf:
        return FORGET
    numerator, denominator = x.as_integer_ratio()
    return (numerator << BITS) // denominator


def _exp(x: int) -> int:
    """By the correctly rounded exp of Python's decimal numbers, to 90 digits."""
    if x < -BITS * ONE:
        return 0
    power = DECIMAL.exp(DECIMAL.divide(Decimal(x), Decimal(ONE)))
    return int(DECIMAL.multiply(power, Decimal(ONE)))


def _elementwise(f: Any, x: Any) -> Any:
    return np.array([f(y) for y in x.reshape(-1).tolist()], dtype=object).reshape(x.shape)


class Fixed(Element):
    """Whole multiples of 2^-256: parts are arrays of Python's integers."""

    @classmethod
    def of(cls, x: Floats) -> Fixed:
        """A number exactly (if it is a multiple of 2^-256, as floats of ordinary size are)."""
        return cls(_elementwise(_exact, np.asarray(x, np.float64)))

    def _raw(self, y: object, operation: str) -> Any:
        return _exact(float(y)) if isinstance(y, (int, float)) else self._same(y, operation).parts[0]

    def __add__(self, y: object) -> Fixed:
        return Fixed(self.parts[0] + self._raw(y, "+"))

    def __sub__(self, y: object) -> Fixed:
        return Fixed(self.parts[0] - self._raw(y, "-"))

    def __neg__(self) -> Fixed:
        return Fixed(-self.parts[0])

    def __mul__(self, y: object) -> Fixed:
        return Fixed((self.parts[0] * self._raw(y, "*")) >> BITS)

    __rmul__ = __mul__

    def __matmul__(self, y: object) -> Fixed:
        return Fixed((self.parts[0] @ self._same(y, "@").parts[0]) >> BITS)

    def sum(self, dim: int, keepdim: bool = False) -> Fixed:
        return Fixed(self.parts[0].sum(dim, keepdims=keepdim))

    def cumsum(self, dim: int) -> Fixed:
        return Fixed(np.cumsum(self.parts[0], dim))

    def exp(self) -> Fixed:
        return Fixed(_elementwise(_exp, self.parts[0]))

    def reciprocal(self) -> Fixed:
        return Fixed(_elementwise(lambda x: ONE * ONE // x, self.parts[0]))

    def zeros_like(self) -> Fixed:
        return Fixed(self.parts[0] * 0)

    def amin(self) -> float:
        return float(self.floats().min())

    def floats(self) -> Bounds:
        return np.asarray(_elementwise(lambda x: float(x) * 2.0**-BITS, self.parts[0]), np.float64)


def distance(x: Floats, true: Fixed) -> Bounds:
    """|x - true|, entry by entry; NaN where x is not a number."""
    finite = np.isfinite(x)
    found = np.abs((Fixed.of(np.where(finite, x, 0.0)) - true).floats())
    return np.where(finite, found, np.nan)
