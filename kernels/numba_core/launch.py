"""Launches: tasks for threads, each some channels of a sequence; their memory, and the sums over them
after."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy
import torch
from torch import Tensor

from ..memory import new
from . import threads, walk
from .problem import ABSENT, BLOCK, CONSTANT, NONE, VECTOR, Problem, slots

# Numbers of states over all steps that are worth a thread of their own.
SHARE = 1 << 17
# Rows of a block, and states, that a pass needs for itself.
FORWARD, BACKWARD = (7, 2), (14, 5)


@functools.cache
def _sources() -> int:
    """A digest of these files, for the key of a compiled kernel: Numba's cache looks at one file alone."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:7], "big")


@functools.cache
def _kernel(make: Callable[..., Any], kind: walk.Kind, dtype: torch.dtype) -> Any:
    """Compiled, and kept on disk: beside these files, or in the user's cache where that cannot be written;
    where neither can, for this process alone."""
    run = make(kind, numpy.float64 if dtype == torch.float64 else numpy.float32, _sources())
    compiled = functools.partial(
        numba.cfunc, numba.void(numba.types.CPointer(numba.int64)), error_model="numpy"
    )
    try:
        return compiled(cache=True)(run)
    except RuntimeError:  # no place for a cache
        return compiled()(run)


def _kind(x: Problem) -> walk.Kind:
    apart = not (x.together(x.group_q) and x.together(x.group_k))
    one = x.K == 1
    gate = int(x.key == NONE or x.valued != ABSENT)
    if one and x.key == NONE and (x.scaled == ABSENT) != (x.valued == ABSENT):
        gate = walk.LOG
    own = x.key == VECTOR and not x.together(1)
    return walk.Kind(x.key, gate, int(apart), int(own), int(x.strict), int(one))


