"""Exact: every form of the delta rule, and of the general erasure, is its definition; and the gradients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from ...kernels import delta, forms, gradients
from ...kernels.order import READS
from ...kernels.steps import Slice
from ..algebra import MODULUS, Field, contract
from ..theorem import Budget, Collection, Counterexample, Tally
from .problems import (
    HEADS,
    KEY_DECAYS,
    Problem,
    definition,
    equal,
    first_steps,
    one_step,
    pieces_are_whole,
    run_form,
    steps,
    values,
)

THEOREMS = Collection()

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


def _form_is_definition(form: str) -> Any:
    def check(budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        for i, p in enumerate(_problems(budget)):
            x = p.operands(rng, zeros=0.2 * (i % 2))
            (o, S), (o_ref, S_ref) = run_form(form, p, x), definition(p, x)
            equal(f"outputs of the {form} form and the definition", p, o, o_ref, "bthv")
            equal(f"final states of the {form} form and the definition", p, S, S_ref, "bhkv")
            tally.exact(p.degree)

    return check


for _form, _statement in {
    "recurrent": "The recurrence in blocks of any size is the recurrence in one.",
    "parallel": "The attention of all steps to the values that solve a triangular system is the recurrence.",
    "chunk": "The chunk form, for any chunk size, is the recurrence: inside a chunk one triangular system "
    "gives the values that the core without erasure writes.",
}.items():
    THEOREMS(f"delta/{_form}", _statement, BOTH, "exact")(_form_is_definition(_form))


@THEOREMS(
    "delta/is-an-erasure",
    "The delta rule S_t = S̃ + β k (v - S̃ᵀ k)ᵀ, S̃ = a∘S, is the general form with x = -β k, y = a∘k and "
    "v ← β v. Erasure by x = 0 is none.",
    BOTH,
    "exact",
)
def is_an_erasure(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _problems(budget):
        if p.erasing != "beta" or p.key_decay == "dt·A":
            continue
        x = p.operands(rng)
        H, K = p.heads[0], p.key_dim
        k = steps(x).slice(0, p.length).k.expand(p.batch, H, p.length, K).transpose(1, 2)
        beta = x.beta[..., None]
        la = x.log_decay
        a = None if la is None else la[:, None] if la.ndim == 1 else la[..., None] if la.ndim == 3 else la
        y = k if a is None else k * a.exp().expand(p.batch, p.length, H, K)
        general = x._replace(beta=None, v=x.v * beta, x=k * beta * -1, y=y)
        other = Problem(**{**p.__dict__, "erasing": "x, y"})
        for form in delta.FORMS:
            (o, S), (o_ref, S_ref) = run_form(form, other, general), definition(p, x)
            equal(f"outputs of the {form} form, erasing, and of the delta rule", p, o, o_ref, "bthv")
            equal("final states", p, S, S_ref, "bhkv")
        nothing = general._replace(v=x.v, x=general.x.zeros_like())
        plain = Problem(**{**p.__dict__, "erasing": "none"})
        (o, S), (o_ref, S_ref) = run_form("chunk", other, nothing), definition(plain, x._replace(beta=None))
        equal("outputs, erasing nothing, and without erasure", p, o, o_ref, "bthv")
        equal("final states, erasing nothing, and without erasure", p, S, S_ref, "bhkv")
        tally.exact(p.degree)


@THEOREMS(
    "delta/decays",
    "A log-decay of 0 is none, a constant one is the same at every step, a scalar one the same for all keys: "
    "DeltaNet is Gated DeltaNet with an open gate, and that is Kimi Delta Attention with tied gates.",
    "both erasures, reads and directions; shared heads, lengths to 9; each form",
    "exact",
)
def decays(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _problems(budget):
        if p.key_decay not in ("[H]", "[B,T,H]") or p.length > 9:
            continue
        x = p.operands(rng)
        B, T, H, K = p.batch, p.length, p.heads[0], p.key_dim
        la = x.log_decay
        wider = la.expand(B, T, H) if la.ndim == 1 else la[..., None].expand(B, T, H, K)
        open_gate = la.zeros_like()
        for form in delta.FORMS:
            for what, y, z in (
                ("one decay and the same spread out", x._replace(log_decay=wider), x),
                ("a log-decay of 0 and none", x._replace(log_decay=open_gate), x._replace(log_decay=None)),
            ):
                (o, S), (o_ref, S_ref) = run_form(form, p, y), definition(p, z)
                equal(f"outputs of the {form} form with {what}", p, o, o_ref, "bthv")
                equal(f"final states of the {form} form with {what}", p, S, S_ref, "bhkv")
                tally.exact(p.degree)


@THEOREMS(
    "delta/split",
    "A sequence run in two pieces, the state handed from one to the next, is the sequence run at once.",
    "both erasures, reads and directions; all decays; every place to split; each form after each form",
    "exact",
)
def split(budget: Budget, tally: Tally) -> None:
    cases = [p for p in _problems(budget) if p.length <= 7]
    pieces_are_whole(cases, list(delta.FORMS), budget, tally)


def _blocks(longest: int) -> list[tuple[str, Problem]]:
    """One block for each way a chunk computes: with either erasure and read, and each kind of decay."""
    found = []
    for erasing, order, key in itertools.product(ERASING, READS.values(), ("none", "[B,T,H]", "[B,T,H,K]")):
        where = f"read {order.events}, decay: {key}, erasing by {erasing}, K = 2, V = 3"
        found.append(
            (where, Problem(longest, longest, order, False, (1, 1, 1), key, "none", 1, erasing=erasing))
        )
    return found


FEW = (1, 2, 3, 4, 7, 8, 13, 33)


def _lengths(budget: Budget) -> Any:
    return FEW if budget.quick else range(1, 65)


@THEOREMS(
    "delta/chunk-body",
    "One chunk of n steps is n steps of the definition: outputs, and the state, also where only the state is "
    "computed. With forms/loop, by induction, chunk = recurrent for all T.",
    "every n from 1 to 64 (quick: eight of them), both erasures and reads; decays none, scalar, vector",
    "exact",
)
def chunk_body(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    longest = max(_lengths(budget))
    for where, p in _blocks(longest):
        x = p.operands(rng, zeros=0.1)
        c = steps(x).slice(0, longest)
        outs, states = [], [x.initial_state]
        for t in range(longest):
            o, S = forms.walk(one_step(c, t), states[-1], p.order)
            outs.append(o)
            states.append(S)
        outputs = torch.cat(outs, -2)
        for n in _lengths(budget):
            o, S = delta.delta_chunk(first_steps(c, n), states[0], p.order)
            equal("outputs of a chunk and of its steps", f"n = {n}, {where}", o, outputs[..., :n, :], "bhtv")
            equal("states after a chunk and after its steps", f"n = {n}, {where}", S, states[n], "bhkv")
            S = delta.carry(first_steps(c, n), states[0], p.order)
            equal("the state alone and after the steps", f"n = {n}, {where}", S, states[n], "bhkv")
            tally.exact(Problem(n, erasing=p.erasing).degree)


# ------------------------------------------------------------------ gradients

NAMES = ("q", "k", "v", "log_decay", "log_decay_v", "beta", "x", "y", "initial_state")


def _gradient_is_derivative(kind: str) -> Any:
    def check(budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        for i, p in enumerate(_problems(budget)):
            if p.key_decay == "dt·A":  # d/dA is the logarithm of a field element: see gradients/operands
                continue
            x = p.operands(rng, dual=True, zeros=0.2 * (i % 2))
            do = Field.random(rng, p.batch, p.length, p.heads[0], p.value_dim)
            dS = Field.random(rng, *x.initial_state.shape)
            plain = values(x)
            g, dS0 = gradients.vjp(
                steps(plain, p.reverse),
                plain.initial_state,
                do,
                dS,
                p.order,
                p.block,
                delta.GRADIENTS[kind],
                delta.carry,
            )
            operands = (x.q, x.k, x.v, x.log_decay, x.log_decay_v, x.beta, x.x, x.y, x.initial_state)
            o, S = definition(p, x)
            slope = contract(do.parts[0], o.tangent()) + contract(dS.parts[0], S.tangent())
            for name, gradient, y in zip(NAMES, (*g[:8], dS0), operands, strict=True):
                if (gradient is None) != (y is None) or (y is not None and gradient.shape != y.shape):
                    raise Counterexample(f"the gradient of {name} has not its shape, for {p}")
                if y is not None:
                    slope -= contract(gradient.parts[0], y.tangent())
            if slope % MODULUS:
                raise Counterexample(f"the gradients are not the derivative, for {p}")
            tally.exact(p.degree + 2)

    return check


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
    )(_gradient_is_derivative(_kind))


@THEOREMS(
    "delta/gradient-body",
    "The gradient of one chunk of n steps, given the state at its start and the gradient of the state at its "
    "end, is the derivative of n steps of the definition. The gradient of a sequence is a sweep of these.",
    "every n from 1 to 64 (quick: eight of them), both erasures and reads; decays none, scalar, vector; by "
    "matrices, and at eight of the n step by step",
    "exact",
)
def gradient_body(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    longest = max(_lengths(budget))
    for where, p in _blocks(longest):
        x = p.operands(rng, dual=True, zeros=0.1)
        c = steps(x).slice(0, longest)
        do, G = Field.random(rng, *c.v.shape), Field.random(rng, *x.initial_state.shape)
        slope, ends, S = 0, {}, x.initial_state
        for t in range(longest):
            o, S = forms.walk(one_step(c, t), S, p.order)
            slope += contract(do.parts[0][..., t : t + 1, :], o.tangent())
            ends[t + 1] = slope + contract(G.parts[0], S.tangent())
        plain = Slice(*(None if y is None else y.value() for y in c))
        for n in _lengths(budget):
            for name, block in delta.GRADIENTS.items():
                if name == "recurrent" and n not in FEW:
                    continue
                g, dS = block(first_steps(plain, n), x.initial_state.value(), G, do[..., :n, :], p.order)
                pairs = [*zip(g[:8], first_steps(c, n), strict=True), (dS, x.initial_state)]
                found = sum(
                    contract(*np.broadcast_arrays(a.parts[0], y.tangent())) for a, y in pairs if y is not None
                )
                if (ends[n] - found) % MODULUS:
                    raise Counterexample(f"the {name} gradient of a block of n = {n} is wrong, {where}")
                tally.exact(Problem(n, erasing=p.erasing).degree + 2)
