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
from ..theorem import Budget, Collection, Counterexample, Tally
from .examples import (
    DECAYS,
    FORMS,
    KEY_DECAYS,
    TOLERANCE,
    VALUE_DECAYS,
    Arguments,
    Case,
    Scale,
    absolute,
    arguments,
    cases,
    compare,
    compare_both,
    loop,
    run_examples,
)

THEOREMS = Collection()

OVER = (
    "random shapes (T from 0 to 20), heads shared or not, decays none, constant, scalar, vector, dt·A, over "
    "values, with values 0, -1000 and -inf among them, both reads and directions, all chunk sizes"
)

Check = Callable[[Case], float]


def _forms(dtype: torch.dtype) -> Check:
    def check(case: Case) -> float:
        x = arguments(case)
        reference, scale = loop(x), Scale(x)
        tolerance = TOLERANCE[dtype]
        wide = TOLERANCE[torch.promote_types(dtype, torch.float32)]
        return max(
            compare_both(f"the {form} form", case, x.run(form), reference, scale, tolerance, wide)
            for form in FORMS
        )

    return check


def _property(name: str, statement: str, over: str, check: Check, drawn: Any, quick: int, full: int) -> None:
    def run(budget: Budget, tally: Tally) -> None:
        run_examples(budget, tally, drawn, check, quick, full)

    THEOREMS(f"operator/{name}", statement, over, "property")(run)


_SAME = "All forms are the recurrence, written as a plain loop in float64,"
for _dtype, _how in {
    torch.float64: "to 1e-12",
    torch.float32: "to 1e-5",
    torch.bfloat16: "to the rounding of their outputs to bfloat16, with the state to 1e-5",
    torch.float16: "to the rounding of their outputs to float16, with the state to 1e-5",
}.items():
    _name = str(_dtype).removeprefix("torch.")
    _property(
        f"forms-{_name}",
        f"{_SAME} {_how} of the largest output that each head has when nothing cancels; all finite.",
        OVER,
        _forms(_dtype),
        cases(_dtype),
        *((30, 400) if _dtype in (torch.float64, torch.float32) else (12, 100)),
    )


# ------------------------------------------------------------------ masks, packing, splitting, steps


