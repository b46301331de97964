"""What is printed beside a disagreement runs, needs nothing of this package, and shows it."""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
from pathlib import Path

import pytest
import torch

from mixerzoo.equivalence.audit import DISAGREE, examine
from mixerzoo.equivalence.audit.targets import find
from mixerzoo.equivalence.audit.targets.load import load_file

FILE = Path(__file__).parent / "exhibits.py"
exhibits = load_file(FILE)
BROKEN = [
    (name, property) for name, (_, broken) in exhibits.FAULTS.items() for property in sorted(broken)
] + [(name, property) for name, broken in exhibits.MODULES.items() for property in sorted(broken)]


@pytest.fixture
def printed(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    default = torch.get_default_dtype()
    for name in ("float32", "float"):  # of which a snippet makes float64
        monkeypatch.setattr(torch, name, getattr(torch, name))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.float)

    def run(code):
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, "snippet", "exec"), {})
        finally:
            torch.set_default_dtype(default)
            sys.modules.pop("exhibits", None)
        return out.getvalue()

    return run


@pytest.mark.parametrize(("name", "property"), BROKEN)
def test_it_shows(printed, name, property):
    (target,) = find(f"{FILE}:{name}")
    finding = examine(target, property)
    assert finding.verdict == DISAGREE
    code = finding.snippet
    assert 3 < len(code.splitlines()) <= 10
    assert "mixerzoo" not in code
    shown = printed(code)
    if "gradients" in property:
        pairs = [line.split()[1:] for line in shown.splitlines()]
        assert any(abs(float(a) - float(b)) > 1e-3 * abs(float(a)) for a, b in pairs), shown
    elif property == "fp64":
        dtype, difference = shown.split()
        assert dtype == "torch.float64"
        assert 1e-9 < float(difference) < 1e-5
    elif property == "decay_extremes":
        difference = float(shown.splitlines()[0])
        assert math.isnan(difference) or difference > 1e-6 or "False" in shown, shown
    else:
        # Of one row or token, where the finding has the largest of all.
        said = float(re.search(r"difference ([\d.e+-]+)", finding.example)[1])
        assert 0.1 * said < float(shown) < 1.5 * said, (shown, finding.example)