def _threads(x: Problem) -> int:
    numbers = x.T * x.K * x.channels * (x.B if x.offsets is None else 1)
    return max(1, min(torch.get_num_threads(), numbers // SHARE))


def _parts(x: Problem, many: int) -> list[tuple[int, int]]:
    """The ranges of a sequence in so many parts, fewer where there are few ranges or many sequences."""
    n = len(x.ranges)
    parts = 1 if 4 * many <= x.N else max(1, min(many, n))
    return list(pairwise(i * n // parts for i in range(parts + 1)))


def _run(
    x: Problem, make: Callable[..., Any], rows: list[list[int]], many: int, needs: tuple[int, int]
) -> bool:
    """Runs the kernel on all tasks: rows of what each is about, then the addresses of its arrays. Whether all
    log-decays were such."""
    if not rows:
        return True
    many = min(many, len(rows))
    size = x.acc.itemsize * x.width * (needs[0] * BLOCK + needs[1] * x.K)
    scratch = numpy.empty(many * size + 64, numpy.uint8)
    scale = numpy.array([x.scale], numpy.float64 if x.acc == torch.float64 else numpy.float32)
    table = x.strides()
    shared = [table.ctypes.data, x.ranges.ctypes.data, scale.ctypes.data]
    n, width = walk.SIZES, len(rows[0]) + len(shared)
    head = [0] * walk.HEAD
    head[walk.ALL_TASKS], head[walk.WIDTH] = len(rows), width
    head[walk.SCRATCH], head[walk.SCRATCH_BYTES] = -(-scratch.ctypes.data // 64) * 64, size
    words = numpy.array(head + [w for row in rows for w in (*row[:n], *shared, *row[n:])], numpy.int64)
    threads.call(_kernel(make, _kind(x), x.acc), words, many)
    return bool(words[walk.ILLEGAL] == 0)


def _row(x: Problem, n: int, part: tuple[int, int], seeded: bool, last: int) -> list[int]:
    _, first, length = x.sequence(n)
    return [
        *part, first, length, -1 if x.reverse else 1, x.K, x.V, x.channels, x.group_q, x.group_k, x.scaled,
        x.valued, int(seeded), last,
    ]  # fmt: skip


def _at(x: Tensor | None, *index: int) -> int:
    """The address of x[index], 0 of what is not there."""
    if x is None:
        return 0
    return x.data_ptr() + x.itemsize * sum(i * s for i, s in zip(index, x.stride(), strict=False))


def _operands(x: Problem, n: int) -> list[int]:
    row = x.sequence(n)[0]

    def of(y: Tensor | None, constant: int) -> int:
        return _at(y) if y is None or y.ndim == constant else _at(y, row)

    return [_at(x.q, row), _at(x.k, row), _at(x.v, row), of(x.la, 1), _at(x.A), of(x.lb, 2)]


def _memory(x: Problem, *shape: int, zero: bool = False) -> Tensor:
    return torch.zeros(shape, dtype=x.acc) if zero else new(x.v, *shape, dtype=x.acc)


def saved_shape(x: Problem) -> tuple[int, int, int]:
    """States [slots, K, H V], one before every block."""
    return slots(x.B, x.T, None if x.offsets is None else x.N), x.K, x.channels


def forward(x: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Outputs, final state, states before every block if asked for, and whether all log-decays were such."""
    o, final = _memory(x, x.B, x.T, x.H, x.V), _memory(x, x.N, x.H, x.K, x.V)
    saved = _memory(x, *saved_shape(x)) if save else None
    many = _threads(x)
    parts = _parts(x, 4 * many)  # a thread that is late leaves its share to others
    places = x.first_slots()
    rows = [
        [
            *_row(x, n, part, x.initial is not None, save), *_operands(x, n), _at(x.initial, n),
            _at(o, x.sequence(n)[0]), _at(final, n), _at(saved, places[n]),
        ]
        for n in range(x.N)
        for part in parts
    ]  # fmt: skip
    legal = _run(x, walk.forward, rows, many, FORWARD)
    return o, final, saved, legal


def backward(x: Problem, saved: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, log_decay, outer, log_decay_v and of the initial state."""
    if saved is None:
        saved = forward(x, True)[2]
    assert saved is not None and x.do is not None
    saved = saved.contiguous()
    many = _threads(x)
    parts = _parts(x, many)

    def shares(group: int) -> int:
        """Sums that parts keep for themselves."""
        return len(parts) if x.divided(parts, group) else 1

    # Where a range has all channels of what reads an operand, it writes a gradient; else it adds to it.
    fits = x.width >= x.V
    add, add_q, add_k = (not (fits and group == 1) for group in (1, x.group_q, x.group_k))
    adding = add | add_q << 1 | add_k << 2
    dq = _memory(x, shares(x.group_q), *x.q.shape, zero=add_q)
    dk = _memory(x, shares(x.group_k), *x.k.shape, zero=add_k)
    dv, dinitial = _memory(x, *x.v.shape), _memory(x, x.N, x.H, x.K, x.V)
    dla = dA = dlb = None
    if x.la is not None:
        constant = x.scaled == CONSTANT
        sizes = (x.N, x.H) if constant else x.la.shape
        dla = _memory(x, shares(1), *sizes, zero=add or constant)
    if x.A is not None:
        dA = _memory(x, shares(1), x.N, x.H, x.K, zero=True)
    if x.lb is not None:
        constant = x.valued == CONSTANT
        dlb = _memory(x, *((x.N, x.H, x.V) if constant else x.lb.shape), zero=constant)
    seed = None if dstate is None else dstate.to(x.acc).contiguous()
    places = x.first_slots()

    def own(g: Tensor | None, part: int, place: int) -> int:
        """A part's sums, of this batch row or sequence."""
        return 0 if g is None else _at(g, min(part, len(g) - 1), place)

    def row(n: int, part: int) -> list[int]:
        batch = x.sequence(n)[0]
        at_la, at_lb = (n if how == CONSTANT else batch for how in (x.scaled, x.valued))
        return [
            *_row(x, n, parts[part], seed is not None, adding), *_operands(x, n), _at(seed, n),
            _at(x.do, batch), _at(saved, places[n]), _at(x.resets),
            own(dq, part, batch), own(dk, part, batch), _at(dv, batch),
            own(dla, part, at_la), own(dA, part, n), _at(dlb, at_lb), _at(dinitial, n),
        ]  # fmt: skip

    _run(x, walk.backward, [row(n, p) for n in range(x.N) for p in range(len(parts))], many, BACKWARD)
    if dla is not None:
        dla = _total(dla).sum(0) if x.scaled == CONSTANT else _total(dla)
    dA = None if dA is None else _total(dA).sum(0)
    dlb = dlb.sum(0) if dlb is not None and x.valued == CONSTANT else dlb
    return _total(dq), _total(dk), dv, dla, dA, dlb, dinitial


def _total(g: Tensor) -> Tensor:
    return g[0] if len(g) == 1 else g.sum(0)
