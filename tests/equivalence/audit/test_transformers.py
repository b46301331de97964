"""The audit of transformers: what it finds, and that it finds nothing where there is nothing."""

import contextlib
import io
import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

from mixerzoo.equivalence.audit import AGREE, DISAGREE, UNSUPPORTED, Target, audit, examine
from mixerzoo.equivalence.audit.command import _places
from mixerzoo.equivalence.audit.targets import find
from mixerzoo.equivalence.audit.targets.load import TargetError
from mixerzoo.equivalence.audit.targets.transformers import not_looked_at
from mixerzoo.equivalence.audit.targets.transformers.build import model_of
from mixerzoo.equivalence.audit.targets.transformers.calls import cache_name
from mixerzoo.equivalence.audit.targets.transformers.model import ModelSubject
from mixerzoo.equivalence.audit.targets.transformers.profiles import PROFILES
from mixerzoo.mixers import from_transformers

BY_TYPE = {p.model_type: p for p in PROFILES}
PIECES = ("decode", "chunked_prefill")
PADDING = ("padding_left", "padding_right", "padding_inside")
NUMBERS = ("fp64", "low_precision", "gradients", "state_gradients", "decay_extremes")

# What disagrees and what is out of the contract, with the pinned version; everything else agrees.
FOUND = {
    "mamba": ("chunked_prefill padding_right padding_inside fp64", "packed"),
    "mamba2": ("decode padding_right padding_inside fp64", "packed"),
    "minimax": ("padding_right padding_inside fp64", "packed decay_extremes"),
    "minimax (linear, then full attention)": (
        "chunked_prefill padding_left padding_right padding_inside fp64",
        "packed decay_extremes",
    ),
    "recurrent_gemma": (
        "chunked_prefill padding_left padding_right padding_inside interleaved fp64",
        "packed",
    ),
    "rwkv": ("batch fp64", "padding_left padding_right padding_inside packed state_gradients"),
    "qwen3_next": ("padding_right padding_inside fp64", "packed"),
    "lfm3": ("padding_right padding_inside", "packed decay_extremes"),
}


@pytest.mark.parametrize("name", FOUND)
def test_verdicts(name):
    target = next(t for t in find(name.partition(" (")[0]) if t.name == name)
    findings = {f.property: f for f in audit([target])}
    disagree, unsupported = (set(words.split()) for words in FOUND[name])
    assert {p for p, f in findings.items() if f.verdict == DISAGREE} == disagree
    assert {p for p, f in findings.items() if f.verdict == UNSUPPORTED} == unsupported
    for name, f in findings.items():
        if f.verdict == DISAGREE:
            # Not a matter of tolerance: far above what agreement comes to.
            assert f.difference > (1e-9 if name == "fp64" else 0.01), f
        elif f.verdict == AGREE and name not in ("low_precision", "decay_extremes"):
            assert f.difference < 1e-7, f


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "minimax", "recurrent_gemma", "qwen3_next"])
def test_the_same_models_with_our_mixers_agree(model_type):
    """The control: what is found is in the mixer, not in how the audit calls models."""
    profile = BY_TYPE[model_type]
    for changes in ({}, *profile.variants.values(), *profile.apart.values()):
        model = model_of(profile, changes)
        model(torch.tensor([[3]]), use_cache=False)
        subject = ModelSubject(profile, from_transformers(model), "ours")
        target = Target(model_type, lambda _, s=subject: [s])
        for name in (*PIECES, *PADDING, "batch", "interleaved"):
            finding = examine(target, name)
            assert finding.verdict == AGREE, (changes, finding)


@pytest.mark.parametrize("model_type", ["mamba2", "recurrent_gemma", "rwkv"])
def test_snippets_show_the_difference_in_ten_lines(model_type):
    target = find(model_type)[0]
    before = torch.get_default_dtype()
    for finding in audit([target]):
        if finding.verdict != DISAGREE:
            continue
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(finding.snippet, {})
        finally:
            torch.set_default_dtype(before)
        assert "mixerzoo" not in finding.snippet
        assert len(finding.snippet.splitlines()) <= 10
        assert float(out.getvalue()) > (1e-9 if finding.property == "fp64" else 1e-3), finding


