"""Exact: every form is the recurrence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...kernels import forms, ops
from ...kernels.order import ALL_ORDERS, READS, Order
from ...kernels.steps import Slice
from ..algebra import Field, Interval, Log
from ..theorem import Budget, Collection, Counterexample, Tally
from .problems import (
    HEADS,
    KEY_DECAYS,
    VALUE_DECAYS,
    Problem,
    blocks_of,
    definition,
    equal,
    first_steps,
    in_time,
    one_step,
    pieces_are_whole,
    problems,
    run_form,
    steps,
)

THEOREMS = Collection()

EVERYTHING = (
    "all six orders of decay, write and read; both directions; decays none, constant, scalar, vector over "
    "keys, dt·A (A whole numbers up to 3), over values, and both; shared heads; any initial state and scale; "
    "lengths up to 21 that no block divides"
)


def _form_is_definition(form: str) -> Any:
    def check(budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        for p in problems(budget):
            x = p.operands(rng)
            (o, S), (o_ref, S_ref) = run_form(form, p, x), definition(p, x)
            equal(f"outputs of the {form} form and the definition", p, o, o_ref, "bthv")
            equal(f"final states of the {form} form and the definition", p, S, S_ref, "bhkv")
            tally.exact(p.degree)

    return check


for _form, _statement in {
    "recurrent": "The recurrence in blocks of any size is the recurrence in one.",
    "parallel": "Masked attention with weights exp(Σ log-decays over the steps between) is the recurrence.",
    "chunk": "The chunk form, for any chunk size, is the recurrence.",
    "scan": "The associative scan over (log a, log b, S) is the recurrence.",
}.items():
    THEOREMS(f"forms/{_form}", _statement, EVERYTHING, "exact")(_form_is_definition(_form))


class _Steps:
    """A slice as a source of slices: one sequence in the layout of the forms."""

    def __init__(self, c: Slice) -> None:
        self.c = c

    def __len__(self) -> int:
        return int(self.c.v.shape[-2])

    def slice(self, i: int, j: int) -> Slice:
        return Slice(*(None if x is None else x[..., i:j, :] for x in self.c))


def _body_is_definition(form: str) -> Any:
    def check(budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        few = (1, 2, 3, 4, 7, 8, 13, 33)
        lengths = few if budget.quick else range(1, 65)
        every = ("scalar", "keys, values")  # by one matrix of weights; by weights of each channel
        other = () if budget.quick else ("no decay", "keys", "values", "scalar, values")
        longest = max(lengths)
        cases = []
        for order in ALL_ORDERS:
            for kind in (*every, *other):
                p = Problem(longest, longest, order, False, (1, 1, 1), *blocks_of(kind), 1)
                x = p.operands(rng)
                c = steps(x).slice(0, longest)
                # One walk gives the definition for every length: its outputs and states so far.
                outs, states = [], [x.initial_state]
                for t in range(longest):
                    o, S = forms.walk(one_step(c, t), states[-1], order)
                    outs.append(o)
                    states.append(S)
                cases.append((order, kind, c, torch.cat(outs, -2), states))
        for n in lengths:
            for order, kind, c, outputs, states in cases:
                if form != "chunk" and kind in other and n not in (*few, 32, 64):
                    continue
                pieces, S = forms.FORMS[form](_Steps(first_steps(c, n)), states[0], order, n)
                where = f"a block of n = {n}, order {order.events}, decay: {kind}, K = 2, V = 3"
                o = torch.cat(pieces, -2)
                equal(f"outputs of the {form} form and of n steps", where, o, outputs[..., :n, :], "bhtv")
                equal(f"states after the {form} form and after n steps", where, S, states[n], "bhkv")
                tally.exact(Problem(n).degree)

    return check


for _form, _statement in {
    "chunk": "One chunk of n steps (by the weight matrix where decay is a scalar, by the tree otherwise) is "
    "n steps of the definition: outputs and state. With forms/loop, by induction, chunk = recurrent for all "
    "T.",
    "parallel": "The attention of n steps is n steps of the definition: outputs and state.",
    "scan": "One scan of n steps is n steps of the definition: outputs and state. See forms/scan-network.",
}.items():
    THEOREMS(
        f"forms/{_form}-body",
        _statement,
        "every n from 1 to 64 (quick: eight of them), six orders, decays scalar and over keys and values; "
        "none, over keys or values alone, scalar with values: as many n for chunk, ten for the others",
        "exact",
    )(_body_is_definition(_form))


class _Intervals:
    """A sequence whose slices are intervals of time."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def slice(self, i: int, j: int) -> Any:
        return i, j


