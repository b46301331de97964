"""Counts cases in a process of its own, whose Triton interprets kernels: one JSON line in, one out.

    TRITON_INTERPRET=1 python -m mixerzoo.equivalence.cost.worker

What is counted is what a GPU would do: kernels follow the plan of the target, not that of the interpreter,
and the checks of values, which only tensors on the CPU have, are left out.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from ...kernels import checks, recurrence, triton_core
from ...kernels.triton_core.aot import TARGETS
from ..interpreting import patch_language_once_a_launch
from .count import Cost, count
from .least import Least, least
from .operators import Call, Case, call_of, calls_of_mixer
from .record import to_json


@contextmanager
def as_on(target: str) -> Iterator[None]:
    """The operator as on this target."""
    wanted = TARGETS[target]
    before = [(triton_core, name, getattr(triton_core, name)) for name in ("forward", "backward")]
    before.append((checks, "checking", checks.checking))
    for place, name, function in before[:2]:
        setattr(place, name, functools.partial(function, target=wanted))
    checks.checking = lambda x: False
    try:
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def measure_call(call: Call, schedule: str, target: str) -> dict[str, tuple[Cost, Least]]:
    """{"forward": ..., "backward": ...}. Forward as in training: its inputs require gradients."""
    with as_on(target):
        with count() as forward:
            o, state = recurrence(**call.operands, **call.options, backend="triton", schedule=schedule)
        differentiable = call.differentiable()
        outputs = [o, state] if call.final else [o]
        gradients = [torch.randn_like(x) for x in outputs]
        with count() as backward:
            torch.autograd.grad(outputs, differentiable, gradients)
    a, b = least(call, [o, state])
    return {"forward": (forward, a), "backward": (backward, b)}


def run(case: Case) -> list[dict[str, Any]]:
    """A record for each call of the case."""
    calls = [call_of(case)] if case.operator else calls_of_mixer(case)
    records = []
    for i, call in enumerate(calls):
        B, T, H, V = call.operands["v"].shape
        shape = {"B": B, "T": T, "H": H, "K": call.operands["k"].shape[3], "V": V}
        passes = {
            name: {"cost": to_json(cost), "least": asdict(lowest)}
            for name, (cost, lowest) in measure_call(call, case.schedule, case.target).items()
        }
        records.append({"case": case.record(), "call": i, "shape": shape, "passes": passes})
    return records


def main() -> None:
    torch.set_num_threads(1)
    patch_language_once_a_launch()
    for line in sys.stdin:
        try:
            answer: Any = run(Case.of(json.loads(line)))
        except Exception as e:  # told to the one who asked, who knows which case it was
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
