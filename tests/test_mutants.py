"""The mutants' own tests: on a function of four lines, whose mutants can be told by hand."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import store
from mutants.command import choose, guarded_files, report, scores
from mutants.operators import mutants
from rich.console import Console

TOY = '''"""A toy."""


def clip(x, low: int):
    """At least `low`, and at least 0."""
    if x is None:
        raise ValueError(f"x is {2 + 1}")
    while low < 0:
        low += 1
    return x if x > low else low
'''
GUARD = """
import pytest
from toyzoo.kernels.toy import clip


def test_clip():
    assert clip(3, -1) == 3 and clip(-5, -1) == 0


def test_error():
    with pytest.raises(ValueError):
        clip(None, -2)
"""
RUN = """
import sys
from pathlib import Path
from mutants.command import main
from mutants.guards import Project

root = Path(sys.argv[1])
project = Project(root, "toyzoo", ("tests/test_toy.py",), theorems=False)
options = ["--keep", str(root / "kept"), "--hang", "2", *sys.argv[2:]]
sys.exit(main(["kernels/toy.py", *options], project, root / "why.toml"))
"""


@pytest.fixture
def toy(tmp_path):
    """A package in the layout of this one, and its runs."""
    for folder in ("kernels", "tests", "by-name"):
        (tmp_path / folder).mkdir()
    (tmp_path / "by-name" / "toyzoo").symlink_to(tmp_path)
    (tmp_path / "kernels" / "toy.py").write_text(TOY)
    (tmp_path / "tests" / "test_toy.py").write_text(GUARD)

    def run(*options):
        path = os.pathsep.join((str(tmp_path / "by-name"), str(Path(__file__).parent)))
        return subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path), *options],
            env=os.environ | {"PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    run.root = tmp_path
    return run


def found(root):
    lines = (root / "kept" / "results.jsonl").read_text().splitlines()
    records = {r["mutant"].partition(": ")[2]: r for r in map(json.loads, lines)}
    return {name: r["outcome"] for name, r in records.items()}, records


def test_what_becomes_of_mutants(toy):
    first = toy("--bar", "80")
    outcomes, records = found(toy.root)
    assert outcomes["while low < 0:: < → <="] == "killed", first.stdout + first.stderr
    assert records["while low < 0:: < → <="]["guard"] == "tests/test_toy.py::test_clip"
    assert outcomes['raise ValueError(f"x is {2 + 1}"): raise ValueError(f"x is {2 + 1}") → pass'] == "killed"
    assert outcomes["low += 1: + → -"] == "timeout"
    alive = "return x if x > low else low: > → >="
    assert [name for name, outcome in outcomes.items() if outcome == "survived"] == [alive]

    # One survives without a reason: that is a failure, whatever the score.
    assert first.returncode == 1
    assert f"without a reason: kernels/toy.py::clip: {alive}" in first.stdout

    named = f"mutants = ['''{records[alive]['mutant']}''']\n"
    (toy.root / "why.toml").write_text(f"[[reason]]\nkind = 'equivalent'\nbecause = 'low is low'\n{named}")
    second = toy("--bar", "100", "--report")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "100.0%" in second.stdout

    # What has been run is not run again, until the file changes.
    assert toy("--bar", "80").returncode == 0
    assert len((toy.root / "kept" / "results.jsonl").read_text().splitlines()) == len(outcomes)
    (toy.root / "kernels" / "toy.py").write_text(TOY + "\n")
    assert toy("--report").returncode == 1


def test_a_guard_that_fails_on_the_code_as_it_is_guards_nothing(toy):
    (toy.root / "tests" / "test_toy.py").write_text(GUARD.replace("== 3", "== 4"))
    run = toy("--bar", "50")
    outcomes, _ = found(toy.root)
    assert set(outcomes.values()) == {"killed", "unreached"}, run.stdout + run.stderr
    assert outcomes["while low < 0:: < → <="] == "unreached"


def test_a_guard_that_has_come_to_fail_kills_nothing(toy):
    assert toy("--sample", "0").returncode == 1  # measures what the tests run, and no more
    (toy.root / "tests" / "test_toy.py").write_text(GUARD.replace("== 3", "== 4"))
    run = toy("--bar", "0")
    outcomes, records = found(toy.root)
    assert "test_clip fails on the code as it is" in run.stdout, run.stdout + run.stderr
    assert outcomes["while low < 0:: < → <="] == "unreached"
    assert {r["guard"] for r in records.values()} == {"", "tests/test_toy.py::test_error"}


# In a process that has not imported the package, as those of the mutants have not.
ORDER = """
from mutants.command import MIXERZOO
from mutants.guards import THEOREM
from mutants.isolation import Guard, Pool, guarded
from mutants.operators import mutants

