"""The adapters that docs/audit.md shows say what the page says they do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mixerzoo.equivalence.audit import AGREE, DISAGREE, UNSUPPORTED, audit
from mixerzoo.equivalence.audit.targets import find
from mixerzoo.equivalence.audit.targets.fla_kernels import KERNELS
from mixerzoo.equivalence.audit.targets.fla_references import REFERENCES
from mixerzoo.mixers import REGISTRY

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "audit.md").read_text(encoding="utf-8")
KERNEL, HOW, LSTM = re.findall(r"```python\n(.*?)```", PAGE[PAGE.index("## Kernels") :], re.S)


@pytest.fixture
def written(tmp_path):
    for name, code in {"mix.py": KERNEL, "how.py": HOW, "lstm.py": LSTM}.items():
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_kernel(written):
    (target,) = find(f"{written}/mix.py:mix", written / "how.py")
    found = {f.property: f for f in audit([target])}
    assert {n for n, f in found.items() if f.verdict == DISAGREE} == {"decode"}
    assert found["decode"].example.startswith("B = 1, T = 3, in pieces of")
    unsupported = {n for n, f in found.items() if f.verdict == UNSUPPORTED}
    assert unsupported == {"padding_left", "padding_right", "padding_inside", "packed"}


def test_the_module(written):
    (target,) = find("torch.nn:LSTM", written / "lstm.py")
    found = {f.property: f.verdict for f in audit([target], ["decode", "batch", "decay_extremes"])}
    assert set(found.values()) == {AGREE}


def test_the_numbers_of_things():
    assert f"The {len(REGISTRY)} mixers of the registry" in PAGE
    assert f"version 0.6.0: {len(REFERENCES)} references" in PAGE
    assert len(KERNELS) == 11 and "eleven pairs of kernels" in PAGE
