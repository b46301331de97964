"""A row with masked tokens is the row without them, and so is what follows."""

from __future__ import annotations

import torch

from ..subject import Case, Inputs, Subject, relative, rows_of
from .common import Cases, exact, run_pieces

FOLLOWING = 2  # tokens, one by one


def _without(x: Inputs, case: Case) -> Inputs:
    """Row 0 without what is masked."""
    start, stop = case.padding
    return {n: torch.cat([y[:, :start], y[:, stop:]], 1) for n, y in rows_of(x, 0).items()}


def _measure(s: Subject, case: Case) -> float:
    """Row 0 is padded, another is not, both are followed by further tokens if the case says so."""
    x = s.inputs(case.rows, case.length, case.seed)
    mask = torch.ones(case.rows, case.length, dtype=torch.bool)
    mask[0, case.padding[0] : case.padding[1]] = False
    found = run_pieces(s, x, case.pieces, mask)[0]
    # Alone they are called in the same pieces: what a piece is by itself is not the question here.
    first = int(mask[0, : case.pieces[0]].sum())
    alone = run_pieces(s, _without(x, case), (first, *case.pieces[1:]))[0]
    other = run_pieces(s, rows_of(x, 1), case.pieces)[0]
    return max(relative(found[1:], other), relative(found[:1, mask[0]], alone))


def _cases(s: Subject, name: str) -> Cases:
    for T in (n for n in s.lengths if n > 3):
        n = max(T // 3, 2)
        start = {"padding_left": 0, "padding_inside": (T - n) // 2, "padding_right": T - n}[name]
        cases = [Case(name, 2, T, (T,), (start, start + n))]
        following = (T, *[1] * FOLLOWING)
        cases.append(Case(name, 2, T + FOLLOWING, following, (start, start + n), label="going on after it"))
        for case in cases:

            def measure(case: Case = case) -> float:
                return _measure(s, case)

            yield case, exact(s, measure)


def left(s: Subject) -> Cases:
    yield from _cases(s, "padding_left")


def right(s: Subject) -> Cases:
    yield from _cases(s, "padding_right")


def inside(s: Subject) -> Cases:
    yield from _cases(s, "padding_inside")
