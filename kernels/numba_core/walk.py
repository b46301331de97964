"""The kernels: one walk over time for each range of channels, and one back for the gradients.

A range holds [K, W] of the state. Time is taken BLOCK steps at a time: its rows come to scratch, then the
state goes through the block in a register, key by key and vector by vector.

    forward     outputs and, if asked, the state before every block
    backward    takes the blocks from the end; in each it walks forward from the stored state, for what every
                decay leaves of it, and back, for the gradient of every state

The gradient of a log-decay is the product (decay · state before) · (gradient of the state): exactly 0 at
decay 0, and there is no subtraction. Kernels differ by what is known when they are compiled (`Kind`).

Every thread calls a kernel with the same words (launch.py writes them): a head with counters, and a row for
each task, of addresses and whole numbers. Arrays are flat: operands of one sequence from their first element
on, `at` their strides (problem.py), results dense. A task has the `ranges` of channels, [first, last + 1],
from `low` to `high`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
from numba import carray, njit

from ..checks import ROUNDING
from .problem import (
    BLOCK,
    CONSTANT,
    DO,
    KEYS,
    LANE,
    LOG_A,
    LOG_B,
    OUTER,
    QUERIES,
    STEPS,
    TIME,
    VALUES,
    VECTOR,
    VECTORS,
)
from .rows import (
    add_rows,
    below_zero,
    exp_rows,
    fill,
    give,
    give_heads,
    give_states,
    give_sums,
    take,
    take_dense,
    take_heads,
    take_states,
    times_rows,
)
from .vectors import above, count, exp, lanes, load, pointer, prefetch, splat, spread, store

# The words: counters and sizes, then rows of SIZES whole numbers, three addresses, and those of arrays.
THREADS, TASKS, ALL_TASKS, WIDTH, SCRATCH, SCRATCH_BYTES, ILLEGAL, HEAD = 0, 1, 2, 3, 4, 5, 6, 8
SIZES, POINTERS = 14, 17
MANY = 1 << 40  # elements: more than any array has

AHEAD = 16  # steps for which memory is asked early
LOG = 2  # of gate: one decay for the one key, whose exp is taken where it is used


class Kind(NamedTuple):
    """What a kernel is compiled for, 0 or 1 but for `key` and `gate`."""

    key: int  # the decay over keys: NONE; VECTOR, one per step, head and key; OUTER, dt · A
    gate: int  # 1: there is a factor for all keys, of the head, of the value, or both (or no decay); LOG
    apart: int  # channels of a range read different heads of q or k
    own: int  # channels of a range have different heads (looked at for VECTOR)
    strict: int  # reads come before the step
    single: int  # there is one key


@njit
def memory(address, number):
    return carray(pointer(address), (MANY,), number)


@njit
def row_of(words, task):
    return words[HEAD + task * words[WIDTH] :]


@njit
def array(w, i, number):
    return memory(w[POINTERS + i], number)


@njit
def grid(w, i):
    return carray(pointer(w[i]), (MANY, 4), numpy.int64)


@njit
def span(w):
    return w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]


@njit
def options(w):
    return w[8], w[9], w[10], w[11], w[12], w[13]


@njit
def gates(rw, other, la, lb, at, row, step, n, ahead, l0, l1, V, W, scaled, valued, logs):
    """The factors that all keys share, or their logs, into rw; and what exp_rows says."""
    found = 0
    if scaled:
        take(rw, la, at[LOG_A], row, step, n, ahead, l0, l1, V, W)
        if not logs:
            found |= exp_rows(rw, n, W)
    if valued:
        into = other if scaled else rw
        take(into, lb, at[LOG_B], row, step, n, ahead, l0, l1, V, W)
        if not logs:
            found |= exp_rows(into, n, W)
    if scaled and valued:
        times_rows(rw, other, n, W)
    if not (scaled or valued):
        fill(rw, 1.0, n * W)
    return found


@njit
def rates(a, A, K, l0, l1, V, W):
    """A [H, K] to [K, W]."""
    for d in range(K):
        for l in range(l0, l1):
            a[d * W + l - l0] = A[l // V * K + d]
        for j in range(l1 - l0, W):
            a[d * W + j] = 0


@njit
def key_decays(ea, la, at, row, step, n, d, l0, l1, V, W, own):
    """The decays of key d, [n, W] of each channel's head, or [n] where they have one; and what exp_rows
    says."""
    st, sh, offset = at[LOG_A, 0], at[LOG_A, 1], d * at[LOG_A, 2]
    if own:
        take_heads(ea, la, row, step, n, st, sh, offset, l0, l1, V, 1, W)
        return exp_rows(ea, n, W)
    for i in range(n):
        ea[i] = la[(row + i * step) * st + l0 // V * sh + offset]
    for i in range(n, BLOCK):
        ea[i] = 0
    return exp_rows(ea, 1, BLOCK)


def forward(kind: Kind, number: Any, sources: int) -> Callable[..., None]:
    """The kernel to compile, of a dtype. sources: which code it is, for the cache (launch.py)."""
    key, gate, apart, own, strict, single = kind
    logs = int(gate == LOG)

    def run(head):
        _ = sources
        words = carray(head, (MANY,))
        scratch = memory(words[SCRATCH] + count(words, THREADS) * words[SCRATCH_BYTES], number)
        L = lanes(scratch)
        W = VECTORS * L
        room = BLOCK * W
        rv, ry, rd, rw = scratch, scratch[room:], scratch[2 * room :], scratch[3 * room :]
        rk, rq, ea = scratch[4 * room :], scratch[5 * room :], scratch[6 * room :]
        found = 0
        while True:
            task = count(words, TASKS)
            if task >= words[ALL_TASKS]:
                break
            w = row_of(words, task)
            low, high, first, length, step, K, V, channels = span(w)
            group_q, group_k, scaled, valued, seeded, saving = options(w)
            at, ranges, scale = grid(w, SIZES), grid(w, SIZES + 1), memory(w[SIZES + 2], number)[0]
            q, k, v = array(w, 0, number), array(w, 1, number), array(w, 2, number)
            la, A, lb = array(w, 3, number), array(w, 4, number), array(w, 5, number)
            initial, o, final, states = (
                array(w, 6, number), array(w, 7, number), array(w, 8, number), array(w, 9, number),
            )  # fmt: skip
            h, a = scratch[7 * room :], scratch[7 * room + K * W :]
            kt, kh, kd = at[KEYS, 0], at[KEYS, 1], at[KEYS, 2]
            qt, qh, qd = at[QUERIES, 0], at[QUERIES, 1], at[QUERIES, 2]
            for b in range(low, high):
                l0, l1 = ranges[b, 0], ranges[b, 1]
                full = (l1 - l0 + L - 1) // L * L
                head_k, head_q = l0 // V // group_k * kh, l0 // V // group_q * qh
                if seeded:
                    take_states(h, initial, K, V, l0, l1, W)
                else:
                    fill(h, 0.0, K * W)
                if key == OUTER:
                    rates(a, A, K, l0, l1, V, W)
                if gate == LOG and not apart:
                    logs_of, at_log = (lb, at[LOG_B]) if valued else (la, at[LOG_A])
                    dense = at[VALUES, LANE] == 1 and at_log[LANE] == 1
                    if dense and full == l1 - l0:
                        # Nothing is used twice: from memory to memory.
                        lt, vt = at_log[TIME], at[VALUES, TIME]
                        for i in range(length):
                            row = first + (i if step > 0 else length - 1 - i)
                            if saving and i % BLOCK == 0:
                                give(states[i // BLOCK * channels :], h, 0, 1, 1, channels, l0, l1, W)
                            x = spread(k, row * kt + head_k)
                            y = spread(q, row * qt + head_q) * splat(h, scale)
                            of_log, of_v, of_o = row * lt + l0, row * vt + l0, row * channels + l0
                            for j in range(0, full, L):
                                prefetch(logs_of, of_log + j + AHEAD * step * lt)
                                prefetch(v, of_v + j + AHEAD * step * vt)
                                s, log = load(h, j), load(logs_of, of_log + j)
                                found |= above(log, ROUNDING)
                                new = exp(log) * s + x * load(v, of_v + j)
                                store(o, of_o + j, y * (s if strict else new))
                                store(h, j, new)
                        give_states(final, h, K, V, l0, l1, W)
                        continue
                for start in range(0, length, BLOCK):
                    n = min(BLOCK, length - start)
                    row = first + (start if step > 0 else length - 1 - start)
                    if saving:
                        give(states[start // BLOCK * K * channels :], h, 0, 1, K, channels, l0, l1, W)
                    take(rv, v, at[VALUES], row, step, n, BLOCK, l0, l1, V, W)
                    if gate:
                        found |= gates(
                            rw, rd, la, lb, at, row, step, n, BLOCK, l0, l1, V, W, scaled, valued, logs
                        )
                    if key == OUTER:
                        take(rd, la, at[LOG_A], row, step, n, BLOCK, l0, l1, V, W)
                        found |= below_zero(rd, n, W)
                    if not single:
                        fill(ry, 0.0, n * W)
                    for d in range(K):
                        at_k, at_q = row * kt + head_k + d * kd, row * qt + head_q + d * qd
                        if apart:
                            take_heads(rk, k, row, step, n, kt, kh, d * kd, l0, l1, V, group_k, W)
                            take_heads(rq, q, row, step, n, qt, qh, d * qd, l0, l1, V, group_q, W)
                        if key == VECTOR:
                            found |= key_decays(ea, la, at, row, step, n, d, l0, l1, V, W, own)
                        for j in range(0, full, L):
                            s = load(h, d * W + j)
                            e = load(a, d * W + j)
                            for i in range(n):
                                p = i * W + j
                                if apart:
                                    x, y = load(rk, p), load(rq, p)
                                else:
                                    x, y = spread(k, at_k + i * step * kt), spread(q, at_q + i * step * qt)
                                if strict:
                                    store(ry, p, y * s if single else load(ry, p) + y * s)
                                if key == OUTER:
                                    s = exp(load(rd, p) * e) * s
                                if key == VECTOR:
                                    s = (load(ea, p) if own else spread(ea, i)) * s
                                if gate == LOG:
                                    log = load(rw, p)
                                    found |= above(log, ROUNDING)
                                    s = exp(log) * s
                                elif gate:
                                    s = load(rw, p) * s
                                s = s + x * load(rv, p)
                                if not strict:
                                    store(ry, p, y * s if single else load(ry, p) + y * s)
                            store(h, d * W + j, s)
                    if scale != 1.0:
                        by = splat(ry, scale)
                        for j in range(0, n * W, L):
                            store(ry, j, load(ry, j) * by)
                    give(o, ry, row, step, n, channels, l0, l1, W)
                give_states(final, h, K, V, l0, l1, W)
        if found:
            words[ILLEGAL] = 1

    return run


def backward(kind: Kind, number: Any, sources: int) -> Callable[..., None]:
    key, gate, apart, own, strict, single = kind
    logs = int(gate == LOG)

    def run(head):
        _ = sources
        words = carray(head, (MANY,))
        scratch = memory(words[SCRATCH] + count(words, THREADS) * words[SCRATCH_BYTES], number)
        L = lanes(scratch)
        W = VECTORS * L
        room = BLOCK * W
        rv, rdo, rd, rw = scratch, scratch[room:], scratch[2 * room :], scratch[3 * room :]
        gv, gd, gw, ea = (
            scratch[4 * room :], scratch[5 * room :], scratch[6 * room :], scratch[7 * room :],
        )  # fmt: skip
        rk, rq, gk, gq, gl = (
            scratch[8 * room :], scratch[9 * room :], scratch[10 * room :], scratch[11 * room :],
            scratch[12 * room :],
        )  # fmt: skip
        fits = BLOCK * L
        decays, faded, before = (
            scratch[13 * room :], scratch[13 * room + fits :], scratch[13 * room + 2 * fits :],
        )  # fmt: skip
        while True:
            task = count(words, TASKS)
            if task >= words[ALL_TASKS]:
                break
            w = row_of(words, task)
            low, high, first, length, step, K, V, channels = span(w)
            group_q, group_k, scaled, valued, seeded, adding = options(w)
            at, ranges, scale = grid(w, SIZES), grid(w, SIZES + 1), memory(w[SIZES + 2], number)[0]
            q, k, v = array(w, 0, number), array(w, 1, number), array(w, 2, number)
            la, A, lb = array(w, 3, number), array(w, 4, number), array(w, 5, number)
            dstate, do, states, resets = (
                array(w, 6, number), array(w, 7, number), array(w, 8, number), array(w, 9, number),
            )  # fmt: skip
            dq, dk, dv = array(w, 10, number), array(w, 11, number), array(w, 12, number)
            dla, dA, dlb = array(w, 13, number), array(w, 14, number), array(w, 15, number)
            dinitial = array(w, 16, number)
            h, a, g = scratch[14 * room :], scratch[14 * room + K * W :], scratch[14 * room + 2 * K * W :]
            da, real = scratch[14 * room + 3 * K * W :], scratch[14 * room + 4 * K * W :]
            kt, kh, kd = at[KEYS, 0], at[KEYS, 1], at[KEYS, 2]
            qt, qh, qd = at[QUERIES, 0], at[QUERIES, 1], at[QUERIES, 2]
            heads, heads_q, heads_k = channels // V, channels // V // group_q, channels // V // group_k
            # Whether there are other ranges of a head, or other heads that read the same
            add, add_q, add_k = adding & 1, adding & 2, adding & 4
            for b in range(low, high):
                l0, l1 = ranges[b, 0], ranges[b, 1]
                full = (l1 - l0 + L - 1) // L * L
                head, head_k, head_q = l0 // V, l0 // V // group_k, l0 // V // group_q
                if seeded:
                    take_states(g, dstate, K, V, l0, l1, W)
                else:
                    fill(g, 0.0, K * W)
                if key == OUTER:
                    rates(a, A, K, l0, l1, V, W)
                    rates(real, resets, K, l0, l1, V, W)
                    fill(da, 0.0, K * W)
                for c in range((length + BLOCK - 1) // BLOCK - 1, -1, -1):
                    start = c * BLOCK
                    n = min(BLOCK, length - start)
                    row = first + (start if step > 0 else length - 1 - start)
                    take_dense(h, states[c * K * channels :], K, channels, l0, l1, W)
                    take(rv, v, at[VALUES], row, step, n, -BLOCK, l0, l1, V, W)
                    take(rdo, do, at[DO], row, step, n, -BLOCK, l0, l1, V, W)
                    if scale != 1.0:
                        by = splat(rdo, scale)
                        for j in range(0, n * W, L):
                            store(rdo, j, load(rdo, j) * by)
                    if gate:
                        gates(rw, gd, la, lb, at, row, step, n, -BLOCK, l0, l1, V, W, scaled, valued, logs)
                        if not single:
                            fill(gw, 0.0, n * W)
                    if key == OUTER:
                        take(rd, la, at[LOG_A], row, step, n, -BLOCK, l0, l1, V, W)
                        if not single:
                            fill(gd, 0.0, n * W)
                    if not single:
                        fill(gv, 0.0, n * W)
                    for d in range(K):
                        at_k, at_q = row * kt + head_k * kh + d * kd, row * qt + head_q * qh + d * qd
                        if apart:
                            take_heads(rk, k, row, step, n, kt, kh, d * kd, l0, l1, V, group_k, W)
                            take_heads(rq, q, row, step, n, qt, qh, d * qd, l0, l1, V, group_q, W)
                        else:
                            fill(gk, 0.0, fits)
                            fill(gq, 0.0, fits)
                        if key == VECTOR:
                            key_decays(ea, la, at, row, step, n, d, l0, l1, V, W, own)
                            if not own:
                                fill(gl, 0.0, fits)
                        for j in range(0, full, L):
                            s = load(h, d * W + j)
                            e = load(a, d * W + j)
                            for i in range(n):
                                p, m = i * W + j, i * L
                                x = load(rk, p) if apart else spread(k, at_k + i * step * kt)
                                if key == OUTER:
                                    decay = exp(load(rd, p) * e)
                                    if gate:
                                        decay = decay * load(rw, p)
                                elif key == VECTOR:
                                    decay = load(ea, p) if own else spread(ea, i)
                                    if gate:
                                        decay = decay * load(rw, p)
                                elif gate == LOG:
                                    decay = exp(load(rw, p))
                                else:
                                    decay = load(rw, p)
                                if strict:
                                    store(before, m, s)
                                s = decay * s
                                store(decays, m, decay)
                                store(faded, m, s)
                                s = s + x * load(rv, p)
                            f = load(g, d * W + j)  # the gradient of the state after a step
                            rate, sum_a = load(real, d * W + j), load(da, d * W + j)
                            for i in range(n - 1, -1, -1):
                                p, m = i * W + j, i * L
                                if apart:
                                    x, y = load(rk, p), load(rq, p)
                                else:
                                    x, y = spread(k, at_k + i * step * kt), spread(q, at_q + i * step * qt)
                                out, value, left = load(rdo, p), load(rv, p), load(faded, m)
                                if strict:
                                    read = load(before, m) * out
                                else:
                                    read = (left + x * value) * out
                                    f = f + y * out
                                written = f * value
                                if apart:
                                    store(gq, p, read)
                                    store(gk, p, written)
                                else:
                                    store(gq, m, load(gq, m) + read)
                                    store(gk, m, load(gk, m) + written)
                                store(gv, p, f * x if single else load(gv, p) + f * x)
                                u = f * left
                                if gate:
                                    store(gw, p, u if single else load(gw, p) + u)
                                if key == OUTER:
                                    store(gd, p, u * rate if single else load(gd, p) + u * rate)
                                    sum_a = sum_a + u * load(rd, p)
                                if key == VECTOR:
                                    if own:
                                        store(gl, p, u)
                                    else:
                                        store(gl, m, load(gl, m) + u)
                                f = load(decays, m) * f
                                if strict:
                                    f = f + y * out
                            store(g, d * W + j, f)
                            if key == OUTER:
                                store(da, d * W + j, sum_a)
                        if apart:
                            give_heads(dq, gq, row, step, n, heads_q * K, K, d, l0, l1, V, group_q, add_q, W)
                            give_heads(dk, gk, row, step, n, heads_k * K, K, d, l0, l1, V, group_k, add_k, W)
                        else:
                            give_sums(dq, gq, row, step, n, heads_q * K, head_q * K + d, add_q)
                            give_sums(dk, gk, row, step, n, heads_k * K, head_k * K + d, add_k)
                        if key == VECTOR:
                            if own:
                                give_heads(dla, gl, row, step, n, heads * K, K, d, l0, l1, V, 1, add, W)
                            else:
                                give_sums(dla, gl, row, step, n, heads * K, head * K + d, add)
                    give(dv, gv, row, step, n, channels, l0, l1, W)
                    if key == OUTER or scaled == STEPS:
                        of_head = gd if key == OUTER else gw
                        if V == 1:
                            give(dla, of_head, row, step, n, channels, l0, l1, W)
                        else:
                            give_heads(dla, of_head, row, step, n, heads, 1, 0, l0, l1, V, 1, add, W)
                    if valued == STEPS:
                        give(dlb, gw, row, step, n, channels, l0, l1, W)
                    if scaled == CONSTANT or valued == CONSTANT:
                        add_rows(gw, n, W)
                    if scaled == CONSTANT:
                        give_heads(dla, gw, 0, 1, 1, 0, 1, 0, l0, l1, V, 1, True, W)
                    if valued == CONSTANT:
                        give_heads(dlb, gw, 0, 1, 1, 0, 1, 0, l0, l1, 1, 1, True, W)
                if key == OUTER:
                    for d in range(K):
                        give_heads(dA, da[d * W :], 0, 1, 1, 0, K, d, l0, l1, V, 1, True, W)
                give_states(dinitial, g, K, V, l0, l1, W)

    return run
