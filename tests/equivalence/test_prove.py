"""The command and the function: what they run, choose, print and return."""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mixerzoo.equivalence import aot, prove
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
    assert all(e.bound < 1e-13 for e in outcome.evidence if e.kind == "exact")


def test_the_catalogue_is_in_order():
    for name, theorem in THEOREMS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(/[a-z0-9]+(-[a-z0-9]+)*)+", name)
        assert theorem.evidence and set(theorem.evidence) <= set(EVIDENCE)
        assert theorem.statement.endswith(".") and theorem.over


def test_every_mixer_has_its_paper():
    assert set(PAPERS) == set(REGISTRY)


def test_a_run_is_determined_by_its_seed():
    names = ["forms/scan", "forms/split", "mixers/hgrn/padding"]
    first, again, other = (prove.prove(names, seed=s) for s in (1, 1, 2))
    numbers = [[[replace(e, seconds=0) for e in o.evidence] for o in run] for run in (first, again, other)]
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
    assert record["run"]["seed"] == 3 and record["run"]["quick"] and record["passed"]
    assert {"python", "torch", "numpy", "mixerzoo", "coqc"} <= record["made with"]["versions"].keys()
    assert [t["name"] for t in record["theorems"]] == ["forms/scan-network", "operator/step"]
    assert record["theorems"][0]["statement"] == THEOREMS["forms/scan-network"].statement


