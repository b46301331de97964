"""Triton kernels broken in small ways: the lattice sees each. Run by test_triton_lattice.py, in a process of
its own, whose Triton interprets."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl

from mixerzoo.equivalence import triton_lattice as lattice
from mixerzoo.equivalence.theorem import Budget
from mixerzoo.equivalence.theorems import catalogue
from mixerzoo.kernels.triton_core import chunk, chunk_launch, decay, delta, one_step, recurrent, scalar

THEOREMS = catalogue()
SCALAR = lattice.Case("chunk", "fused", "[B,T,H]")
VECTOR = lattice.Case("chunk", "split", "[B,T,H,K]", "[B,T,H,V]", dtype=torch.bfloat16)
WALK = lattice.Case("recurrent", "fused", "[B,T,H,K]", "[B,T,H,V]")
DELTA = lattice.Case("chunk", "fused", "[B,T,H]", "none", "beta")
STEP = lattice.Case("step", "fused", "[B,T,H,K]", "none", "x, y")


def outcome(monkeypatch, case):
    """What the evidence of a theorem finds in this case alone."""
    monkeypatch.setattr(lattice, "cases", lambda group, quick, seed: [case])
    group = "delta" if case is DELTA else case.form
    (found,) = THEOREMS[f"lattice/triton-{group}"].run(Budget()).evidence
    return found


@triton.jit
def undecayed(
    S, k, v, la, KEY: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr
):
    """scalar_advance, whose state does not decay."""
    k = k.to(ACC) * tl.exp2(scalar.after(la, C))[:, None]
    return S + decay.product(tl.trans(k), v, DOT, PREC, ACC)


@triton.jit
def natural(x):
    """base2 without the change of base."""
    return tl.maximum(x, -1e4)


@triton.jit
def strict(la, scale, KEY: tl.constexpr, C: tl.constexpr, STRICT: tl.constexpr, ACC: tl.constexpr):
    """weights, of the steps before alone."""
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    between = tl.cumsum(tl.where(s + STRICT < t, scalar.shifted(la, C, -1)[None, :], 0.0), 1, reverse=True)
    return tl.where(t > s, tl.exp2(between) * scale, 0.0)


@triton.jit
def rounded(x, y, DOT: tl.constexpr, PREC: tl.constexpr, ACC: tl.constexpr):
    """product, wrong in the last place."""
    return tl.dot(x.to(DOT), y.to(DOT), input_precision=PREC, out_dtype=ACC) * 1.0000001


@triton.jit
def first_terms(L, row, col, ACC: tl.constexpr, PREC: tl.constexpr):
    """inverse_of_16, of two terms of its series."""
    return tl.where(row == col, 1.0, 0.0).to(ACC) - L


@triton.jit
def first_head(p, h, in_h, d, in_d, sh, sd):
    """load_rows of one step: those of the first head for all."""
    at = 0 * h[:, None] * sh + d[None, :] * sd
    return tl.load(p + at, mask=in_h[:, None] & in_d[None, :], other=0.0)


BROKEN = {
    "the state does not decay": (SCALAR, chunk, "scalar_advance", undecayed),
    "no change of base": (SCALAR, chunk, "base2", natural),
    "no change of base, by vectors": (VECTOR, decay, "base2", natural),
    "no change of base, elementwise": (WALK, recurrent, "base2", natural),
    "a step does not see itself": (SCALAR, scalar, "weights", strict),
    "the last place": (SCALAR, scalar, "product", rounded),
    "a system half solved": (DELTA, delta, "inverse_of_16", first_terms),
    "one head for all": (STEP, one_step, "load_rows", first_head),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kernel_is_seen(name, monkeypatch):
    case, module, helper, broken = BROKEN[name]
    monkeypatch.setattr(module, helper, broken)
    found = outcome(monkeypatch, case)
    assert not found.passed
    assert "instead of" in found.failure and str(case) in found.failure


@pytest.mark.parametrize("case", [SCALAR, VECTOR, WALK, DELTA, STEP], ids=str)
def test_unbroken_kernels_pass(case, monkeypatch):
    found = outcome(monkeypatch, case)
    assert found.passed and found.cases == 1 and found.device == "in Triton's interpreter"


def test_a_segment_without_its_state(monkeypatch):
    """The split schedule with segments that start from nothing."""
    real = chunk_launch._states
    monkeypatch.setattr(
        chunk_launch, "_states", lambda x, p, states, *a: (real(x, p, states, *a), states.zero_())
    )
    assert "outputs" in outcome(monkeypatch, VECTOR).failure


def test_a_kernel_that_fails(monkeypatch):
    real = chunk_launch.chunk_plan
    monkeypatch.setattr(chunk_launch, "chunk_plan", lambda *a, **b: dataclasses.replace(real(*a, **b), C=17))
    found = outcome(monkeypatch, SCALAR)
    assert not found.passed and str(SCALAR) in found.failure and "instead of" not in found.failure