@THEOREMS(
    "forms/loop",
    "The loop over blocks hands consecutive slices, that cover [0, T) once and in order, to the body, "
    "and to each the state that the one before it returned. The induction step of forms/chunk-body.",
    "every T to 200 (quick: 60) and every block size to 70 (quick: 20)",
    "exact",
)
def loop(budget: Budget, tally: Tally) -> None:
    def body(piece: Any, state: Any, order: Any) -> Any:
        start, stop = piece
        if start != state or stop <= start or stop - start > order:
            raise Counterexample(f"slice {start}..{stop} was given the state at {state}")
        return piece, stop

    for T in range(1, budget.pick(60, 200)):
        for size in range(1, budget.pick(20, 70)):
            outs, state = forms.in_blocks(_Intervals(T), 0, size, size, body)  # type: ignore[arg-type]
            covered = [t for start, stop in outs for t in range(start, stop)]
            if covered != list(range(T)) or state != T:
                raise Counterexample(f"T = {T} in blocks of {size} covers {covered}, state at {state}")
            tally.exact(0)


@THEOREMS(
    "forms/scan-network",
    "The network of the scan gives all n prefixes, each a composition of all its steps in order. "
    "Run on intervals of time, whose composition fails unless they are neighbours.",
    "every n from 1 to 600 (quick: to 130)",
    "exact",
)
def scan_network(budget: Budget, tally: Tally) -> None:
    for n in range(1, budget.pick(131, 601)):
        start = np.arange(n).reshape(n, 1, 1)
        try:
            prefixes = forms.associative_scan((None, None, Interval(start, start + 1)), n)[2].tolist()
        except ValueError as e:
            raise Counterexample(f"n = {n}: {e}") from e
        if prefixes != [(0, i + 1) for i in range(n)]:
            raise Counterexample(f"n = {n}: the prefixes are {prefixes}")
        tally.exact(0)


