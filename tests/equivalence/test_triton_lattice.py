"""The Triton kernels on the lattice: the inputs, the process that runs them, and (in it) broken kernels."""

import importlib.util
from pathlib import Path

import pytest
import torch
from interpreter import passed_interpreted

from mixerzoo.equivalence import triton_lattice as lattice
from mixerzoo.equivalence.theorem import Budget
from mixerzoo.equivalence.theorems import catalogue
from mixerzoo.kernels import OuterDecay, recurrence

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
STEP = catalogue()["lattice/triton-step"]


@needs_triton
def test_broken_kernels_are_seen():
    passed_interpreted(Path(__file__).with_name("triton_broken.py"))


def evidence(theorem=STEP):
    (found,) = theorem.run(Budget()).evidence
    return found


@needs_triton
def test_without_a_gpu_another_process_interprets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = evidence()
    assert found.passed and found.device == "in Triton's interpreter"
    assert found.cases == len(list(lattice.cases("step", True, 0)))
    assert evidence().digest == found.digest


@needs_triton
def test_a_process_that_dies_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no memory left >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(lattice.sys, "executable", str(broken))
    found = evidence()
    assert found.passed is False and found.failure == "no memory left"


def test_without_triton_the_evidence_is_absent(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else real(name))
    found = evidence()
    assert found.passed is None and found.absent == "triton is not installed"


@pytest.mark.parametrize("group", lattice.MOST)
def test_every_number_has_room(group):
    """Results are sixteenths of whole numbers and exact in float32; and there are all kinds of cases."""
    for case, x in lattice.problems(group, True, 0):
        for name, y in lattice.by_loop(case, x).items():
            assert torch.equal(y * 16, (y * 16).round()), name
            assert torch.equal(y.float().double(), y), name
    sample, cases = (list(lattice.cases(group, quick, 0)) for quick in (True, False))
    assert len(sample) > 1
    assert {c.dtype for c in sample} == {torch.float32, torch.bfloat16}
    ways = {(c.schedule, c.read, c.reverse, c.dtype) for c in cases}
    assert len(ways) == {"chunk": 16, "recurrent": 8, "delta": 16, "step": 4}[group]
    kinds = {(c.key_decay, c.value_decay, c.erasing) for c in cases}
    assert len(kinds) == {"chunk": 15, "recurrent": 15, "delta": 10, "step": 25}[group]


@pytest.mark.parametrize("key_decay", lattice.KEY_DECAYS)
def test_the_loop_is_the_recurrence(key_decay):
    """On the torch backend in float64, whose logarithm of 1/2 is not exact."""
    case = lattice.Case("chunk", "fused", key_decay, "[B,T,H,V]", read="before", reverse=True)
    x = lattice.inputs(case, 20, torch.Generator().manual_seed(0))
    y = {n: z.double() for n, z in lattice._operands(case, x, "cpu").items()}
    la = y.get("log_decay")
    if key_decay == "dt·A":
        la = OuterDecay(y["log_decay"], y["outer"])
    o, S = recurrence(
        y["q"], y["k"], y["v"], la, y["log_decay_v"], initial_state=y["initial_state"], scale=lattice.SCALE,
        read="before", reverse=True,
    )  # fmt: skip
    expected = lattice.by_loop(case, x)
    assert torch.allclose(o, expected["outputs"], atol=1e-6)
    assert torch.allclose(S, expected["state"], atol=1e-6)
