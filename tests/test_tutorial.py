"""The tutorial's code runs as written, and the proofs it ends with see a mixer that is wrong."""

import re
from pathlib import Path

import pytest

from mixerzoo.equivalence.own_mixer import check_mixer
from mixerzoo.equivalence.theorem import Counterexample
from mixerzoo.equivalence.theorems.mixers import CHECKS
from mixerzoo.mixers import HGRN

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your-own-mixer.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
MIXER = BLOCKS[0]


@pytest.fixture(scope="module")
def names():
    found = {}
    for code in BLOCKS:
        exec(compile(code, PAGE.name, "exec"), found)
    return found


def test_its_code_runs(names):
    assert set(names["errors"]) == set(CHECKS) | {"paper"}
    assert 0 < max(names["errors"].values()) < 1e-10


def test_twenty_lines():
    code = MIXER[MIXER.index("class Mine") :]
    lines = [line for line in code.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 20


def changed(old, new):
    assert MIXER.count(old) == 1
    found = {}
    exec(compile(MIXER.replace(old, new), PAGE.name, "exec"), found)
    return found["Mine"]


@pytest.mark.parametrize(
    ("old", "new", "property"),
    [
        ("F.normalize(k, dim=-1)", "F.normalize(k, dim=1)", "streaming"),
        ("F.logsigmoid(f)", "F.logsigmoid(f - f.mean(0))", "padding|batching"),
        ("beta=torch.sigmoid(beta)", "beta=torch.sigmoid(-beta)", "paper"),
    ],
)
def test_a_wrong_mixer_is_seen(names, old, new, property):
    with pytest.raises(Counterexample, match=f"^({property}): "):
        check_mixer(changed(old, new), paper=names["on_paper"])


def test_what_is_no_mixer():
    with pytest.raises(TypeError, match=r"^factory makes int; accepted: a mixerzoo\.mixers\.Mixer"):
        check_mixer(lambda d_model: d_model)


def test_without_a_paper():
    assert "paper" not in check_mixer(HGRN, examples=2)
