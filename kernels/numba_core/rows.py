"""Rows between memory and scratch: a block of steps by a range of channels.

A channel is a value of a head, l = h·V + e. `at` is a row of the table of strides in problem.py.
"""

from __future__ import annotations

from numba import njit

from ..checks import ROUNDING
from .problem import HEAD, LANE, TIME, VALUE
from .vectors import above, exp, lanes, load, prefetch, splat, store, sums

LARGEST = 3.4e38


@njit
def take(scratch, x, at, start, step, n, ahead, l0, l1, V, W):
    """n rows of x, from the one at `start` (times its stride of time) on, into scratch [n, W]. Zeros follow
    l1.

    Asks for the same of the row `ahead` steps later: the next block's, which is then there when it comes."""
    L = lanes(scratch)
    st, sh, se, sl = at[TIME], at[HEAD], at[VALUE], at[LANE]
    whole = (l1 - l0) // L * L if sl == 1 else 0
    ahead *= step * st
    for i in range(n):
        base = (start + i * step) * st
        row = i * W
        for j in range(0, whole, L):
            store(scratch, row + j, load(x, base + l0 + j))
            prefetch(x, base + l0 + j + ahead)
        if sl >= 0:
            for l in range(l0 + whole, l1):
                scratch[row + l - l0] = x[base + l * sl]
        else:
            h, e = l0 // V, l0 % V
            for l in range(l0, l1):
                scratch[row + l - l0] = x[base + h * sh + e * se]
                e += 1
                if e == V:
                    h, e = h + 1, 0
        for j in range(l1 - l0, W):
            scratch[row + j] = 0


@njit
def give(x, scratch, start, step, n, width, l0, l1, W):
    """The inverse, to dense rows of `width` channels."""
    L = lanes(scratch)
    whole = (l1 - l0) // L * L
    for i in range(n):
        base, row = (start + i * step) * width + l0, i * W
        for j in range(0, whole, L):
            store(x, base + j, load(scratch, row + j))
        for j in range(whole, l1 - l0):
            x[base + j] = scratch[row + j]


@njit
def give_heads(x, scratch, start, step, n, st, sh, offset, l0, l1, V, group, adding, W):
    """Each head's sum over its values to x[offset + row · st + (head // group) · sh], or added to what is
    there."""
    first = l0 // V
    for i in range(n):
        base, row = (start + i * step) * st + offset, i * W
        reader, left = first // group, group - first % group
        l, end = l0, (first + 1) * V
        while l < l1:
            total = scratch[row + l - l0]
            for m in range(l + 1, min(l1, end)):
                total += scratch[row + m - l0]
            at = base + reader * sh
            x[at] = x[at] + total if adding else total
            l, end, left = end, end + V, left - 1
            if left == 0:
                reader, left = reader + 1, group


@njit
def give_sums(x, scratch, start, step, n, st, offset, adding):
    """The sum over the lanes of each of n vectors to x[offset + row · st], or added to what is there. Scratch
    has BLOCK vectors, and is changed."""
    L = lanes(scratch)
    for i in range(0, n, L):
        store(scratch, i, sums(scratch, i * L))
    for i in range(n):
        at = offset + (start + i * step) * st
        x[at] = x[at] + scratch[i] if adding else scratch[i]


@njit
def add_rows(scratch, n, W):
    """The sum of n rows, in the first of them."""
    for j in range(0, W, lanes(scratch)):
        total = load(scratch, j)
        for i in range(1, n):
            total = total + load(scratch, i * W + j)
        store(scratch, j, total)


@njit
def exp_rows(scratch, n, W):
    """Log-decays to decays. Not 0 if one is no log-decay: NaN, or more than rounding above 0."""
    found = 0
    for j in range(0, n * W, lanes(scratch)):
        x = load(scratch, j)
        found |= above(x, ROUNDING)
        store(scratch, j, exp(x))
    return found


@njit
def below_zero(scratch, n, W):
    """Not 0 if a number is negative, infinite or NaN."""
    found = 0
    minus = splat(scratch, -1.0)
    for j in range(0, n * W, lanes(scratch)):
        x = load(scratch, j)
        found |= above(x * minus, 0.0) | above(x, LARGEST)
    return found


@njit
def times_rows(scratch, other, n, W):
    for j in range(0, n * W, lanes(scratch)):
        store(scratch, j, load(scratch, j) * load(other, j))


@njit
def fill(scratch, value, n):
    x = splat(scratch, value)
    for j in range(0, n, lanes(scratch)):
        store(scratch, j, x)


@njit
def take_heads(scratch, x, start, step, n, st, sh, offset, l0, l1, V, group, W):
    """Into scratch [n, W], for every channel, what its head reads at x[offset + row · st + (head // group) ·
    sh]."""
    first = l0 // V
    for i in range(n):
        base, row = (start + i * step) * st + offset, i * W - l0
        reader, left = first // group, group - first % group
        l, end = l0, (first + 1) * V
        while l < l1:
            value = x[base + reader * sh]
            for m in range(l, min(l1, end)):
                scratch[row + m] = value
            l, end, left = end, end + V, left - 1
            if left == 0:
                reader, left = reader + 1, group
        for j in range(l1, l0 + W):
            scratch[row + j] = 0


@njit
def take_dense(scratch, x, n, width, l0, l1, W):
    """n dense rows of `width` channels into scratch [n, W]."""
    L = lanes(scratch)
    whole = (l1 - l0) // L * L
    for i in range(n):
        base, row = i * width + l0, i * W
        for j in range(0, whole, L):
            store(scratch, row + j, load(x, base + j))
        for j in range(whole, l1 - l0):
            scratch[row + j] = x[base + j]
        for j in range(l1 - l0, W):
            scratch[row + j] = 0


@njit
def take_states(scratch, x, K, V, l0, l1, W):
    """[H, K, V] to scratch [K, W]."""
    for d in range(K):
        for l in range(l0, l1):
            scratch[d * W + l - l0] = x[(l // V * K + d) * V + l % V]
        for j in range(l1 - l0, W):
            scratch[d * W + j] = 0


@njit
def give_states(x, scratch, K, V, l0, l1, W):
    """The inverse."""
    for d in range(K):
        for l in range(l0, l1):
            x[(l // V * K + d) * V + l % V] = scratch[d * W + l - l0]
