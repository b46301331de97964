"""The properties: each a function of a subject that yields cases, smallest first, and how to measure them."""

from __future__ import annotations

from collections.abc import Callable

from ..subject import Subject
from . import extremes, gradients, padding, pieces, precision, rows
from .common import Cases

CHECKS: dict[str, Callable[[Subject], Cases]] = {
    "decode": pieces.decode,
    "chunked_prefill": pieces.chunked_prefill,
    "padding_left": padding.left,
    "padding_right": padding.right,
    "padding_inside": padding.inside,
    "packed": rows.packed,
    "batch": rows.batch,
    "interleaved": rows.interleaved,
    "fp64": precision.fp64,
    "low_precision": precision.low_precision,
    "gradients": gradients.gradients,
    "state_gradients": gradients.state_gradients,
    "decay_extremes": extremes.decay_extremes,
}
