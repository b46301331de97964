"""The command and the function: what they run, choose, print and return."""

import argparse
import json
import re

import pytest
import torch

from mixerzoo.equivalence import prove
from mixerzoo.equivalence.theorem import EVIDENCE, Budget, Counterexample, Tally, Theorem
from mixerzoo.equivalence.theorems import catalogue
from mixerzoo.equivalence.theorems.operator import check_kernel
from mixerzoo.equivalence.theorems.papers import PAPERS
from mixerzoo.kernels import recurrence
from mixerzoo.mixers import REGISTRY

THEOREMS = catalogue()


def command(*arguments):
    parser = argparse.ArgumentParser()
    prove.add_arguments(parser)
    return prove.run(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def outcomes():
    """Everything, quickly."""
    return {o.name: o for o in prove.prove(quick=True)}


@pytest.mark.parametrize("name", THEOREMS)
def test_theorem_holds(outcomes, name):
    outcome = outcomes[name]
    assert outcome.passed, outcome.failure
    assert outcome.cases > 0
    if outcome.evidence == "exact":
        assert outcome.bound < 1e-13


def test_the_catalogue_is_in_order():
    for name, theorem in THEOREMS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(/[a-z0-9]+(-[a-z0-9]+)*)+", name)
        assert theorem.evidence in EVIDENCE
        assert theorem.statement.endswith(".") and theorem.over


def test_every_mixer_has_its_paper():
    assert set(PAPERS) == set(REGISTRY)


def test_a_run_is_determined_by_its_seed():
    names = ["forms/scan", "operator/split", "mixers/hgrn/padding"]
    first, again, other = (prove.prove(names, seed=s) for s in (1, 1, 2))
    numbers = [[(o.cases, o.bound, o.worst) for o in outcomes] for outcomes in (first, again, other)]
    assert numbers[0] == numbers[1] != numbers[2]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["forms/chunk"], {"forms/chunk"}),
        (["forms/chunk-"], {"forms/chunk-body"}),
        (["orders"], {n for n in THEOREMS if n.startswith("orders/")}),
        (["*/padding"], {n for n in THEOREMS if n.endswith("/padding")}),
        (["forms/scan", "forms/loop"], {"forms/scan", "forms/loop"}),
    ],
)
def test_names_select(names, expected):
    assert {t.name for t in prove.select(names, THEOREMS)} == expected


def test_unknown_names_list_near_ones(capsys):
    assert command("form/chnk") == 2
    assert "forms/chunk" in capsys.readouterr().err


def test_the_command_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "outcomes.json"
    assert command("forms/scan-network", "operator/step", "--quick", "--seed", "3", "--json", str(path)) == 0
    printed = capsys.readouterr().out
    assert "forms/scan-network" in printed and "operator/step" in printed and "all hold" in printed
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["seed"] == 3 and record["quick"] and record["passed"]
    assert {"python", "torch", "numpy", "mixerzoo"} <= record["versions"].keys()
    assert [o["name"] for o in record["outcomes"]] == ["forms/scan-network", "operator/step"]
    assert record["outcomes"][0]["statement"] == THEOREMS["forms/scan-network"].statement


def test_the_command_lists(capsys):
    assert command("--list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in THEOREMS)


def test_a_missing_text_is_named(capsys, tmp_path):
    assert command("mixers/hgrn/text", "--text", str(tmp_path / "none.txt")) == 2
    assert "none.txt" in capsys.readouterr().err


def test_ones_own_text_is_read(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"It was the best of times, it was the worst of times. " * 30)
    (outcome,) = prove.prove(["mixers/lightning/text"], text=text)
    assert outcome.passed


def test_failures_are_spelled_out(monkeypatch, capsys):
    def fails(budget, tally):
        raise Counterexample("2 is not 3")

    false = Theorem("false/claim", "Two is three.", "nothing", "exact", fails)
    monkeypatch.setattr(prove, "catalogue", lambda: {false.name: false})
    assert command() == 1
    printed = capsys.readouterr().out
    assert "Two is three." in printed and "2 is not 3" in printed and "1 fail" in printed


def test_a_theorem_that_checks_nothing_fails():
    outcome = Theorem("empty", "Nothing.", "nothing", "exact", lambda budget, tally: None).run(Budget())
    assert not outcome.passed and outcome.failure == "nothing was checked"


def test_errors_in_the_code_under_test_are_failures():
    outcome = Theorem("error", "One.", "nothing", "exact", lambda budget, tally: 1 / 0).run(Budget())
    assert not outcome.passed and "ZeroDivisionError" in outcome.failure


def test_threads_are_put_back():
    before = torch.get_num_threads()
    prove.prove(["forms/scan-associative"])
    assert torch.get_num_threads() == before


def test_error_probability_is_the_sum_of_degrees():
    tally = Tally()
    tally.exact(10)
    tally.exact(20)
    assert (tally.cases, tally.degrees) == (2, 30)


def test_ones_own_kernel_is_checked():
    def right(q, k, v, log_decay, log_decay_v, initial_state):
        return recurrence(q, k, v, log_decay, initial_state=initial_state, form="scan")

    def wrong(q, k, v, log_decay, log_decay_v, initial_state):
        return recurrence(q, k, v, 0.5 * log_decay, initial_state=initial_state)

    assert check_kernel(right, examples=20) < 1e-12
    with pytest.raises(Counterexample, match="T = 2,"):
        check_kernel(wrong, examples=20)
