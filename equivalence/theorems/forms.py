"""Exact: every form is the recurrence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ...kernels import forms, ops, scan
from ...kernels.order import ALL_ORDERS, READS, Order
from ...kernels.steps import Slice
from ..algebra import Field, Interval
from ..theorem import Budget, Check, Collection, Counterexample, Side, Tally
from .identities import AT_ONCE, IN_PIECES, LATTICE, Case, identity, minus_infinity, same, splits
from .problems import (
    EVERY_STEP,
    FEW_LENGTHS,
    HEADS,
    KEY_DECAYS,
    VALUE_DECAYS,
    Operands,
    Problem,
    Run,
    blocks_of,
    body_lengths,
    but,
    definition,
    first_steps,
    in_time,
    problems,
    run_form,
    steps,
)

THEOREMS = Collection({"text": "of the core alone; mixers/*/streaming run it on text"})

EVERYTHING = (
    "all six orders of decay, write and read; both directions; decays none, constant, scalar, vector over "
    "keys, dt·A (A whole numbers up to 3), over values, and both; shared heads; any initial state and scale; "
    "lengths up to 21 that no block divides"
)
RECURRENCE = "S_t = (a_t b_tᵀ) ∘ S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t"
DEFINITION = Side(f"the recurrence step by step: {RECURRENCE}", definition)


def _of_form(form: str) -> Side:
    return Side(f"the {form} form, kernels.forms.FORMS[{form!r}]", lambda p, x: run_form(form, p, x))


def _random_points(form: str) -> identity:
    def cases(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
        for i, p in enumerate(problems(budget)):
            # Chunks divide by decays per key, but where one is 0.
            either = form == "chunk" and p.key_decay in ("[B,T,H,K]", "dt·A")
            yield Case(p, (p, p.operands(rng, zeros=0.2 * (i % 2) * either)), p.degree)

    return identity(cases)


for _form, (_statement, _formula) in {
    "recurrent": (
        "The recurrence in blocks of any size is the recurrence in one.",
        "recurrent_C(q, k, v, a, b, S_0) = (o_1 … o_T, S_T) for every C, where\n" + RECURRENCE,
    ),
    "parallel": (
        "Masked attention with weights exp(Σ log-decays over the steps between) is the recurrence.",
        "o_t = Σ_{s≤t} b_{s,t} ∘ (q_tᵀ (a_{s,t} ∘ k_s)) v_s + b_{0,t} ∘ S_0ᵀ (a_{0,t} ∘ q_t),\n"
        "a_{s,t} = exp Σ_{s<r≤t} log a_r, b_{s,t} = exp Σ_{s<r≤t} log b_r (in the order decay, write, read)",
    ),
    "chunk": (
        "The chunk form, for any chunk size, is the recurrence.",
        "o_t = intra_C(q, k, v, a, b)_t + b_{c,t} ∘ S_cᵀ (a_{c,t} ∘ q_t),\n"
        "S_{c+C} = (a_{c,c+C} b_{c,c+C}ᵀ) ∘ S_c + Σ_{c<s≤c+C} (a_{s,c+C} ∘ k_s)(b_{s,c+C} ∘ v_s)ᵀ",
    ),
    "scan": (
        "The associative scan over decays and states is the recurrence.",
        "(Π D, S_t) = (D_1, k_1 v_1ᵀ) ∘ … ∘ (D_t, k_t v_tᵀ),  D_t = a_t b_tᵀ,\n"
        "(D, S) ∘ (D', S') = (D ∘ D', D' ∘ S + S')",
    ),
}.items():
    THEOREMS(
        f"forms/{_form}",
        _statement,
        EVERYTHING,
        "exact",
        formula=_formula,
        left=_of_form(_form),
        right=DEFINITION,
    )(_random_points(_form))


# ------------------------------------------------------------------ one block, of every length


class _Steps:
    """A slice as a source of slices: one sequence in the layout of the forms."""

    def __init__(self, c: Slice) -> None:
        self.c = c

    def __len__(self) -> int:
        return int(self.c.v.shape[-2])

    def slice(self, i: int, j: int) -> Slice:
        return Slice(*(None if x is None else x[..., i:j, :] for x in self.c))


def _block(form: str) -> Callable[..., tuple[Any, Any]]:
    """Outputs of a whole slice in one block, and the state after it."""

    def run(c: Slice, S: Any, order: Order) -> tuple[Any, Any]:
        pieces, end = forms.FORMS[form](_Steps(c), S, order, c.v.shape[-2])
        return torch.cat(pieces, -2), end

    return run


def _of_every_length(form: str) -> Check:
    def check(budget: Budget, tally: Tally) -> None:
        rng = budget.rng()
        lengths = body_lengths(budget)
        every = [("scalar", 0.0), ("keys, values", 0.0)]  # one matrix of weights; weights of each channel
        if form == "chunk":
            every += [("keys", 0.0), ("keys", 0.05)]  # folded into queries and keys; by the tree
        other = [] if budget.quick else [(k, 0.0) for k in ("no decay", "keys", "values", "scalar, values")]
        longest = max(lengths)
        cases = []
        for order in ALL_ORDERS:
            for kind, zeros in dict.fromkeys((*every, *other)):
                p = Problem(longest, longest, order, False, (1, 1, 1), *blocks_of(kind), 1)
                x = p.operands(rng, zeros=zeros)
                c = steps(x).slice(0, longest)
                # One walk gives the definition for every length: its outputs and states so far.
                cases.append((order, (kind, zeros), c, *tally.right(c, x.initial_state, order)))
        for n in lengths:
            for order, kind, c, outputs, states in cases:
                if form != "chunk" and kind in other and n not in (*FEW_LENGTHS, 32, 64):
                    continue
                o, S = tally.left(first_steps(c, n), states[0], order)
                where = f"a block of n = {n}, order {order.events}, decay: {kind[0]}, K = 2, V = 3"
                same(where, {"o": o, "S": S}, {"o": outputs[..., :n, :], "S": states[n]})
                tally.exact(Problem(n, n).degree)

    return check


for _form, _statement in {
    "chunk": "One chunk of n steps (by the weight matrix where decay is a scalar, folded into queries and "
    "keys where it is one per key and weak, by the tree otherwise) is n steps of the definition: outputs and "
    "state. With forms/loop, by induction, chunk = recurrent for all T.",
    "parallel": "The attention of n steps is n steps of the definition: outputs and state.",
    "scan": "One scan of n steps is n steps of the definition: outputs and state. See forms/scan-network.",
}.items():
    THEOREMS(
        f"forms/{_form}-body",
        _statement,
        "every n from 1 to 64 (quick: eight of them), six orders, decays scalar and over keys and values; "
        "none, over keys or values alone, scalar with values: as many n for chunk, ten for the others",
        "exact",
        formula=f"{_form}(c_1 … c_n, S) = (step c_n ∘ … ∘ step c_1)(S),  c_t = (q_t, k_t, v_t, a_t, b_t)",
        left=Side(f"one block of the {_form} form", _block(_form)),
        right=EVERY_STEP,
        reasons=dict.fromkeys(("bitwise", "bound", "property"), f"forms/{_form} has it"),
    )(_of_every_length(_form))


NO_NUMBERS = dict.fromkeys(("bitwise", "bound", "property"), "intervals of time, no numbers that could round")


class _Intervals:
    """A sequence whose slices are intervals of time."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def slice(self, i: int, j: int) -> Any:
        return i, j


