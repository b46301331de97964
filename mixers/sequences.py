"""What runs along each sequence beside the recurrence: the token before, sums, and the max-plus stabiliser.

Each takes what the state holds of every sequence [N, ...] and returns it as it is after the tokens, with
right padding and packed sequences as `Tokens` has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.memory import into, memory, reusing
from ..kernels.scan import Algebra, Element, lockstep
from .base import Tokens, cast


def _spread(x: Tensor, like: Tensor) -> Tensor:
    """x [B, T] with as many dimensions as `like`."""
    return x.reshape(*x.shape, *(1 for _ in like.shape[2:]))


def _firsts(tokens: Tokens) -> Tensor:
    """[B, T]: whether a token is the first of its sequence in this call."""
    first = torch.zeros_like(tokens.position, dtype=torch.bool)
    if tokens.segment is None:
        first[:, 0] = True
        return first
    assert tokens.cu_seqlens is not None
    steps = torch.arange(tokens.position.shape[1], device=first.device)
    return (steps == tokens.cu_seqlens.long()[tokens.segment])[None]


def _carried(start: Tensor, tokens: Tokens) -> Tensor:
    """start [N, ...] at every token of its sequence: [B, T or 1, ...]."""
    return start[:, None] if tokens.segment is None else start[tokens.segment][None]


def last(x: Tensor, start: Tensor, tokens: Tokens) -> Tensor:
    """x [B, T, ...] at the last token of every sequence, `start` [N, ...] where one has none: [N, ...]."""
    if tokens.lengths is None:
        return x[:, -1]
    n = tokens.lengths
    if tokens.cu_seqlens is None:
        rows, at = torch.arange(x.shape[0], device=x.device), n - 1
    else:
        rows, at = torch.zeros_like(n), tokens.cu_seqlens[1:].long() - 1
    found = x[rows, at.clamp(min=0)]
    return torch.where(n.reshape(-1, *(1 for _ in found.shape[1:])) > 0, found, start)


def first(x: Tensor, tokens: Tokens) -> Tensor:
    """x [B, T, ...] at the first token of every sequence, 0 where one has none: [N, ...]."""
    if tokens.lengths is None:
        return x[:, 0]
    found = (
        x[:, 0]
        if tokens.cu_seqlens is None
        else x[0, tokens.cu_seqlens[:-1].long().clamp(max=x.shape[1] - 1)]
    )
    some = (tokens.lengths > 0).reshape(-1, *(1 for _ in found.shape[1:]))
    return torch.where(some, found, torch.zeros_like(found))


def following(x: Tensor, tokens: Tokens) -> Tensor:
    """x [B, T, ...] at the token after each, 0 where this call has none of its sequence."""
    ends = torch.roll(_firsts(tokens), -1, 1)
    if tokens.valid is not None:
        ends = ends | ~torch.roll(tokens.valid, -1, 1)
    return torch.where(_spread(ends, x), torch.zeros_like(x), torch.roll(x, -1, 1))


def previous(x: Tensor, window: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The token before each of x [B, T, channels], and the window after them.

    window [N, 1, channels]: the token before the first."""
    if x.shape[1] == 1 and tokens.lengths is None:
        return cast(window, x.dtype), x
    carried = _carried(window[:, 0], tokens).to(x.dtype)
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]
    before = torch.where(_firsts(tokens)[..., None], carried, before) if x.shape[1] > 1 else carried
    return before, last(x, window[:, 0].to(x.dtype), tokens)[:, None]


