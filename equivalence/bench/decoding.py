"""One token: `step` against the fewest torch calls that could do it, and a batch against one row."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ...kernels import step
from .bar import Bar, Effort, Measured, forward, in_turns

HEADS, DIM, TIMES = 8, 64, 200
Operands = tuple[torch.Tensor, ...]


def operands(rows: int) -> Operands:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, HEADS, DIM, generator=g) for _ in range(3))
    return q, k, v, -torch.rand(rows, HEADS, generator=g), torch.zeros(rows, HEADS, DIM, DIM)


def ours(x: Operands) -> Callable[[], None]:
    q, k, v, la, S = x

    def call() -> None:
        state = S
        for _ in range(TIMES):
            _, state = step(q, k, v, la, state=state, inplace=True)

    return call


def plain(x: Operands) -> Callable[[], None]:
    """S ← a S + k vᵀ in place, o = qᵀ S: four calls."""
    q, k, v, la, S = x
    rows = len(q) * HEADS
    state = S.clone().view(rows, DIM, DIM)
    k, v, q = k.reshape(rows, DIM, 1), v.reshape(rows, 1, DIM), q.reshape(rows, 1, DIM)

    def call() -> None:
        for _ in range(TIMES):
            state.mul_(la.exp().view(rows, 1, 1)).baddbmm_(k, v)
            torch.bmm(q, state)

    return call


def against_plain(rows: int, effort: Effort) -> Measured:
    return in_turns(forward(ours(operands(rows))), forward(plain(operands(rows))), effort)


def batch(effort: Effort) -> Measured:
    return in_turns(forward(ours(operands(64))), forward(ours(operands(1))), effort)


def bars() -> list[Bar]:
    size = f"H {HEADS}, D {DIM}, float32"
    found = [
        Bar(
            "decoding",
            f"step-B-{rows}",
            f"`step` over the fewest torch calls, in place: B {rows}, {size}",
            functools.partial(against_plain, rows),
            at_most=1.5,
        )
        for rows in (1, 64)
    ]
    text = f"a batch of 64 over a batch of 1: {size}"
    return [*found, Bar("decoding", "batch-64", text, batch, at_most=16.0)]
