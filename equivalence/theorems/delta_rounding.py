"""Bound: over many blocks the rounding errors of erasing forms add up, and do not multiply.

A running bound takes every error for its worst case. Where a step erases, S ← S - β k (kᵀ S), it does not see
that the two errors of S are one, and grows by 1 + β a step; the step itself, a reflection at most, makes no
difference between two states longer. So blocks are bounded one by one, each from the state that torch handed
to it, taken as exact; and what all blocks before got wrong is carried on by the norm of the matrices by which
the exact recurrence carries it:

    |Ŝ - S| after a block ≤ ‖Φ‖₂ |Ŝ - S| before it + the running bound of the block,

column by column in the 2-norm, with Φ the product of the block's (I - β k kᵀ) diag(a) or diag(a) + x yᵀ. The
bound holds for the computation at hand, whose states it starts from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...kernels import delta, forms
from ...kernels.forms import Body
from ...kernels.order import READS
from ...kernels.steps import Slice
from ..rounding import FIXED_ERROR, FLOAT32, FLOAT64, Arithmetic, Bounded, Fixed, distance
from ..theorem import Budget, Collection, Counterexample, Side, Tally
from .problems import HEADS, Operands, Problem, Run, definition, steps
from .rounding import ABOUT_ROUNDING, SAYS_SOMETHING, Case, Floats, _as, operands

THEOREMS = Collection(ABOUT_ROUNDING)

BODIES: dict[str, Body] = {"chunk": delta.delta_chunk, "recurrent": forms.walk}
SLACK = 1 + 1e-9  # norms are computed in float64, from matrices that are exact to about 1e-13


def by_blocks(kind: str, p: Problem, x: Operands) -> tuple[Run, list[tuple[Any, Any, Any]]]:
    """Outputs and state, as production computes them; and of every block the state it was given, and what it
    returned."""
    seen = []
    body = BODIES[kind]

    def watched(c: Slice, S: Any, order: Any) -> Any:
        o, end = body(c, S, order)
        seen.append((S, o, end))
        return o, end

    pieces, state = forms.in_blocks(steps(x, p.reverse), x.initial_state, p.order, p.block, watched)
    outputs = torch.cat([piece.transpose(1, 2) for piece in pieces], 1)
    return Run(outputs.flip(1) if p.reverse else outputs, state), seen


def _transitions(c: Slice, p: Problem) -> tuple[Floats, Floats]:
    """Of the operands of a block, in float64: the norm of Φ over all of it, and that of the row by which each
    output reads a state at its start. [B, H], [B, H, C]."""
    arrays: list[Any] = [None if z is None else z.numpy() for z in c]
    q, k, v, la, _, beta, x, y = arrays
    B, H, C, _ = v.shape
    K = k.shape[-1]

    def wide(z: Any, channels: int) -> Floats:
        return np.broadcast_to(z, (B, H, C, channels))

    q, k = wide(q, K), wide(k, K)
    a = np.ones((B, H, C, K)) if la is None else wide(np.exp(la), K)
    if beta is None:
        x, y = wide(x, K), wide(y, K)
    else:
        x, y = -wide(beta, 1) * k, a * k
    Phi = np.broadcast_to(np.eye(K), (B, H, K, K))
    rows = []
    for t in range(C):
        after = a[:, :, t, :, None] * Phi + x[:, :, t, :, None] * (y[:, :, t, None] @ Phi)
        read = after if p.order.query_decayed else Phi
        rows.append(np.linalg.norm(q[:, :, t, None] @ read, axis=-1)[..., 0])
        Phi = after
    return np.linalg.norm(Phi, 2, axis=(-2, -1)), np.stack(rows, -1)


def _lengths_of_columns(x: Floats) -> Floats:
    return np.sqrt((x**2).sum(-2))


def bounds(kind: str, p: Problem, x: Operands, given: list[Floats], a: Arithmetic) -> Run:
    """What the outputs [B, T, H, V] and the columns of the state [B, H, V] may be off by, for a computation
    whose blocks were given these states."""
    layout, numbers = (steps(_as(x, f), p.reverse) for f in (lambda z: Bounded.of(z, a), torch.from_numpy))
    carried = np.zeros((p.batch, p.heads[0], p.value_dim))
    found = []
    for i, S in zip(range(0, p.length, p.block), given, strict=True):
        j = min(i + p.block, p.length)
        o, end = BODIES[kind](layout.slice(i, j), Bounded.of(S, a), p.order)
        norm, rows = _transitions(numbers.slice(i, j), p)
        found.append(o.error + SLACK * rows[..., None] * carried[:, :, None])
        carried = SLACK * (norm[..., None] * carried + _lengths_of_columns(end.error))
    outputs = np.swapaxes(np.concatenate(found, -2), 1, 2)
    return Run(np.flip(outputs, 1) if p.reverse else outputs, carried)


# ------------------------------------------------------------------ evidence


def cases(quick: bool) -> Iterator[tuple[str, int, Case, Arithmetic]]:
    """Both forms, both erasures; decays none, scalar, vector; keys at random and nearly alike with β = 2."""
    everything = itertools.product(
        BODIES, ("beta", "x, y"), (False, True), ("none", "[B,T,H]", "[B,T,H,K]"), READS.values(),
        (False, True),
    )  # fmt: skip
    for i, (kind, erasing, alike, key, order, reverse) in enumerate(everything):
        if quick and i % 7:
            continue
        block = (16, 12 if alike else 32, 8)[i % 3] if kind == "chunk" else 4
        length = 64 if quick or i % 4 else 256
        p = Problem(length, block, order, reverse, HEADS[i % 3], key, "none", 1, 8, 4, erasing=erasing)
        yield kind, block, Case(p, alike=alike), (FLOAT32, FLOAT64)[i // 2 % 3 == 0]


def _run(kind: str, p: Problem, x: Operands, a: Arithmetic) -> tuple[Run, list[Any]]:
    return by_blocks(kind, p, _as(x, lambda y: torch.from_numpy(y).to(a.dtype, copy=True)))


@THEOREMS(
    "rounding/delta-blocks",
    "The errors of the blocks of an erasing form add up: after any number of them outputs and state are off "
    "by no more than each block's own bound, carried on by the norms of the exact transitions, which for the "
    "delta rule with keys of length 1 and β ≤ 2 are at most 1. That stays a small part of the result.",
    "the delta rule and the general erasure, by chunks of 8 to 32 and step by step; decays none, scalar "
    "and vector, weak; keys at random, and all nearly alike with β = 2; both reads and directions; T = 64, "
    "and 256 in a full run; float32 and float64",
    "bound",
    formula="|Ŝ_T − S_T| ≤ Σ_i ‖Φ_n‖₂ ⋯ ‖Φ_{i+1}‖₂ |e_i|,  Φ_i = Π_{t in block i} (diag(a_t) + x_t y_tᵀ),\n"
    "|ô_t − o_t| ≤ e_t + ‖q_tᵀ Φ_{i,t}‖₂ |Ŝ_i − S_i|,  e the bounds of a block alone; column by column",
    left=Side("kernels.forms.in_blocks with kernels.delta.delta_chunk or kernels.forms.walk, by torch", _run),
    right=Side("the recurrence with erasure, step by step, in fixed point", definition),
)
def blocks_add_up(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for kind, block, case, a in cases(budget.quick):
        p, x = case.problem, operands(case, rng)
        found, seen = tally.left(kind, p, x, a)
        true = tally.right(p, _as(x, Fixed.of))
        allowed = bounds(kind, p, x, [S.numpy().astype(np.float64) for S, _, _ in seen], a)
        o, S = (distance(y.numpy(), z) for y, z in zip(found, true, strict=True))
        tally.record(*allowed)
        where = f"the {kind} form in blocks of {block} in {a.name}, for {case}"
        for name, error, bound, size in (
            ("outputs", o, allowed.outputs, true.outputs),
            ("columns of the state", _lengths_of_columns(S), allowed.state, true.state),
        ):
            worst = (error / (bound + FIXED_ERROR)).max()
            if not worst <= 1:
                raise Counterexample(f"the error of the {name} is {worst:.3g} times its bound: {where}")
            tally.ratio(float(worst))
            part = float(np.median(bound) / np.abs(size.floats()).max())
            if not part <= SAYS_SOMETHING:
                raise Counterexample(f"the bound says nothing, at {part:.2g} of the {name}: {where}")
