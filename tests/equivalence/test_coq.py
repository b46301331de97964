"""What Coq checks counts only if it compiles, says what is cited, and assumes nothing: exhibits of each."""

import importlib
import re
import shutil
from pathlib import Path

import pytest

from mixerzoo.equivalence import machine_checked
from mixerzoo.equivalence.machine_checked import (
    CLOSED,
    SOURCE,
    Checked,
    DoesNotCompile,
    NotInstalled,
    check,
    checked,
    cited,
    files,
    main,
    table,
)
from mixerzoo.equivalence.prove import prove
from mixerzoo.equivalence.theorems import catalogue

needs_coqc = pytest.mark.skipif(shutil.which("coqc") is None, reason="needs coqc (Debian's package coq)")
# What the exhibits are made of: the first files, and the lemmas that they prove.
FIRST = ("Sums.v", "Core.v", "Recurrence.v")
THEIRS = ("recurrent_is_parallel", "any_chunking", "any_tree", "join_assoc", "packed_is_apart")


@pytest.fixture
def proofs(tmp_path):
    """A small part of the development, to be spoilt."""
    folder = tmp_path / "coq"
    folder.mkdir()
    for name in FIRST:
        shutil.copyfile(SOURCE / name, folder / name)
    (folder / "_CoqProject").write_text("\n".join((*FIRST, "Statements.v")) + "\n")
    text = (SOURCE / "Statements.v").read_text(encoding="utf-8")
    parts = [
        p for p in re.split(r"(?=^\(\*\* )", text, flags=re.M) if re.search(rf"@({'|'.join(THEIRS)}) ", p)
    ]
    (folder / "Statements.v").write_text("From Mixerzoo Require Import Recurrence.\n\n" + "".join(parts))
    return folder


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{before!r} is {text.count(before)} times in {path.name}"
    path.write_text(text.replace(before, after), encoding="utf-8")


# ------------------------------------------------------------------ the proofs


@needs_coqc
def test_every_lemma_is_what_is_cited_and_assumes_nothing():
    found = checked()
    assert found.holds, found.problems
    assert list(found.problems) == [lemma.name for lemma in cited()]
    assert re.fullmatch(r"[\d.]+", found.version)


def test_every_file_is_compiled():
    assert sorted(files()) == sorted(p.name for p in SOURCE.glob("*.v"))


def test_what_is_modelled_is_in_the_code():
    for lemma in cited():
        for module, names in re.findall(r"kernels/(\w+)\.py: ([^;]*)", lemma.models):
            code = importlib.import_module(f"mixerzoo.kernels.{module}")
            named = [n for n in re.split(r", ", names) if re.fullmatch(r"[\w.]+", n)]
            assert named, lemma.models
            for name in named:
                found = code
                for part in name.split("."):
                    assert hasattr(found, part), f"{lemma.name} models {name}, which {module}.py has not"
                    found = getattr(found, part)


def test_the_docs_list_every_lemma():
    docs = SOURCE.parents[1] / "docs" / "proofs.md"
    if not docs.exists():
        pytest.skip("the docs are not installed")
    assert table() in docs.read_text(encoding="utf-8"), "python equivalence/machine_checked.py --table"


# ------------------------------------------------------------------ exhibits


@needs_coqc
def test_the_part_holds_as_it_is(proofs):
    found = check(proofs)
    assert found.holds and set(found.problems) == set(THEIRS)


@needs_coqc
def test_a_lemma_that_is_false(proofs):
    change(
        proofs / "Recurrence.v",
        "recurrent S l = (S ◁ total l) ⊕ parallel l.",
        "recurrent S l = S ⊕ parallel l.",
    )
    with pytest.raises(DoesNotCompile, match=r"Recurrence\.v"):
        check(proofs)


@needs_coqc
@pytest.mark.parametrize("word", ["Admitted", "Axiom"])
def test_a_lemma_that_is_only_claimed(proofs, word):
    path = proofs / "Recurrence.v"
    text = path.read_text(encoding="utf-8")
    begin = text.index("Theorem join_assoc")
    proof = text.index("Proof.", begin)
    end = text.index("Qed.", proof) + len("Qed.")
    if word == "Admitted":
        text = text[:proof] + "Proof. Admitted." + text[end:]
    else:
        text = text[:begin] + "Axiom" + text[begin + len("Theorem") : proof] + text[end:]
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DoesNotCompile, match=rf"Recurrence\.v, line \d+: {word}$"):
        check(proofs)


