"""Exact: the gradient code is the derivative of the recurrence, by dual numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...kernels import forms, gradients
from ...kernels.order import ALL_ORDERS, Order
from ...kernels.steps import Gradients, Slice
from ..algebra import MODULUS, Element, Field, Log, contract
from ..theorem import Budget, Collection, Counterexample, Side, Tally
from .identities import Case, identity
from .problems import (
    FEW_LENGTHS,
    Operands,
    Problem,
    blocks_of,
    body_lengths,
    but,
    definition,
    first_steps,
    one_step,
    problems,
    run_form,
    steps,
    values,
)

THEOREMS = Collection({"text": "of the core alone; mixers/*/streaming run it on text"})

THROUGH_OPERATOR = {
    "bitwise": "lattice/operator has it, through the operator",
    "property": "operator/gradients has it, through the operator",
}
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
    carry = gradients.CARRIES[kind]
    return gradients.vjp(steps(x, p.reverse), x.initial_state, do, dS, p.order, p.block, block, carry)


def _by_gradient(kind: str) -> Side:
    """Σ <gradient, tangent>, by the gradient code of this kind on the values alone."""

    def run(p: Problem, x: Operands, do: Field, dS: Field) -> int:
        found = _flat(*_vjp(p, values(x), do, dS, kind))
        for name, gradient, y in zip(OPERANDS, found, x[:7], strict=True):
            if isinstance(y, Element) and gradient.shape != y.shape:
                raise Counterexample(f"the gradient of {name} has shape {gradient.shape}, for {p}")
        return _along(found, x)

    return Side(f"kernels.gradients.vjp by {kind}: the gradient of each operand, along its tangent", run)


DERIVATIVE = Side("the definition on dual numbers: the derivative along the tangents of all operands", _slope)
PAIRING = "Σ_x <∂x, ẋ> = d/dε (<∂o, o> + <∂S_T, S_T>)(x + ε ẋ),  x over q, k, v, log a, log b, S_0"


def _is_derivative(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for i, p in enumerate(problems(budget)):
        if p.key_decay == "dt·A":  # d/dA is the logarithm of a field element: see gradients/operands
            continue
        x = p.operands(rng, dual=True, zeros=0.2 if i % 2 else 0.0)
        do = Field.random(rng, p.batch, p.length, p.heads[0], p.value_dim)
        dS = Field.random(rng, *x.initial_state.shape)
        if tally.left(p, x, do, dS) != tally.right(p, x, do, dS):
            alone = {name: _without_tangents_but(x, name) for name in OPERANDS}
            wrong = [n for n, y in alone.items() if tally.left(p, y, do, dS) != tally.right(p, y, do, dS)]
            raise Counterexample(f"the gradient of {' and '.join(wrong)} is wrong, for {p}")
        tally.exact(p.degree + 2)


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
        formula=PAIRING,
        left=_by_gradient(_kind),
        right=DERIVATIVE,
        reasons=THROUGH_OPERATOR,
    )(_is_derivative)


def _slopes(c: Slice, S: Any, order: Order, do: Any, G: Any) -> list[int]:
    """For every number of steps n: d/dε of Σ_{t≤n} <∂o_t, o_t> + <G, S_n>, by the definition."""
    slope, found = 0, [contract(G.parts[0], S.tangent()) % MODULUS]
    for t in range(c.v.shape[-2]):
        o, S = forms.walk(one_step(c, t), S, order)
        slope += contract(do.parts[0][..., t : t + 1, :], o.tangent())
        found.append((slope + contract(G.parts[0], S.tangent())) % MODULUS)
    return found


SLOPES = Side("n steps of the definition on dual numbers", _slopes)


def along_block(found: tuple[Any, Any], c: Slice, S: Any) -> int:
    """Σ <gradient, tangent> over the operands of a block and its state."""
    g, dS = found
    pairs = [*zip(g, c, strict=False), (dS, S)]
    along = (contract(*np.broadcast_arrays(a.parts[0], y.tangent())) for a, y in pairs if y is not None)
    return sum(along) % MODULUS


def _by_block(kind: str, c: Slice, S: Any, G: Any, do: Any, order: Order) -> int:
    plain = Slice(*(None if y is None else y.value() for y in c))
    return along_block(gradients.GRADIENTS[kind](plain, S.value(), G, do, order), c, S)


@THEOREMS(
    "gradients/chunk-body",
    "The gradient of one block of n steps, given the state at its start and the gradient of the state at its "
    "end, is the derivative of n steps of the definition: all operands, and the state at the start. The "
    "gradient of a sequence is a sweep of these (gradients/chunk, -/recurrent, -/scan): by the chain "
    "rule, for every T.",
    "every n from 1 to 64 (quick: eight of them), six orders, scalar decay and decays over keys and values "
    "(four other kinds: ten n), the gradients by matrices, step by step and by scans",
    "exact",
    formula="Σ_x <∂x, ẋ> = d/dε (Σ_{t≤n} <∂o_t, o_t> + <∂S_n, S_n>)(x + ε ẋ),\n"
    "x over q, k, v, log a, log b, S_0",
    left=Side("kernels.gradients.GRADIENTS of one block, along the tangents", _by_block),
    right=SLOPES,
)
def chunk_body(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    lengths = body_lengths(budget)
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
            slopes = tally.right(c, x.initial_state, order, do, G)
            cases.append((order, kind, c, x.initial_state, do, G, slopes))
    for n in lengths:
        for order, kind, c, S, do, G, slopes in cases:
            if kind in other and n not in (*FEW_LENGTHS, 32, 64):
                continue
            for name in gradients.GRADIENTS:
                if tally.left(name, first_steps(c, n), S, G, do[..., :n, :], order) != slopes[n]:
                    raise Counterexample(
                        f"the {name} gradient of a block of n = {n} is wrong, order {order.events}, "
                        f"decay: {kind}"
                    )
                tally.exact(Problem(n).degree + 2)


Blocks = list[tuple[int, int, list[Any]]]  # start, stop, gradients of what a slice holds


def _pulled_back(p: Problem, x: Operands, blocks: Blocks) -> int:
    plain = steps(values(x), p.reverse)
    whole = plain.join([plain.pull_back(i, j, Gradients(*found)) for i, j, found in blocks])
    return _along(_flat(whole, None), x._replace(initial_state=None))


def _along_slices(p: Problem, x: Operands, blocks: Blocks) -> int:
    slope, dual = 0, steps(x, p.reverse)
    for i, j, found in blocks:
        for g, y in zip(found, dual.slice(i, j), strict=False):
            if g is not None:
                slope += contract(*np.broadcast_arrays(g.parts[0], y.tangent()))
    return slope % MODULUS


@THEOREMS(
    "gradients/operands",
    "Gradients of slices become gradients of the operands by the transpose of what made the slices: "
    "shared heads, constants, the product dt·A, scale and direction included.",
    "all layouts of decays and heads; everything linear, so that this covers dt·A for any real dt and A",
    "exact",
    formula="Σ_x <Lᵀ g, ẋ> = <g, L ẋ>,  L from operands to slices",
    left=Side("Steps.pull_back and Steps.join, along the tangents of the operands", _pulled_back),
    right=Side("the gradients of the slices, along the tangents of Steps.slice", _along_slices),
)
@identity
def operands(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in problems(budget):
        x = p.operands(rng, dual=True)
        H, K = p.heads[0], p.key_dim
        la, lb = x.log_decay, x.log_decay_v
        linear = x._replace(
            log_decay=None if la is None else Field(*la.parts),
            outer=None if x.outer is None else Field.random(rng, H, K, dual=True),
            log_decay_v=None if lb is None else Field(*lb.parts),
        )
        dual = steps(linear, p.reverse)
        blocks: Blocks = []
        for i in range(0, p.length, p.block):
            j = min(i + p.block, p.length)
            found: list[Any] = []
            for y, dim in zip(dual.slice(i, j)[:5], (K, K, p.value_dim, None, None), strict=True):
                # A block's gradient is never smaller than batch and heads, whatever was shared.
                width = None if y is None else y.shape[-1] if dim is None else dim
                found.append(None if width is None else Field.random(rng, p.batch, H, j - i, width))
            blocks.append((i, j, found))
        yield Case(p, (p, linear, blocks), 5)


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


def _by_name(form: str, dq: Any, dk: Any, dv: Any, dS0: Any) -> dict[str, Any]:
    named = {"dq": dq, "dk": dk, "dv": dv, "dS_0": dS0}
    return {f"the {form} form, {name}": gradient for name, gradient in named.items()}


def _gradient_code(p: Problem, x: Operands, do: Field, dS: Field) -> dict[str, Any]:
    """The same, to compare with each form."""
    g, dS0 = _vjp(p, x, do, dS)
    found: dict[str, Any] = {}
    for form in forms.FORMS:
        found |= _by_name(form, g.q, g.k, g.v, dS0)
    return found


def _three_calls(p: Problem, x: Operands, do: Field, dS: Field) -> dict[str, Any]:
    K, V, la, lb = p.key_dim, p.value_dim, x.log_decay, x.log_decay_v
    swapped = ("[B,T,H,K]" if lb else "none", "[B,T,H,V]" if la else "none")
    back = p.order.adjoint
    dq = _turned(p, p.order, p.reverse, V, K, *swapped)
    dk = _turned(p, back, not p.reverse, V, K, *swapped)
    dv = _turned(p, back, not p.reverse, K, V, p.key_decay, p.value_decay)
    found: dict[str, Any] = {}
    for form in forms.FORMS:
        one = run_form(form, dq, Operands(do, x.v, x.k, lb, None, la, x.initial_state.mT, 1))
        two = run_form(form, dk, Operands(x.v, do, x.q, lb, None, la, dS.mT, 1))
        three = run_form(form, dv, Operands(x.k, x.q, do, la, None, lb, dS, 1))
        found |= _by_name(form, one.outputs, two.outputs, *three)
    return found


@THEOREMS(
    "gradients/closure",
    "The gradient is three more calls of the core: for dq in the same direction with decays swapped and a "
    "transposed state; for dk, and for dv with dS_0, in reversed time and the adjoint order, from the "
    "gradient of the final state.",
    "all six orders, both directions, vector decays over keys and over values, or none; each form",
    "exact",
    formula="dq = R(dO, v, k; b, a, S_0ᵀ),  dk = R^rev(v, dO, q; b, a, dS_Tᵀ),\n"
    "(dv, dS_0) = R^rev(k, q, dO; a, b, dS_T),  in the adjoint order where time is reversed",
    left=Side("kernels.gradients.vjp in chunks", _gradient_code),
    right=Side("each form of the core, called three times", _three_calls),
)
@identity
def closure(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for base in _vectors(budget):
        for reverse in (False, True):
            p = but(base, reverse=reverse)
            x = p.operands(rng, zeros=0.2)._replace(scale=1)
            do = Field.random(rng, *x.v.shape)
            dS = Field.random(rng, *x.initial_state.shape)
            yield Case(p, (p, x, do, dS), p.degree + 2)


def _straddling(p: Problem, x: Operands, do: Field, dS: Field) -> dict[str, Any]:
    g, _ = _vjp(p, x, do, dS)
    return {"dlog a": g.la, "dlog b": g.lb}


def _differences(p: Problem, x: Operands, do: Field, dS: Field) -> dict[str, Any]:
    o, S = definition(p, x)
    g, _ = _vjp(p, x, do, dS)

    def difference(a: Any, da: Any, b: Any, db: Any, tail: Any) -> Any:
        earlier, later = ((y * z).transpose(1, 2) for y, z in ((a, da), (b, db)))
        found = forms.suffix(earlier, p.order.query_decayed) - forms.suffix(later, not p.order.key_decayed)
        return (found + tail[..., None, :]).transpose(1, 2)

    over_keys = x.log_decay is not None
    over_values = x.log_decay_v is not None
    return {
        "dlog a": difference(x.q, g.q, x.k, g.k, (S * dS).sum(-1)) if over_keys else None,
        "dlog b": difference(o, do, x.v, g.v, (S * dS).sum(-2)) if over_values else None,
    }


@THEOREMS(
    "gradients/cumulative-sums",
    "The straddle form of the decay gradient and the usual difference of cumulative sums are the same "
    "number; u > t if the read precedes the decay and s > t if the write does. In floating point they are "
    "not, since the usual one cancels: see operator/decay-gradient.",
    "all six orders, vector decays over keys and over values, a fifth of them 0",
    "exact",
    formula="dlog a_t = Σ_{u≥t} q_u ∘ dq_u − Σ_{s≥t} k_s ∘ dk_s + rowsum(S_T ∘ dS_T),\n"
    "dlog b_t = Σ_{u≥t} o_u ∘ do_u − Σ_{s≥t} v_s ∘ dv_s + colsum(S_T ∘ dS_T)",
    left=Side("kernels.gradients.vjp in chunks: pairs that straddle t, nothing subtracted", _straddling),
    right=Side("the difference of two cumulative sums", _differences),
)
@identity
def cumulative_sums(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in _vectors(budget):
        x = p.operands(rng, zeros=0.2)._replace(scale=1)
        do = Field.random(rng, *x.v.shape)
        dS = Field.random(rng, *x.initial_state.shape)
        yield Case(p, (p, x, do, dS), p.degree + 2)
