"""Properties of the public operator, in floating point: what exact evidence does not see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels import OuterDecay, step
from ..text import notes_elsewhere
from ..theorem import Budget, Collection, Counterexample, Side, Tally
from .examples import (
    DECAYS,
    FORMS,
    KEY_DECAYS,
    TOLERANCE,
    VALUE_DECAYS,
    Arguments,
    Case,
    Expected,
    Scale,
    absolute,
    agree,
    arguments,
    both,
    cases,
    drawn,
    expect_both,
    loop,
    looped,
    run_examples,
)

THEOREMS = Collection(
    {
        "bitwise": "lattice/operator has it",
        "bound": "forms/* and gradients/* have it",
        "text": "of the core alone; mixers/*/streaming run it on text",
        "coq": "of tensors, which the model does not know; forms/* and gradients/* have the core of it",
    }
)

OVER = (
    "random shapes (T from 0 to 20), heads shared or not, decays none, constant, scalar, vector, dt·A, over "
    "values, with values 0, -1000 and -inf among them, both reads and directions, all chunk sizes"
)
THROUGH = "the public operator, kernels.recurrence, in every form"
LOOP = "a plain loop in float64, which shares no code with the core"
SEES_ROUNDING = {"exact": "states what rounding does, of which field elements have none"}

Found = dict[str, Tensor]
Wanted = dict[str, Expected]


def _by_forms(names: tuple[str, ...]) -> Callable[[Case], Found]:
    def run(case: Case) -> Found:
        x = arguments(case)
        found: Found = {}
        for form in names:
            found |= both(f"the {form} form", x.run(form))
        return found

    return run


def _by_loop(names: tuple[str, ...]) -> Callable[[Case], Wanted]:
    def run(case: Case) -> Wanted:
        reference, scale = looped(case)
        wanted: Wanted = {}
        for form in names:
            wanted |= expect_both(f"the {form} form", reference, scale, case.dtype)
        return wanted

    return run


for _dtype, _how in {
    torch.float64: "to 1e-12",
    torch.float32: "to 1e-5",
    torch.bfloat16: "to the rounding of their outputs to bfloat16, with the state to 1e-5",
    torch.float16: "to the rounding of their outputs to float16, with the state to 1e-5",
}.items():
    _name = str(_dtype).removeprefix("torch.")
    THEOREMS(
        f"operator/forms-{_name}",
        f"All forms are the recurrence, written as a plain loop in float64, {_how} of the largest output "
        "that each head has when nothing cancels; all finite.",
        OVER,
        "property",
        formula="|o − ô| ≤ ε max_{t,v} R(|q|, |k|, |v|),  ô in " + _name,
        left=Side(f"{THROUGH}, in {_name}", _by_forms(FORMS)),
        right=Side(LOOP, _by_loop(FORMS)),
        reasons=SEES_ROUNDING,
    )(drawn(cases(_dtype), *((30, 400) if _dtype in (torch.float64, torch.float32) else (12, 100))))


# What the exact theorems state, of floating point numbers and through the public operator.
for _form in ("recurrent", "parallel", "chunk", "scan"):
    THEOREMS.also(
        f"forms/{_form}", "property", f"float64, through kernels.recurrence, against a loop; {OVER}"
    )(drawn(cases(), 30, 400, (_by_forms((_form,)), _by_loop((_form,)))))


# ------------------------------------------------------------------ masks, packing, splitting, steps


def _mask_of(case: Case, salt: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(case.seed + salt)
    return torch.rand(case.batch, case.length, generator=g) < 0.6


def _row(x: Arguments, b: int) -> Arguments:
    """One row of a batch."""
    S = x.initial_state
    cut = x.in_time(lambda y: y[b : b + 1])
    return cut if S is None else cut.but(initial_state=S[b : b + 1])


def _masked(case: Case) -> Found:
    """What lies at masked steps is NaN here: it must not be looked at."""
    x, mask = arguments(case), _mask_of(case)

    def poison(y: Tensor) -> Tensor:
        return y.masked_fill(~mask.reshape(mask.shape + (1,) * (y.ndim - 2)), math.nan)

    poisoned = x.in_time(poison).but(q=x.q)
    found: Found = {}
    for form in FORMS:
        o, S = poisoned.run(form, mask=mask)
        if not o.isfinite().all():
            raise Counterexample(f"the {form} form lets NaN of masked steps through, for {case}")
        for b in range(case.batch):
            found |= both(f"the {form} form, row {b}", (o[b : b + 1, mask[b]], S[b : b + 1]))
    return found


def _without(case: Case) -> Wanted:
    x, mask = arguments(case), _mask_of(case)
    wanted: Wanted = {}
    for b in range(case.batch):
        alone = _row(x, b).in_time(lambda y, now=mask[b]: y[:, now])  # type: ignore[misc]
        reference, scale = loop(alone), Scale(alone)
        for form in FORMS:
            wanted |= expect_both(f"the {form} form, row {b}", reference, scale, case.dtype)
    return wanted


THEOREMS.also(
    "forms/mask",
    "property",
    f"float64, through kernels.recurrence, against a loop; k, v and decays are NaN at masked steps; {OVER}, "
    "random masks",
)(drawn(cases(longest=12), 12, 150, (_masked, _without)))


def _offsets(case: Case) -> tuple[list[int], Tensor | None]:
    """Where packed sequences begin and end, and their initial states."""
    g = torch.Generator().manual_seed(case.seed + 2)
    cuts = torch.randint(0, case.length + 1, (3,), generator=g).sort().values.tolist()
    S0 = None
    if case.initial:
        S0 = torch.randn(4, case.heads[0], case.key_dim, case.value_dim, generator=g, dtype=torch.float64)
    return [0, *cuts, case.length], S0


def _packed(case: Case) -> Found:
    offsets, S0 = _offsets(case)
    whole = arguments(case).but(initial_state=S0)
    found: Found = {}
    for form in FORMS:
        o, S = whole.run(form, cu_seqlens=torch.tensor(offsets))
        for n, (i, j) in enumerate(itertools.pairwise(offsets)):
            found |= both(f"the {form} form, offsets {offsets}, sequence {n}", (o[:, i:j], S[n : n + 1]))
    return found


def _apart(case: Case) -> Wanted:
    offsets, S0 = _offsets(case)
    x = arguments(case)
    wanted: Wanted = {}
    for n, (i, j) in enumerate(itertools.pairwise(offsets)):
        alone = x.in_time(lambda y, i=i, j=j: y[:, i:j])  # type: ignore[misc]
        alone = alone.but(initial_state=None if S0 is None else S0[n : n + 1])
        reference, scale = loop(alone), Scale(alone)
        for form in FORMS:
            what = f"the {form} form, offsets {offsets}, sequence {n}"
            wanted |= expect_both(what, reference, scale, case.dtype)
    return wanted


THEOREMS(
    "operator/packed",
    "Packed sequences are the sequences run apart, each from its own initial state; empty ones included.",
    f"{OVER}, four sequences of random lengths",
    "property",
    formula="R(x¹ x² …, S_0¹, S_0², …; offsets) = R(x¹, S_0¹), R(x², S_0²), …",
    left=Side(f"{THROUGH}, with cu_seqlens", _packed),
    right=Side(f"{LOOP}, on each sequence", _apart),
    reasons={"exact": "forms/reset has the core of it"},
)(drawn(cases().map(lambda c: Case(**{**c.__dict__, "batch": 1})), 12, 150))


def _in_pieces(case: Case) -> Found:
    x = arguments(case)
    found: Found = {}
    for i, cut in enumerate(range(0, case.length + 1, 3)):
        parts = [x.in_time(lambda y, s=s: y[:, s]) for s in (slice(0, cut), slice(cut, None))]  # type: ignore[misc]
        first, second = reversed(parts) if case.reverse else parts
        forms = FORMS[(case.seed + i) % 5], FORMS[(case.seed + i // 5) % 5]
        o1, S = first.run(forms[0])
        o2, S = second.but(initial_state=S).run(forms[1])
        o = torch.cat([o2, o1] if case.reverse else [o1, o2], 1)
        found |= both(f"{forms[0]}, split after {cut}, then {forms[1]}", (o, S))
    return found


def _at_once(case: Case) -> Wanted:
    reference, scale = looped(case)
    wanted: Wanted = {}
    for i, cut in enumerate(range(0, case.length + 1, 3)):
        forms = FORMS[(case.seed + i) % 5], FORMS[(case.seed + i // 5) % 5]
        wanted |= expect_both(f"{forms[0]}, split after {cut}, then {forms[1]}", reference, scale, case.dtype)
    return wanted


THEOREMS.also(
    "forms/split", "property", f"float64, through kernels.recurrence, against a loop at once; {OVER}"
)(drawn(cases(), 15, 200, (_in_pieces, _at_once)))


def _step_mask(case: Case) -> Tensor:
    mask = _mask_of(case)
    return torch.ones_like(mask) if case.seed % 2 else mask


def _token_by_token(case: Case) -> Found:
    x, mask = arguments(case), _step_mask(case)
    S, outputs = x.initial_state, []
    for t in range(case.length):
        la, lb = x.log_decay, x.log_decay_v
        if isinstance(la, OuterDecay):
            la = OuterDecay(la.dt[:, t], la.A)
        elif la is not None and la.ndim > 1:
            la = la[:, t]
        lb = lb if lb is None or lb.ndim == 2 else lb[:, t]
        o, S = step(
            x.q[:, t],
            x.k[:, t],
            x.v[:, t],
            la,
            lb,
            state=S,
            scale=x.scale,
            read=x.read,
            mask=None if case.seed % 2 else mask[:, t],
        )
        outputs.append(o)
    assert S is not None
    return both("step by step", (torch.stack(outputs, 1), S))


def _sequence(case: Case) -> Wanted:
    x = arguments(case)
    reference = x.run("recurrent", mask=_step_mask(case))
    return expect_both("step by step", reference, Scale(x), case.dtype)


THEOREMS(
    "operator/step",
    "`step`, token by token, is `recurrence` over the sequence; also where steps are masked.",
    OVER,
    "property",
    formula="step(x_T, … step(x_2, step(x_1, S_0))) = R(x_1 … x_T, S_0)",
    left=Side("kernels.step, token by token", _token_by_token),
    right=Side("kernels.recurrence over the sequence", _sequence),
)(drawn(cases(shortest=1).map(lambda c: Case(**{**c.__dict__, "reverse": False})), 15, 200))


def _flipped(case: Case) -> Found:
    x = arguments(case)
    found: Found = {}
    flipped = x.in_time(lambda y: y.flip(1)).but(reverse=not x.reverse)
    for form in FORMS:
        o, S = flipped.run(form)
        found |= both(f"the {form} form", (o.flip(1), S))
    return found


def _unflipped(case: Case) -> Wanted:
    x = arguments(case)
    wanted: Wanted = {}
    for form in FORMS:
        wanted |= expect_both(f"the {form} form", x.run(form), looped(case)[1], case.dtype)
    return wanted


THEOREMS.also("forms/reverse", "property", f"float64, through kernels.recurrence; {OVER}")(
    drawn(cases(), 10, 150, (_flipped, _unflipped))
)


# ------------------------------------------------------------------ heads and memory


def _order_of_heads(case: Case) -> Tensor:
    return torch.randperm(case.heads[0], generator=torch.Generator().manual_seed(case.seed + 3))


def _other_heads(case: Case) -> Found:
    """Every operand is made to have all heads; then the heads are put in another order, and back."""
    x, order = arguments(case), _order_of_heads(case)
    H, back = case.heads[0], torch.argsort(order)
    full = x.but(q=x.q.repeat_interleave(H // x.q.shape[2], 2), k=x.k.repeat_interleave(H // x.k.shape[2], 2))

    def permuted(name: str, y: Tensor) -> Tensor:
        axis = {"A": 0, "initial_state": 1}.get(name)
        if axis is None:
            axis = 0 if name in DECAYS and y.ndim < 3 else 2
        return y.index_select(axis, order)

    found: Found = {}
    for form in FORMS:
        found |= both(f"repeated heads, {form}", full.run(form))
        o, S = full.map(permuted).run(form)
        found |= both(f"permuted heads, {form}", (o[:, :, back], S[:, back]))
    return found


def _own_heads(case: Case) -> Wanted:
    x = arguments(case)
    wanted: Wanted = {}
    for form in FORMS:
        for what in ("repeated", "permuted"):
            wanted |= expect_both(f"{what} heads, {form}", x.run(form), looped(case)[1], case.dtype)
    return wanted


THEOREMS(
    "operator/heads",
    "Heads are independent: permuted heads give permuted results, and a query or key head shared by several "
    "heads is the same as its copies.",
    OVER,
    "property",
    formula="R(π q, π k, π v, π a, π S_0) = π R(q, k, v, a, S_0),  R(q, …) = R(repeat q, …)",
    left=Side(f"{THROUGH}, with heads repeated, and permuted", _other_heads),
    right=Side("the same with the heads as they are", _own_heads),
    reasons={"exact": "the exact theorems have shared heads among their cases"},
)(drawn(cases(), 10, 150))


def _strided(_: str, y: Tensor) -> Tensor:
    """The same values, every dimension a stride of two, from the middle of a larger tensor."""
    room = y.new_full([2 * n + 1 for n in y.shape], math.nan)
    room[tuple(slice(1, None, 2) for _ in y.shape)] = y
    return room[tuple(slice(1, None, 2) for _ in y.shape)]


def _spread_out(case: Case) -> Found:
    apart = arguments(case).map(_strided)
    found: Found = {}
    for form in FORMS:
        found |= both(f"the {form} form", apart.run(form))
    return found


THEOREMS(
    "operator/strides",
    "Results do not depend on how the operands lie in memory, and nothing between their elements is read "
    "(it is NaN, in these examples).",
    OVER,
    "property",
    formula="R(strided x) = R(x)",
    left=Side(f"{THROUGH}, on operands with gaps of NaN", _spread_out),
    right=Side("the same on contiguous operands", _unflipped),
    reasons={"exact": "field elements have no strides"},
)(drawn(cases(), 8, 80))


# ------------------------------------------------------------------ gradients


def _cotangents(case: Case, absolute: bool = False) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(case.seed + 4)
    H, K, V = case.heads[0], case.key_dim, case.value_dim
    wide = torch.promote_types(case.dtype, torch.float32)
    do = torch.randn(case.batch, case.length, H, V, generator=g, dtype=torch.float64).to(case.dtype)
    dS = torch.randn(case.batch, H, K, V, generator=g, dtype=torch.float64).to(wide)
    return (do.abs(), dS.abs()) if absolute else (do, dS)


def _gradients(x: Arguments, run: Any, cotangents: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    leaves = {n: y.detach().clone().requires_grad_() for n, y in x.leaves().items()}
    o, S = run(x.with_leaves(leaves))
    do, dS = (c.to(y.dtype) for c, y in zip(cotangents, (o, S), strict=True))
    grads = torch.autograd.grad((o * do).sum() + (S * dS).sum(), list(leaves.values()), allow_unused=True)
    return {
        n: torch.zeros_like(y) if d is None else d for (n, y), d in zip(leaves.items(), grads, strict=True)
    }


LOGS = ("log_decay", "log_decay_v")


def _by_autograd(case: Case) -> Found:
    """Of all operands, by every form."""
    x = arguments(case)
    found: Found = {}
    for form in FORMS:
        for name, d in _gradients(x, lambda y, form=form: y.run(form), _cotangents(case)).items():
            what = f"the {form} form, gradient of {name}"
            if name in LOGS and (d[x.leaves()[name] == -math.inf] != 0).any():
                raise Counterexample(f"{what} is not 0 where the decay is, for {case}")
            found[what] = d
    return found


def _of_loop(case: Case) -> Wanted:
    x = arguments(case)
    reference = _gradients(x, loop, _cotangents(case))
    # Every gradient is a sum of products, so that of the absolute values bounds what can cancel.
    scale = _gradients(absolute(x), loop, _cotangents(case, absolute=True))
    wanted = {}
    for form in FORMS:
        for name, d in reference.items():
            largest = scale[name].abs().max() if d.numel() else 1.0
            wanted[f"the {form} form, gradient of {name}"] = Expected(d, largest, 1e-11)
    return wanted


THEOREMS(
    "operator/gradients",
    "The gradients of all operands, by every form, are finite and those of the plain loop; exactly 0 for a "
    "log-decay of -inf.",
    OVER,
    "property",
    formula="∂x = ∂(<∂o, o> + <∂S_T, S_T>)/∂x,  x over q, k, v, log a (dt and A), log b, S_0",
    left=Side(f"{THROUGH}, through torch.autograd", _by_autograd),
    right=Side(f"autograd through {LOOP}", _of_loop),
    reasons={"exact": "gradients/chunk, -/recurrent, -/scan and -/operands have it"},
)(drawn(cases(longest=12, shortest=1), 15, 200))


def _decays_by_autograd(case: Case) -> Found:
    return {what: d for what, d in _by_autograd(case).items() if what.rpartition(" ")[2] in LOGS}


def _decays_of_loop(case: Case) -> Wanted:
    """Element by element: an error is measured by the gradient of that very element when nothing cancels."""
    x = arguments(case)
    reference = _gradients(x, loop, _cotangents(case))
    scale = _gradients(absolute(x), loop, _cotangents(case, absolute=True))
    wanted = {}
    for form in FORMS:
        for name in set(LOGS) & reference.keys():
            # float32 has nothing below 1e-38, and few digits near it
            size = scale[name].double().abs() + 1e-30
            wanted[f"the {form} form, gradient of {name}"] = Expected(reference[name], size, 1e-4)
    return wanted


THEOREMS(
    "operator/decay-gradient",
    "In float32 the gradient of each log-decay has a small relative error of its own (1e-4 of what it is "
    "when nothing cancels), however strong the decay: nothing is subtracted on the way to it.",
    "scalar, constant and vector decays, over keys and over values, down to e^-50, -1000 and -inf; T to 20",
    "property",
    formula="|∂log a − ∂̂log a| ≤ 1e-4 ∂log a(|q|, |k|, |v|, |∂o|, |∂S_T|), element by element",
    left=Side(f"{THROUGH}, through torch.autograd, in float32", _decays_by_autograd),
    right=Side(f"autograd through {LOOP}", _decays_of_loop),
    reasons=SEES_ROUNDING,
)(
    drawn(
        cases(torch.float32, shortest=1).filter(
            lambda c: c.key_decay not in ("none", "dt·A") or c.value_decay != "none"
        ),
        15,
        200,
    )
)


def check_kernel(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    *,
    key_decay: str = "[B,T,H,K]",
    value_decay: str = "none",
    read: str = "after",
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    examples: int = 100,
    seed: int = 0,
) -> float:
    """Compare a function of your own with the recurrence, and shrink what differs.

    Args:
        kernel: (q, k, v, log_decay, log_decay_v, initial_state) -> (outputs, final state), in the
            layout of `mixerzoo.kernels.recurrence`: [B, T, H, D] and [B, H, K, V]. The
            decays are None where the two arguments below say "none".
        key_decay, value_decay: the shape of the decays, as in "[H]", "[B,T,H]" or "[B,T,H,K]";
            "[H,V]" or "[B,T,H,V]"; or "none". "dt·A" for the keys is an `OuterDecay`.
        read: "after" or "before".
        dtype: of the arguments; float64, float32, bfloat16 or float16.
        tolerance: relative to the largest output of each head when nothing cancels;
            None: 1e-12 for float64, 1e-5 for float32, the rounding of the outputs otherwise.
        examples: how many to draw. They have decays of 0, -1000 and -inf among them.
        seed: of the draws.

    Returns:
        The largest relative error seen.

    Raises:
        Counterexample: with the smallest arguments found for which the two differ.
        ValueError: an option is none of those above.
        TypeError: the kernel does not take six positional arguments.

    >>> from mixerzoo.kernels import recurrence
    >>> def mine(q, k, v, log_decay, log_decay_v, initial_state):
    ...     return recurrence(q, k, v, log_decay, initial_state=initial_state, form="chunk")
    >>> check_kernel(mine, examples=10) < 1e-12
    True
    """
    for option, given, accepted in (
        ("key_decay", key_decay, KEY_DECAYS),
        ("value_decay", value_decay, VALUE_DECAYS),
        ("read", read, ("after", "before")),
        ("dtype", dtype, tuple(TOLERANCE)),
    ):
        if given not in accepted:
            raise ValueError(f"{option} is {given!r}; accepted: {', '.join(map(repr, accepted))}")
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    refusals: list[TypeError] = []

    def check(case: Case) -> float:
        x = arguments(case).but(scale=1.0)
        if x.initial_state is None:
            S = torch.zeros(case.batch, case.heads[0], case.key_dim, case.value_dim, dtype=dtype)
            x = x.but(initial_state=S)
        try:
            found = kernel(x.q, x.k, x.v, x.log_decay, x.log_decay_v, x.initial_state)
        except TypeError as e:
            if e.__traceback__ is not None and e.__traceback__.tb_next is None:  # not from inside the kernel
                refusals.append(e)
            raise
        reference, scale = loop(x), Scale(x)
        wanted = {
            "the kernel, outputs": Expected(reference[0], scale.outputs, allowed),
            "the kernel, final state": Expected(reference[1], scale.state, allowed),
        }
        return agree(case, both("the kernel", found), wanted)

    tally = Tally()
    drawn = cases(dtype, shortest=1).map(
        lambda c: Case(
            **{
                **c.__dict__,
                "key_decay": key_decay,
                "value_decay": value_decay,
                "read": read,
                "reverse": False,
                "heads": (c.heads[0],) * 3,
            }
        )
    )
    try:
        with notes_elsewhere():
            run_examples(Budget(seed=seed), tally, drawn, check, examples, examples)
    except Counterexample:
        if not refusals:
            raise
        raise TypeError(
            "the kernel is called with six positional arguments, "
            f"kernel(q, k, v, log_decay, log_decay_v, initial_state), which it does not take: {refusals[0]}"
        ) from refusals[0]
    return tally.worst or 0.0
