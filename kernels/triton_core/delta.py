"""The delta rule, and the general form of it, inside a chunk: what the chunk writes solves a unit triangular
system, and is then written, read and decayed like any other value.

    DELTA    U = (I + β N)⁻¹ β (V - Ỹ S)         y = x = k, read after the decay
    GENERAL  U = (I - N)⁻¹ (Ỹ S + M V)           y, x of the call, read before the decay

N and M are what y reads from the x and from the k of steps before; Ỹ is y decayed since the start of the
chunk. What is written is (x, U), and in GENERAL (k, V) too. Backward, the gradient of U goes through the
transposed system, and what comes out is, up to -β, the gradient of what y reads. So all gradients are those
of reads (q, and y) of writes ((x, U), and (k, V)): from pairs inside the chunk, and through the states at its
ends. Each is a sum; those of log-decays of pairs whose weight holds the decay, as without erasure.

Shapes: C steps, K keys (all of them: y reads them all), V values; la in base 2, [C] or if TREE [C, K].
STRICT: a read does not see the decay of its step; SELF: it sees what its step writes.
"""

import triton
import triton.language as tl

from .decay import NONE, product, times_state
from .scalar import after, scalar_gradients, scalar_scores, shifted, upto
from .vector import decayed, ends, to_decays, vector_gradients, vector_scores

DELTA = tl.constexpr(1)
GENERAL = tl.constexpr(2)


@triton.jit
def inverse(L, C: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr):
    """(I + L)⁻¹ [C, C] of L [C, C], strictly lower triangular.

    From blocks of h steps those of 2h: below the diagonal the inverse of (A 0; B D) has -D⁻¹ B A⁻¹. Never a
    series of powers of L, whose terms outgrow their sum by many orders where keys are alike."""
    LEVELS: tl.constexpr = 4 if C == 16 else (5 if C == 32 else 6)
    row, col = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    X = tl.where(row == col, 1.0, 0.0).to(ACC)
    for level in tl.static_range(0, LEVELS):
        below = ((row >> (level + 1)) == (col >> (level + 1))) & ((row >> level) > (col >> level))
        B = tl.where(below, L, 0.0)
        if level == 0:
            X -= B
        else:
            B = tl.dot(X, B, input_precision=PREC, out_dtype=ACC)
            X -= tl.dot(B, X, input_precision=PREC, out_dtype=ACC)
    return X


