"""The gradient of the recurrence: two sweeps over blocks, in plain torch vocabulary.

With G_t = dL/dS_t, which obeys the same recurrence in reversed time,

    dq_t = S_t do_t     dk_t = G_t v_t     dv_t = G_tᵀ k_t     dlog a_t = rowsum(a_t b_tᵀ ∘ S_{t-1} ∘ G_t)

The decay gradient is taken in its *straddle* form: it sums exactly the pairs (s, t) whose
weight contains a_t. The usual formula, a difference of two cumulative sums of q∘dq and k∘dk,
is the same number in exact arithmetic and loses all digits where decays are strong; this one
has no subtraction, a relative error of rounding size, and is exactly 0 where a_t = 0.

Memory: the state at the start of every block, T·K·V/C; never a state per token (the recurrent
form keeps them inside one block at a time). Everything here is differentiable again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from .forms import (
    Source,
    _cat,
    carry,
    causal,
    cut,
    decay_state,
    decayed,
    halves,
    is_scalar,
    later,
    pad_time,
    power_of_two,
    prefix,
    prefix_weight,
    read_state,
    segment_weights,
    suffix,
    suffix_weight,
    total,
    weighted,
    weights,
    whole,
)
from .memory import into, reuses
from .order import Order
from .scan import end
from .scan_gradient import scan_gradient
from .steps import Array, Gradients, Slice, Steps

# (slice, S at its start, G at its end, dO) -> gradients of the slice, G at its start
BlockGradient = Callable[[Slice, Array, Array, Array, Order], tuple[Gradients, Array]]


def plus(g: Gradients, h: Gradients) -> Gradients:
    """The sum, None being zero."""
    pairs = zip(g, h, strict=True)
    return Gradients(*(a if b is None else b if a is None else a + b for a, b in pairs))


def _like(g: Array, l: Array) -> Array:
    """Sum over channels where the decay is shared by them."""
    return g.sum(-1, True) if l.shape[-1] == 1 else g


# ------------------------------------------------------------------ block by block, in matrices


def straddling(pairs: Array, query_decayed: bool, key_decayed: bool = False) -> Array:
    """Of each step the sum over the pairs [..., C, C], of a query and a key, that are weighed by its decay:
    keys before it (or up to it), queries from it on (or after it); [..., C, 1]."""
    keys = into("pairs before", torch.cumsum, pairs, -1)
    first = (0 if query_decayed else -1) - (0 if key_decayed else 1)
    found = torch.sum(into("straddling", torch.tril, keys, first), -2)[..., None]
    return found if key_decayed else later(found)


def _through_state(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """Gradients of everything that passes through the state at either end of the block."""
    pre_a, suf_a = prefix_weight(c.la, order.query_decayed), suffix_weight(c.la, order.key_decayed)
    pre_b, suf_b = prefix_weight(c.lb, order.query_decayed), suffix_weight(c.lb, order.key_decayed)
    q, do = weighted(c.q, pre_a), weighted(do, pre_b)
    k, v = weighted(c.k, suf_a), weighted(c.v, suf_b)
    dq, dk, dv = do @ S.mT, v @ G.mT, k @ G
    dla: Array = None
    dlb: Array = None
    G_start = decay_state(G, total(c.la), total(c.lb))
    if c.la is not None:
        across = _like((G_start * S).sum(-1)[..., None, :], c.la)
        dla = (
            across
            + suffix(_like(q * dq, c.la), order.query_decayed)
            + prefix(_like(k * dk, c.la), order.key_decayed)
        )
    if c.lb is not None:
        dlb = (
            (G_start * S).sum(-2)[..., None, :]
            + suffix(do * (q @ S), order.query_decayed)
            + prefix(v * dv, order.key_decayed)
        )
    grads = Gradients(weighted(dq, pre_a), weighted(dk, suf_a), weighted(dv, suf_b), dla, dlb)
    return grads, G_start + q.mT @ do


def _inside_scalar(c: Slice, do: Array, order: Order) -> Gradients:
    """Gradients of the pairs inside a block whose weights are one matrix per head."""
    P = weights(c, 0, order)
    dP = causal(do @ c.v.mT, 0, order)
    dv = P.mT @ do
    dla = None
    W = dP
    if c.la is not None:
        W = dP * segment_weights(c.la, 0, order)
        dla = straddling(P * dP, order.query_decayed, order.key_decayed)
    return Gradients(W @ c.k, W.mT @ c.q, dv, dla, None)


def _inside_tree(c: Slice, do: Array, order: Order) -> Gradients:
    """Gradients of the pairs inside a block, by the levels of the tree."""
    n = c.v.shape[-2]
    padded = power_of_two(n)
    c = Slice(*(None if x is None else pad_time(x, padded) for x in c))
    do = pad_time(do, padded)
    if order.strict:
        zero = torch.zeros_like(c.q * c.k * c.v[..., :1])
        dq, dk, dv = zero, zero, torch.zeros_like(c.v)
        dla = None if c.la is None else _like(zero, c.la)
        dlb = None if c.lb is None else torch.zeros_like(c.v)
    else:
        both = order.query_decayed and order.key_decayed
        k, v = (decayed(c.k, c.la), decayed(c.v, c.lb)) if both else (c.k, c.v)
        dw, w = torch.sum(do * v, -1, True), torch.sum(c.q * k, -1, True)
        dq, dk, dv = k * dw, c.q * dw, w * do
        if both:
            dk, dv = decayed(dk, c.la), decayed(dv, c.lb)
        inside = c.q * k * dw if both else torch.zeros_like(dq)
        dla = None if c.la is None else _like(inside, c.la)
        dlb = None if c.lb is None else (do * v * w if both else torch.zeros_like(dv))
    h = 1
    while h < padded:
        (_, q), (k, _), (v, _), (_, g) = halves(c.q, h), halves(c.k, h), halves(c.v, h), halves(do, h)
        la_l, la_r = (None, None) if c.la is None else halves(c.la, h)
        lb_l, lb_r = (None, None) if c.lb is None else halves(c.lb, h)
        pre_a, suf_a = prefix(la_r, order.query_decayed), suffix(la_l, order.key_decayed)
        pre_b, suf_b = prefix(lb_r, order.query_decayed), suffix(lb_l, order.key_decayed)
        q, g, k, v = decayed(q, pre_a), decayed(g, pre_b), decayed(k, suf_a), decayed(v, suf_b)
        P, dP = q @ k.mT, g @ v.mT
        dq_r, dk_l, dv_l = dP @ k, dP.mT @ q, P.mT @ g
        if dla is not None:
            l, r = halves(dla, h)
            dla = whole(
                l + prefix(_like(k * dk_l, c.la), order.key_decayed),
                r + suffix(_like(q * dq_r, c.la), order.query_decayed),
            )
        if dlb is not None:
            l, r = halves(dlb, h)
            dlb = whole(
                l + prefix(v * dv_l, order.key_decayed),
                r + suffix(g * (P @ v), order.query_decayed),
            )
        (l, r), (kl, kr), (vl, vr) = halves(dq, h), halves(dk, h), halves(dv, h)
        dq = whole(l, r + decayed(dq_r, pre_a))
        dk = whole(kl + decayed(dk_l, suf_a), kr)
        dv = whole(vl + decayed(dv_l, suf_b), vr)
        h *= 2
    return Gradients(*(None if x is None else x[..., :n, :] for x in (dq, dk, dv, dla, dlb)))


def chunk_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    outside, G_start = _through_state(c, S, G, do, order)
    inside = _inside_scalar(c, do, order) if is_scalar(c) else _inside_tree(c, do, order)
    return plus(outside, inside), G_start


# ------------------------------------------------------------------ block by block, step by step


def walk_gradient(c: Slice, S: Array, G: Array, do: Array, order: Order) -> tuple[Gradients, Array]:
    """The definition, differentiated: forward through the block keeping its states, then back."""
    n = c.v.shape[-2]
    read: list[Array] = []
    before: list[Array] = []
    faded: list[Array] = []
    overwritten: list[Array] = []
    for t in range(n):
        _, k, v, la, lb, beta, x, y = cut(c, t, t + 1)
        for event in order.events:
            if event == "D":
                before.append(S)
                S = decay_state(S, la, lb)
                faded.append(S)
                S = S if y is None else S + x.mT * read_state(y, before[t])
            elif event == "A":
                overwritten.append(S)
                S = S + k.mT * (v if beta is None else beta * (v - read_state(k, S)))
            else:
                read.append(S)
    grads: list[Gradients] = []
    for t in range(n - 1, -1, -1):
        q, k, v, la, lb, beta, x, y = cut(c, t, t + 1)
        g = do[..., t : t + 1, :]
        dq: Array = None
        dk: Array = None
        dv: Array = None
        dla: Array = None
        dlb: Array = None
        dbeta: Array = None
        dx: Array = None
        dy: Array = None
        for event in order.events[::-1]:
            if event == "R":
                dq = read_state(g, read[t].mT)
                G = G + q.mT * g
            elif event == "A" and beta is None:
                dk, dv = read_state(v, G.mT), read_state(k, G)
            elif event == "A":
                missing = v - read_state(k, overwritten[t])
                dw = read_state(k, G)
                dv = beta * dw
                dbeta = torch.sum(dw * missing, -1, True)
                dk = read_state(beta * missing, G.mT) - read_state(dv, overwritten[t].mT)
                G = G - k.mT * dv
            else:
                if la is not None or lb is not None:
                    pairs = faded[t] * G
                    dla = None if la is None else _like(pairs.sum(-1)[..., None, :], la)
                    dlb = None if lb is None else pairs.sum(-2)[..., None, :]
                erasing: Array = None
                if y is not None:
                    dx, de = read_state(read_state(y, before[t]), G.mT), read_state(x, G)
                    dy, erasing = read_state(de, before[t].mT), y.mT * de
                G = decay_state(G, la, lb)
                G = G if erasing is None else G + erasing
        grads.append(Gradients(dq, dk, dv, dla, dlb, dbeta, dx, dy))
    joined = (None if xs[0] is None else _cat(list(xs)) for xs in zip(*grads[::-1], strict=True))
    return Gradients(*joined), G


# ------------------------------------------------------------------ the two sweeps

GRADIENTS: dict[str, BlockGradient] = {
    "chunk": chunk_gradient,
    "recurrent": walk_gradient,
    "scan": scan_gradient,
}
# (slice, state before it) -> state after it
Carry = Callable[[Slice, Array, Order], Array]
CARRIES: dict[str, Carry] = {"chunk": carry, "recurrent": carry, "scan": end}

# Blocks whose states are all kept; of more than these, some are, and the others are made again.
MANY = 32


def states_at(steps: Source, S: Array, order: Order, size: int, carry: Carry = carry) -> list[Array]:
    """The state at the start of every block, and at the end: length T/size + 1."""
    states = [S]
    for i in range(0, len(steps), size):
        S = carry(steps.slice(i, min(i + size, len(steps))), S, order)
        states.append(S)
    return states


def states_back(
    steps: Source, S: Array, order: Order, size: int, carry: Carry
) -> Iterator[tuple[int, Array]]:
    """The start of every block and the state there, the last first. Of many blocks only about the root of
    their number is kept, of states and of those between two of them: a second sweep for less memory."""
    starts = range(0, len(steps), size)
    apart = 1 if len(starts) <= MANY else math.isqrt(len(starts))
    kept = [S]
    for i in starts[:-1]:
        S = carry(steps.slice(i, i + size), S, order)
        if (i // size + 1) % apart == 0:
            kept.append(S)
    for n in reversed(range(len(kept))):
        between = [kept.pop()]
        blocks = starts[n * apart : (n + 1) * apart]
        for i in blocks[:-1]:
            between.append(carry(steps.slice(i, i + size), between[-1], order))
        yield from zip(reversed(blocks), reversed(between), strict=True)


def vjp(
    steps: Steps,
    S: Array,
    do: Array,
    dS: Array,
    order: Order,
    size: int,
    block: BlockGradient = chunk_gradient,
    carry: Carry = carry,
) -> tuple[Gradients, Array]:
    """Gradients of all operands, and of the initial state, given dO [B,T,H,V] and that of the final state."""
    if carry is end:
        states = states_back(steps, S, order, size, carry)
    else:
        every = states_at(steps, S, order, size, carry)[:-1]
        states = zip(reversed(range(0, len(steps), size)), reversed(every), strict=True)
    pieces, found, G = [], None, dS
    for i, S_start in states:
        j = min(i + size, len(steps))
        g, G = block(steps.slice(i, j), S_start, G, steps.cut_like_values(do, i, j), order)
        piece = steps.pull_back(i, j, g)
        if reuses():
            found = steps.place(i, j, piece, found)
        else:
            pieces.append(piece)
    return found or steps.join(pieces[::-1]), G
