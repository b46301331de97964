"""Decays of 1, decays of 0, and both in one sequence."""

from __future__ import annotations

import torch

from ..subject import Case, Extreme, Subject
from .common import Cases, Measured, whole
from .precision import error_and_budget


def decay_extremes(s: Subject) -> Cases:
    """float32 within its budget, and gradients that are finite."""
    for e in s.extremes():
        length = next(iter(e.inputs.values())).shape[1]
        case = Case("decay_extremes", 1, length, label=e.label)

        def measure(e: Extreme = e) -> Measured:
            error, budget = error_and_budget(e.subject, e.inputs, torch.float32, whole)
            return (error if _finite_gradients(e) else float("inf")), budget

        yield case, measure


def _finite_gradients(e: Extreme) -> bool:
    """Of everything, in float32."""
    s = e.subject.at(torch.float32)
    x = {n: y.float().requires_grad_() if y.is_floating_point() else y for n, y in e.inputs.items()}
    leaves = [y for y in (*x.values(), *s.tensors().values()) if y.is_floating_point()]
    with torch.enable_grad():
        for y in leaves:
            y.requires_grad_()
        loss = whole(s, x).double().pow(2).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else ()
    return all(bool(g.isfinite().all()) for g in found if g is not None)