@triton.jit
def read_weight(
    la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """[C, 1], or if TREE [C, K]: the decay from the start of the chunk until a read."""
    if TREE:
        start, _ = ends(la, C, K, STRICT)
        return tl.exp2(start)
    elif KEY == NONE:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        return tl.full([C, 1], 1.0, ACC)
    else:
        return tl.exp2(upto(la, C, STRICT))[:, None]


@triton.jit
def write_weight(
    la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr
):
    """The decay from a write until the end of the chunk."""
    if TREE:
        _, end = ends(la, C, K, False)
        return tl.exp2(end)
    elif KEY == NONE:  # noqa: RET505
        return tl.full([C, 1], 1.0, ACC)
    else:
        return tl.exp2(after(la, C))[:, None]


@triton.jit
def state_decayed(S, la, KEY: tl.constexpr, TREE: tl.constexpr):
    """A state [K, V] after all decays of a chunk."""
    if TREE:
        return decayed(S, la, la, KEY, False)
    elif KEY == NONE:  # noqa: RET505
        return S
    else:
        return S * tl.exp2(tl.sum(la, 0))


@triton.jit
def from_state(q, S, w, TREE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """(w ∘ q) S [C, V]."""
    if TREE:
        return times_state(q.to(ACC) * w, S, DOT, PREC, ACC)
    else:  # noqa: RET505
        return times_state(q, S, DOT, PREC, ACC) * w


@triton.jit
def to_state(k, v, w, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """(w ∘ k)ᵀ v [K, V]."""
    return product(tl.trans(k.to(ACC) * w), v, DOT, PREC, ACC)


@triton.jit
def scores(
    q, k, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr,
    SELF: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """[C, C]: what a step (row) reads with q of what one writes (column) with k."""
    if TREE:
        return vector_scores(q.to(ACC), k.to(ACC), la, K, C, STRICT, SELF, DOT, PREC, ACC)
    else:  # noqa: RET505
        return scalar_scores(q, k, la, KEY, C, STRICT, SELF, DOT, PREC, ACC)


@triton.jit
def score_gradients(
    q, k, P, g, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    STRICT: tl.constexpr, SELF: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k [C, K] and la from g [C, C], that of P, their `scores`."""
    if TREE:
        return vector_gradients(q.to(ACC), k.to(ACC), g, la, K, C, STRICT, SELF, DOT, PREC, ACC)
    else:  # noqa: RET505
        return scalar_gradients(q, k, P, g, la, KEY, C, STRICT, SELF, DOT, PREC, ACC)


@triton.jit
def end_gradients(
    reads, writes, through, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    STRICT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of la from those of its sums: from the start of the chunk until a read [C, K], from a
    write until the end [C, K], and over all of it [K]."""
    if TREE:
        LEVELS: tl.constexpr = 4 if C == 16 else 5
        return to_decays(reads, writes, tl.zeros_like(la) + through[None, :], LEVELS, C, K, STRICT)
    elif KEY == NONE:  # noqa: RET505
        return tl.zeros([C], ACC)
    else:
        u = tl.cumsum(tl.sum(reads, 1), 0, reverse=True)
        if STRICT:
            u = shifted(u, C, -1)
        return u + shifted(tl.cumsum(tl.sum(writes, 1), 0), C, 1) + tl.sum(through, 0)


@triton.jit
def solver(
    x, y, beta, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, SOLVE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """N [C, C], and the inverse of the system."""
    N = scores(y, x, la, K, KEY, TREE, C, ERASE == GENERAL, False, DOT, PREC, ACC)
    return N, inverse(N * beta[:, None] if ERASE == DELTA else -N, C, ACC, SOLVE)


@triton.jit
def right_side(
    k, v, y, S, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """V - Ỹ S, or Ỹ S + M V [C, V]."""
    w = read_weight(la, K, KEY, TREE, C, ERASE == GENERAL, ACC)
    read = from_state(y, S, w, TREE, DOT, PREC, ACC)
    if ERASE == DELTA:
        return v.to(ACC) - read
    else:  # noqa: RET505
        M = scores(y, k, la, K, KEY, TREE, C, True, False, DOT, PREC, ACC)
        return read + product(M, v, DOT, PREC, ACC)


@triton.jit
def solved(
    k, v, x, y, beta, S, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, SOLVE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """U [C, V] of a chunk which starts from S [K, V]."""
    _, X = solver(x, y, beta, la, K, KEY, TREE, C, ERASE, DOT, PREC, SOLVE, ACC)
    r = right_side(k, v, y, S, la, K, KEY, TREE, C, ERASE, DOT, PREC, ACC)
    if ERASE == DELTA:
        r *= beta[:, None]
    return product(X, r, DOT, PREC, ACC)


@triton.jit
def solved_back(
    q, do, x, y, beta, G, la, scale, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    STRICT: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, SOLVE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Through the system, the gradient of U [C, V] from those of the outputs and of the state after the
    chunk."""
    _, X = solver(x, y, beta, la, K, KEY, TREE, C, ERASE, DOT, PREC, SOLVE, ACC)
    P = scores(q, x, la, K, KEY, TREE, C, STRICT, not STRICT, DOT, PREC, ACC) * scale
    w = write_weight(la, K, KEY, TREE, C, ACC)
    g = product(tl.trans(P), do, DOT, PREC, ACC) + from_state(x, G, w, TREE, DOT, PREC, ACC)
    return product(tl.trans(X), g, DOT, PREC, ACC)


@triton.jit
def erased_back(
    G, y, T, beta, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient [K, V] of the state before a chunk, with that through what y reads of it."""
    w = read_weight(la, K, KEY, TREE, C, ERASE == GENERAL, ACC)
    if ERASE == DELTA:
        T = -beta[:, None] * T
    return G + to_state(y, T, w, DOT, PREC, ACC)


@triton.jit
def erased_backward(
    q, k, v, x, y, beta, do, S, G, la, scale, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr,
    C: tl.constexpr, STRICT: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr,
    SOLVE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k [C, K], v [C, V], beta [C], x, y [C, K], la, and of the state before the chunk.

    S [K, V] is the state before the chunk, G the gradient of that after it. Of DELTA, x and y are k, and k
    has the gradients of all three."""
    EARLY: tl.constexpr = ERASE == GENERAL  # y reads before the decay
    SELF: tl.constexpr = not STRICT
    wq = read_weight(la, K, KEY, TREE, C, STRICT, ACC) * scale
    wy = read_weight(la, K, KEY, TREE, C, EARLY, ACC)
    wk = write_weight(la, K, KEY, TREE, C, ACC)
    N, X = solver(x, y, beta, la, K, KEY, TREE, C, ERASE, DOT, PREC, SOLVE, ACC)
    r = from_state(y, S, wy, TREE, DOT, PREC, ACC)
    if ERASE == DELTA:
        r = v.to(ACC) - r
        U = product(X, r * beta[:, None], DOT, PREC, ACC)
    else:
        M = scores(y, k, la, K, KEY, TREE, C, True, False, DOT, PREC, ACC)
        U = product(X, r + product(M, v, DOT, PREC, ACC), DOT, PREC, ACC)
    P = scores(q, x, la, K, KEY, TREE, C, STRICT, SELF, DOT, PREC, ACC)
    gU = product(tl.trans(P * scale), do, DOT, PREC, ACC) + from_state(x, G, wk, TREE, DOT, PREC, ACC)
    T = product(tl.trans(X), gU, DOT, PREC, ACC)
    gb = tl.zeros([C], ACC)
    if ERASE == DELTA:
        gb += tl.sum(T * (r - product(N, U, DOT, PREC, ACC)), 1)
        T *= -beta[:, None]
        gv = -T
    # pairs
    g = product(do, tl.trans(U), DOT, PREC, ACC) * scale
    gq, gx, u = score_gradients(q, x, P, g, la, K, KEY, TREE, C, STRICT, SELF, DOT, PREC, ACC)
    g = product(T, tl.trans(U), DOT, PREC, ACC)
    gy, gz, w = score_gradients(y, x, N, g, la, K, KEY, TREE, C, EARLY, False, DOT, PREC, ACC)
    gx += gz
    u += w
    # through the states at both ends
    sq = times_state(do, tl.trans(S), DOT, PREC, ACC) * wq
    sy = times_state(T, tl.trans(S), DOT, PREC, ACC) * wy
    sx = times_state(U, tl.trans(G), DOT, PREC, ACC) * wk
    gq += sq
    gy += sy
    gx += sx
    writes = x * sx
    if ERASE == GENERAL:
        P = scores(q, k, la, K, KEY, TREE, C, STRICT, SELF, DOT, PREC, ACC)
        gv = product(tl.trans(P * scale), do, DOT, PREC, ACC) + product(tl.trans(M), T, DOT, PREC, ACC)
        gv += from_state(k, G, wk, TREE, DOT, PREC, ACC)
        g = product(do, tl.trans(v), DOT, PREC, ACC) * scale
        gz, gk, w = score_gradients(q, k, P, g, la, K, KEY, TREE, C, STRICT, SELF, DOT, PREC, ACC)
        gq += gz
        u += w
        g = product(T, tl.trans(v), DOT, PREC, ACC)
        gz, gm, w = score_gradients(y, k, M, g, la, K, KEY, TREE, C, True, False, DOT, PREC, ACC)
        gy += gz
        u += w
        sk = times_state(v, tl.trans(G), DOT, PREC, ACC) * wk
        gk += gm + sk
        writes += k * sk
    else:
        gk = gx + gy
    through = tl.sum(S.to(ACC) * G.to(DOT).to(ACC), 1)
    if KEY != NONE:
        through *= tl.exp2(tl.sum(la, 0))
    u += end_gradients(q * sq, writes, through, la, K, KEY, TREE, C, STRICT, ACC)
    u += end_gradients(y * sy, tl.zeros_like(writes), tl.zeros_like(through), la, K, KEY, TREE, C, EARLY, ACC)
    G = state_decayed(G, la, KEY, TREE)
    G += to_state(q, do, wq, DOT, PREC, ACC) + to_state(y, T, wy, DOT, PREC, ACC)
    return gq, gk, gv, gb, gx, gy, u, G
