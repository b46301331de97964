"""Exact: every form of the delta rule, and of the general erasure, is its definition; and the gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...kernels import delta, gradients
from ...kernels.order import READS
from ...kernels.steps import Slice
from ..algebra import MODULUS, Field, contract
from ..theorem import Budget, Collection, Counterexample, Side, Tally
from .gradients import SLOPES, along_block
from .identities import AT_ONCE, IN_PIECES, LATTICE, Case, identity, same, splits
from .problems import (
    EVERY_STEP,
    FEW_LENGTHS,
    HEADS,
    KEY_DECAYS,
    Operands,
    Problem,
    Run,
    body_lengths,
    but,
    definition,
    first_steps,
    run_form,
    steps,
    values,
)

THEOREMS = Collection(
    {
        "text": "of the core alone; mixers/*/streaming run it on text",
    }
)

ERASING = ("beta", "x, y")
BOTH = (
    "the delta rule (beta) and the general form (x, y); both reads and directions; decays none, constant, "
    "scalar, vector over keys, dt·A, a fifth of them 0 in every other case; shared heads; any initial state "
    "and scale; lengths up to 21 that no block divides"
)


def _problems(budget: Budget) -> list[Problem]:
    lengths = (1, 2, 5, 9) if budget.quick else (1, 2, 3, 4, 5, 7, 9, 14, 21)
    blocks = (1, 2, 3, 4, 5, 8, 64)
    found = []
    everything = itertools.product(ERASING, KEY_DECAYS, READS.values(), (False, True), lengths)
    for i, (erasing, key, order, reverse, T) in enumerate(everything):
        p = Problem(T, blocks[i // 3 % 7], order, reverse, HEADS[i % 5], key, "none", erasing=erasing)
        found.append(p)
    return sorted(found, key=lambda p: (p.length, p.heads, p.block))


RECURRENCE = (
    "S_t = (I − β_t k_t k_tᵀ) (a_t ∘ S_{t−1}) + β_t k_t v_tᵀ,  or  "
    "S_t = (diag a_t + x_t y_tᵀ) S_{t−1} + k_t v_tᵀ,\no_t = S_tᵀ q_t"
)
DEFINITION = Side("the recurrence with erasure, step by step", definition)


@identity
def _random_points(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for i, p in enumerate(_problems(budget)):
        yield Case(p, (p, p.operands(rng, zeros=0.2 * (i % 2))), p.degree)


def _of_form(form: str) -> Side:
    return Side(f"the {form} form, kernels.delta.FORMS[{form!r}]", lambda p, x: run_form(form, p, x))


for _form, (_statement, _formula) in {
    "recurrent": (
        "The recurrence in blocks of any size is the recurrence in one.",
        f"recurrent_C(q, k, v, a, β) = (o_1 … o_T, S_T) for every C, where\n{RECURRENCE}",
    ),
    "parallel": (
        "The attention of all steps to the values that solve a triangular system is the recurrence.",
        "o = P(q, k) u with (I + M) u = β (v − k̃ S_0),  M_{t,s} = β_t k_tᵀ (a_{s,t} ∘ k_s) for s < t",
    ),
    "chunk": (
        "The chunk form, for any chunk size, is the recurrence: inside a chunk one triangular system "
        "gives the values that the core without erasure writes.",
        "in each chunk (I + M) u = β (v − k̃ S_c); o and S_{c+C} are those of the core on (q, k, u)",
    ),
}.items():
    THEOREMS(
        f"delta/{_form}",
        _statement,
        BOTH,
        "exact",
        formula=_formula,
        left=_of_form(_form),
        right=DEFINITION,
    )(_random_points)


def _as_erasure(form: str, p: Problem, x: Operands) -> Run:
    H, K = p.heads[0], p.key_dim
    k = steps(x).slice(0, p.length).k.expand(p.batch, H, p.length, K).transpose(1, 2)
    beta, la = x.beta[..., None], x.log_decay
    a = None if la is None else la[:, None] if la.ndim == 1 else la[..., None] if la.ndim == 3 else la
    y = k if a is None else k * a.exp().expand(p.batch, p.length, H, K)
    general = x._replace(beta=None, v=x.v * beta, x=k * beta * -1, y=y)
    return run_form(form, but(p, erasing="x, y"), general)


@THEOREMS(
    "delta/is-an-erasure",
    "The delta rule is the general form of erasure: by x = -β k and y = a∘k, with v ← β v.",
    BOTH.replace("the delta rule (beta) and the general form (x, y)", "the delta rule").replace(", dt·A", "")
    + "; each form",
    "exact",
    formula="S̃ + β k (v − S̃ᵀ k)ᵀ = (diag a + x yᵀ) S + k (β v)ᵀ,  S̃ = a ∘ S, x = −β k, y = a ∘ k",
    left=Side("each form of the general erasure", _as_erasure),
    right=Side("the delta rule step by step", lambda form, p, x: definition(p, x)),
)
@identity
def is_an_erasure(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in _problems(budget):
        if p.erasing == "beta" and p.key_decay != "dt·A":
            x = p.operands(rng)
            for form in delta.FORMS:
                yield Case(f"the {form} form, {p}", (form, p, x), p.degree)


def _without_erasure(form: str, p: Problem, x: Operands) -> Run:
    return definition(but(p, erasing="none"), x._replace(x=None, y=None))


@THEOREMS(
    "delta/erasing-nothing",
    "Erasure by x = 0 is none, whatever y is: what is left is the core.",
    BOTH.replace("the delta rule (beta) and the general form (x, y)", "the general form") + "; each form",
    "exact",
    formula="(diag a + 0 yᵀ) S + k vᵀ = a ∘ S + k vᵀ",
    left=Side(
        "each form of the general erasure, by x = 0",
        lambda form, p, x: run_form(form, p, x._replace(x=torch.zeros_like(x.x))),
    ),
    right=Side("the recurrence without erasure, step by step", _without_erasure),
)
@identity
def erasing_nothing(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in _problems(budget):
        if p.erasing == "x, y":
            x = p.operands(rng)
            for form in delta.FORMS:
                yield Case(f"the {form} form, {p}", (form, p, x), p.degree)


def _wider(form: str, p: Problem, x: Operands) -> dict[str, Any]:
    B, T, H, K = p.batch, p.length, p.heads[0], p.key_dim
    la = x.log_decay
    spread = la.expand(B, T, H) if la.ndim == 1 else la[..., None].expand(B, T, H, K)
    return _both(
        run_form(form, p, x._replace(log_decay=spread)),
        run_form(form, p, x._replace(log_decay=torch.zeros_like(la))),
    )


def _narrower(form: str, p: Problem, x: Operands) -> dict[str, Any]:
    return _both(definition(p, x), definition(p, x._replace(log_decay=None)))


def _both(one: Run, none: Run) -> dict[str, Any]:
    return {
        "one decay spread out, outputs": one.outputs,
        "one decay spread out, state": one.state,
        "a log-decay of 0, outputs": none.outputs,
        "a log-decay of 0, state": none.state,
    }


@THEOREMS(
    "delta/decays",
    "A log-decay of 0 is none, a constant one is the same at every step, a scalar one the same for all keys: "
    "DeltaNet is Gated DeltaNet with an open gate, and that is Kimi Delta Attention with tied gates.",
    "both erasures, reads and directions; shared heads, lengths to 9; each form",
    "exact",
    formula="R(log a = 0) = R(no decay),  R(a_h) = R(a_{t,h} := a_h),  R(a_{t,h}) = R(a_{t,h,i} := a_{t,h})",
    left=Side("each form, with the wider decay", _wider),
    right=Side("step by step, with the narrower one, or none", _narrower),
)
@identity
def decays(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in _problems(budget):
        if p.key_decay in ("[H]", "[B,T,H]") and p.length <= 9:
            x = p.operands(rng)
            for form in delta.FORMS:
                yield Case(f"the {form} form, {p}", (form, p, x), p.degree)


@THEOREMS(
    "delta/split",
    "A sequence run in two pieces, the state handed from one to the next, is the sequence run at once.",
    "both erasures, reads and directions; all decays; every place to split; each form after each form",
    "exact",
    formula="R(x_1 … x_T, S_0) = R(x_1 … x_c, S_0) then R(x_{c+1} … x_T, S_c), for every c",
    left=IN_PIECES,
    right=AT_ONCE,
)
@identity
def split(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    yield from splits([p for p in _problems(budget) if p.length <= 7], list(delta.FORMS), rng)


for _name, _theorem in {
    "delta/recurrent": _random_points,
    "delta/parallel": _random_points,
    "delta/chunk": _random_points,
    "delta/is-an-erasure": is_an_erasure,
    "delta/erasing-nothing": erasing_nothing,
    "delta/decays": decays,
    "delta/split": split,
}.items():
    THEOREMS.also(_name, "bitwise", LATTICE)(_theorem.on_lattice)


# ------------------------------------------------------------------ one block, of every length


def _blocks(longest: int) -> list[tuple[str, Problem]]:
    """One block for each way a chunk computes: with either erasure and read, and each kind of decay."""
    found = []
    for erasing, order, key in itertools.product(ERASING, READS.values(), ("none", "[B,T,H]", "[B,T,H,K]")):
        where = f"read {order.events}, decay: {key}, erasing by {erasing}, K = 2, V = 3"
        found.append(
            (where, Problem(longest, longest, order, False, (1, 1, 1), key, "none", 1, erasing=erasing))
        )
    return found


def _chunk(c: Slice, S: Any, order: Any) -> tuple[Any, Any, Any]:
    """Outputs, the state after them, and the state again where only it is computed."""
    return (*delta.delta_chunk(c, S, order), delta.carry(c, S, order))


@THEOREMS(
    "delta/chunk-body",
    "One chunk of n steps is n steps of the definition: outputs, and the state, also where only the state is "
    "computed. With forms/loop, by induction, chunk = recurrent for all T.",
    "every n from 1 to 64 (quick: eight of them), both erasures and reads; decays none, scalar, vector, with "
    "0 among them and without",
    "exact",
    formula="chunk(c_1 … c_n, S) = (step c_n ∘ … ∘ step c_1)(S),  c_t = (q_t, k_t, v_t, a_t, β_t | x_t, y_t)",
    left=Side("kernels.delta.delta_chunk, and kernels.delta.carry", _chunk),
    right=EVERY_STEP,
)
def chunk_body(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    longest = max(body_lengths(budget))
    for (where, p), zeros in itertools.product(_blocks(longest), (0.0, 0.1)):
        if p.key_decay == "none" and zeros:
            continue
        x = p.operands(rng, zeros=zeros)
        c = steps(x).slice(0, longest)
        outputs, states = tally.right(c, x.initial_state, p.order)
        for n in body_lengths(budget):
            o, S, alone = tally.left(first_steps(c, n), states[0], p.order)
            same(
                f"n = {n}, {where}",
                {"o": o, "S": S, "S alone": alone},
                {"o": outputs[..., :n, :], "S": states[n], "S alone": states[n]},
            )
            tally.exact(Problem(n, n, erasing=p.erasing).degree)


# ------------------------------------------------------------------ gradients

NAMES = ("q", "k", "v", "log_decay", "log_decay_v", "beta", "x", "y", "initial_state")


def _of_all(x: Operands) -> tuple[Any, ...]:
    return x.q, x.k, x.v, x.log_decay, x.log_decay_v, x.beta, x.x, x.y, x.initial_state


def _by_gradient(kind: str) -> Side:
    def run(p: Problem, x: Operands, do: Field, dS: Field) -> int:
        plain = values(x)
        start, where = plain.initial_state, (p.order, p.block)
        if kind == "chunk":
            g, dS0 = delta.vjp(steps(plain, p.reverse), start, do, dS, *where)
        else:
            walk = delta.GRADIENTS[kind], delta.carry
            g, dS0 = gradients.vjp(steps(plain, p.reverse), start, do, dS, *where, *walk)
        found = 0
        for name, gradient, y in zip(NAMES, (*g[:8], dS0), _of_all(x), strict=True):
            if (gradient is None) != (y is None) or (y is not None and gradient.shape != y.shape):
                raise Counterexample(f"the gradient of {name} has not its shape, for {p}")
            if y is not None:
                found += contract(gradient.parts[0], y.tangent())
        return found % MODULUS

    by = "delta.vjp" if kind == "chunk" else f"gradients.vjp with kernels.delta.GRADIENTS[{kind!r}]"
    return Side(f"kernels.{by}, along the tangents", run)


def _slope(p: Problem, x: Operands, do: Field, dS: Field) -> int:
    o, S = definition(p, x)
    return (contract(do.parts[0], o.tangent()) + contract(dS.parts[0], S.tangent())) % MODULUS


@identity
def _is_derivative(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for i, p in enumerate(_problems(budget)):
        if p.key_decay == "dt·A":  # d/dA is the logarithm of a field element: see gradients/operands
            continue
        x = p.operands(rng, dual=True, zeros=0.2 * (i % 2))
        do = Field.random(rng, p.batch, p.length, p.heads[0], p.value_dim)
        dS = Field.random(rng, *x.initial_state.shape)
        yield Case(f"the gradients of {p}", (p, x, do, dS), p.degree + 2)


for _kind, _statement in {
    "chunk": "The gradient in chunks (the transposed triangular system, and canonical gradients of what is "
    "written and of what is read) is the derivative of the recurrence.",
    "recurrent": "The gradient step by step is the derivative of the recurrence.",
}.items():
    THEOREMS(
        f"delta/gradient-{_kind}",
        f"{_statement} It is exactly 0 for a log-decay of -inf.",
        BOTH.replace(" dt·A,", "") + "; gradients of all operands and the initial state, from those of all "
        "outputs and the final state",
        "exact",
        formula="Σ_x <∂x, ẋ> = d/dε (<∂o, o> + <∂S_T, S_T>)(x + ε ẋ),\n"
        "x over q, k, v, log a, β or x and y, S_0",
        left=_by_gradient(_kind),
        right=Side(
            "the definition on dual numbers: the derivative along the tangents of all operands", _slope
        ),
        reasons={
            "bitwise": "lattice/delta has it, through the operator",
            "property": "delta/gradients has it, through the operator",
        },
    )(_is_derivative)


def _by_block(kind: str, c: Slice, S: Any, G: Any, do: Any, order: Any) -> int:
    plain = Slice(*(None if y is None else y.value() for y in c))
    g, dS = delta.GRADIENTS[kind](plain, S.value(), G, do, order)
    return along_block((g[:8], dS), c, S)


@THEOREMS(
    "delta/gradient-body",
    "The gradient of one chunk of n steps, given the state at its start and the gradient of the state at its "
    "end, is the derivative of n steps of the definition. The gradient of a sequence is a sweep of these.",
    "every n from 1 to 64 (quick: eight of them), both erasures and reads; decays none, scalar, vector, with "
    "0 among them and without; by "
    "matrices, and at eight of the n step by step",
    "exact",
    formula="Σ_x <∂x, ẋ> = d/dε (Σ_{t≤n} <∂o_t, o_t> + <∂S_n, S_n>)(x + ε ẋ),\n"
    "x over q, k, v, log a, β or x and y, S_0",
    left=Side("kernels.delta.GRADIENTS of one chunk, along the tangents", _by_block),
    right=SLOPES,
)
def gradient_body(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    longest = max(body_lengths(budget))
    for (where, p), zeros in itertools.product(_blocks(longest), (0.0, 0.1)):
        if p.key_decay == "none" and zeros:
            continue
        x = p.operands(rng, dual=True, zeros=zeros)
        c = steps(x).slice(0, longest)
        do, G = Field.random(rng, *c.v.shape), Field.random(rng, *x.initial_state.shape)
        slopes = tally.right(c, x.initial_state, p.order, do, G)
        for n in body_lengths(budget):
            for name in delta.GRADIENTS:
                if name == "recurrent" and n not in FEW_LENGTHS:
                    continue
                found = tally.left(name, first_steps(c, n), x.initial_state, G, do[..., :n, :], p.order)
                if found != slopes[n]:
                    raise Counterexample(f"the {name} gradient of a block of n = {n} is wrong, {where}")
                tally.exact(Problem(n, n, erasing=p.erasing).degree + 2)
