"""Bit for bit: inputs for which every intermediate is a small dyadic number, so that nothing rounds.

With q, k, v in {-1, 0, 1} and decays that are powers of two or 0, all of products, sums and decays have few
binary digits. A correct form then returns the exact result, whatever the order of its sums, and any
difference at all is an error. That needs no tolerance, and holds for kernels that cannot take field
elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...kernels import forms, recurrence
from ...kernels.operator import DELTA_FORMS
from ...kernels.order import ALL_ORDERS
from ...kernels.scan import LOG2E
from ...kernels.steps import Steps
from ..theorem import Budget, Check, Collection, Counterexample, Side, Tally
from .examples import FORMS, Arguments, loop

THEOREMS = Collection(
    {
        "exact": "forms/* and gradients/* have the identities",
        "bound": "nothing rounds",
        "property": "operator/* have it",
        "coq": "of tensors, which the model does not know; forms/* and gradients/* have the core of it",
        "text": "of the core alone; mixers/*/streaming run it on text",
    }
)


class BaseTwo(TorchFunctionMode):
    """Log-decays to base 2; if asked, operands of matrix products in bfloat16, as for tensor cores."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half = half

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if f is torch.exp:
            return torch.exp2(*args)
        if f is torch.mul and args[1] is LOG2E:
            args = (args[0], 1.0)  # on the way to exp2
        if self.half and f in (torch.Tensor.__matmul__, torch.matmul):
            args = tuple(x.bfloat16().float() for x in args)
        return f(*args, **(kwargs or {}))


def _ternary(g: torch.Generator, *sizes: int) -> Tensor:
    return torch.randint(-1, 2, sizes, generator=g).float()


def _lattice_decays(g: torch.Generator, halves: float, zeros: float, *sizes: int) -> Tensor:
    r = torch.rand(*sizes, generator=g)
    la = torch.where(r < halves, -1.0, 0.0)
    return torch.where(r > 1 - zeros, -math.inf, la)


def _exact(events: str, q: Tensor, k: Tensor, v: Tensor, la: Tensor, lb: Tensor, S: Tensor) -> Tensor:
    """Outputs [T, V] in whole numbers: everything is a multiple of 2^-shift."""
    shift = int(-(la.where(la.isfinite(), 0).sum() + lb.where(lb.isfinite(), 0).sum()))
    unit = 1 << shift
    q_, k_, v_, state = (np.vectorize(int, otypes=[object])(x.numpy()) for x in (q, k, v, S))
    state = state * unit
    outputs = []
    for t in range(len(q)):
        for event in events:
            if event == "D":
                for rate, column in ((la[t].numpy(), True), (lb[t].numpy(), False)):
                    factor = np.array([0 if x == -np.inf else 1 for x in rate], dtype=object)
                    divisor = np.array([2 if x == -1 else 1 for x in rate], dtype=object)
                    factor, divisor = (y[:, None] if column else y for y in (factor, divisor))
                    state = state * factor // divisor
            elif event == "A":
                state = state + np.outer(k_[t], v_[t]) * unit
            else:
                outputs.append(q_[t] @ state)
    return torch.tensor([[float(x) / unit for x in row] for row in outputs], dtype=torch.float64)


SIZES = {"recurrent": (64,), "parallel": (64,), "scan": (64,), "chunk": (16, 64)}