def _handed_out(T: int, size: int) -> list[tuple[int, int, int]]:
    """What the loop of the forms gives to its body: start and stop of each slice, and the state, which is the
    time that it belongs to."""
    given: list[tuple[int, int, int]] = []

    def body(piece: Any, state: Any, order: Any) -> Any:
        given.append((*piece, state))
        return piece, piece[1]

    _, end = forms.in_blocks(_Intervals(T), 0, size, size, body)  # type: ignore[arg-type]
    return [*given, (T, T, end)]


def _in_turn(T: int, size: int) -> list[tuple[int, int, int]]:
    return [*((i, min(i + size, T), i) for i in range(0, T, size)), (T, T, T)]


@THEOREMS(
    "forms/loop",
    "The loop over blocks hands consecutive slices, that cover [0, T) once and in order, to the body, "
    "and to each the state that the one before it returned. The induction step of forms/chunk-body.",
    "every T to 200 (quick: 60) and every block size to 70 (quick: 20)",
    "exact",
    formula="loop(body, T, C): S_0, body([0, C), S_0) = S_C, body([C, 2C), S_C) = S_{2C}, …, S_T",
    left=Side("the loop of all forms, kernels.forms.in_blocks, run on intervals of time", _handed_out),
    right=Side("[0, C), [C, 2C), … to T, each with the state at its start", _in_turn),
    reasons=NO_NUMBERS,
)
def loop(budget: Budget, tally: Tally) -> None:
    for T in range(1, budget.pick(60, 200)):
        for size in range(1, budget.pick(20, 70)):
            left, right = tally.left(T, size), tally.right(T, size)
            for (start, stop, state), expected in zip(left, right, strict=False):
                if (start, stop, state) != expected:
                    due = f"slice {expected[0]}..{expected[1]} and the state at {expected[2]} are due"
                    raise Counterexample(
                        f"slice {start}..{stop} was given the state at {state}, where {due}, for T = {T} in "
                        f"blocks of {size}"
                    )
            if len(left) != len(right):
                raise Counterexample(f"{len(left)} slices, not {len(right)}, for T = {T} in blocks of {size}")
            tally.exact(0)