def running_sum(x: Tensor, start: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """start plus the sum of x [B, T, ...] up to each token, in start's dtype, and its value after them."""
    x = x.to(start.dtype)
    if tokens.valid is not None:
        x = torch.where(_spread(tokens.valid, x), x, torch.zeros_like(x))
    total = x.cumsum(1)
    if tokens.segment is not None:
        assert tokens.cu_seqlens is not None
        before = F.pad(total[0].movedim(0, -1), (1, 0)).movedim(-1, 0)  # a zero in front
        total = total - before[tokens.cu_seqlens.long()[tokens.segment]][None]
    total = total + _carried(start, tokens)
    return total, last(total, start, tokens)


def _after(i: Tensor, f: Tensor, m: Tensor, out: Tensor | None = None) -> Tensor:
    """max(f + m, i). With i = -inf and f = -inf it is -inf: no infinity has the other sign."""
    moved = memory("moved", i, *i.shape) if out is i else out
    return torch.maximum(torch.add(f, m, out=moved), i, out=out)


def _compose(first: Element, then: Element, out: Element = (None, None)) -> Element:
    return torch.add(first[0], then[0], out=out[0]), _after(then[1], then[0], first[1], out[1])


MAX_PLUS = Algebra(_after, _compose)

# Numbers of a block, which stay in a cache.
BLOCK = 1 << 17


class _Through(torch.autograd.Function):
    """A value whose gradient is that of x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, None]:
        return g, None


def _plain(x: Tensor, constant: bool = False) -> bool:
    """Whether m may go into memory that is there, step by step: it is not differentiated, nor traced."""
    recorded = torch.is_grad_enabled() and not constant
    return x.device.type == "cpu" and not recorded and not torch.compiler.is_compiling()


def _blocks(x: Tensor) -> Iterator[tuple[int, int]]:
    T = x.shape[1]
    size = max(16, BLOCK * T // max(1, x.numel()))
    for i in range(0, T, size):
        yield i, min(i + size, T)


def _max_plus_(f: Tensor, m: Tensor, start: Tensor) -> Tensor:
    """m_t ← max(f_t + m_{t-1}, m_t) from `start`, in the place of m [B, T, ...], in lockstep."""
    x = m.transpose(0, 1)
    return lockstep(f.transpose(0, 1), x, start, start.numel(), algebra=MAX_PLUS, out=x)


def _stabilised(log_f: Tensor, log_i: Tensor, start: Tensor) -> Stabilised:
    """`stabilise` of whole rows, block by block: what a block needs stays in the cache."""
    shape = log_i.shape
    m = torch.empty(shape[0], shape[1] + 1, *shape[2:], dtype=start.dtype)
    log_decay, log_write, ago = (torch.empty(shape, dtype=x.dtype) for x in (log_f, log_i, log_i))
    m[:, 0] = start
    with reusing():
        for i, j in _blocks(m[:, 1:]):
            f, written = log_f[:, i:j].to(m.dtype), log_i[:, i:j]
            here = m[:, i + 1 : j + 1]
            here.copy_(written)
            _max_plus_(f, here, m[:, i])
            top = into("top", torch.clamp, here, _least(here))
            log_decay[:, i:j] = into("change", torch.sub, m[:, i:j], top).add_(f)
            log_write[:, i:j] = torch.sub(written, top, out=top)
            ago[:, i:j] = torch.sub(m[:, i:j], written, out=top)
    return Stabilised(log_decay, log_write, ago, m[:, 1:], m[:, -1])


def _max_plus(f: Tensor, m: Tensor) -> Tensor:
    """m_t ← max(f_t + m_{t-1}, m_t) from t = 1. Differentiated, or on a GPU, in log2(T) passes."""
    if _plain(m):
        with reusing():
            return _max_plus_(f, m, torch.full_like(m[:, 0], -torch.inf)).transpose(0, 1)
    T = m.shape[1]
    f, reach = torch.cat([torch.full_like(f[:, :1], -torch.inf), f[:, 1:]], 1), 1
    while reach < T:
        later = torch.maximum(f[:, reach:] + m[:, :-reach], m[:, reach:])
        f = torch.cat([f[:, :reach], f[:, reach:] + f[:, :-reach]], 1)
        m = torch.cat([m[:, :reach], later], 1)
        reach *= 2
    return m


class Stabilised(NamedTuple):
    """Exponential gates f, i as a decay and a write, both at most 1, relative to m_t.

    With h_t = f_t h_{t-1} + i_t u_t, e^{-m_t} h_t = e^{log_decay} (e^{-m_{t-1}} h_{t-1}) + e^{log_write} u_t.
    """

    log_decay: Tensor  # log f_t + m_{t-1} - m_t
    log_write: Tensor  # log i_t - m_t
    ago: Tensor  # m_{t-1} - log i_t
    m: Tensor
    end: Tensor  # m after the last token of every sequence, [N, ...]


class Level(NamedTuple):
    """One m for all tokens of a call, relative to which nothing over- or underflows, and m after them as
    `stabilise` has it; [N, ...]."""

    m: Tensor
    end: Tensor


# How far below m the logarithms of writes may lie: e^-30 is 1e-13, and values down to 1e-25 times that are
# normal numbers of float32.
RANGE = 30.0


@torch.no_grad()
def level(log_f: Tensor, log_i: Tensor, start: Tensor, tokens: Tokens, dtype: torch.dtype) -> Level | None:
    """One m in place of `stabilise`'s, where writes differ by so little that no other is needed; None where
    there is none, or where writes are kept in a dtype with a smaller range (float16). Decays stay what they
    were: constant, here log f [...] <= 0, finite; log i [B, T, ...].

    Only for rows that are whole, on a CPU, where a look at the numbers costs little."""
    T = log_i.shape[1]
    if T < 2 or log_i.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if tokens.segment is not None or tokens.valid is not None or torch.finfo(dtype).tiny > math.exp(-RANGE):
        return None
    m = torch.maximum(log_i.amax(1), start.to(log_i.dtype))
    if not bool((m - log_i.amin(1) <= RANGE).all()):  # (nor where one is infinite or NaN)
        return None
    end, size = start, max(16, BLOCK * T // max(1, log_i.numel()))
    ago = torch.arange(size - 1, -1, -1, dtype=log_i.dtype, device=log_i.device)
    faded = ago.reshape(-1, *(1 for _ in log_f.shape)) * log_f
    with reusing():
        for piece in log_i.split(size, 1):
            n = piece.shape[1]
            written = into("faded", torch.add, piece, faded[size - n :]).amax(1)
            end = torch.maximum(end + n * log_f, written)
    return Level(m, end)


def _least(m: Tensor) -> float:
    """A number in place of -inf, which is less than it still."""
    return torch.finfo(m.dtype).min


def _of_a_token(log_f: Tensor, log_i: Tensor, start: Tensor) -> Stabilised:
    """`stabilise` of one token in each row, without gradients."""
    before = start.unsqueeze(1)
    i, moved = log_i.to(before.dtype), log_f + before
    m = torch.maximum(moved, i)
    top = m.clamp(min=_least(m))
    log_decay, log_write, ago = (moved - top).to(log_f.dtype), (i - top).to(log_i.dtype), before - i
    return Stabilised(log_decay, log_write, ago.to(log_i.dtype), m, m.select(1, 0))


def stabilise(
    log_f: Tensor, log_i: Tensor, start: Tensor, tokens: Tokens, constant: bool = True
) -> Stabilised:
    """m_t = max(log f_t + m_{t-1}, log i_t) from `start` [N, ...]; log f, log i [B, T, ...].

    What is computed with m does not depend on it in exact arithmetic, so m counts as a constant in gradients,
    unless `constant` is False.
    m is kept in float64: it may grow with the sequence, and differences of it are what is used.
    Source: Beck et al. 2024 (xLSTM, arXiv:2405.04517), eq. 15 to 17."""
    start = cast(start, torch.float64)
    if log_i.shape[1] == 1 and tokens.lengths is None and not torch.is_grad_enabled():
        return _of_a_token(log_f, log_i, start)
    if tokens.segment is None and tokens.valid is None and _plain(log_i, constant):
        log_f, log_i = torch.broadcast_tensors(log_f, log_i)
        with torch.no_grad():
            found = _stabilised(log_f, log_i, start)
        if not torch.is_grad_enabled():
            return found
        log_decay, log_write = _Through.apply(log_f, found.log_decay), _Through.apply(log_i, found.log_write)
        return found._replace(log_decay=log_decay, log_write=log_write, ago=_Through.apply(-log_i, found.ago))
    with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
        f, i = log_f.to(start.dtype), log_i.to(start.dtype)
        if tokens.valid is not None:
            keep = _spread(tokens.valid, i)
            f, i = torch.where(keep, f, 0.0), torch.where(keep, i, -torch.inf)
        carried = _carried(start, tokens)
        if tokens.segment is None:
            m = torch.cat([torch.maximum(i[:, :1], f[:, :1] + carried), i[:, 1:]], 1)
            m = _max_plus(f, m)
            before = torch.cat([carried, m[:, :-1]], 1)
        else:
            first = _spread(_firsts(tokens), i)
            m = torch.where(first, torch.maximum(i, f + carried), i)
            m = _max_plus(torch.where(first, -torch.inf, f), m)
            before = torch.where(first, carried, torch.roll(m, 1, 1))
        # Where nothing has been written m is -inf, and any factor of nothing will do.
        top = torch.where(torch.isneginf(m), 0.0, m)
        change = before - top
    log_decay = (log_f.to(m.dtype) + change).to(log_f.dtype)
    log_write = (log_i.to(m.dtype) - top).to(log_i.dtype)
    return Stabilised(log_decay, log_write, (before - log_i).to(log_i.dtype), m, last(m, start, tokens))
