"""Which form `form="auto"` takes: the one with the least estimated time, by the operations each needs.

The estimates count what the torch backend does (calls, elements passed over, matrix FLOPs) and
weigh them by the constants below, rough figures of a two-core CPU. Only their ratios matter, and
the choice never changes the result beyond rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from . import delta
from .forms import together
from .scan import group_length

CALL = 5e-6  # seconds that one torch call costs whatever its size
ELEMENT = 4e-10  # seconds to read, transform and write one element
FLOP = 8e-12  # seconds for one FLOP inside a batched matrix product


class Problem(NamedTuple):
    batch: int
    length: int
    heads: int
    key_dim: int
    value_dim: int
    key_vector: bool  # the key decay differs between channels
    value_vector: bool  # values decay too
    erases: bool = False  # the delta rule


def _state_numbers(p: Problem) -> int:
    return max(1, p.batch * p.heads * p.key_dim * p.value_dim)


def scan_block(p: Problem, gradient: bool = False) -> int:
    """Steps to scan at a time: as many as keep their states in a cache, 2^20 numbers, but 24 at least. The
    gradient, which has three times as much beside them, scans half as many."""
    in_cache = (1 << 20) // _state_numbers(p)
    block = 1 << max(0, in_cache.bit_length() - 1)
    return (block if block > 32 else 24) >> gradient


def apart(block: int, key_dim: int, most: int) -> int:
    """Steps between the states that forward leaves for the gradient: whole blocks, 64 steps at least, and so
    many that states are at most so many times the numbers of the values."""
    return block * -(-max(64, -(-key_dim // most)) // block)


def walk_block(p: Problem) -> int:
    """Steps between stored states when walking: 64, fewer (16 at least) where states are large.

    The gradient keeps the states of one block, and memory that leaves the cache costs more than the walk."""
    return min(64, max(16, (1 << 18) // _state_numbers(p)))


def parallel_block(p: Problem) -> int:
    """Queries at a time: as many rows of the attention map as keep its weights near 2^24 numbers."""
    wide = max(p.key_dim if p.key_vector else 1, p.value_dim if p.value_vector else 1)
    return max(1, min(p.length, (1 << 24) // max(1, p.batch * p.heads * p.length * wide)))


def estimate(form: str, p: Problem, size: int) -> float:
    """Estimated seconds of one forward pass."""
    lanes, T, K, V = p.batch * p.heads, p.length, p.key_dim, p.value_dim
    carry = lanes * K * V * 3 * ELEMENT  # handing the state from one block to the next
    vectors = p.key_vector * K + p.value_vector * V
    scalar = not vectors
    if form == "recurrent":
        return T * ((5 if p.erases else 4) * CALL + lanes * (K * V + 4 * (K + V)) * ELEMENT)
    if form == "chunk" and p.erases:
        # With the reads that erase and the system they solve; one by one chunks pass through states only.
        C = min(size, T)
        chunks = math.ceil(T / C)
        calls = 45 * math.ceil(T / delta.together(lanes * max(K, V), C)) + 5 * chunks
        flops = 4 * C * K + 3 * C * V + 6 * K * V
        token = (6 * C + 6 * (K + V + vectors)) * ELEMENT + flops * FLOP
        return calls * CALL + chunks * carry + lanes * T * token
    if form == "chunk":
        C = min(size, T)
        levels = math.ceil(math.log2(max(C, 2)))
        calls, at_once = 60 + (0 if scalar else 12 * levels), together(lanes * max(K, V), C)
        passes = 6 * C if scalar else (2 * levels + 1) * vectors
        flops = (2 * C if scalar else C) * (K + V) + 4 * K * V
        token = (passes + 6 * (K + V)) * ELEMENT + flops * FLOP
        return math.ceil(T / at_once) * calls * CALL + math.ceil(T / C) * carry + lanes * T * token
    if form == "parallel":
        per_pair = (20 + 15 * vectors) * ELEMENT + 2 * (K + V) * FLOP
        calls, token = 30, 0.0
        if p.erases:
            calls, token, per_pair = 55, 6 * K * V * FLOP, 2 * per_pair + V * FLOP
        return calls * CALL + carry + lanes * T * (token + T * per_pair)
    if form == "scan":
        C = min(scan_block(p), T)
        length = group_length(C, _state_numbers(p))
        # A step of all groups costs a third of a call: its operands are laid out already.
        steps = length if length == C else 2 * length + C // length
        return math.ceil(T / C) * (12 + steps / 3) * CALL + lanes * T * K * V * 5 * ELEMENT
    raise ValueError(form)


def choose_form(p: Problem, size: int) -> str:
    if p.length < 2:
        return "recurrent"
    forms = ("recurrent", "chunk", "parallel", *(() if p.erases else ("scan",)))
    return min(forms, key=lambda form: estimate(form, p, size))
