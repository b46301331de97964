"""Every fault is seen by the property it breaks, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixerzoo.equivalence.audit import AGREE, DISAGREE, PROPERTIES, audit
from mixerzoo.equivalence.audit.targets import find
from mixerzoo.equivalence.audit.targets.load import load_file
from mixerzoo.equivalence.audit.targets.module import module_target

FILE = Path(__file__).parent / "exhibits.py"
exhibits = load_file(FILE)


def rows(targets):
    findings = audit(targets)
    return {f.property: f for f in findings}


def broken(found):
    return {name for name, f in found.items() if f.verdict == DISAGREE}


def told(found):
    return {name: f.example for name, f in found.items() if f.verdict == DISAGREE}


@pytest.mark.parametrize("fault", exhibits.FAULTS)
def test_kernels(fault):
    adapter, expected = exhibits.FAULTS[fault]
    found = rows(find(f"{FILE}:{fault}"))
    assert broken(found) == expected, told(found)
    unsupported = {name for name, f in found.items() if f.verdict not in (AGREE, DISAGREE)}
    assert unsupported == (
        set() if adapter.mask else {"padding_left", "padding_right", "padding_inside", "packed"}
    )


@pytest.mark.parametrize("name", exhibits.MODULES)
def test_modules(name):
    found = rows(find(f"{FILE}:{name}"))
    assert broken(found) == exhibits.MODULES[name], told(found)
    assert {n for n, f in found.items() if f.verdict not in (AGREE, DISAGREE)} == {"packed", "decay_extremes"}


@pytest.mark.parametrize(("name", "adapter"), [("GRU", exhibits.GRU), ("LSTM", exhibits.LSTM)])
def test_modules_of_torch(name, adapter):
    found = rows([module_target(f"torch.nn:{name}", getattr(torch.nn, name), adapter)])
    assert not broken(found), told(found)
    assert {n for n, f in found.items() if f.verdict == AGREE} == set(PROPERTIES) - {
        "padding_left",
        "padding_right",
        "padding_inside",
        "packed",
        "decay_extremes",
    }