def _bit_equal(form: str) -> Check:
    def check(budget: Budget, tally: Tally) -> None:
        g = torch.Generator().manual_seed(budget.seed)
        T, K, V = 64, 16, 16
        for order in ALL_ORDERS[:: budget.pick(3, 1)]:
            for halves, zeros in ((0.0, 0.02), (0.01, 0.01)):
                q, k, v, S = (_ternary(g, *s) for s in ((T, K), (T, K), (T, V), (K, V)))
                la, lb = (_lattice_decays(g, halves, zeros, T, D) for D in (K, V))
                expected = _exact(order.events, q, k, v, la, lb, S)
                qs, ks, vs, las, lbs = (x[None, :, None] for x in (q, k, v, la, lb))
                layout = Steps(qs, ks, vs, las, None, lbs)
                for half, size in itertools.product((False, True), SIZES[form]):
                    with BaseTwo(half):
                        pieces, _ = forms.FORMS[form](layout, S[None, None], order, size)
                    found = torch.cat(pieces, -2)[0, 0]
                    tally.record(found, expected)
                    if not torch.equal(found.double(), expected):
                        t, i = (found.double() != expected).nonzero()[0].tolist()
                        raise Counterexample(
                            f"the {form} form (chunk {size}, order {order.events}, bfloat16 operands: "
                            f"{half}) gives {float(found[t, i])!r} instead of {float(expected[t, i])!r} "
                            f"at t = {t}, v = {i}"
                        )
                    tally.bitwise()

    return check


for _form in SIZES:
    THEOREMS.also(
        f"forms/{_form}",
        "bitwise",
        "float32, also with the operands of matrix products rounded to bfloat16, against whole numbers; "
        "q, k, v, state in {-1, 0, 1}; decays over keys and values in {1, 1/2, 0}; T = 64, K = V = 16",
    )(_bit_equal(_form))


def _integer_case(g: torch.Generator, dtype: torch.dtype, read: str, reverse: bool) -> Arguments:
    B, T, H, K, V = 2, 24, 2, 4, 3
    return Arguments(
        _ternary(g, B, T, H, K).to(dtype),
        _ternary(g, B, T, 1, K).to(dtype),
        _ternary(g, B, T, H, V).to(dtype),
        _lattice_decays(g, 0.0, 0.1, B, T, H, K).to(dtype),
        _lattice_decays(g, 0.0, 0.1, B, T, H, V).to(dtype),
        _ternary(g, B, H, K, V).to(dtype),
        1.0,
        read,
        reverse,
        8,
    )


Results = dict[str, Tensor]
DTYPES = (torch.float64, torch.float32)


def _all_the_same(budget: Budget, tally: Tally, seeds: int, forms: Iterable[str]) -> None:
    """Outputs, final state and gradients of every form and dtype are whole numbers, and those of the loop."""
    for seed in range(seeds):
        for read, reverse in itertools.product(("after", "before"), (False, True)):
            case = budget.seed + seed, read, reverse
            expected = tally.right(*case)
            for form, dtype in itertools.product(forms, DTYPES):
                found = tally.left(form, dtype, *case)
                for name, y in expected.items():
                    if not torch.equal(found[name].double(), y) or not torch.equal(y, y.round()):
                        raise Counterexample(
                            f"{name} of the {form} form in {dtype}: not the whole numbers of the "
                            f"recurrence, for seed {case[0]}, read={read!r}, reverse={reverse}"
                        )
                tally.bitwise()


def _with_gradients(o: Tensor, S: Tensor, do: Tensor, dS: Tensor, leaves: dict[str, Tensor]) -> Results:
    gradients = torch.autograd.grad((o * do).sum() + (S * dS).sum(), list(leaves.values()))
    named = {f"gradient of {n}": d for n, d in zip(leaves, gradients, strict=True)}
    return {"outputs": o, "final state": S, **named}


def _by_operator(form: str, dtype: torch.dtype, seed: int, read: str, reverse: bool) -> Results:
    g = torch.Generator().manual_seed(seed)
    x = _integer_case(g, dtype, read, reverse)
    leaves = {n: y.requires_grad_() for n, y in x.leaves().items()}
    o, S = x.with_leaves(leaves).run(form)
    do, dS = _ternary(g, *o.shape).to(dtype), _ternary(g, *S.shape).to(dtype)
    return _with_gradients(o, S, do, dS, leaves)


def _by_loop(seed: int, read: str, reverse: bool) -> Results:
    g = torch.Generator().manual_seed(seed)
    x = _integer_case(g, torch.float64, read, reverse)
    leaves = {n: y.requires_grad_() for n, y in x.leaves().items()}
    o, S = loop(x.with_leaves(leaves))
    do, dS = (_ternary(g, *y.shape).double() for y in (o, S))
    return _with_gradients(o, S, do, dS, leaves)


