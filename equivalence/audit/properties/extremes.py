"""Decays of 1, decays of 0, and both in one sequence."""

from __future__ import annotations

import torch

from ..subject import Case, Extreme, Subject
from .common import Cases, Measured, Wrong, whole
from .precision import error_and_budget


def decay_extremes(s: Subject) -> Cases:
    """float32 within its budget, or what digits the subject may lose, and gradients that are finite."""
    for e in s.extremes():
        length = next(iter(e.inputs.values())).shape[1]
        case = Case("decay_extremes", 1, length, label=e.label)

        def measure(e: Extreme = e) -> Measured:
            error, budget = error_and_budget(e.subject, e.inputs, torch.float32, whole)
            if error <= max(budget, e.subject.digits):
                _finite_gradients(e)
            return error, max(budget, e.subject.digits)

        yield case, measure


def _finite_gradients(e: Extreme) -> None:
    """Of everything, in float32.

    Raises:
        Wrong: one is not.
    """
    s = e.subject.at(torch.float32)
    x = {n: y.float().requires_grad_() if y.is_floating_point() else y for n, y in e.inputs.items()}
    leaves = {n: y for n, y in (*x.items(), *s.tensors().items()) if y.is_floating_point()}
    with torch.enable_grad():
        for y in leaves.values():
            y.requires_grad_()
        loss = whole(s, x).double().pow(2).sum()
        if not loss.requires_grad:
            return
        try:
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        except RuntimeError:
            return  # which `gradients` says
    broken = [n for n, g in zip(leaves, found, strict=True) if g is not None and not bool(g.isfinite().all())]
    if broken:
        raise Wrong(f"gradients of {', '.join(broken)} are not finite")
