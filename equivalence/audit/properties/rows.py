"""What rows and sequences have to do with each other: nothing."""

from __future__ import annotations

import torch

from ..subject import Case, Subject, in_time, relative, rows_of
from .common import Cases, each_piece, exact, largest, run_pieces, whole


def packed(s: Subject) -> Cases:
    """Sequences one after the other in one row, their lengths given."""
    for short in ((2, 2), (3, 5), (4, 1, 9, 6)):
        sequences = tuple(map(s.whole_pieces, short))
        case = Case("packed", 1, sum(sequences), sequences=sequences)

        def measure(case: Case = case) -> float:
            x = s.inputs(1, case.length, case.seed)
            found = s.run(x, sequences=case.sequences, keep=False)[0]
            apart, start = [], 0
            for n in case.sequences:
                apart.append(whole(s, in_time(x, start, start + n)))
                start += n
            return relative(found, torch.cat(apart, 1))

        yield case, exact(s, measure)


def batch(s: Subject) -> Cases:
    """Each row as if it were alone, at once and token by token."""
    for rows, T in ((2, s.lengths[:2][-1]), (3, s.lengths[-1])):
        first = max((T - 2) // s.multiple * s.multiple, s.multiple)
        for pieces in ((T,), (first, 1, 1)):
            case = Case("batch", rows, sum(pieces), pieces)

            def measure(case: Case = case) -> float:
                x = s.inputs(case.rows, case.length, case.seed)
                every = [x, *(rows_of(x, b) for b in range(case.rows))]
                if len(case.pieces) > 1:
                    found, *alone = (each_piece(s, y, case.pieces)[0] for y in every)
                else:
                    found, *alone = ([whole(s, y)] for y in every)
                # Piece by piece: the outputs of one may have another shape.
                return largest([(y, torch.cat(apart)) for y, *apart in zip(found, *alone, strict=True)])

            yield case, exact(s, measure)


def interleaved(s: Subject) -> Cases:
    """Two sequences by turns, each with its own state, and each on its own."""
    for T in s.lengths[1:3]:
        case = Case("interleaved", 1, T, label="a sequence again, after another")

        def again(case: Case = case) -> float:
            first, other = (s.inputs(1, case.length, case.seed + i) for i in range(2))
            expected = whole(s, first)
            whole(s, other)
            return relative(whole(s, first), expected)

        yield case, exact(s, again)
        first = max((T - 2) // s.multiple * s.multiple, s.multiple)
        pieces = (first, 1, 1)
        case = Case("interleaved", 1, sum(pieces), pieces, label="two sequences by turns")

        def measure(case: Case = case) -> float:
            both = [s.inputs(1, case.length, case.seed + i) for i in range(2)]
            alone = [run_pieces(s, x, case.pieces)[0] for x in both]
            states, outputs = [None, None], [[], []]  # type: ignore[var-annotated]
            start = 0
            for n in case.pieces:
                for i, x in enumerate(both):
                    y, states[i] = s.run(in_time(x, start, start + n), states[i])
                    outputs[i].append(y)
                start += n
            return largest([(torch.cat(y, 1), a) for y, a in zip(outputs, alone, strict=True)])

        yield case, exact(s, measure)
