"""Exact: the gradient code is the derivative of the recurrence, by dual numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels import forms, gradients
from ...kernels.order import ALL_ORDERS, Order
from ...kernels.steps import Gradients, Slice
from ..algebra import MODULUS, Element, Field, Log, contract
from ..theorem import Budget, Collection, Counterexample, Tally
from .problems import (
    Operands,
    Problem,
    blocks_of,
    definition,
    equal,
    first_steps,
    one_step,
    problems,
    run_form,
    steps,
    values,
)

THEOREMS = Collection()

OPERANDS = ("q", "k", "v", "log_decay", "outer", "log_decay_v", "initial_state")


def _without_tangents_but(x: Operands, name: str) -> Operands:
    """x with every tangent 0 but that of one operand."""

    def still(y: Any) -> Any:
        return type(y)(y.parts[0], np.zeros_like(y.parts[1])) if isinstance(y, (Field, Log)) else y

    return x._replace(**{n: still(y) for n, y in x._asdict().items() if n != name})


def _slope(p: Problem, x: Operands, do: Field, dS: Field) -> int:
    """d/dε of <dO, o> + <dS, S>, by the definition on dual numbers."""
    o, S = definition(p, x)
    return (contract(do.parts[0], o.tangent()) + contract(dS.parts[0], S.tangent())) % MODULUS


def _along(g: tuple[Any, ...], x: Operands) -> int:
    """Σ <gradient, tangent> over the operands."""
    found = 0
    for gradient, y in zip(g, x[:7], strict=True):
        if isinstance(y, (Field, Log)):
            found += contract(*np.broadcast_arrays(gradient.parts[0], y.tangent()))
    return found % MODULUS


def _flat(g: Gradients, dS: Any) -> tuple[Any, ...]:
    """In the order of OPERANDS."""
    return g.q, g.k, g.v, g.la, g.outer, g.lb, dS


def _vjp(p: Problem, x: Operands, do: Any, dS: Any, kind: str = "chunk") -> tuple[Gradients, Any]:
    block = gradients.GRADIENTS[kind]
    return gradients.vjp(steps(x, p.reverse), x.initial_state, do, dS, p.order, p.block, block)


def _vjp_is_derivative(kind: str) -> Any:
    def check(budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        for i, p in enumerate(problems(budget)):
            if p.key_decay == "dt·A":  # d/dA is the logarithm of a field element: see gradients/operands
                continue
            x = p.operands(rng, dual=True, zeros=0.2 if i % 2 else 0.0)
            do = Field.random(rng, p.batch, p.length, p.heads[0], p.value_dim)
            dS = Field.random(rng, *x.initial_state.shape)
            g, dS0 = _vjp(p, values(x), do, dS, kind)
            found = _flat(g, dS0)
            for name, gradient, y in zip(OPERANDS, found, x[:7], strict=True):
                if isinstance(y, Element) and gradient.shape != y.shape:
                    raise Counterexample(f"the gradient of {name} has shape {gradient.shape}, for {p}")
            if _slope(p, x, do, dS) != _along(found, x):
                wrong = [
                    name
                    for name in OPERANDS
                    if _slope(p, _without_tangents_but(x, name), do, dS)
                    != _along(found, _without_tangents_but(x, name))
                ]
                raise Counterexample(f"the gradient of {' and '.join(wrong)} is wrong, for {p}")
            tally.exact(p.degree + 2)

    return check


for _kind, _statement in {
    "chunk": "The gradient in blocks (matrix products, straddle form) is the derivative of the recurrence.",
    "recurrent": "The gradient step by step is the derivative of the recurrence.",
    "scan": "The gradient by two scans (states, and their gradients) is the derivative of the recurrence.",
}.items():
    THEOREMS(
        f"gradients/{_kind}",
        f"{_statement} It is exactly 0 for a log-decay of -inf.",
        "all six orders, both directions, decays none, constant, scalar, vector over keys, over values and "
        "both, in every other case a fifth of them 0; shared heads; gradients of all operands and the "
        "initial state, from those of all outputs and the final state; lengths to 21 that no block divides",
        "exact",
    )(_vjp_is_derivative(_kind))


def _tangents(c: Slice, S: Any, order: Order, do: Any, n: int) -> list[tuple[int, Any]]:
    """For every length to n: d/dε of Σ <dO, o>, and the tangent of the state; by the definition."""
    slope, found = 0, [(0, S)]
    for t in range(n):
        o, S = forms.walk(one_step(c, t), S, order)
        slope += contract(do.parts[0][..., t : t + 1, :], o.tangent())
        found.append((slope, S))
    return found


@THEOREMS(
    "gradients/chunk-body",
    "The gradient of one block of n steps, given the state at its start and the gradient of the state at its "
    "end, is the derivative of n steps of the definition: all operands, and the state at the start. The "
    "gradient of a sequence is a sweep of these (gradients/chunk, -/recurrent, -/scan): by the chain "
    "rule, for every T.",
    "every n from 1 to 64 (quick: eight of them), six orders, scalar decay and decays over keys and values "
    "(four other kinds: ten n), the gradients by matrices, step by step and by scans",
    "exact",
)
def chunk_body(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    few = (1, 2, 3, 4, 7, 8, 13, 33)
    lengths = few if budget.quick else range(1, 65)
    every = ("scalar", "keys, values")  # one for each kind of block: the weight matrix, the tree
    other = () if budget.quick else ("no decay", "keys", "values", "scalar, values")
    longest = max(lengths)
    cases = []
    for order in ALL_ORDERS:
        for kind in (*every, *other):
            p = Problem(longest, longest, order, False, (1, 1, 1), *blocks_of(kind), 1)
            x = p.operands(rng, dual=True, zeros=0.1)
            c = steps(x).slice(0, longest)
            do = Field.random(rng, *c.v.shape)
            G = Field.random(rng, *x.initial_state.shape)
            slopes = _tangents(c, x.initial_state, order, do, longest)
            values = Slice(*(None if y is None else y.value() for y in c))
            cases.append((order, kind, c, values, x.initial_state, do, G, slopes))
    for n in lengths:
        for order, kind, c, values, S, do, G, slopes in cases:
            if kind in other and n not in (*few, 32, 64):
                continue
            for name, block in gradients.GRADIENTS.items():
                g, dS = block(first_steps(values, n), S.value(), G, do[..., :n, :], order)
                pairs = [*zip(g, first_steps(c, n), strict=False), (dS, S)]
                found = sum(contract(a.parts[0], y.tangent()) for a, y in pairs if y is not None)
                slope, end = slopes[n]
                if (slope + contract(G.parts[0], end.tangent()) - found) % MODULUS:
                    raise Counterexample(
                        f"the {name} gradient of a block of n = {n} is wrong, order {order.events}, "
                        f"decay: {kind}"
                    )
                tally.exact(Problem(n).degree + 2)


@THEOREMS(
    "gradients/operands",
    "Gradients of slices become gradients of the operands by the transpose of what made the slices: "
    "shared heads, constants, the product dt·A, scale and direction included.",
    "all layouts of decays and heads; everything linear, so that this covers dt·A for any real dt and A",
    "exact",
)
def operands(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in problems(budget):
        x = p.operands(rng, dual=True)
        H, K = p.heads[0], p.key_dim
        la, lb = x.log_decay, x.log_decay_v
        linear = x._replace(
            log_decay=None if la is None else Field(*la.parts),
            outer=None if x.outer is None else Field.random(rng, H, K, dual=True),
            log_decay_v=None if lb is None else Field(*lb.parts),
        )
        dual, plain = steps(linear, p.reverse), steps(values(linear), p.reverse)
        pieces, slope = [], 0
        for i in range(0, p.length, p.block):
            j = min(i + p.block, p.length)
            found: list[Any] = []
            for y, dim in zip(dual.slice(i, j)[:5], (K, K, p.value_dim, None, None), strict=True):
                if y is None:
                    found.append(None)
                    continue
                # A block's gradient is never smaller than batch and heads, whatever was shared.
                g = Field.random(rng, p.batch, H, j - i, y.shape[-1] if dim is None else dim)
                slope += contract(*np.broadcast_arrays(g.parts[0], y.tangent()))
                found.append(g)
            pieces.append(plain.pull_back(i, j, Gradients(*found)))
        whole = plain.join(pieces)
        joined = _flat(whole, None)
        if slope % MODULUS != _along(joined, linear._replace(initial_state=None)):
            raise Counterexample(f"the gradients of the operands are wrong, for {p}")
        tally.exact(5)


def _vectors(budget: Budget) -> list[Problem]:
    """All orders; each decay a vector or none."""
    found, i = [], 0
    for order in ALL_ORDERS:
        for key in ("none", "[B,T,H,K]"):
            for value in ("none", "[B,T,H,V]"):
                for T in (1, 2, 5, 9)[: budget.pick(3, 4)]:
                    i += 1
                    found.append(Problem(T, 1 + i % 4, order, False, (2, 2, 2), key, value))
    return sorted(found, key=lambda p: p.length)


def _turned(p: Problem, order: Order, reverse: bool, K: int, V: int, key: str, value: str) -> Problem:
    return Problem(p.length, p.block, order, reverse, p.heads, key, value, p.batch, K, V)


@THEOREMS(
    "gradients/closure",
    "The gradient is three more calls of the core. With R(q, k, v): dq = R(dO, v, k), same direction, decays "
    "swapped, transposed state; dk = R(v, dO, q) and dv, dS_0 = R(k, q, dO), reversed time, adjoint order, "
    "from the gradient of the final state.",
    "all six orders, both directions, vector decays over keys and over values, or none; each form",
    "exact",
)
def closure(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for base in _vectors(budget):
        for reverse in (False, True):
            p = Problem(**{**base.__dict__, "reverse": reverse})
            x = p.operands(rng, zeros=0.2)._replace(scale=1)
            do = Field.random(rng, *x.v.shape)
            dS = Field.random(rng, *x.initial_state.shape)
            g, dS0 = _vjp(p, x, do, dS)
            K, V, la, lb = p.key_dim, p.value_dim, x.log_decay, x.log_decay_v
            key, value = p.key_decay, p.value_decay
            swapped = ("[B,T,H,K]" if lb else "none", "[B,T,H,V]" if la else "none")
            back = p.order.adjoint
            dq = _turned(p, p.order, reverse, V, K, *swapped)
            dk = _turned(p, back, not reverse, V, K, *swapped)
            dv = _turned(p, back, not reverse, K, V, key, value)
            calls = {
                "dq": (dq, Operands(do, x.v, x.k, lb, None, la, x.initial_state.mT, 1)),
                "dk": (dk, Operands(x.v, do, x.q, lb, None, la, dS.mT, 1)),
                "dv": (dv, Operands(x.k, x.q, do, la, None, lb, dS, 1)),
            }
            for form in forms.FORMS:
                for (name, (call, arguments)), wanted in zip(calls.items(), (g.q, g.k, g.v), strict=True):
                    found, state = run_form(form, call, arguments)
                    equal(f"{name} and the {form} form's", p, wanted, found, "bthd")
                    if name == "dv":
                        equal(f"dS_0 and the {form} form's", p, dS0, state, "bhkv")
                tally.exact(3 * (p.degree + 2))


@THEOREMS(
    "gradients/cumulative-sums",
    "The straddle form of the decay gradient and the usual one are the same number: dlog a = "
    "Σ_{u≥t} q∘dq - Σ_{s≥t} k∘dk + rowsum(S_T∘dS_T), dlog b = Σ_{u≥t} o∘do - Σ_{s≥t} v∘dv + "
    "colsum(S_T∘dS_T), where u > t if the read precedes the decay and s > t if the write does. In floating "
    "point they are not, since the usual one cancels: see operator/decay-gradient.",
    "all six orders, vector decays over keys and over values, a fifth of them 0",
    "exact",
)
def cumulative_sums(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _vectors(budget):
        x = p.operands(rng, zeros=0.2)._replace(scale=1)
        do = Field.random(rng, *x.v.shape)
        dS = Field.random(rng, *x.initial_state.shape)
        o, S = definition(p, x)
        g, _ = _vjp(p, x, do, dS)
        qi, ki = p.order.query_decayed, p.order.key_decayed

        def difference(a: Any, da: Any, b: Any, db: Any, tail: Any, qi: bool = qi, ki: bool = ki) -> Any:
            earlier, later = ((y * z).transpose(1, 2) for y, z in ((a, da), (b, db)))
            found = forms.suffix(earlier, qi) - forms.suffix(later, not ki)
            return (found + tail[..., None, :]).transpose(1, 2)

        if x.log_decay is not None:
            usual = difference(x.q, g.q, x.k, g.k, (S * dS).sum(-1))
            equal("dlog a and the difference of sums", p, g.la, usual, "bthk")
        if x.log_decay_v is not None:
            usual = difference(o, do, x.v, g.v, (S * dS).sum(-2))
            equal("dlog b and the difference of sums", p, g.lb, usual, "bthv")
        tally.exact(p.degree + 2)
