"""Device functions shared by every kernel: where a token lies in memory, and what a log-decay means.

Log-decays leave this file in base 2, clamped below: exp2 of the bound is exactly 0 in fp32 and in fp64, so a
decay of -inf keeps its meaning while every later operation stays finite. Sums of log-decays are only ever
*sums*: no difference of cumulative sums is formed anywhere, so nothing cancels.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e4)  # exp(-1e4) == 0 exactly, in fp32 and in fp64

# How the decay over keys enters (the constexpr KEY of every kernel).
NONE = tl.constexpr(0)
SCALAR = tl.constexpr(1)  # one per token and head
VECTOR = tl.constexpr(2)  # one per token, head and key
OUTER = tl.constexpr(3)  # dt[token, head] * A[head, key], formed here and nowhere else


@triton.jit
def span(cu_seqlens, n, T, VARLEN: tl.constexpr):
    """Batch row, first token and length of sequence n, all int64."""
    zero = n * 0
    if VARLEN:
        first = tl.load(cu_seqlens + n).to(tl.int64)
        return zero, first, tl.load(cu_seqlens + n + 1).to(tl.int64) - first
    return n, zero, zero + T


@triton.jit
def slot_of(n, first, T, SEGMENT: tl.constexpr, VARLEN: tl.constexpr):
    """First storage slot of sequence n, when each sequence owns one slot per SEGMENT tokens.

    Packed: first // SEGMENT + n never overlaps the next sequence's, whatever the lengths: no table is
    needed."""
    if VARLEN:
        return first // SEGMENT + n
    return n * tl.cdiv(T, SEGMENT)


@triton.jit
def sequence_of(slot, cu_seqlens, N, T, SEGMENT: tl.constexpr, VARLEN: tl.constexpr):
    """The sequence which owns a storage slot: the inverse of slot_of, by bisection."""
    if VARLEN:
        low = slot * 0
        high = low + N
        while high - low > 1:
            middle = (low + high) // 2
            if tl.load(cu_seqlens + middle).to(tl.int64) // SEGMENT + middle <= slot:
                low = middle
            else:
                high = middle
        return low
    return slot // tl.cdiv(T, SEGMENT)


@triton.jit
def steps(start, length, first, C: tl.constexpr, REVERSE: tl.constexpr, INDEX: tl.constexpr):
    """C time steps from `start`, in the recurrence's own order: the token of the first (int64), the others
    relative to it, and which exist.

    Offsets inside a tile are INDEX, 32 bits where the launcher finds that they fit: 64-bit ones would fill
    the registers. Everything larger than a tile is 64 bits."""
    r = tl.arange(0, C)
    live = r < tl.minimum(length - start, C).to(tl.int32)
    if REVERSE:
        return first + (length - 1 - start), -r.to(INDEX), live
    return first + start, r.to(INDEX), live


@triton.jit
def kept(mask, t, r, live, sm, MASK: tl.constexpr):
    """Which of these steps write and decay: those that exist and are not masked."""
    if MASK:
        return live & (tl.load(mask + t * sm + r * sm, mask=live, other=0) != 0)
    return live


@triton.jit
def load_rows(p, t, r, live, d, inside, st, sd):
    """[C, D] tile from base pointer p: tokens t + r, columns d, zeros where there is nothing."""
    at = r[:, None] * st + d[None, :] * sd
    return tl.load(p + t * st + at, mask=live[:, None] & inside[None, :], other=0.0)


@triton.jit
def base2(x):
    """A natural log-decay as a finite base-2 one."""
    return tl.maximum(x, LOWEST) * LOG2E


@triton.jit
def load_key_decay(
    p, t, r, keep, a, d, inside, st, sd, KEY: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr
):
    """[C, K] base-2 log-decays over keys (zeros where KEY is NONE: not loaded), and dt [C] for OUTER.

    a: [K] the row of A of this head, in ACC (OUTER only, else ignored)."""
    if KEY == VECTOR:
        x = load_rows(p, t, r, keep, d, inside, st, sd).to(ACC)
        return base2(x), tl.zeros([C], ACC)
    if KEY == SCALAR:
        x = tl.load(p + t * st + r * st, mask=keep, other=0.0).to(ACC)
        return tl.where(inside[None, :], base2(x)[:, None], 0.0), x
    if KEY == OUTER:
        x = tl.load(p + t * st + r * st, mask=keep, other=0.0).to(ACC)
        # a == 0 also covers the padding: inf * 0 (a reset through dt) must not become NaN there
        return base2(tl.where(a[None, :] == 0.0, 0.0, x[:, None] * a[None, :])), x
    return tl.zeros([C, d.shape[0]], ACC), tl.zeros([C], ACC)


@triton.jit
def product(x, y, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """x @ y with operands in DOT, accumulated in ACC."""
    return tl.dot(x.to(DOT), y.to(DOT), input_precision=PREC, out_dtype=ACC)


@triton.jit
def times_state(x, S, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """x [C, K] @ S [K, V], as the transpose of Sᵀ xᵀ: the state's long side fills the rows of a matrix unit,
    C its columns, and the state need not pass through registers."""
    return tl.trans(product(tl.trans(S), tl.trans(x), DOT, PREC, ACC))


@triton.jit
def across(x, y, C: tl.constexpr, D: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """x yᵀ [C, C] of x, y [C, D], in parts of D/n channels side by side: each warp holds one of them, where
    all warps would hold both operands whole."""
    n: tl.constexpr = D // 32
    if n < 2 or C > 16:
        return product(x, tl.trans(y), DOT, PREC, ACC)
    else:  # noqa: RET505
        a = tl.permute(tl.reshape(x.to(DOT), [C, n, 32]), [1, 0, 2])
        b = tl.permute(tl.reshape(y.to(DOT), [C, n, 32]), [1, 2, 0])
        return tl.sum(tl.dot(a, b, input_precision=PREC, out_dtype=ACC), 0)
