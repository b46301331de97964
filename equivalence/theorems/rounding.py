"""Bound: what rounding does to the forms and gradients lies under a bound that is computed beside it.

Three things are asked of each:

1. The error of the carried float32 (or float64) computation against the definition in fixed point lies under
   its running bound; so does that of torch, on tensors, through the public operator. A wrong form is wrong
   by more.
2. The running bound is at most n times what errors of one unit roundoff in the operands alone could do to the
   definition on absolute values (`condition`), where n counts the roundings on the longest way from an
   operand to a result: a number known beforehand. A form that subtracts cumulative sums of log-decays passes
   the first, since its bound grows with its error, and fails here.
3. Where the second has no meaning, with erasure, whose definition on absolute values grows with every step
   although the recurrence does not, the bound must still be a small part of the results: a bound that says
   nothing is no evidence.

`python -m mixerzoo.equivalence.theorems.rounding` prints the numbers of all cases by form.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...kernels import delta, forms, gradients
from ...kernels.order import READS
from ..rounding import (
    DECIMAL,
    ERRORS_OF_OPERANDS,
    EXP_UNITS,
    FIXED_ERROR,
    FLOAT32,
    FLOAT64,
    HALF_PRODUCTS,
    Arithmetic,
    Bounded,
    Fixed,
    distance,
)
from ..theorem import Budget, Collection, Counterexample, Side, Tally
from .problems import HEADS, Operands, Problem, called, definition, run_form, steps

ABOUT_ROUNDING = {
    **dict.fromkeys(("exact", "bitwise", "coq"), "a statement about rounding"),
    "text": "of the core alone; mixers/*/streaming run it on text",
}
THEOREMS = Collection(ABOUT_ROUNDING)

Floats = npt.NDArray[np.float64]

SIZES = ("weak", "strong", "mixed", "resets")
KINDS = (
    ("none", "none"),
    ("[H]", "[H,V]"),
    ("[B,T,H]", "none"),
    ("[B,T,H,K]", "none"),
    ("none", "[B,T,H,V]"),
    ("[B,T,H,K]", "[B,T,H,V]"),
    ("dt·A", "none"),
)
SAYS_SOMETHING = 0.02  # a bound on erasing forms must be at most this part of the largest result

RANGE = (
    "decays none, constant, scalar, vector over keys, over values and both, dt·A; log-decays of about -0.02 "
    "(weak) and -5 (strong), of 0, -50, -1000 and -inf among them; both reads and directions; shared heads; "
    "T = 64 and less, T = 256 in a full run; K = 8, V = 4; float32 and float64"
)
ERASING_RANGE = (
    "the delta rule and the general erasure; decays none, scalar, vector over keys, weak and strong; keys at "
    "random, and all nearly alike with β = 2; both reads and directions; T = 64 ({0}), K = 8, V = 4; float32 "
    "and float64"
)


# ------------------------------------------------------------------ operands


class Case(NamedTuple):
    """A problem, how strong its decays are, and whether its keys are nearly alike (with β = 2)."""

    problem: Problem
    size: str = "weak"
    alike: bool = False

    def __str__(self) -> str:
        keys = ", keys nearly alike, β = 2" if self.alike else ""
        return f"{self.problem}, {self.size} decays{keys}"


def _single(x: Any) -> Floats:
    """Numbers that float32 holds."""
    return np.asarray(x, np.float32).astype(np.float64)


def _unit(x: Floats) -> Floats:
    return _single(x / np.linalg.norm(x, axis=-1, keepdims=True))


def _logs(rng: np.random.Generator, size: str, *sizes: int) -> Floats:
    x = -rng.exponential({"weak": 0.02, "strong": 5.0, "mixed": 0.3, "resets": 0.02}[size], sizes)
    r = rng.random(sizes)
    if size == "mixed":
        x = np.select([r < 0.1, r < 0.2, r < 0.3], [0.0, -np.inf, -50.0], x)
    if size == "resets":
        x = np.select([r < 0.02, r < 0.05], [-np.inf, -1000.0], x)
    return _single(x)


def operands(case: Case, rng: np.random.Generator) -> Operands:
    """Arrays of numbers that float32 holds."""
    p = case.problem
    B, T, (H, Hq, Hk), K, V = p.batch, p.length, p.heads, p.key_dim, p.value_dim

    def normal(*sizes: int) -> Floats:
        return _single(rng.standard_normal(sizes))

    la: Any = None
    outer: Any = None
    lb: Any = None
    beta: Any = None
    x: Any = None
    y: Any = None
    if p.key_decay == "dt·A":
        outer = -_single(rng.exponential(5.0 if case.size == "strong" else 0.05, (H, K)))
        la = _single(rng.random((B, T, H)))
    elif p.key_decay != "none":
        la = _logs(
            rng, case.size, *{"[H]": (H,), "[B,T,H]": (B, T, H), "[B,T,H,K]": (B, T, H, K)}[p.key_decay]
        )
    if p.value_decay != "none":
        lb = _logs(rng, case.size, *{"[H,V]": (H, V), "[B,T,H,V]": (B, T, H, V)}[p.value_decay])
    k = normal(B, T, Hk, K)
    if p.erasing != "none":
        k = _unit(k[:, :1] + 1e-3 * normal(B, T, Hk, K) if case.alike else k)
        beta = np.full((B, T, H), 2.0) if case.alike else _single(2 * rng.random((B, T, H)))
    if p.erasing == "x, y":
        # As the delta rule erases: then no step makes the state longer.
        spread = np.repeat(k, H // Hk, 2)
        a = np.ones(()) if la is None else np.exp(la if la.ndim == 4 else la[..., None])
        x, y, beta = _single(-beta[..., None] * spread), _single(a * spread), None
    scale: Any = 0.7
    q, v, S = normal(B, T, Hq, K), normal(B, T, H, V), normal(B, H, K, V)
    return Operands(q, k, v, la, outer, lb, S, scale, beta, x, y)


def _as(x: Operands, make: Any) -> Operands:
    """x with its arrays made into something else."""
    return x._replace(**{n: make(y) for n, y in x._asdict().items() if isinstance(y, np.ndarray)})


# ------------------------------------------------------------------ the two sides, and torch

Results = dict[str, Any]
OPERANDS = ("q", "k", "v", "log_decay", "log_decay_v", "beta", "x", "y", "outer")


def vjp(kind: str, p: Problem, x: Operands, do: Any, dS: Any) -> Results:
    """Gradients of all operands, by the code that runs in production."""
    if p.erasing == "none":
        block, carry = gradients.GRADIENTS[kind], gradients.CARRIES[kind]
    else:
        block, carry = delta.GRADIENTS[kind], delta.carry
    state = x.initial_state
    g, dS0 = gradients.vjp(steps(x, p.reverse), state, do, dS, p.order, p.block, block, carry)
    found = {n: y for n, y in zip(OPERANDS, g, strict=True) if y is not None}
    return {**found, "initial_state": dS0}


def derivative(p: Problem, x: Operands, do: Any, dS: Any) -> Results:
    """Gradients step by step, all in one block: the derivative of the definition (gradients/recurrent)."""
    return vjp("recurrent", Problem(**{**p.__dict__, "block": p.length}), x, do, dS)


def by_torch(form: str, p: Problem, x: Operands, dtype: torch.dtype, dresults: Any = None) -> Results:
    """The public operator on tensors: its results or, given their gradients, those of the operands."""
    leaves = {
        n: torch.from_numpy(y).to(dtype, copy=True).requires_grad_()
        for n, y in x._asdict().items()
        if isinstance(y, np.ndarray)
    }
    o, S = called(
        leaves,
        scale=x.scale,
        read={order: read for read, order in READS.items()}[p.order],
        reverse=p.reverse,
        form=form,
        chunk_size=p.block,
        backend="torch",
    )
    if dresults is None:
        return {"outputs": o.detach(), "state": S.detach()}
    given = [torch.from_numpy(y).to(dtype, copy=True) for y in dresults]
    return dict(zip(leaves, torch.autograd.grad([o, S], list(leaves.values()), given), strict=True))


class _HalfProducts(TorchFunctionMode):
    """Operands of matrix products in bfloat16, as for tensor cores."""

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if f in (Tensor.__matmul__, torch.matmul) and isinstance(args[0], Tensor):
            args = tuple(x.bfloat16().float() for x in args)
        return f(*args, **(kwargs or {}))


# ------------------------------------------------------------------ what is compared


class Comparison(NamedTuple):
    """Of one result: error/bound of every entry, by the carried numbers and by torch; the largest bound in
    units of the condition, and how many roundings account for it; and the median bound as a part of the
    largest result."""

    name: str
    carried: Floats
    torch: Floats
    growth: float
    roundings: float
    part: float


def roundings(kind: str, p: Problem, gradient: bool) -> int:
    """How many relative errors of one unit roundoff the longest way from an operand to a result gathers.

    To pass through a state costs a product and an exp for each of the two decays, and an addition; inside a
    block there are sums over its steps and over keys, and one exp on either side, or where the weights of
    channels are products of decays one for each step, with a product. A gradient passes twice through that,
    and is summed over values or keys, over time and, for constants, over the batch.
    """
    T, C = p.length, min(p.block, p.length)
    blocks = -(-T // C)
    passes, inside = {
        "recurrent": (T, 0),
        "chunk": (blocks, C + 2 * C * (EXP_UNITS + 1)),
        "parallel": (1, T + 2 * T * (EXP_UNITS + 1)),
        "scan": (T, 0),
    }[kind]
    exp = EXP_UNITS + (3 if kind == "scan" else 0)  # it goes to base 2: log2(e), and a product with it
    through = passes * (2 * (exp + 1) + 1)
    once = through + inside + p.key_dim + 3 * (EXP_UNITS + 1)
    shared = p.heads[0] // min(p.heads)
    return 2 * once + p.value_dim + p.key_dim + T * p.batch + shared if gradient else once


def _compare(
    bounded: Results, reference: Results, found: Results, condition: Results, n: float
) -> list[Comparison]:
    comparisons = []
    for name, x in bounded.items():
        true: Fixed = reference[name]
        size = np.abs(true.floats()).max(initial=0.0)
        allowed = x.error + FIXED_ERROR
        carried, by_torch = (distance(y, true) / allowed for y in (x.computed, found[name].numpy()))
        scale = condition[name].error * (x.arithmetic.unit / FLOAT32.unit)
        growth = np.where(x.error > 0, x.error / np.maximum(scale, 2.0**-1000), 0.0).max(initial=0.0)
        part = float(np.median(x.error)) / size if x.error.size and size else 0.0
        comparisons.append(Comparison(name, carried, by_torch, float(growth), n, part))
    return comparisons


def _arrays(rng: np.random.Generator, x: Operands) -> tuple[Floats, Floats]:
    """Gradients of the outputs and of the final state."""
    do, dS = rng.standard_normal(x.v.shape), rng.standard_normal(x.initial_state.shape)
    return _single(do), _single(dS)


def _with_errors(y: Floats) -> Bounded:
    return Bounded.of(y, ERRORS_OF_OPERANDS, FLOAT32.unit)


def _sizes(x: Operands) -> Operands:
    """Absolute values, with errors of one unit roundoff; log-decays remain what they are."""
    decays = ("log_decay", "outer", "log_decay_v")
    sizes: dict[str, Any] = {
        n: abs(y) for n, y in x._asdict().items() if n not in decays and isinstance(y, np.ndarray)
    }
    return _as(x._replace(**sizes), _with_errors)


def compare_form(
    form: str, case: Case, rng: np.random.Generator, a: Arithmetic, tally: Tally | None = None
) -> list[Comparison]:
    """What rounding does to outputs and state."""
    p, x = case.problem, operands(case, rng)
    bounded = run_form(form, p, _as(x, lambda y: Bounded.of(y, a)))._asdict()
    reference = definition(p, _as(x, Fixed.of))._asdict()
    condition = definition(p, _sizes(x))._asdict()
    if a.operands:
        with _HalfProducts():
            tensors = _as(x, lambda y: torch.from_numpy(y).to(a.dtype))
            found = run_form(form, p, tensors)._asdict()
    else:
        found = by_torch(form, p, x, a.dtype)
    if tally is not None:
        tally.record(bounded, reference, found)
    return _compare(bounded, reference, found, condition, roundings(form, p, False))


def compare_gradient(
    kind: str, case: Case, rng: np.random.Generator, a: Arithmetic, tally: Tally | None = None
) -> list[Comparison]:
    """What rounding does to the gradients of all operands."""
    p, x = case.problem, operands(case, rng)
    given = _arrays(rng, x)
    bounded = vjp(kind, p, _as(x, lambda y: Bounded.of(y, a)), *(Bounded.of(y, a) for y in given))
    reference = derivative(p, _as(x, Fixed.of), *map(Fixed.of, given))
    condition = derivative(p, _sizes(x), *(_with_errors(np.abs(y)) for y in given))
    found = by_torch(kind, p, x, a.dtype, given)
    if tally is not None:
        tally.record(bounded, reference, found)
    return _compare(bounded, reference, found, condition, roundings(kind, p, True))


def _hold(comparisons: list[Comparison], case: Case, a: Arithmetic, what: str, tally: Tally) -> None:
    """Take comparisons as evidence.

    Raises:
        Counterexample: an error exceeds its bound, or the bound what it may be.
    """
    for c in comparisons:
        where = f"{what} of {c.name} in {a.name}, for {case}"
        for who, ratios in (("the carried computation", c.carried), ("torch", c.torch)):
            worst = ratios.max(initial=0.0)
            if not worst <= 1:  # NaN too
                raise Counterexample(f"the error of {who} is {worst:.3g} times its bound: {where}")
            tally.ratio(float(worst))
        if case.problem.erasing != "none":
            if not c.part <= SAYS_SOMETHING:
                raise Counterexample(f"the bound says nothing, at {c.part:.2g} of the result: {where}")
        elif not a.operands and not c.growth <= c.roundings:
            raise Counterexample(
                f"the bound is {c.growth:.3g} times what errors of the operands do, and {c.roundings:.3g} "
                f"roundings do not account for that: {where}"
            )


# ------------------------------------------------------------------ what they range over


def cases(quick: bool) -> Iterator[tuple[Case, Arithmetic]]:
    """Decays × sizes × reads × directions, in turn in float32 and float64."""
    lengths = ((64, 16), (33, 8), (64, 64), (17, 5))
    everything = itertools.product(SIZES, KINDS, READS.values(), (False, True))
    for i, (size, (key, value), order, reverse) in enumerate(everything):
        if quick and i % 11:
            continue
        T, block = lengths[(i + i // 4) % 4]
        p = Problem(T, block, order, reverse, HEADS[i % 5], key, value, 1, 8, 4)
        yield Case(p, size), (FLOAT32, FLOAT64)[(i // 2 + i // 28) % 2]
    for i, (size, (key, value)) in enumerate(itertools.product(("weak", "resets"), KINDS)):
        if not quick:
            order = tuple(READS.values())[i % 2]
            p = Problem(256, 64, order, bool(i // 2 % 2), HEADS[i % 5], key, value, 1, 8, 4)
            yield Case(p, size), FLOAT32


def erasing_cases(quick: bool, kind: str, gradient: bool) -> Iterator[tuple[Case, Arithmetic]]:
    """Lengths to which a running bound says something. Step by step, and from chunk to chunk, it grows as if
    no error cancelled another, by 1 + β a step, where decay does not damp it."""
    everything = itertools.product(
        ("beta", "x, y"), ("weak", "strong"), (False, True), ("none", "[B,T,H]", "[B,T,H,K]"),
        READS.values(), (False, True),
    )  # fmt: skip
    for i, (erasing, size, alike, key, order, reverse) in enumerate(everything):
        if (quick and i % 9) or (size == "strong" and key == "none"):
            continue
        length = _longest(kind, size == "weak", alike, gradient)
        chunk = length if i % 2 or size == "weak" else 16
        p = Problem(length, chunk, order, reverse, HEADS[i % 3], key, "none", 1, 8, 4, erasing=erasing)
        yield Case(p, size, alike), (FLOAT32, FLOAT64)[i // 3 % 2]


def _longest(kind: str, weak: bool, alike: bool, gradient: bool) -> int:
    if not weak:
        return 64
    if kind == "recurrent":
        return 8 if alike else 16
    if gradient:
        return 16 if alike else 32
    return 32 if alike else 64


# ------------------------------------------------------------------ evidence


def _register(name: str, kind: str, gradient: bool, erasing: bool) -> None:
    compare, what = (compare_gradient, "gradient") if gradient else (compare_form, "result")

    @THEOREMS.also(name, "bound", _range_of(kind, gradient) if erasing else RANGE)
    def check(budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        chosen = erasing_cases(budget.quick, kind, gradient) if erasing else cases(budget.quick)
        for case, a in chosen:
            _hold(compare(kind, case, rng, a, tally), case, a, f"the {kind} {what}", tally)
            if a == FLOAT32 and not gradient and not erasing:
                half = compare(kind, case, rng, HALF_PRODUCTS, tally)
                _hold(half, case, HALF_PRODUCTS, f"the {kind} {what}", tally)


def _range_of(kind: str, gradient: bool) -> str:
    random, alike = (_longest(kind, True, alike, gradient) for alike in (False, True))
    if random == alike == 64:
        return ERASING_RANGE.format("weak decays: in one chunk")
    return ERASING_RANGE.format(f"weak decays: {random}, and {alike} with keys nearly alike")


for _form in forms.FORMS:
    _register(f"forms/{_form}", _form, False, False)
for _kind in gradients.GRADIENTS:
    _register(f"gradients/{_kind}", _kind, True, False)
for _form in delta.FORMS:
    _register(f"delta/{_form}", _form, False, True)
for _kind in delta.GRADIENTS:
    _register(f"delta/gradient-{_kind}", _kind, True, True)


def _decimal_power(x: float, logarithm: Decimal) -> tuple[int, int]:
    """Digits and power of ten of exp(x · logarithm)."""
    _, digits, power = DECIMAL.exp(DECIMAL.multiply(Decimal(x), logarithm)).as_tuple()
    return int("".join(map(str, digits))), int(power)


def _within_its_bound(of_one: float, budget: Budget, tally: Tally) -> None:
    """The left side, and the right at each point: `of_one` is the natural logarithm of its base."""
    rng = budget.rng()
    for dtype in (torch.float32, torch.float64):
        smallest = math.log(torch.finfo(dtype).tiny) / of_one
        n = budget.pick(200, 2000)
        points = np.concatenate([rng.uniform(smallest, 0, n), -np.exp(rng.uniform(math.log(1e-8), 0, n))])
        x = torch.from_numpy(points).to(dtype)
        ends = tally.left(torch.tensor([0.0, -math.inf], dtype=dtype)).tolist()
        if ends != [1.0, 0.0]:
            raise Counterexample(f"exp of 0 and -inf are {ends} in {dtype}")
        allowed = Decimal(2 * torch.finfo(dtype).eps)
        for at, found in zip(x.tolist(), tally.left(x).tolist(), strict=True):
            digits, power = tally.right(at)
            true = DECIMAL.scaleb(Decimal(digits), power)
            last = Decimal(2) ** math.floor(math.log2(found)) if found > 0 else Decimal(1)
            ratio = float(abs(Decimal(found) - true) / (allowed * last))
            if not ratio <= 1:
                raise Counterexample(f"exp({at!r}) is {found!r} in {dtype}, {2 * ratio:.3g} ulp off")
            tally.ratio(ratio)


for _name, _base, _logarithm, _exp in (
    ("exp", "e", Decimal(1), torch.exp),
    ("exp2", "2", DECIMAL.ln(Decimal(2)), torch.exp2),
):
    THEOREMS(
        f"rounding/{_name}",
        f"torch's {_name} is within 2 units in the last place of the true one, which the bounds on rounding "
        "assume; it is 1 at 0 and 0 at -inf.",
        f"float32 and float64, log-decays (base {_base}) from -10^-8 to the smallest whose {_name} is a "
        "normal number, 4,000 of each (quick: 400), against Python's correctly rounded decimal exp",
        "bound",
        formula=f"|fl({_name} x) − {_name} x| ≤ 2 ulp({_name} x) for x ≤ 0",
        left=Side(f"torch.{_name}", _exp),
        right=Side(
            f"{_name} of decimal numbers, to 90 digits",
            functools.partial(_decimal_power, logarithm=_logarithm),
        ),
    )(functools.partial(_within_its_bound, float(_logarithm)))


# ------------------------------------------------------------------ the numbers


def main() -> None:
    """Of every form and gradient: the largest and the median error as a part of its bound, and the largest
    bound in units of what errors of the operands do, with what is allowed."""
    print(f"{'':24}{'cases':>8}{'worst':>10}{'median':>10}{'bound/condition':>18}{'allowed':>10}")
    for kinds, compare, erasing in (
        (forms.FORMS, compare_form, False),
        (gradients.GRADIENTS, compare_gradient, False),
        (delta.FORMS, compare_form, True),
        (delta.GRADIENTS, compare_gradient, True),
    ):
        for kind in kinds:
            gradient = compare is compare_gradient
            rng, found, count = np.random.default_rng(0), [], 0
            for case, a in erasing_cases(False, kind, gradient) if erasing else cases(False):
                found += compare(kind, case, rng, a)
                count += 1
            ratios = np.concatenate([c.torch.reshape(-1) for c in found])
            tightest = max(found, key=lambda c: c.growth / c.roundings)
            name = f"{'delta ' if erasing else ''}{'gradient ' if gradient else ''}{kind}"
            growth = "" if erasing else f"{tightest.growth:18.1f}{tightest.roundings:10.0f}"
            print(f"{name:24}{count:8}{ratios.max():10.2f}{np.median(ratios):10.4f}{growth}")
            if erasing:
                print(f"{'':24}bound at most {max(c.part for c in found):.1g} of the result")


if __name__ == "__main__":
    main()