@THEOREMS(
    "lattice/operator",
    "With decays of 1 and 0, outputs, final state and all gradients of the public operator are whole "
    "numbers, and the same for every form and dtype, bit for bit.",
    "q, k, v, state and the gradients of the results in {-1, 0, 1}; both reads and directions; float32 and "
    "float64",
    "bitwise",
    formula="q, k, v, S_0, ∂o, ∂S_T ∈ {−1, 0, 1}, a, b ∈ {0, 1} ⇒ o, S_T, ∂q … ∂S_0 ∈ ℤ, rounded nowhere",
    left=Side("kernels.recurrence in every form and dtype, and torch.autograd", _by_operator),
    right=Side("a plain loop in float64 which shares no code with the core, and torch.autograd", _by_loop),
)
def lattice_operator(budget: Budget, tally: Tally) -> None:
    _all_the_same(budget, tally, budget.pick(2, 20), FORMS)


def _unit(g: torch.Generator, *sizes: int) -> Tensor:
    """Vectors of the last dimension with a single entry, 1 or -1."""
    *lead, D = sizes
    one = torch.nn.functional.one_hot(torch.randint(D, lead, generator=g), D)
    return one * (2.0 * torch.randint(2, (*lead, 1), generator=g) - 1)


def _erasing(form: str, dtype: torch.dtype, seed: int, read: str, reverse: bool) -> Results:
    """By the delta rule for even seeds, by x and y for odd ones."""
    B, T, H, K, V = 2, 24, 2, 4, 3
    g = torch.Generator().manual_seed(seed)
    q, v, S = _ternary(g, B, T, H, K), _ternary(g, B, T, H, V), _ternary(g, B, H, K, V)
    k, la = _unit(g, B, T, 1, K), _lattice_decays(g, 0.0, 0.1, B, T, H, K)
    beta = torch.randint(0, 3, (B, T, H), generator=g).float()
    do, dS = _ternary(g, B, T, H, V), _ternary(g, B, H, K, V)
    inputs = {"q": q, "k": k, "v": v, "log_decay": la, "initial_state": S}
    if seed % 2:
        y = _unit(g, B, T, H, K)
        inputs |= {"x": -beta[..., None] * y, "y": y}
    else:
        inputs |= {"beta": beta}
    x = {n: z.to(dtype).requires_grad_() for n, z in inputs.items()}
    o, end = recurrence(
        x["q"],
        x["k"],
        x["v"],
        x["log_decay"],
        beta=x.get("beta"),
        erase=(x["x"], x["y"]) if seed % 2 else None,
        initial_state=x["initial_state"],
        read=read,
        reverse=reverse,
        form=form,
        chunk_size=8,
    )
    return _with_gradients(o, end, do.to(dtype), dS.to(dtype), x)


@THEOREMS(
    "lattice/delta",
    "With keys that have a single entry of ±1, β of 0, 1 and 2 and decays of 1 and 0, outputs, final state "
    "and all gradients of the delta rule are whole numbers, and the same for every form and dtype, bit for "
    "bit. So it is for the general erasure by x = -β y.",
    "q, v, state and the gradients of the results in {-1, 0, 1}; both reads and directions; float32 and "
    "float64",
    "bitwise",
    formula="k_t ∈ {±e_i}, β_t ∈ {0, 1, 2}, a ∈ {0, 1}, q, v, S_0, ∂o, ∂S_T ∈ {−1, 0, 1} ⇒\n"
    "o, S_T, ∂q … ∂S_0 ∈ ℤ, rounded nowhere",
    left=Side("kernels.recurrence with erasure, in every form and dtype, and torch.autograd", _erasing),
    right=Side(
        "the recurrent form in float64, and torch.autograd",
        lambda seed, read, reverse: _erasing("recurrent", torch.float64, seed, read, reverse),
    ),
)
def lattice_delta(budget: Budget, tally: Tally) -> None:
    _all_the_same(budget, tally, budget.pick(2, 12), DELTA_FORMS)
