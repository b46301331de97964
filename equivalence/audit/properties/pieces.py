"""A sequence in one call, in pieces, and token by token."""

from __future__ import annotations

from ..subject import Case, Subject, relative
from .common import Cases, exact, run_pieces, whole


def _cases(s: Subject, name: str, splits: list[tuple[int, ...]]) -> Cases:
    for pieces in splits:
        case = Case(name, 1, sum(pieces), pieces)

        def measure(case: Case = case) -> float:
            x = s.inputs(case.rows, case.length, case.seed)
            return relative(run_pieces(s, x, case.pieces)[0], whole(s, x))

        yield case, exact(s, measure)


def decode(s: Subject) -> Cases:
    """One token at a time, from the beginning and after a prompt."""
    splits: list[tuple[int, ...]] = []
    for T in s.lengths:
        first = max(T // 2 // s.multiple, 1) * s.multiple
        splits += [(first, *[1] * (T - first))] if first < T else []
        splits.append((1,) * T)
    yield from _cases(s, "decode", splits)


def chunked_prefill(s: Subject) -> Cases:
    """In pieces of more than one token: even, ragged, and shorter than a convolution."""
    splits: list[tuple[int, ...]] = []
    for T in (n for n in s.lengths if n > 3):
        few = s.whole_pieces(2)
        third = T // 3 // s.multiple * s.multiple
        splits += [(few, T - few), (T - few, few)] if few < T else []
        if T > 8 and third > 1:
            splits += [(third, third, T - 2 * third)]
    yield from _cases(s, "chunked_prefill", splits)