def _prefixes(n: int, numbers: int, back: bool) -> list[tuple[int, int]]:
    start = np.arange(n).reshape(n, 1)
    steps = Interval(start, start + 1)  # of walking, whichever way
    try:
        found = scan.lockstep(
            None, steps.flip(0) if back else steps, Interval(*np.zeros((2, 1), int)), numbers, back
        )
    except ValueError as e:
        raise Counterexample(f"n = {n}, states of {numbers}: {e}") from e
    return (found.flip(0) if back else found).tolist()


@THEOREMS(
    "forms/scan-network",
    "The network of the scan gives all n prefixes, each a composition of all its steps in order. "
    "Run on intervals of time, whose composition fails unless they are neighbours.",
    "every n from 1 to 600 (quick: to 130), in groups of the lengths for states of 1, 1,000 and 30,000 "
    "numbers, in both directions",
    "exact",
    formula="scan([0,1), [1,2), …, [n−1,n)) = [0,1), [0,2), …, [0,n)",
    left=Side("the network of kernels.scan.lockstep, run on the free monoid", _prefixes),
    right=Side("the intervals from 0 to every t", lambda n, numbers, back: [(0, t + 1) for t in range(n)]),
    reasons=NO_NUMBERS,
)
@identity
def scan_network(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for n in range(1, budget.pick(131, 601)):
        for numbers in (1, 1000, 30000):
            for back in (False, True):
                where = "backwards" if back else "forwards"
                yield Case(f"n = {n}, {where}, states of {numbers} numbers", (n, numbers, back), 0)


def _named(step: scan.Element) -> dict[str, Any]:
    return dict(zip(("D", "S"), step, strict=True))


@THEOREMS(
    "forms/scan-associative",
    "The operator of the scan is associative: (x ∘ y) ∘ z = x ∘ (y ∘ z). With forms/scan-network: every "
    "prefix is the composition of its steps, for every n.",
    "decays over keys and values, each a vector or one, and none",
    "exact",
    formula="(x ∘ y) ∘ z = x ∘ (y ∘ z)",
    left=Side(
        "(x ∘ y) ∘ z by kernels.scan.compose",
        lambda x, y, z: _named(scan.compose(scan.compose(x, y), z)),
    ),
    right=Side(
        "x ∘ (y ∘ z) by the same",
        lambda x, y, z: _named(scan.compose(x, scan.compose(y, z))),
    ),
)
@identity
def scan_associative(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for sizes in (None, (1, 1), (2, 1), (1, 3), (2, 3)):
        steps = [
            (None if sizes is None else Field.random(rng, 5, *sizes), Field.random(rng, 5, 2, 3))
            for _ in range(3)
        ]
        yield Case("no decay" if sizes is None else f"decays of {sizes}, states of (2, 3)", tuple(steps), 5)


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


def _reversed(form: str, p: Problem, x: Operands) -> Run:
    o, S = run_form(form, but(p, reverse=False), in_time(x, lambda y: y.flip(1)))
    return Run(o.flip(1), S)


@THEOREMS(
    "forms/reverse",
    "The recurrence in reversed time is the recurrence of the reversed sequence, reversed.",
    "all orders and decays",
    "exact",
    formula="R^rev(x_1 … x_T) = flip R(x_T … x_1)",
    left=Side("each form with reverse=True", lambda form, p, x: run_form(form, but(p, reverse=True), x)),
    right=Side("the flipped sequence, its outputs flipped back", _reversed),
)
@identity
def reverse(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in _varied(budget):
        x = p.operands(rng)
        for form in forms.FORMS:
            yield Case(f"the {form} form, {p}", (form, p, x), p.degree)


@THEOREMS(
    "forms/split",
    "A sequence run in two pieces, the state handed from one to the next, is the sequence run at once.",
    "all orders and decays, every place to split, each form after each form",
    "exact",
    formula="R(x_1 … x_T, S_0) = R(x_1 … x_c, S_0) then R(x_{c+1} … x_T, S_c), for every c",
    left=IN_PIECES,
    right=AT_ONCE,
)
@identity
def split(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    yield from splits(_varied(budget), list(forms.FORMS), rng)


def _masked(form: str, p: Problem, x: Operands, kept: np.ndarray) -> dict[str, Any]:
    m = ops.apply_mask(ops.Operands(*x[:6], None, None, None, x.initial_state, None, torch.from_numpy(kept)))
    masked = x._replace(k=m.k, v=m.v, log_decay=m.log_decay, log_decay_v=m.log_decay_v)
    o, S = run_form(form, p, masked)
    found = {}
    for b in range(p.batch):
        if kept[b].any():
            found[f"row {b}, outputs"] = o[b : b + 1][:, kept[b]]
        found[f"row {b}, state"] = S[b : b + 1]
    return found


def _without(form: str, p: Problem, x: Operands, kept: np.ndarray) -> dict[str, Any]:
    found = {}
    for b in range(p.batch):
        S = x.initial_state[b : b + 1]
        if kept[b].any():
            row = in_time(x, lambda y, b=b, now=kept[b]: y[b : b + 1][:, now])
            found[f"row {b}, outputs"], S = definition(p, row._replace(initial_state=S))
        found[f"row {b}, state"] = S
    return found


@THEOREMS(
    "forms/mask",
    "A masked step leaves the state untouched: the masked recurrence is the recurrence of the remaining "
    "steps, whose outputs it gives at those steps.",
    "both reads, all decays, random masks that differ between batch rows; each form",
    "exact",
    formula="m_t = 0 ⇒ S_t = S_{t−1}:  R(x, m)[m] = R(x[m])",
    left=Side("each form on what kernels.ops.apply_mask makes of the operands", _masked),
    right=Side("the definition on the steps that count, row by row", _without),
)
@identity
def mask(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in _varied(budget, tuple(READS.values())):
        x = p.operands(rng)
        kept = rng.random((p.batch, p.length)) < 0.6
        for form in forms.FORMS:
            where = f"the {form} form with mask {kept.astype(int).tolist()}; {p}"
            yield Case(where, (form, p, x, kept), p.degree)


def _packed(form: str, p: Problem, x: Operands, lengths: tuple[int, ...]) -> Run:
    first = torch.zeros(p.length, dtype=torch.bool)
    first[torch.from_numpy(np.cumsum((0, *lengths))[:-1])] = True

    def forget(y: Any) -> Any:
        return torch.where(first.reshape(-1, *(1 for _ in y.shape[2:])), minus_infinity(y), y)

    name = "log_decay_v" if x.log_decay is None else "log_decay"
    return run_form(form, p, x._replace(**{name: forget(getattr(x, name))}))


def _apart(form: str, p: Problem, x: Operands, lengths: tuple[int, ...]) -> Run:
    empty = torch.zeros_like(x.initial_state)
    start, outputs, S = 0, [], empty
    for n in lengths:
        document = in_time(x, lambda y, i=start, n=n: y[:, i : i + n])
        o, S = definition(p, document._replace(initial_state=empty))
        outputs.append(o)
        start += n
    return Run(torch.cat(outputs, 1), S)


@THEOREMS(
    "forms/reset",
    "A decay of 0 forgets everything before it: with one at the first step of every document, a packed "
    "sequence is its documents, run apart from a zero state.",
    "decays over keys or over values, read after the write; each form",
    "exact",
    formula="a_t = 0 at the first step of each document ⇒ R(x¹ x² …, S_0) = R(x¹, 0), R(x², 0), …",
    left=Side("each form on the packed sequence", _packed),
    right=Side("the definition on each document, from a state of zero", _apart),
)
@identity
def reset(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    scalar, keys, values = (blocks_of(kind) for kind in ("scalar", "keys", "values"))
    for key, value in (scalar, keys, values, ("[B,T,H]", "[H,V]")):
        for lengths in ((1, 2), (3, 1, 4), (2, 5, 1, 3))[: budget.pick(2, 3)]:
            p = Problem(sum(lengths), 4, heads=(2, 1, 2), key_decay=key, value_decay=value)
            x = p.operands(rng)
            for form in forms.FORMS:
                yield Case(f"the {form} form, documents of {lengths}; {p}", (form, p, x, lengths), p.degree)


# ------------------------------------------------------------------ relations between read orders


def _in_order(events: str, c: Slice, S: Any) -> Any:
    return forms.walk(c, S, Order(events))[0]


def _from_one(events: str, c: Slice, S: Any) -> Any:
    """The outputs of an order from the one that is its own adjoint, RDA: read, decay, write."""

    def rda(**changes: Any) -> Any:
        return _in_order("RDA", c._replace(**changes), S)

    def dot(q: Any, k: Any) -> Any:
        return torch.sum(q * k, -1, True)

    q, k, v, la, lb, *_ = c
    qa, ka, vb = forms.decayed(q, la), forms.decayed(k, la), forms.decayed(v, lb)
    if events == "DRA":
        return forms.decayed(rda(q=qa), lb)
    if events == "DAR":
        return forms.decayed(rda(q=qa), lb) + dot(q, k) * v
    if events == "RAD":
        return rda(k=ka, v=vb)
    if events == "ARD":
        return rda(k=ka, v=vb) + dot(q, k) * v
    return forms.decayed(rda(q=qa, k=ka, v=vb), lb) + dot(q, ka) * vb


@THEOREMS(
    "orders/from-one",
    "Every order of the events decay, write (add) and read is a local product of the self-adjoint one, RDA.",
    "the five other orders, lengths to 24 (quick: 9), vector decays over keys and values",
    "exact",
    formula="DRA(q, k, v) = b ∘ RDA(a∘q, k, v),  DAR = DRA + (q·k) v,  RAD = RDA(q, a∘k, b∘v),\n"
    "ARD = RAD + (q·k) v,  ADR = b ∘ RDA(a∘q, a∘k, b∘v) + (q·(a∘k)) b∘v",
    left=Side("kernels.forms.walk in the order of its events", _in_order),
    right=Side("made from the order RDA", _from_one),
)
@identity
def from_one(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for T in range(1, budget.pick(10, 25)):
        p = Problem(T, heads=(2, 2, 2))
        x = p.operands(rng)
        for events in ("DRA", "DAR", "RAD", "ARD", "ADR"):
            where = f"order {events}, {p}"
            yield Case(where, (events, steps(x).slice(0, T), x.initial_state), p.degree)


def _one_step_late(form: str, p: Problem, x: Operands) -> Any:
    def late(y: Any) -> Any:
        return torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)

    shifted = x._replace(k=late(x.k), v=late(x.v), log_decay=late(x.log_decay))
    if x.log_decay_v is not None:
        lb = x.log_decay_v
        # A constant decay must not act on the step that was inserted.
        lb = lb.expand(p.batch, p.length, *lb.shape) if lb.ndim == 2 else lb
        shifted = shifted._replace(log_decay_v=late(lb))
    return run_form(form, but(p, order=READS["after"]), shifted).outputs


@THEOREMS(
    "orders/read-before",
    "Reading before the write is reading after it with keys, values and decays one step late.",
    "all decays, each form",
    "exact",
    formula="R_before(q_t, k_t, v_t, a_t, b_t) = R_after(q_t, k_{t−1}, v_{t−1}, a_{t−1}, b_{t−1}),\n"
    "k_0 = v_0 = 0, a_0 = b_0 = 1",
    left=Side("each form, reading before", lambda form, p, x: run_form(form, p, x).outputs),
    right=Side("the same form, reading after, of the shifted sequence", _one_step_late),
)
@identity
def read_before(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for p in _varied(budget, (READS["before"],)):
        p = but(p, reverse=False, key_decay="[B,T,H,K]", length=p.length + 1)
        x = p.operands(rng)
        for form in forms.FORMS:
            yield Case(f"the {form} form, {p}", (form, p, x), p.degree)


for _name, _theorem in {
    "forms/reverse": reverse,
    "forms/split": split,
    "forms/mask": mask,
    "forms/reset": reset,
    "orders/read-before": read_before,
}.items():
    THEOREMS.also(_name, "bitwise", LATTICE)(_theorem.on_lattice)
