"""Decays from their logarithms."""

from __future__ import annotations

import math

import torch

from .steps import Array

LOG2E = math.log2(math.e)

# exp of this, times the square of numbers up to 1e11, is a number of float32.
WEAK = 30.0


def binary(log_decay: Array) -> Array:
    """A natural logarithm as one to base 2."""
    return log_decay * LOG2E


def exp(log_decay: Array, out: Array = None) -> Array:
    """exp of log-decays, as a power of 2: on a CPU a third of the time that exp takes, and it does not slow
    down a hundredfold where it underflows. Of formal logarithms (which have no dtype) their exp."""
    if getattr(log_decay, "dtype", None) is None:
        return torch.exp(log_decay)
    if out is None:
        return torch.exp2(binary(log_decay))
    return torch.exp2(torch.mul(log_decay, LOG2E, out=out), out=out)


def can_look(x: Array) -> bool:
    """Whether the numbers are there to be looked at: not while a graph is traced."""
    if not isinstance(x, torch.Tensor):
        return True
    return type(x) in (torch.Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()


def above(x: Array, least: float) -> bool:
    """Whether all of x are known to be greater than this."""
    return can_look(x) and bool(torch.amin(x) > least)