def test_a_model_class_is_a_target():
    (target,) = find("transformers.models.mamba2.modeling_mamba2:Mamba2Model")
    assert target.name == "mamba2"
    assert examine(target, "padding_right").verdict == DISAGREE
    assert examine(target, "padding_left").verdict == AGREE


def test_a_model_of_which_nothing_is_known():
    """Of attention: it agrees, and what is asked of mixers is not asked."""
    (target,) = find("transformers:GPT2LMHeadModel")
    verdicts = {f.property: f.verdict for f in audit([target], (*PIECES, *PADDING, "batch", "gradients"))}
    assert set(verdicts.values()) == {AGREE, UNSUPPORTED}
    assert verdicts["gradients"] == UNSUPPORTED and verdicts["padding_inside"] == AGREE


PROFILE = """
from mixerzoo.equivalence.audit.targets.transformers.profile import Profile

PROFILE = Profile("mamba", "MambaConfig", "MambaMixer", {"state_size": 4, "conv_kernel": 2})
"""


def test_a_profile_of_ones_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(PROFILE)
    (target,) = find("mamba", file)
    assert target.subjects("decode")[0].model.config.conv_kernel == 2
    assert examine(target, "chunked_prefill").verdict == DISAGREE


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params", "state"])
def test_versions_name_the_cache_differently(name):
    namespace = {}
    exec(f"def forward(self, input_ids, attention_mask=None, {name}=None, use_cache=None): ...", namespace)
    assert cache_name(namespace["forward"]) == name
    exec("def forward(self, input_ids, **kwargs): ...", namespace)
    assert cache_name(namespace["forward"]) is None


def test_a_profile_may_name_any_configuration_class(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(PROFILE.replace('"MambaConfig"', '"transformers:MambaConfig"'))
    (target,) = find("mamba", file)
    assert target.subjects("decode")[0].model.config.conv_kernel == 2
    file = tmp_path / "none.py"
    file.write_text(PROFILE.replace('"MambaConfig"', '"NoConfig"'))
    (target,) = find("mamba", file)
    with pytest.raises(TargetError, match="has no NoConfig"):
        target.subjects("decode")


def test_every_linear_mixer_of_transformers_is_a_target():
    assert not_looked_at() == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("mamba3", "Model types here: minimax, mamba"),
        ("transformers:Mamba4Model", "transformers has no Mamba4Model"),
        ("no.such.module:f", "no.such.module does not import"),
        ("torch:float32", "accepted: a function"),
    ],
)
def test_errors_name_what_is_accepted(text, said):
    with pytest.raises(TargetError, match=said):
        find(text)


def test_many_places_are_counted():
    where = {f"t{i}": ["packed"] for i in range(9)} | {"u": ["packed", "batch"]}
    assert _places(where, 2) == "packed of t0, t1 and 7 more; packed, batch of u"


def test_an_adapter_is_for_one_target(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("x = 1")
    with pytest.raises(TargetError, match="with one target"):
        find("transformers", file)
    with pytest.raises(TargetError, match="has no PROFILE"):
        find("mamba", file)


def test_the_command(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "mixerzoo.equivalence.cli", "audit", "mamba2"]
    options = ["--property", "decode", "--property", "packed", "--json", str(file)]
    found = subprocess.run([*command, *options], capture_output=True, text=True)
    assert found.returncode == 1, found.stderr
    assert "mamba2" in found.stdout and "time_step_limit" in found.stdout
    rows = json.loads(file.read_text())
    assert [set(row) for row in rows] == [{"target", "property", "verdict", "difference", "example"}] * len(
        rows
    )
    verdicts = {(row["target"], row["property"]): row["verdict"] for row in rows}
    assert verdicts["mamba2", "decode"] == DISAGREE and verdicts["mamba2", "packed"] == UNSUPPORTED
    wrong = subprocess.run([*command[:-1], "nothing"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "accepted" in wrong.stderr
