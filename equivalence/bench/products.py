"""The matmul regime: heads of 128, against the time that their own products take, and against attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import recurrence
from .bar import Bar, Effort, Measured, forward, in_turns, seconds_of, timed_in_turns

HEADS, DIM, CHUNK, LENGTH = 8, 128, 64, 8192


def operands(
    length: int, decay: str, dtype: torch.dtype = torch.float32, strength: float = 0.1
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, length, HEADS, DIM, generator=g) * DIM**-0.5 for _ in range(3))
    shape = {"constant": (HEADS,), "scalar": (1, length, HEADS), "vector": (1, length, HEADS, DIM)}[decay]
    log_decay = -strength * torch.rand(*shape, generator=g)
    if decay == "vector" and strength > 1:
        log_decay[:, ::7] = -1e4
    return {n: x.to(dtype) for n, x in (("q", q), ("k", k), ("v", v), ("log_decay", log_decay))}


def run(x: dict[str, Any]) -> Tensor:
    return recurrence(**x)[0]


def products(length: int, backward: bool) -> tuple[Callable[[], None], float]:
    """Products of the sizes that a chunk has, as many as there are chunks; and its own FLOPs over theirs.

    Per token and head (C - 1)(K + V) + 4KV forward, (C - 1)(3K + 2V) + 10KV backward.
    """
    a, b = torch.randn(HEADS, CHUNK, DIM), torch.randn(HEADS, DIM, CHUNK)
    c, S = torch.randn(HEADS, CHUNK, CHUNK), torch.randn(HEADS, DIM, DIM)
    square, wide, state = (
        torch.empty(HEADS, CHUNK, CHUNK),
        torch.empty(HEADS, CHUNK, DIM),
        torch.empty_like(S),
    )

    def call() -> None:
        for _ in range(length // CHUNK):
            torch.bmm(a, b, out=square)
            torch.bmm(c, a, out=wide)
            torch.bmm(a, S, out=wide)
            torch.bmm(b, a, out=state)

    done = 2 * CHUNK * (2 * DIM) + 4 * DIM * DIM
    own = (CHUNK - 1) * 2 * DIM + 4 * DIM * DIM
    if backward:
        own = (CHUNK - 1) * 5 * DIM + 10 * DIM * DIM
    return call, own / done


def forward_bar(decay: str, effort: Effort, strength: float = 0.1) -> Measured:
    n = effort.size(LENGTH, 2048)
    x = operands(n, decay, strength=strength)
    call, share = products(n, False)
    return shared(in_turns(forward(lambda: run(x)), forward(call), effort), share)


def shared(m: Measured, share: float) -> Measured:
    """Over so much of the other's time."""
    return Measured(m.ratio / share, m.one, m.other * share, m.rounds)


def backward_bar(decay: str, effort: Effort, strength: float = 0.1) -> Measured:
    """The gradient alone, of an output that has been computed."""
    n = effort.size(LENGTH, 2048)
    x = {name: y.requires_grad_() for name, y in operands(n, decay, strength=strength).items()}
    call, share = products(n, True)

    def gradient() -> float:
        y = run(x)
        g = torch.ones_like(y)
        return seconds_of(lambda: torch.autograd.grad(y, list(x.values()), g))

    return shared(timed_in_turns(gradient, lambda: seconds_of(call), effort), share)


def half_bar(decay: str, effort: Effort) -> Measured:
    n = effort.size(LENGTH, 2048)
    low, full = operands(n, decay, torch.bfloat16), operands(n, decay)
    return in_turns(forward(lambda: run(low)), forward(lambda: run(full)), effort)


def attention_bar(length: int, effort: Effort) -> Measured:
    """torch's causal attention over lightning attention's core."""
    x = operands(length, "constant")
    q, k, v = (x[n].transpose(1, 2).contiguous() for n in ("q", "k", "v"))
    attend = functools.partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    return in_turns(forward(attend), forward(lambda: run(x)), effort)


def bars() -> list[Bar]:
    size = f"B 1, H {HEADS}, D {DIM}, T {LENGTH}, float32"
    found = []
    for decay in ("constant", "scalar", "vector"):
        limits = (2.3, 2.5) if decay == "vector" else (1.9, 2.2)
        for name, measure, limit in (
            ("forward", forward_bar, limits[0]),
            ("backward", backward_bar, limits[1]),
        ):
            text = f"time over that of its own products (chunk {CHUNK}): {size}"
            call = functools.partial(measure, decay)
            found.append(Bar("products", f"{decay}-{name}", text, call, at_most=limit))
    for name, measure, limit in (("forward", forward_bar, 3.5), ("backward", backward_bar, 3.8)):
        call = functools.partial(measure, "vector", strength=50.0)
        text = f"the same with log-decays to -50, and -10,000 every seventh step: {size}"
        found.append(Bar("products", f"vector-strong-{name}", text, call, at_most=limit))
    for decay in ("scalar", "vector"):
        call = functools.partial(half_bar, decay)
        found.append(
            Bar("products", f"{decay}-bfloat16", "bfloat16 over float32, forward", call, at_most=1.0)
        )
    for length, least in ((1024, 1.0), (2048, 2.0), (8192, 12.0), (32768, 40.0)):
        text = f"torch's causal attention over lightning attention's core, forward, T {length}"
        call = functools.partial(attention_bar, length)
        found.append(Bar("attention", f"T-{length}", text, call, at_least=least))
    return found
