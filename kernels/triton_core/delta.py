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
def diagonal_block(L, i, j, n: tl.constexpr, m: tl.constexpr, H: tl.constexpr):
    """[n, H, H]: of each of the n blocks on the diagonal of L [n m H, n m H], the part in row i, column j of
    its m x m parts."""
    row, col = tl.arange(0, n * m)[:, None], tl.arange(0, n * m)[None, :]
    at = ((row // m) == (col // m)) & (row % m == i) & (col % m == j)
    parts = tl.where(at[:, None, :, None], tl.reshape(L, [n * m, H, n * m, H]), 0.0)
    return tl.sum(tl.reshape(tl.sum(parts, 2), [n, m, H, H]), 1)


@triton.jit
def joined(A, D, B, n: tl.constexpr, H: tl.constexpr):
    """[n, 2H, 2H]: (A 0; B D) of [n, H, H] each."""
    low = (tl.arange(0, 2) == 1)[None, :, None, None, None]
    right = (tl.arange(0, 2) == 1)[None, None, None, :, None]
    A, D, B = A[:, None, :, None, :], D[:, None, :, None, :], B[:, None, :, None, :]
    X = tl.where(low, tl.where(right, D, B), tl.where(right, 0.0, A))
    return tl.reshape(X, [n, 2 * H, 2 * H])


@triton.jit
def inverse_of_16(L, row, col, ACC: tl.constexpr, PREC: tl.constexpr):
    """(I + L)⁻¹ of L [16, 16] or [n, 16, 16]."""
    X = tl.where(row == col, 1.0, 0.0).to(ACC) - tl.where((row >> 1) == (col >> 1), L, 0.0)
    for level in tl.static_range(1, 4):
        below = ((row >> (level + 1)) == (col >> (level + 1))) & ((row >> level) > (col >> level))
        B = tl.dot(X, tl.where(below, L, 0.0), input_precision=PREC, out_dtype=ACC)
        X -= tl.dot(B, X, input_precision=PREC, out_dtype=ACC)
    return X


@triton.jit
def inverse(L, C: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr):
    """(I + L)⁻¹ [C, C] of L [C, C], strictly lower triangular.

    From blocks of h steps those of 2h: below the diagonal the inverse of (A 0; B D) has -D⁻¹ B A⁻¹. Never a
    series of powers of L, whose terms outgrow their sum by many orders where keys are alike. Blocks of less
    than 16 steps, the least that a matrix unit takes, lie together in tiles of that."""
    r = tl.arange(0, 16)
    if C == 16:
        return inverse_of_16(L, r[:, None], r[None, :], ACC, PREC)
    else:  # noqa: RET505 (Triton compiles what follows a constexpr return)
        tl.static_assert(C == 32)
        low = (tl.arange(0, 2) == 1)[:, None, None, None]
        right = (tl.arange(0, 2) == 1)[None, None, :, None]
        parts = tl.reshape(L, [2, 16, 2, 16])
        B = tl.sum(tl.sum(tl.where(low & (right == 0), parts, 0.0), 2), 0)
        X = tl.sum(tl.where(low == right, parts, 0.0), 2)
        X = inverse_of_16(X, r[None, :, None], r[None, None, :], ACC, PREC)
        second = (tl.arange(0, 2) == 1)[:, None, None]
        A, D = tl.sum(tl.where(second, 0.0, X), 0), tl.sum(tl.where(second, X, 0.0), 0)
        B = tl.dot(D, B, input_precision=PREC, out_dtype=ACC)
        B = -tl.dot(B, A, input_precision=PREC, out_dtype=ACC)
        X = tl.where(low == right, X[:, :, None, :], tl.where(low, B[None, :, None, :], 0.0))
        return tl.reshape(X, [C, C])


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
        return scalar_scores(q, k, la, K, KEY, C, STRICT, SELF, DOT, PREC, ACC)


@triton.jit
def pair_gradients(
    q, y, x, P, N, gqx, gyx, gq, gy, gx, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr,
    C: tl.constexpr, ONE: tl.constexpr, STRICT: tl.constexpr, EARLY: tl.constexpr, DOT: tl.constexpr,
    PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """gq, gy, gx [C, K] with what comes to q, y and x from gqx, gyx [C, C], the gradients of P and N, what q
    and y read of x; and the gradient of la. ONE: y is x, and all of it is in gx."""
    if TREE:
        return vector_gradients(
            q.to(ACC), y.to(ACC), x.to(ACC), gqx, gyx, gq, gy, gx, la, K, C, ONE, STRICT, EARLY, DOT, PREC,
            ACC,
        )  # fmt: skip
    else:  # noqa: RET505
        a, b, u = scalar_gradients(q, x, P, gqx, la, KEY, C, STRICT, not STRICT, DOT, PREC, ACC)
        gq += a
        gx += b
        a, b, w = scalar_gradients(y, x, N, gyx, la, KEY, C, EARLY, False, DOT, PREC, ACC)
        gx += b
        if ONE:
            gx += a
        else:
            gy += a
        return gq, gy, gx, u + w


@triton.jit
def end_gradients(
    of_q, of_y, writes, through, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    STRICT: tl.constexpr, EARLY: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of la from those of its sums: from the start of the chunk until q reads (STRICT), until y
    reads (EARLY), and from a write until the end [C, K]; and over all of it [K]."""
    if TREE:
        LEVELS: tl.constexpr = 4 if C == 16 else 5
        through = tl.zeros_like(writes) + through[None, :]
        u = to_decays(of_q + of_y, writes, through, LEVELS, C, K, True)
        if not STRICT:
            u += of_q
        if not EARLY:
            u += of_y
        return u
    elif KEY == NONE:  # noqa: RET505
        return tl.zeros([C], ACC)
    else:
        u = tl.cumsum(tl.sum(of_q, 1), 0, reverse=True)
        w = tl.cumsum(tl.sum(of_y, 1), 0, reverse=True)
        if STRICT:
            u = shifted(u, C, -1)
        if EARLY:
            w = shifted(w, C, -1)
        return u + w + shifted(tl.cumsum(tl.sum(writes, 1), 0), C, 1) + tl.sum(through, 0)


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
def erased_outputs(
    q, k, v, x, U, S, la, scale, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    STRICT: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Outputs [C, V] of a chunk which starts from S [K, V] and writes U."""
    out = from_state(q, S, read_weight(la, K, KEY, TREE, C, STRICT, ACC), TREE, DOT, PREC, ACC)
    out += product(scores(q, x, la, K, KEY, TREE, C, STRICT, not STRICT, DOT, PREC, ACC), U, DOT, PREC, ACC)
    if ERASE == GENERAL:
        P = scores(q, k, la, K, KEY, TREE, C, STRICT, not STRICT, DOT, PREC, ACC)
        out += product(P, v, DOT, PREC, ACC)
    return out * scale


@triton.jit
def erased_advance(
    S, k, v, x, U, la, K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr,
    ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The state [K, V] after a chunk which writes U."""
    w = write_weight(la, K, KEY, TREE, C, ACC)
    S = state_decayed(S, la, KEY, TREE)
    if ERASE == GENERAL:
        S += to_state(k, v, w, DOT, PREC, ACC)
    S += to_state(x, U, w, DOT, PREC, ACC)
    return S


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
    q, k, v, x, y, beta, do, S, G, la, scale, to_q, to_k, to_v, to_beta, to_x, to_y, of_k, of_v, keep, live,
    K: tl.constexpr, KEY: tl.constexpr, TREE: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr,
    ERASE: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, SOLVE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of q, k, v, beta, x and y at to_q ..., and returns those of la and of the state
    before the chunk.

    S [K, V] is the state before the chunk, G the gradient of that after it. Of DELTA, x and y are k, and k
    has the gradients of all three. Whatever can be is used up before the next: side by side they overflow
    registers."""
    EARLY: tl.constexpr = ERASE == GENERAL  # y reads before the decay
    SELF: tl.constexpr = not STRICT
    kept = keep[:, None]
    through = tl.sum(S.to(ACC) * G.to(DOT).to(ACC), 1)
    if KEY != NONE:
        through *= tl.exp2(tl.sum(la, 0))
    wk = write_weight(la, K, KEY, TREE, C, ACC)
    wq = read_weight(la, K, KEY, TREE, C, STRICT, ACC)
    wy = read_weight(la, K, KEY, TREE, C, EARLY, ACC)
    # what is written, and through the system its gradient: that of what y reads
    N, X = solver(x, y, beta, la, K, KEY, TREE, C, ERASE, DOT, PREC, SOLVE, ACC)
    P = scores(q, x, la, K, KEY, TREE, C, STRICT, SELF, DOT, PREC, ACC)
    T = product(tl.trans(P * scale), do, DOT, PREC, ACC) + from_state(x, G, wk, TREE, DOT, PREC, ACC)
    T = product(tl.trans(X), T, DOT, PREC, ACC)
    r = from_state(y, S, wy, TREE, DOT, PREC, ACC)
    if ERASE == DELTA:
        r = v.to(ACC) - r
        U = product(X, r * beta[:, None], DOT, PREC, ACC)
        r = tl.sum(T * (r - product(N, U, DOT, PREC, ACC)), 1)
        tl.store(to_beta, tl.where(keep, r, 0.0), mask=live)
        T *= beta[:, None]
        tl.store(to_v, tl.where(kept, T, 0.0), mask=of_v)
        T = -T
    else:
        M = scores(y, k, la, K, KEY, TREE, C, True, False, DOT, PREC, ACC)
        U = product(X, r + product(M, v, DOT, PREC, ACC), DOT, PREC, ACC)
    # through the states: what is written to the one after the chunk, what reads the one before
    gx = times_state(U, tl.trans(G), DOT, PREC, ACC) * wk
    writes = x * gx
    if ERASE == GENERAL:
        gk = times_state(v, tl.trans(G), DOT, PREC, ACC) * wk
        writes += k * gk
        R = scores(q, k, la, K, KEY, TREE, C, STRICT, SELF, DOT, PREC, ACC)
        gv = product(tl.trans(R * scale), do, DOT, PREC, ACC) + from_state(k, G, wk, TREE, DOT, PREC, ACC)
        gv += product(tl.trans(M), T, DOT, PREC, ACC)
        tl.store(to_v, tl.where(kept, gv, 0.0), mask=of_v)
        gqk = product(do, tl.trans(v), DOT, PREC, ACC) * scale
        gyk = product(T, tl.trans(v), DOT, PREC, ACC)
    gqx = product(do, tl.trans(U), DOT, PREC, ACC) * scale
    gyx = product(T, tl.trans(U), DOT, PREC, ACC)
    gq = times_state(do, tl.trans(S), DOT, PREC, ACC) * (wq * scale)
    gy = times_state(T, tl.trans(S), DOT, PREC, ACC) * wy
    u = end_gradients(q * gq, y * gy, writes, through, K, KEY, TREE, C, STRICT, EARLY, ACC)
    G = state_decayed(G, la, KEY, TREE)
    if TREE:  # rounded as chunk_states does
        G += to_state(q.to(ACC) * scale, do, wq, DOT, PREC, ACC)
    else:
        G += to_state(q, do, wq * scale, DOT, PREC, ACC)
    G += to_state(y, T, wy, DOT, PREC, ACC)
    # inside the chunk
    if ERASE == DELTA:
        gx += gy
    else:
        gq, gy, gk, w = pair_gradients(
            q, y, k, R, M, gqk, gyk, gq, gy, gk, la, K, KEY, TREE, C, False, STRICT, EARLY,
            DOT, PREC, ACC,
        )  # fmt: skip
        tl.store(to_k, tl.where(kept, gk, 0.0), mask=of_k)
        u += w
    gq, gy, gx, w = pair_gradients(
        q, y, x, P, N, gqx, gyx, gq, gy, gx, la, K, KEY, TREE, C, ERASE == DELTA, STRICT,
        EARLY, DOT, PREC, ACC,
    )  # fmt: skip
    tl.store(to_q, gq, mask=of_k)
    if ERASE == DELTA:
        tl.store(to_k, tl.where(kept, gx, 0.0), mask=of_k)
    else:
        tl.store(to_x, tl.where(kept, gx, 0.0), mask=of_k)
        tl.store(to_y, tl.where(kept, gy, 0.0), mask=of_k)
    return u + w, G