def _mask_of(case: Case, salt: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(case.seed + salt)
    return torch.rand(case.batch, case.length, generator=g) < 0.6


def _row(x: Arguments, b: int) -> Arguments:
    """One row of a batch."""
    S = x.initial_state
    cut = x.in_time(lambda y: y[b : b + 1])
    return cut if S is None else cut.but(initial_state=S[b : b + 1])


def _check_mask(case: Case) -> float:
    """What lies at masked steps is NaN here: it must not be looked at."""
    x, mask, worst = arguments(case), _mask_of(case), 0.0

    def poison(y: Tensor) -> Tensor:
        return y.masked_fill(~mask.reshape(mask.shape + (1,) * (y.ndim - 2)), math.nan)

    poisoned = x.in_time(poison).but(q=x.q)
    for form in FORMS:
        o, S = poisoned.run(form, mask=mask)
        if not o.isfinite().all():
            raise Counterexample(f"the {form} form lets NaN of masked steps through, for {case}")
        for b in range(case.batch):
            now = mask[b]
            alone = _row(x, b).in_time(lambda y, now=now: y[:, now])  # type: ignore[misc]
            what = f"the {form} form, mask {now.int().tolist()}, row {b}"
            found, scale = (o[b : b + 1, now], S[b : b + 1]), Scale(alone)
            worst = max(worst, compare_both(what, case, found, loop(alone), scale, TOLERANCE[case.dtype]))
    return worst


_property(
    "mask",
    "A masked step leaves the state untouched: outputs and state are those of the sequence without it. "
    "What k, v and the decays hold there (NaN, in these examples) has no influence.",
    f"{OVER}, random masks",
    _check_mask,
    cases(longest=12),
    12,
    150,
)


def _check_packed(case: Case) -> float:
    x = arguments(case)
    g = torch.Generator().manual_seed(case.seed + 2)
    cuts = torch.randint(0, case.length + 1, (3,), generator=g).sort().values.tolist()
    offsets = [0, *cuts, case.length]
    S0 = None
    if case.initial:
        S0 = torch.randn(4, case.heads[0], case.key_dim, case.value_dim, generator=g, dtype=torch.float64)
    whole, worst = x.but(initial_state=S0), 0.0
    for form in FORMS:
        o, S = whole.run(form, cu_seqlens=torch.tensor(offsets))
        for n, (i, j) in enumerate(itertools.pairwise(offsets)):
            alone = x.in_time(lambda y, i=i, j=j: y[:, i:j])  # type: ignore[misc]
            alone = alone.but(initial_state=None if S0 is None else S0[n : n + 1])
            what = f"the {form} form, offsets {offsets}, sequence {n}"
            found = o[:, i:j], S[n : n + 1]
            worst = max(
                worst, compare_both(what, case, found, loop(alone), Scale(alone), TOLERANCE[case.dtype])
            )
    return worst


_property(
    "packed",
    "Packed sequences are the sequences run apart, each from its own initial state; empty ones included.",
    f"{OVER}, four sequences of random lengths",
    _check_packed,
    cases().map(lambda c: Case(**{**c.__dict__, "batch": 1})),
    12,
    150,
)


def _check_split(case: Case) -> float:
    x = arguments(case)
    reference, scale, worst = loop(x), Scale(x), 0.0
    for i, cut in enumerate(range(0, case.length + 1, 3)):
        parts = [x.in_time(lambda y, s=s: y[:, s]) for s in (slice(0, cut), slice(cut, None))]  # type: ignore[misc]
        first, second = reversed(parts) if case.reverse else parts
        forms = FORMS[(case.seed + i) % 5], FORMS[(case.seed + i // 5) % 5]
        o1, S = first.run(forms[0])
        o2, S = second.but(initial_state=S).run(forms[1])
        o = torch.cat([o2, o1] if case.reverse else [o1, o2], 1)
        what = f"{forms[0]}, split after {cut}, then {forms[1]}"
        worst = max(worst, compare_both(what, case, (o, S), reference, scale, TOLERANCE[case.dtype]))
    return worst


_property(
    "split",
    "A sequence run in two pieces, of any forms and lengths, is the sequence run at once.",
    OVER,
    _check_split,
    cases(),
    15,
    200,
)


def _check_step(case: Case) -> float:
    x, mask = arguments(case), _mask_of(case)
    if case.seed % 2:
        mask = torch.ones_like(mask)
    reference = x.run("recurrent", mask=mask)
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
    found = torch.stack(outputs, 1), S
    return compare_both("step by step", case, found, reference, Scale(x), TOLERANCE[case.dtype])


_property(
    "step",
    "`step`, token by token, is `recurrence` over the sequence; also where steps are masked.",
    OVER,
    _check_step,
    cases(shortest=1).map(lambda c: Case(**{**c.__dict__, "reverse": False})),
    15,
    200,
)


def _check_reverse(case: Case) -> float:
    x = arguments(case)
    flipped = x.in_time(lambda y: y.flip(1)).but(reverse=not x.reverse)
    scale, worst = Scale(x), 0.0
    for form in FORMS:
        o, S = flipped.run(form)
        found = o.flip(1), S
        worst = max(
            worst, compare_both(f"the {form} form", case, found, x.run(form), scale, TOLERANCE[case.dtype])
        )
    return worst


_property(
    "reverse",
    "Reversed time is the reversed sequence, reversed.",
    OVER,
    _check_reverse,
    cases(),
    10,
    150,
)


# ------------------------------------------------------------------ heads and memory


def _check_heads(case: Case) -> float:
    """Every operand is made to have all heads; then the heads are put in another order."""
    x = arguments(case)
    H = case.heads[0]
    g = torch.Generator().manual_seed(case.seed + 3)
    order = torch.randperm(H, generator=g)
    full = x.but(q=x.q.repeat_interleave(H // x.q.shape[2], 2), k=x.k.repeat_interleave(H // x.k.shape[2], 2))

    def permuted(name: str, y: Tensor) -> Tensor:
        axis = {"A": 0, "initial_state": 1}.get(name)
        if axis is None:
            axis = 0 if name in DECAYS and y.ndim < 3 else 2
        return y.index_select(axis, order)

    scale, worst = Scale(x), 0.0
    for form in FORMS:
        o, S = x.run(form)
        found = full.run(form)
        worst = max(
            worst, compare_both(f"repeated heads, {form}", case, found, (o, S), scale, TOLERANCE[case.dtype])
        )
        o2, S2 = full.map(permuted).run(form)
        back = torch.argsort(order)
        found = o2[:, :, back], S2[:, back]
        worst = max(
            worst, compare_both(f"permuted heads, {form}", case, found, (o, S), scale, TOLERANCE[case.dtype])
        )
    return worst


_property(
    "heads",
    "Heads are independent: permuted heads give permuted results, and a query or key head shared by several "
    "heads is the same as its copies.",
    OVER,
    _check_heads,
    cases(),
    10,
    150,
)


def _strided(_: str, y: Tensor) -> Tensor:
    """The same values, every dimension a stride of two, from the middle of a larger tensor."""
    room = y.new_full([2 * n + 1 for n in y.shape], math.nan)
    room[tuple(slice(1, None, 2) for _ in y.shape)] = y
    return room[tuple(slice(1, None, 2) for _ in y.shape)]


def _check_strides(case: Case) -> float:
    x = arguments(case)
    apart, scale, worst = x.map(_strided), Scale(x), 0.0
    for form in FORMS:
        what, tolerance = f"the {form} form, strided", TOLERANCE[case.dtype]
        worst = max(worst, compare_both(what, case, apart.run(form), x.run(form), scale, tolerance))
    return worst


_property(
    "strides",
    "Results do not depend on how the operands lie in memory, and nothing between their elements is read "
    "(it is NaN, in these examples).",
    OVER,
    _check_strides,
    cases(),
    8,
    80,
)


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


def _check_gradients(case: Case) -> float:
    x = arguments(case)
    reference = _gradients(x, loop, _cotangents(case))
    # Every gradient is a sum of products, so that of the absolute values bounds what can cancel.
    scale = _gradients(absolute(x), loop, _cotangents(case, absolute=True))
    worst = 0.0
    for form in FORMS:
        found = _gradients(x, lambda y, form=form: y.run(form), _cotangents(case))
        for name, d in found.items():
            what = f"the {form} form, gradient of {name}"
            if name in ("log_decay", "log_decay_v") and (d[x.leaves()[name] == -math.inf] != 0).any():
                raise Counterexample(f"{what} is not 0 where the decay is, for {case}")
            largest = scale[name].abs().max() if d.numel() else 1.0
            worst = max(worst, compare(what, case, d, reference[name], largest, 1e-11))
    return worst


_property(
    "gradients",
    "The gradients of all operands, by every form, are finite and those of the plain loop; exactly 0 for a "
    "log-decay of -inf.",
    OVER,
    _check_gradients,
    cases(longest=12, shortest=1),
    15,
    200,
)


def _check_decay_gradient(case: Case) -> float:
    """Element by element: the error of a decay's gradient is small against that very gradient."""
    x = arguments(case)
    reference = _gradients(x, loop, _cotangents(case))
    scale = _gradients(absolute(x), loop, _cotangents(case, absolute=True))
    worst = 0.0
    for form in FORMS:
        found = _gradients(x, lambda y, form=form: y.run(form), _cotangents(case))
        for name in found:
            if name in ("log_decay", "log_decay_v"):
                what = f"the {form} form, gradient of {name}"
                # float32 has nothing below 1e-38, and few digits near it
                size = scale[name].double().abs() + 1e-30
                worst = max(worst, compare(what, case, found[name], reference[name], size, 1e-4))
    return worst


_property(
    "decay-gradient",
    "In float32 the gradient of each log-decay has a small relative error of its own (1e-4 of what it is "
    "when nothing cancels), however strong the decay: nothing is subtracted on the way to it.",
    "scalar, constant and vector decays, over keys and over values, down to e^-50, -1000 and -inf; T to 20",
    _check_decay_gradient,
    cases(torch.float32, shortest=1).filter(
        lambda c: c.key_decay not in ("none", "dt·A") or c.value_decay != "none"
    ),
    15,
    200,
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
        return compare_both("the kernel", case, found, loop(x), Scale(x), allowed)

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