@needs_coqc
def test_a_lemma_that_assumes_what_the_library_assumes(proofs):
    path = proofs / "Recurrence.v"
    change(path, "From Mixerzoo", "Require Import FunctionalExtensionality.\nFrom Mixerzoo")
    change(
        path,
        "Theorem join_assoc e f g : join (join e f) g = join e (join f g).\nProof.",
        "Theorem join_assoc e f g : join (join e f) g = join e (join f g).\nProof.\n"
        "  pose (extensionality := @functional_extensionality).",
    )
    found = check(proofs)
    assert {name for name, problem in found.problems.items() if problem} == {"join_assoc"}
    assert "functional_extensionality_dep" in found.problems["join_assoc"]


@needs_coqc
def test_a_citation_that_is_not_what_the_lemma_says(proofs):
    change(proofs / "Statements.v", "(S ◁ total l) ⊕ parallel l", "S ⊕ parallel l")
    change(proofs / "Statements.v", "join (join e f) g = join e (join f g)", "join e f = join f e")
    found = check(proofs)
    assert not found.holds
    wrong = {name: problem for name, problem in found.problems.items() if problem}
    assert set(wrong) == {"recurrent_is_parallel", "join_assoc"}
    assert all("has type" in problem for problem in wrong.values())


@needs_coqc
def test_a_citation_of_nothing(proofs):
    change(proofs / "Statements.v", "@any_chunking :", "@no_such_lemma :")
    found = check(proofs)
    assert "no_such_lemma was not found" in " ".join(found.problems["no_such_lemma"].split())
    assert [name for name, problem in found.problems.items() if problem] == ["no_such_lemma"]


@needs_coqc
def test_a_warning_is_an_error(proofs):
    change(proofs / "Sums.v", "End Sums.", "Fixpoint never (n : nat) := n.\nEnd Sums.")
    with pytest.raises(DoesNotCompile, match="non-recursive"):
        check(proofs)


def test_a_citation_without_words(proofs):
    path = proofs / "Statements.v"
    path.write_text(re.sub(r"\(\*\* forms/recurrent.*?\*\)", "", path.read_text(), flags=re.S))
    with pytest.raises(ValueError, match="recurrent_is_parallel must be cited once"):
        cited(proofs)


# ------------------------------------------------------------------ as evidence


def outcome(name):
    (found,) = prove([name])
    return found.of("coq")


def test_every_citation_is_of_a_theorem():
    theorems = catalogue()
    named = {name for lemma in cited() for name in lemma.theorems}
    assert named == {name for name, t in theorems.items() if "coq" in t.evidence}


@needs_coqc
def test_a_theorem_names_its_lemmas():
    found = outcome("forms/scan-network")
    assert found.passed and found.lemmas == ("lockstep_is_states",)


def test_without_coqc_there_is_no_evidence(monkeypatch):
    monkeypatch.setattr(machine_checked, "checked", lambda: check())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = outcome("forms/loop")
    assert found.passed is None and "Debian's package coq" in found.absent


def test_what_is_not_checked_is_not_cited(monkeypatch):
    every = dict.fromkeys((lemma.name for lemma in cited()), None)
    wrong = Checked("8", {**every, "loop_is_walk": "Axioms: cheat"})
    monkeypatch.setattr(machine_checked, "checked", lambda: wrong)
    found = outcome("forms/loop")
    assert not found.passed and found.failure == "loop_is_walk is not what is cited: Axioms: cheat"
    assert outcome("forms/scan-network").passed

    def broken():
        raise DoesNotCompile("Loop.v: no")

    monkeypatch.setattr(machine_checked, "checked", broken)
    assert outcome("forms/loop").failure == "the proofs do not compile: Loop.v: no"


# ------------------------------------------------------------------ the command


def test_the_command_says_what_is_wrong(monkeypatch, capsys):
    every = dict.fromkeys((lemma.name for lemma in cited()), None)
    monkeypatch.setattr(machine_checked, "check", lambda build: Checked("8.16.1", every))
    assert main([]) == 0
    said = capsys.readouterr().out
    assert f"chunk_form: {CLOSED}" in said and f"Coq 8.16.1: {len(every)} lemmas, 0 of them" in said
    monkeypatch.setattr(
        machine_checked, "check", lambda build: Checked("8", {**every, "any_tree": "Axioms: a"})
    )
    assert main([]) == 1
    said = capsys.readouterr().out
    assert "any_tree: Axioms: a" in said and "1 of them not what is cited" in said

    def absent(build):
        raise NotInstalled("no coqc")

    monkeypatch.setattr(machine_checked, "check", absent)
    assert main([]) == 1 and "no coqc" in capsys.readouterr().err