def test_the_command_lists(capsys):
    assert command("--list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in THEOREMS)


def test_a_missing_text_is_named(capsys, tmp_path):
    assert command("mixers/hgrn/streaming", "--text", str(tmp_path / "none.txt")) == 2
    assert "none.txt" in capsys.readouterr().err


def test_ones_own_text_is_read(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"It was the best of times, it was the worst of times. " * 30)
    (outcome,) = prove.prove(["mixers/lightning/streaming"], text=text, kinds=["text"])
    (own,) = outcome.evidence
    (other,) = prove.prove(["mixers/lightning/streaming"], kinds=["text"])[0].evidence
    assert own.passed and other.passed and own.digest != other.digest


def test_failures_are_spelled_out(monkeypatch, capsys):
    def fails(budget, tally):
        raise Counterexample("2 is not 3")

    false = Theorem("false/claim", "Two is three.", "nothing", {"exact": fails})
    monkeypatch.setattr(prove, "catalogue", lambda: {false.name: false})
    assert command() == 1
    printed = capsys.readouterr().out
    assert "Two is three." in printed and "2 is not 3" in printed and "1 fail" in printed


def test_a_theorem_that_checks_nothing_fails():
    outcome = Theorem("empty", "Nothing.", "nothing", {"exact": lambda budget, tally: None}).run(Budget())
    assert not outcome.passed and outcome.failure == "exact: nothing was checked"


def test_errors_in_the_code_under_test_are_failures():
    outcome = Theorem("error", "One.", "nothing", {"exact": lambda budget, tally: 1 / 0}).run(Budget())
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


# ------------------------------------------------------------------ what is refused, before any work


@pytest.fixture
def no_work(monkeypatch):
    def ran(budget, tally):
        raise AssertionError("a theorem was run")

    theorem = Theorem("a/theorem", "One.", "nothing", {"text": ran})
    monkeypatch.setattr(prove, "catalogue", lambda: {theorem.name: theorem})


def refused(capsys, status):
    """The one line on stderr of a command that printed nothing else and exited with 2."""
    printed = capsys.readouterr()
    assert status == 2 and not printed.out
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize("name", ["missing/x.json", "", "file/x.json"])
def test_json_that_cannot_be_written_is_refused(no_work, capsys, tmp_path, name):
    (tmp_path / "file").touch()
    line = refused(capsys, command("--json", str(tmp_path / name)))
    assert f"--json is {tmp_path / name}; accepted: a file in a folder that exists" in line


@pytest.mark.parametrize("name", ["missing/x.json", "", "file/x.json"])
def test_json_of_aot_that_cannot_be_written_is_refused(capsys, tmp_path, name, monkeypatch):
    pytest.importorskip("triton")
    from mixerzoo.kernels.triton_core import aot as compiler

    monkeypatch.setattr(compiler, "compile_all", lambda *args: pytest.fail("kernels were compiled"))
    (tmp_path / "file").touch()
    line = refused(capsys, aot_command("--json", str(tmp_path / name)))
    assert f"--json is {tmp_path / name}; accepted: a file in a folder that exists" in line


def aot_command(*arguments):
    parser = argparse.ArgumentParser()
    aot.add_arguments(parser)
    return aot.run(parser.parse_args(arguments))


def test_aot_needs_a_process(capsys):
    pytest.importorskip("triton")
    assert "--processes is 0; accepted: at least 1" in refused(capsys, aot_command("--processes", "0"))


def test_aot_prints_no_bar_into_a_pipe(capsys, monkeypatch):
    pytest.importorskip("triton")
    from mixerzoo.kernels.triton_core import aot as compiler

    row = compiler.Row(
        "sm_90", "chunk_forward", "scalar", "bfloat16", 64, "1x1x1", 4, 9, 0, 9, 99, {"HMMA": 1}
    )
    monkeypatch.setattr(compiler, "compile_all", lambda matrix, processes: iter([[row] for _ in matrix]))
    assert (
        aot_command("--target", "sm_90", "--dtype", "bfloat16", "--head-dim", "64", "--decay", "scalar") == 0
    )
    printed = capsys.readouterr()
    assert not printed.err and "1 kernels: no spills, all fit" in printed.out


@pytest.mark.parametrize(("name", "what"), [("short", "of 5 bytes"), ("none", "missing"), ("", "not a file")])
def test_a_text_that_will_not_do_is_refused(no_work, capsys, tmp_path, name, what):
    (tmp_path / "short").write_bytes(b"short")
    path = tmp_path / name
    line = refused(capsys, command("--text", str(path)))
    assert f"--text is {path} ({what}); accepted: a file of at least 1,000 bytes" in line
    with pytest.raises((OSError, ValueError), match="accepted: a file of at least 1,000 bytes"):
        prove.prove(text=path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_text_is_refused(no_work, capsys, tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"x" * 2000)
    path.chmod(0)
    assert "accepted: a file of at least 1,000 bytes" in refused(capsys, command("--text", str(path)))


def test_an_empty_name_matches_nothing(no_work, capsys):
    assert "no theorem is named ''" in refused(capsys, command(""))


@pytest.mark.parametrize(
    "program",
    [
        "from mixerzoo.equivalence.prove import prove; assert prove(['operator/step'])[0].passed",
        "from mixerzoo.equivalence.theorems.operator import check_kernel\n"
        "from mixerzoo.kernels import recurrence\n"
        "check_kernel(lambda *x: recurrence(*x[:5], initial_state=x[5]), examples=3)",
    ],
)
def test_hypothesis_leaves_nothing_behind(tmp_path, program):
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "HYPOTHESIS_STORAGE_DIRECTORY"}
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program += "\nimport hypothesis.configuration as c, pathlib\n"
    program += "assert pathlib.Path.cwd() in pathlib.Path(c.storage_directory('x').path).parents"
    subprocess.run([sys.executable, "-c", program], cwd=here, env=environment, check=True)
    assert not list(here.iterdir())
    assert not list(temporary.glob("mixerzoo-*"))


# ------------------------------------------------------------------ check_kernel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_decay": "[B,T]"}, r"key_decay is '\[B,T\]'; accepted: 'none', '\[H\]', "),
        ({"value_decay": "[H]"}, r"value_decay is '\[H\]'; accepted: 'none', '\[H,V\]', "),
        ({"read": "later"}, "read is 'later'; accepted: 'after', 'before'"),
        ({"dtype": "float64"}, "dtype is 'float64'; accepted: torch.float64, torch.float32, "),
        ({"dtype": torch.int64}, "dtype is torch.int64; accepted: torch.float64, torch.float32, "),
    ],
)
def test_options_of_check_kernel_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_kernel(lambda *x: pytest.fail("called"), **options)


def test_a_kernel_that_cannot_be_called_is_told_with_what():
    def few(q, k, v):
        raise AssertionError("called")

    with pytest.raises(
        TypeError, match=r"kernel\(q, k, v, log_decay, log_decay_v, initial_state\).*few\(\) takes 3"
    ):
        check_kernel(few, examples=5)


def test_a_type_error_inside_a_kernel_is_a_counterexample():
    def broken(q, k, v, log_decay, log_decay_v, initial_state):
        return q + "text", initial_state

    with pytest.raises(Counterexample, match=r"TypeError: .* for B = 1, T = 1"):
        check_kernel(broken, examples=5)


def test_wrappers_are_kernels():
    def other(q, k, v, options, *, log_decay, initial_state):
        return recurrence(q, k, v, log_decay, initial_state=initial_state, **options)

    @functools.wraps(other)  # signature() shows the arguments of `other`
    def wrapper(*x):
        return other(*x[:3], {"form": "scan"}, log_decay=x[3], initial_state=x[5])

    def more(form, q, k, v, log_decay, log_decay_v, initial_state):
        return recurrence(q, k, v, log_decay, log_decay_v, initial_state=initial_state, form=form)

    assert check_kernel(wrapper, examples=5) < 1e-12
    assert check_kernel(functools.partial(more, "chunk"), key_decay="dt·A", examples=5) < 1e-12