@THEOREMS(
    "forms/scan-associative",
    "The operator of the scan is associative: (x ∘ y) ∘ z = x ∘ (y ∘ z). With forms/scan-network: every "
    "prefix is the composition of its steps, for every n.",
    "decays over keys and values, each a vector, a scalar or none",
    "exact",
)
def scan_associative(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for la_dim in (None, 1, 2):
        for lb_dim in (None, 3):
            x, y, z = (
                (
                    None if la_dim is None else Log.random(rng, 5, la_dim),
                    None if lb_dim is None else Log.random(rng, 5, lb_dim),
                    Field.random(rng, 5, 2, 3),
                )
                for _ in range(3)
            )
            left = forms._compose(forms._compose(x, y), z)
            right = forms._compose(x, forms._compose(y, z))
            for name, a, b in zip(("log a", "log b", "S"), left, right, strict=True):
                if a is not None:
                    equal(f"(x ∘ y) ∘ z and x ∘ (y ∘ z) in {name}", f"la {la_dim}, lb {lb_dim}", a, b, "nkv")
            tally.exact(5)


# ------------------------------------------------------------------ what one core says of itself


def _varied(budget: Budget, orders: tuple[Order, ...] = ALL_ORDERS) -> list[Problem]:
    """A moderate number of problems of every order and kind of decay."""
    found, i = [], 0
    for order in orders:
        for key in KEY_DECAYS:
            for value in VALUE_DECAYS:
                i += 1
                if budget.quick and i % 4:
                    continue
                found.append(Problem(1 + i % 9, 1 + i % 5, order, bool(i // 2 % 2), HEADS[i % 5], key, value))
    return sorted(found, key=lambda p: (p.length, p.heads))


@THEOREMS(
    "forms/reverse",
    "The recurrence in reversed time is the recurrence of the reversed sequence, reversed.",
    "all orders and decays",
    "exact",
)
def reverse(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _varied(budget):
        x = p.operands(rng)
        forward = Problem(**{**p.__dict__, "reverse": False})
        backward = Problem(**{**p.__dict__, "reverse": True})
        flipped = in_time(x, lambda y: y.flip(1))
        for form in forms.FORMS:
            (o, S), (o_ref, S_ref) = run_form(form, backward, x), run_form(form, forward, flipped)
            equal(f"outputs of the {form} form", p, o, o_ref.flip(1), "bthv")
            equal(f"final states of the {form} form", p, S, S_ref, "bhkv")
            tally.exact(p.degree)


@THEOREMS(
    "forms/split",
    "A sequence run in two pieces, the state handed from one to the next, is the sequence run at once.",
    "all orders and decays, every place to split, each form after each form",
    "exact",
)
def split(budget: Budget, tally: Tally) -> None:
    pieces_are_whole(_varied(budget), list(forms.FORMS), budget, tally)


@THEOREMS(
    "forms/mask",
    "A masked step leaves the state untouched: the masked recurrence is the recurrence of the remaining "
    "steps, whose outputs it gives at those steps.",
    "both reads, all decays, random masks that differ between batch rows; each form",
    "exact",
)
def mask(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _varied(budget, tuple(READS.values())):
        x = p.operands(rng)
        kept = rng.random((p.batch, p.length)) < 0.6
        m = ops.apply_mask(
            ops.Operands(*x[:6], None, None, None, x.initial_state, None, torch.from_numpy(kept))
        )
        masked = x._replace(k=m.k, v=m.v, log_decay=m.log_decay, log_decay_v=m.log_decay_v)
        for form in forms.FORMS:
            o, S = run_form(form, p, masked)
            for b in range(p.batch):
                where = f"the {form} form with mask {kept[b].astype(int).tolist()} in batch row {b}; {p}"
                S_ref = x.initial_state[b : b + 1]
                if kept[b].any():
                    row = in_time(x, lambda y, b=b, now=kept[b]: y[b : b + 1][:, now])
                    o_ref, S_ref = definition(p, row._replace(initial_state=S_ref))
                    equal("outputs at steps that count", where, o[b : b + 1][:, kept[b]], o_ref, "bthv")
                equal("final states", where, S[b : b + 1], S_ref, "bhkv")
                tally.exact(p.degree)


@THEOREMS(
    "forms/reset",
    "A decay of 0 forgets everything before it: with one at the first step of every document, a packed "
    "sequence is its documents, run apart from a zero state.",
    "decays over keys or over values, read after the write; each form",
    "exact",
)
def reset(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    scalar, keys, values = (blocks_of(kind) for kind in ("scalar", "keys", "values"))
    for key, value in (scalar, keys, values, ("[B,T,H]", "[H,V]")):
        for lengths in ((1, 2), (3, 1, 4), (2, 5, 1, 3))[: budget.pick(2, 3)]:
            starts = np.cumsum((0, *lengths))[:-1]
            p = Problem(sum(lengths), 4, heads=(2, 1, 2), key_decay=key, value_decay=value)
            x = p.operands(rng)
            first = torch.zeros(p.length, dtype=torch.bool)
            first[torch.from_numpy(starts)] = True

            def forget(y: Any, first: torch.Tensor = first) -> Any:
                nothing: Any = Log(np.zeros_like(y.parts[0]))
                return torch.where(first.reshape(-1, *(1 for _ in y.shape[2:])), nothing, y)

            packed = x._replace(log_decay=forget(x.log_decay)) if key != "none" else x
            packed = packed if key != "none" else x._replace(log_decay_v=forget(x.log_decay_v))
            apart = [
                definition(
                    p,
                    in_time(x, lambda y, i=i, n=n: y[:, i : i + n])._replace(
                        initial_state=x.initial_state.zeros_like()
                    ),
                )
                for i, n in zip(starts, lengths, strict=True)
            ]
            for form in forms.FORMS:
                o, S = run_form(form, p, packed)
                where = f"the {form} form, documents of {lengths}; {p}"
                equal("outputs packed and apart", where, o, torch.cat([o for o, _ in apart], 1), "bthv")
                equal("final states packed and apart", where, S, apart[-1][1], "bhkv")
                tally.exact(p.degree)


# ------------------------------------------------------------------ relations between read orders


def _relations(c: Slice, S: Any) -> dict[str, tuple[Any, Any]]:
    """For each order: its outputs, and the same from the one self-adjoint order RDA (read, decay, write)."""

    def outputs(events: str, c: Slice) -> Any:
        return forms.walk(c, S, Order(events))[0]

    def dot(q: Any, k: Any) -> Any:
        return torch.sum(q * k, -1, True)

    q, k, v, la, lb, *_ = c
    qa, ka, vb = forms.decayed(q, la), forms.decayed(k, la), forms.decayed(v, lb)
    dra = forms.decayed(outputs("RDA", c._replace(q=qa)), lb)
    rad = outputs("RDA", c._replace(k=ka, v=vb))
    adr = forms.decayed(outputs("RDA", c._replace(q=qa, k=ka, v=vb)), lb)
    return {
        "DRA": (outputs("DRA", c), dra),
        "DAR": (outputs("DAR", c), dra + dot(q, k) * v),
        "RAD": (outputs("RAD", c), rad),
        "ARD": (outputs("ARD", c), rad + dot(q, k) * v),
        "ADR": (outputs("ADR", c), adr + dot(q, ka) * vb),
    }


@THEOREMS(
    "orders/from-one",
    "Every order is a local product of the self-adjoint one, RDA: DRA(q,k,v) = b∘RDA(a∘q, k, v), "
    "DAR = DRA + (q·k)v, RAD = RDA(q, a∘k, b∘v), ARD = RAD + (q·k)v, "
    "ADR = b∘RDA(a∘q, a∘k, b∘v) + (q·(a∘k)) b∘v.",
    "lengths to 24 (quick: 9), vector decays over keys and values",
    "exact",
)
def from_one(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for T in range(1, budget.pick(10, 25)):
        p = Problem(T, heads=(2, 2, 2))
        x = p.operands(rng)
        for events, (o, same) in _relations(steps(x).slice(0, T), x.initial_state).items():
            equal(f"outputs of order {events} and those made from RDA", p, o, same, "bhtv")
            tally.exact(p.degree)


@THEOREMS(
    "orders/read-before",
    "Reading before the write is reading after it with keys, values and decays one step late.",
    "all decays, each form",
    "exact",
)
def read_before(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _varied(budget, (READS["before"],)):
        p = Problem(**{**p.__dict__, "reverse": False, "key_decay": "[B,T,H,K]", "length": p.length + 1})
        x = p.operands(rng)

        def late(y: Any) -> Any:
            return torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)

        shifted = x._replace(k=late(x.k), v=late(x.v), log_decay=late(x.log_decay))
        if x.log_decay_v is not None:
            lb = x.log_decay_v
            # A constant decay must not act on the step that was inserted.
            lb = lb.expand(p.batch, p.length, *lb.shape) if lb.ndim == 2 else lb
            shifted = shifted._replace(log_decay_v=late(lb))
        after = Problem(**{**p.__dict__, "order": READS["after"]})
        for form in forms.FORMS:
            o, o_ref = run_form(form, p, x)[0], run_form(form, after, shifted)[0]
            equal(f"outputs of the {form} form", p, o, o_ref, "bthv")
            tally.exact(p.degree)
