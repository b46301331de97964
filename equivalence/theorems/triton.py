"""Bit for bit: the Triton kernels, on inputs on which nothing rounds (`equivalence/triton_lattice.py`).

On a GPU where there is one; else in Triton's interpreter on the CPU, which shows that the algorithm is right,
and nothing of compilers and memory.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from ...kernels import triton_core
from .. import triton_lattice as lattice
from ..theorem import Absent, Budget, Check, Collection, Side, Tally

THEOREMS = Collection(
    {
        "exact": "Triton's kernels cannot take field elements",
        "bound": "Triton's kernels cannot take numbers that carry bounds",
        "coq": "the model is of the torch code",
        "text": "of the core alone; mixers/*/streaming run it on text",
    }
)

INTERPRETER = "in Triton's interpreter"


def _kernels(group: str, quick: bool, seed: int) -> list[lattice.Tensors]:
    if torch.cuda.is_available():
        return lattice.by_kernels(group, quick, seed, "cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return lattice.by_kernels(group, quick, seed, "cpu")
    return lattice.interpreted(group, quick, seed)


def _equal_bits(group: str) -> Check:
    def check(budget: Budget, tally: Tally) -> None:
        if importlib.util.find_spec("triton") is None:
            raise Absent("triton is not installed")
        if torch.cuda.is_available():
            if not triton_core.available():
                raise Absent("triton is older than these kernels need")
            tally.device = f"on {torch.cuda.get_device_name()}"
        else:
            tally.device = INTERPRETER
        arguments = group, budget.quick, budget.seed
        found, expected = tally.left(*arguments), tally.right(*arguments)
        for (case, _), x, y in zip(lattice.problems(*arguments), found, expected, strict=True):
            lattice.compare(case, x, y)
            tally.bitwise()

    return check


_RANGE = (
    "q, k, v, state and the gradients of the results in {-1, 0, 1}; decays 1, 0 and, at one step, 1/2; both "
    "reads and directions; float32 and bfloat16; "
)
_DECAYS = (
    "decays none, constant, scalar, vector over keys, dt·A, each with none, constant and vector over values"
)

for _group, (_statement, _over) in {
    "chunk": (
        "The Triton kernels in chunks, fused and split, give outputs, final state and all gradients of the "
        "recurrence.",
        f"{_RANGE}{_DECAYS}; K = V = 16, T = 40 and (split) 72",
    ),
    "recurrent": (
        "The elementwise Triton kernels give outputs, final state and all gradients of the recurrence.",
        f"{_RANGE}{_DECAYS}; K = 4, V = 3, T = 40",
    ),
    "delta": (
        "The Triton kernels with erasure, fused and split, give outputs, final state and all gradients of "
        "the delta rule and of the general form.",
        f"{_RANGE}decays none, constant, scalar, vector over keys, dt·A, all 1 and 0; keys with a single "
        "entry of ±1, β in {0, 1, 2}; K = V = 16, T = 24 and (split) 68",
    ),
    "step": (
        "The Triton kernel of one step gives output and state of the recurrence, with erasure and without.",
        f"{_RANGE}{_DECAYS}; both erasures; K = 4, V = 3",
    ),
}.items():
    THEOREMS(
        f"lattice/triton-{_group}",
        f"{_statement} On the lattice they are equal bit for bit.",
        _over,
        "bitwise",
        formula="kernel(q, k, v, a, b, S_0) = R(q, k, v, a, b, S_0) and its gradient: the same bits",
        left=Side(
            "kernels.step with backend='triton'"
            if _group == "step"
            else "kernels.recurrence with backend='triton', and torch.autograd",
            _kernels,
        ),
        right=Side(
            "a plain loop in float64 which shares no code with the core, and torch.autograd", lattice.by_loops
        ),
    )(_equal_bits(_group))