file = "kernels/order.py"
source = (MIXERZOO.root / file).read_text()
guards = [Guard(THEOREM + name, 1.0, 100.0) for name in ("forms/mask", "forms/scan-network")]
pool = Pool(1)
for mutant in mutants(file, source)[:2]:
    changed = mutant.apply(source)
    pool.start(
        f"{mutant.before} to {mutant.after}",
        lambda tell: guarded(MIXERZOO, "mixerzoo.kernels.order", changed, guards, tell),
    )
    while pool.running:
        for name, outcome, guard, _ in pool.wait():
            print(name, outcome, guard)
"""


def test_theorems_kill():
    """Indices of letters are never equal: < is <=. But not >=."""
    run = subprocess.run(
        [sys.executable, "-c", ORDER],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines() == [
        "< to <= survived ",
        "< to >= killed theorem forms/mask",
    ], run.stdout + run.stderr


# ------------------------------------------------------------------ the changes


def changes(source):
    return {f"{m.before} → {m.after}" for m in mutants("x.py", source)}


def test_changes_of_expressions():
    assert {"< → <=", "< → >="} <= changes("a = b < c")
    assert {"-2 → -3", "-2 → -1"} == changes("def f(x):\n    return g(x, -2)") - {"x, -2 → -2, x"}
    assert "and → or" in changes("a = b and c")
    assert "x.flip(0) → x" in changes("y = x.flip(0)")
    assert "torch.exp(x) → (x)" in changes("y = torch.exp(x)")
    assert "strict=True → " not in changes("y = zip(a, b, strict=True)")
    assert "dim=1 → " in changes("y = f(a, dim=1)")
    assert "a, b → b, a" in changes("def f():\n    return a, b")
    assert "i → " in changes("y = x[i:]")


def test_what_is_left_alone():
    assert not changes('"""Words: 1 + 2."""\nimport a\nx: int | None\n__all__ = ["a", 1 + 2]')
    assert not changes("def f(x: int | 2) -> 1 | 2:\n    assert x is not None")
    assert changes('def f(x):\n    raise ValueError(f"{x + 1} not {2}")') == {
        'raise ValueError(f"{x + 1} not {2}") → pass'
    }


def test_mutants_of_the_package_are_python_and_have_names_of_their_own():
    root = Path(__file__).parents[1]
    for file in ("kernels/forms.py", "mixers/base.py"):
        source = (root / file).read_text()
        every = mutants(file, source)
        assert len({str(m) for m in every}) == len(every) > 100
        for m in every[::60]:
            assert ast.dump(ast.parse(m.apply(source))) != ast.dump(ast.parse(source)), m


def test_a_sample_is_of_its_seed_and_grows():
    every = mutants("kernels/toy.py", TOY)
    few, more = choose(every, 3, 0), choose(every, 6, 0)
    assert len(few) == 3 and set(few) < set(more)
    assert choose(every, 3, 0) == few != choose(every, 3, 1)


# ------------------------------------------------------------------ reasons and scores


def test_reasons_say_which_kind_and_why(tmp_path):
    file = tmp_path / "why.toml"
    file.write_text("[[reason]]\nkind = 'because'\nbecause = 'so'\nmutants = ['m']")
    with pytest.raises(ValueError, match="accepted: equivalent"):
        store.reasons(file)
    file.write_text("[[reason]]\nkind = 'speed'\nbecause = 'so'\nmutants = ['m', 'm']")
    with pytest.raises(ValueError, match="two reasons for m"):
        store.reasons(file)


def test_every_reason_is_of_a_mutant_that_there_is():
    root = Path(__file__).parents[1]
    given = store.reasons(Path(__file__).with_name("mutants") / "survivors.toml")
    files = {name.partition("::")[0] for name in given}
    assert files <= set(guarded_files(root))
    known = {str(m) for f in files for m in mutants(f, (root / f).read_text(encoding="utf-8"))}
    assert not set(given) - known


def test_a_score_counts_out_what_cannot_be_killed(toy):
    every = {"kernels/toy.py": mutants("kernels/toy.py", TOY)}
    results = store.Results(toy.root / "results.jsonl", toy.root)
    names = [str(m) for m in every["kernels/toy.py"]]
    source = store.fingerprint(toy.root, "kernels/toy.py")
    for name, outcome in zip(names[:4], ("killed", "survived", "timeout", "unreached"), strict=True):
        results.add(store.Result(name, "kernels/toy.py", source, outcome, "", 0.0))
    why = {names[1]: store.Reason("equivalent", "so")}
    (score,) = scores(every, results, why)
    assert (score.run, score.killed, score.timeouts, score.survivors) == (4, 2, 1, [names[1], names[3]])
    assert score.share == 2 / 3
    quiet = Console(file=io.StringIO())
    assert report(quiet, [score], 0.5) == 1  # names[3] has no reason
    why[names[3]] = store.Reason("speed", "so")
    assert report(quiet, scores(every, results, why), 0.5) == 0
    assert report(quiet, scores(every, results, why), 0.7) == 1
