"""Device functions shared by every kernel: where a token lies in memory, log-decays, 0/1 sum matrices.

Log-decays leave this file in base 2, clamped below: exp2 of the bound is exactly 0 in fp32 and in fp64, so a
decay of -inf keeps its meaning while every later operation stays finite. Sums of log-decays are only ever
*sums* (products with 0/1 matrices): no difference of cumulative sums is formed anywhere, so nothing cancels.
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
    p, t, r, live, a, d, inside, st, sd, KEY: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr
):
    """[C, K] base-2 log-decays over keys (zeros where KEY is NONE: not loaded), and dt [C] for OUTER.

    a: [K] the row of A of this head, in ACC (OUTER only, else ignored)."""
    if KEY == VECTOR:
        x = load_rows(p, t, r, live, d, inside, st, sd).to(ACC)
        return base2(x), tl.zeros([C], ACC)
    if KEY == SCALAR:
        x = tl.load(p + t * st + r * st, mask=live, other=0.0).to(ACC)
        return tl.where(inside[None, :], base2(x)[:, None], 0.0), x
    if KEY == OUTER:
        x = tl.load(p + t * st + r * st, mask=live, other=0.0).to(ACC)
        # a == 0 also covers the padding: inf * 0 (a reset through dt) must not become NaN there
        return base2(tl.where(a[None, :] == 0.0, 0.0, x[:, None] * a[None, :])), x
    return tl.zeros([C, d.shape[0]], ACC), tl.zeros([C], ACC)


@triton.jit
def before_matrix(C: tl.constexpr, STRICT: tl.constexpr, TRANSPOSED: tl.constexpr, SUMS: tl.constexpr):
    """[C, C] of 0/1: row t sums r <= t (r < t if STRICT)."""
    r = tl.arange(0, C)
    row = r[None, :] if TRANSPOSED else r[:, None]
    col = r[:, None] if TRANSPOSED else r[None, :]
    pick = (col < row) if STRICT else (col <= row)
    return tl.where(pick, 1.0, 0.0).to(SUMS)


@triton.jit
def after_matrix(C: tl.constexpr, TRANSPOSED: tl.constexpr, SUMS: tl.constexpr):
    """[C, C] of 0/1: row s sums r > s."""
    r = tl.arange(0, C)
    row = r[None, :] if TRANSPOSED else r[:, None]
    col = r[:, None] if TRANSPOSED else r[None, :]
    return tl.where(col > row, 1.0, 0.0).to(SUMS)


@triton.jit
def halves_matrix(level, C: tl.constexpr, STRICT: tl.constexpr, TRANSPOSED: tl.constexpr, SUMS: tl.constexpr):
    """[C, C] of 0/1 for one level of the tree: blocks of 2^level, even ones left, odd ones right.

    A row of a right block sums its block up to itself (without itself if STRICT): its distance from the
    boundary. A row of a left block sums what follows it in its block. So one product serves both sides of
    every pair."""
    r = tl.arange(0, C)
    row = r[None, :] if TRANSPOSED else r[:, None]
    col = r[:, None] if TRANSPOSED else r[None, :]
    right = ((row >> level) & 1) == 1
    upto = (col < row) if STRICT else (col <= row)
    pick = ((row >> level) == (col >> level)) & ((right & upto) | ((right == 0) & (col > row)))
    return tl.where(pick, 1.0, 0.0).to(SUMS)


@triton.jit
def pairs_mask(level, C: tl.constexpr):
    """[C, C]: row in a right block of this level, column in the left block beside it."""
    row = tl.arange(0, C)[:, None]
    col = tl.arange(0, C)[None, :]
    return ((row >> (level + 1)) == (col >> (level + 1))) & ((row >> level) > (col >> level))


@triton.jit
def pieces(x, DTYPE: tl.constexpr):
    """float32 x as three bfloat16 pieces which add up to it exactly, in DTYPE."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return high.to(DTYPE), middle.to(DTYPE), low.to(DTYPE)


@triton.jit
def sums(matrix, x, SUMS: tl.constexpr, ACC: tl.constexpr):
    """A 0/1 matrix [C, C] in SUMS times x [C, D] in ACC: sums of rows of x.

    float32 is cut into bfloat16 pieces, so that tensor cores give what float32 addition gives. SUMS is
    bfloat16 for that, float32 where the interpreter has no bfloat16 product, float64 for float64, which needs
    no pieces."""
    if tl.float64 == ACC:
        return tl.dot(matrix, x, input_precision="ieee", out_dtype=ACC)
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        high, middle, low = pieces(x, SUMS)
        total = tl.dot(matrix, low, input_precision="ieee", out_dtype=ACC)
        total = tl.dot(matrix, middle, total, input_precision="ieee", out_dtype=ACC)
        return tl.dot(matrix, high, total, input_precision="ieee", out_dtype=ACC)


@triton.jit
def product(x, y, PREC: tl.constexpr, ACC: tl.constexpr):
    """x @ y, accumulated in ACC. PREC "pieces": float32 accuracy from six bfloat16 products, the others being
    below 2^-24. (Three TF32 ones: as many instructions for fewer bits, and operands twice the size in
    registers.)"""
    if PREC == "pieces":
        x1, x2, x3 = pieces(x, tl.bfloat16)
        y1, y2, y3 = pieces(y, tl.bfloat16)
        total = tl.dot(x3, y1, out_dtype=ACC)
        total = tl.dot(x1, y3, total, out_dtype=ACC)
        total = tl.dot(x2, y2, total, out_dtype=ACC)
        total = tl.dot(x2, y1, total, out_dtype=ACC)
        total = tl.dot(x1, y2, total, out_dtype=ACC)
        return tl.dot(x1, y1, total, out_dtype=ACC)
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        return tl.dot(x, y, input_precision=PREC, out_dtype=ACC)
