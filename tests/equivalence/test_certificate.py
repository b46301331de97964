"""Certificates: replayed bit by bit, caught when they were changed, shown on a page."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixerzoo.equivalence import certificate, cli, prove
from mixerzoo.equivalence.algebra import Field
from mixerzoo.equivalence.certificate_page import READ, certificate_page
from mixerzoo.equivalence.digest import Digest
from mixerzoo.equivalence.theorem import EVIDENCE, Absent, Budget, Counterexample, Tally, Theorem
from mixerzoo.equivalence.theorems import catalogue
from mixerzoo.equivalence.theorems_page import theorems_page
from mixerzoo.kernels import scan

# One for each kind of evidence that this process gathers by itself, and for each way of drawing cases.
NAMES = [
    "forms/chunk",
    "forms/loop",
    "gradients/operands",
    "links/hgrn-zero-phase",
    "operator/step",
    "lattice/operator",
    "mixers/hgrn/streaming",
    "mixers/softmax/padding",
]


def command(*arguments: object) -> int:
    return cli.main(["prove", *map(str, arguments)])


# All evidence but Coq's: its proofs take a while to check, and are the same for every seed.
HERE = ("exact", "bitwise", "bound", "property", "text")
EVIDENCE_HERE = [word for kind in HERE for word in ("--evidence", kind)]
# Fast ones, for what is run many times.
FEW = ["forms/loop", "forms/scan-associative", "operator/step", "mixers/hgrn/batching"]


@pytest.fixture(scope="module")
def all_written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "proofs.json"
    assert command(*NAMES, "--quick", "--seed", 5, "--json", path, *EVIDENCE_HERE) == 0
    return path


@pytest.fixture(scope="module")
def few_written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "proofs.json"
    assert command(*FEW, "--quick", "--seed", 5, "--json", path, *EVIDENCE_HERE) == 0
    return path


def loaded(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


@pytest.fixture
def record(few_written: Path) -> dict[str, Any]:
    return loaded(few_written)


def changed(record: dict[str, Any], path: Path, seal: bool = True) -> Path:
    """Written to a file, with a seal of its contents if asked for."""
    new = certificate.sealed(record) if seal else record
    path.write_text(certificate.as_json(new), encoding="utf-8")
    return path


def evidence(record: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    (theorem,) = (t for t in record["theorems"] if t["name"] == name)
    (found,) = (e for e in theorem["evidence"] if e["kind"] == kind)
    return found


# ------------------------------------------------------------------ replay


def test_a_replay_is_the_same(all_written, capsys):
    assert command("--replay", all_written) == 0
    assert f"{len(NAMES)} theorems: the same results, bit for bit" in capsys.readouterr().out


def test_another_process_finds_the_same(all_written):
    """Alone, in another order, with other hashes, with more modules loaded than the program loads itself."""
    program = (
        "import json, sys\n"
        "import mixerzoo.equivalence.report, mixerzoo.equivalence.cost.command\n"
        "from mixerzoo.equivalence.prove import prove\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        f"    (o,) = prove([name], seed=5, kinds={HERE})\n"
        "    found[name] = {e.kind: e.digest for e in o.evidence}\n"
        "print(json.dumps(found))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "11",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    ran = subprocess.run(
        [sys.executable, "-c", program, *reversed(NAMES)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    theorems = loaded(all_written)["theorems"]
    here = {t["name"]: {e["kind"]: e["digest"] for e in t["evidence"]} for t in theorems}
    assert json.loads(ran.stdout) == here


def test_examples_do_not_depend_on_what_is_loaded(monkeypatch):
    """hypothesis would draw constants that it reads in the source of loaded modules."""
    from hypothesis.internal.conjecture import providers

    if not hasattr(providers, "_get_local_constants"):
        pytest.skip("this hypothesis reads no source")

    def digests():
        return [e.digest for o in prove.prove(["operator/step", "mixers/hgrn/padding"]) for e in o.evidence]

    before = digests()
    many = providers.Constants()
    many.integers.update(range(1000))
    monkeypatch.setattr(providers, "_get_local_constants", lambda: many)
    providers.CONSTANTS_CACHE.cache.clear()
    assert digests() == before
    assert providers._get_local_constants() is many


def test_kinds_of_evidence_are_replayed(tmp_path, capsys):
    path = tmp_path / "exact.json"
    assert command("forms/split", "--quick", "--evidence", "exact", "--json", path) == 0
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert [e["kind"] for e in recorded["theorems"][0]["evidence"]] == ["exact"]
    assert recorded["run"]["text"] == {"file": None, "sha256": None}, "none was read"
    assert "<dt>text</dt>" not in certificate_page(recorded)
    assert command("--replay", path) == 0
    assert "1 theorem: the same results" in capsys.readouterr().out


def test_other_text_is_seen(tmp_path, capsys):
    path, text, other = (tmp_path / name for name in ("proofs.json", "text", "other"))
    text.write_bytes(b"It was the best of times, it was the worst of times. " * 30)
    other.write_bytes(b"It was the age of wisdom, it was the age of foolishness. " * 30)
    assert command("mixers/hgrn/streaming", "--quick", "--text", text, "--json", path) == 0
    assert command("--replay", path) == 0  # the file that is named in the certificate
    capsys.readouterr()
    assert command("--replay", path, "--text", other) == 1
    printed = capsys.readouterr().out
    assert "text · sha256" in printed and "mixers/hgrn/streaming · evidence · text · digest" in printed
    assert "evidence · property" not in printed
    text.unlink()
    assert command("--replay", path) == 2
    assert "--text is" in capsys.readouterr().err


# ------------------------------------------------------------------ what was changed is caught


def test_a_change_breaks_the_seal(record, tmp_path, capsys):
    evidence(record, "forms/loop", "exact")["cases"] += 1
    assert command("--replay", changed(record, tmp_path / "x.json", seal=False)) == 2
    assert "was changed after it was written" in capsys.readouterr().err


def change_cases(record):
    evidence(record, "forms/loop", "exact")["cases"] += 1


def change_bits(record):
    found = evidence(record, "mixers/hgrn/batching", "property")
    assert found["worst"] > 0
    found["worst"] = float(np.nextafter(found["worst"], 1.0))


def change_digest(record):
    found = evidence(record, "operator/step", "property")
    found["digest"] = found["digest"][::-1]


def change_statement(record):
    record["theorems"][0]["statement"] = "The loop loops."


def change_name(record):
    record["theorems"][0]["name"] = "forms/none"


def change_lacks(record):
    record["theorems"][0]["lacks"].popitem()


def change_verdict(record):
    record["theorems"][0]["passed"] = record["passed"] = False


def change_seed(record):
    record["run"]["seed"] = 6


def leave_out_evidence(record):
    record["theorems"][0]["evidence"].pop()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (change_cases, "forms/loop · evidence · exact · cases"),
        (change_bits, "mixers/hgrn/batching · evidence · property · worst"),
        (change_digest, "operator/step · evidence · property · digest"),
        (change_statement, "forms/loop · statement: The loop loops., here The loop over blocks"),
        (change_name, "forms/none: there is no such theorem here"),
        (change_lacks, "forms/loop · lacks"),
        (change_verdict, "forms/loop · passed: false, here true"),
        (change_seed, "operator/step · evidence · property · digest"),
        (leave_out_evidence, "forms/loop · evidence · exact: missing"),
    ],
)
def test_a_change_under_a_new_seal_differs_in_replay(change, field, record, tmp_path, capsys):
    change(record)
    assert command("--replay", changed(record, tmp_path / "x.json")) == 1
    printed = capsys.readouterr().out
    assert field in printed and "the results differ" in printed


def test_other_versions_are_told_apart_from_other_results(record, tmp_path, capsys):
    record["made with"]["versions"]["torch"] = "1.0"
    path = changed(record, tmp_path / "x.json")
    assert command("--replay", path) == 0
    printed = capsys.readouterr().out
    assert "made with other versions · torch: 1.0, here" in printed and "the same results" in printed


def test_broken_code_differs_in_replay(few_written, capsys, monkeypatch):
    real = scan.compose
    monkeypatch.setattr(scan, "compose", lambda x, y, out=(None, None): (x[0], real(x, y)[1]))
    assert command("--replay", few_written) == 1
    assert "forms/scan-associative · passed: true, here false" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "No such file"),
        (b"\xff", "is not JSON"),
        (b"{}", "is not a certificate; accepted: JSON whose format is 'mixerzoo certificate 1'"),
        (b"[1]", "is not a certificate"),
    ],
)
def test_what_is_no_certificate_is_refused(contents, message, tmp_path, capsys):
    path = tmp_path / "x.json"
    if contents is not None:
        path.write_bytes(contents)
    assert command("--replay", path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mixerzoo prove: ") and message in line


def test_an_incomplete_certificate_is_refused(record, tmp_path, capsys):
    del record["run"]["seed"]
    assert command("--replay", changed(record, tmp_path / "x.json")) == 2
    assert "is incomplete: KeyError 'seed'" in capsys.readouterr().err


def test_what_was_absent_is_told(monkeypatch, tmp_path, capsys):
    def absent(budget: Budget, tally: Tally) -> None:
        raise Absent("no coqc")

    def holds(budget: Budget, tally: Tally) -> None:
        tally.lemma("a_lemma")

    theorem = Theorem("a/theorem", "One.", "nothing", {"coq": holds, "text": holds})
    monkeypatch.setattr(prove, "catalogue", lambda: {theorem.name: theorem})
    path = tmp_path / "x.json"
    assert command("--json", path) == 0
    without = replace(theorem, evidence={"coq": absent, "text": holds})
    monkeypatch.setattr(prove, "catalogue", lambda: {theorem.name: without})
    assert command() == 0, "absent evidence is no failure"
    printed = capsys.readouterr().out
    assert "not here: no coqc" in printed
    assert "all hold, but for evidence that could not be gathered here (1)" in printed
    assert command("--replay", path) == 1
    assert "a/theorem · evidence · coq: gathered, here absent, no coqc" in capsys.readouterr().out
    alone = replace(theorem, evidence={"coq": absent})
    monkeypatch.setattr(prove, "catalogue", lambda: {theorem.name: alone})
    assert command() == 1, "nor a pass"


# ------------------------------------------------------------------ what it holds


def test_times_are_not_compared(record):
    compared = {k: v for k, v in record.items() if k != "not compared"}
    assert "seconds" not in json.dumps(compared)
    seconds = record["not compared"]["seconds"]
    assert list(seconds) == FEW and all(s > 0 for kinds in seconds.values() for s in kinds.values())
    slower = copy.deepcopy(record)
    slower["not compared"]["seconds"]["forms/loop"]["exact"] += 1
    assert certificate.sealed(slower)["seal"] == record["seal"]


def test_numbers_read_back_as_the_same_bits(record):
    outcomes = {o.name: o for o in prove.prove(FEW, seed=5, kinds=HERE)}
    count = 0
    for t in record["theorems"]:
        for e in t["evidence"]:
            found = outcomes[t["name"]].of(e["kind"])
            for field in ("bound", "worst", "ratio"):
                number = getattr(found, field)
                assert (e[field] is None) == (number is None)
                count += number is not None
                assert number is None or float(e[field]).hex() == float(number).hex()
    assert count == 4


def test_the_source_digest_sees_every_change(tmp_path, monkeypatch):
    monkeypatch.setattr(certificate, "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "equivalence" / "coq").mkdir(parents=True)
    code, proof = tmp_path / "kernels" / "a.py", tmp_path / "equivalence" / "coq" / "A.v"
    code.write_text("x = 1\n")
    proof.write_text("Qed.\n")
    seen = [certificate.source.__wrapped__()]
    code.write_text("x = 2\n")
    seen.append(certificate.source.__wrapped__())
    code.rename(tmp_path / "kernels" / "b.py")
    seen.append(certificate.source.__wrapped__())
    proof.write_text("Admitted.\n")
    seen.append(certificate.source.__wrapped__())
    (tmp_path / "kernels" / "notes.txt").write_text("no code")
    assert len(set(seen)) == 4 and certificate.source.__wrapped__() == seen[-1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2**-22])),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0]), torch.tensor([[1.0]])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int32)),
        (np.zeros(1), np.zeros(1, np.int64)),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0 + 2**-7], dtype=torch.bfloat16)),
        (Field(np.array([1], np.uint64)), Field(np.array([2], np.uint64))),
        (np.array([1.0]), np.array([2.0])),
        (0.1, 0.1 + 2**-56),
        (1, True),
        ("ab", "a"),
        (["a", "b"], ["ab"]),
        ([[1], 2], [[1, 2]]),
        ({"o": 1}, {"S": 1}),
        (None, 0),
        (Decimal("0.1"), Decimal("0.10")),
        (Budget(seed=1), Budget(seed=2)),
    ],
)
def test_a_digest_sees_one_bit(one, other):
    def of(*values):
        digest = Digest()
        for value in values:
            digest.add(value)
        return digest.hex()

    assert of(one) != of(other)
    assert of(one) == of(copy.deepcopy(one))
    assert of(one, other) != of(other, one)


def test_a_digest_is_of_numbers_alone():
    with pytest.raises(TypeError, match="a digest is of numbers, words and groups of these, not object"):
        Digest().add([object()])


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed, capsys):
    accepted = f"seed is {seed}; accepted: from 0 to 4294967295"
    assert command("forms/loop", "--seed", seed) == 2
    assert f"mixerzoo prove: --{accepted}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=accepted):
        prove.prove(["forms/loop"], seed=seed)
    assert cli.main(["report", "--seed", str(seed)]) == 2
    assert f"mixerzoo report: --{accepted}" in capsys.readouterr().err


def test_the_largest_seed_is_accepted():
    names = ["operator/step", "lattice/delta", "links/hgrn-zero-phase", "mixers/gla/streaming", "forms/scan"]
    assert all(o.passed for o in prove.prove(names, seed=2**32 - 1, kinds=HERE))


@pytest.mark.parametrize("option", ["--json", "--html", "--docs"])
def test_files_that_cannot_be_written_are_refused(option, tmp_path, capsys):
    assert command("forms/loop", option, tmp_path / "none" / "x") == 2
    assert f"{option} is {tmp_path / 'none' / 'x'}; accepted: a file in a folder" in capsys.readouterr().err


def test_kinds_of_evidence_are_named(capsys):
    assert command("forms/loop", "--evidence", "proof") == 2
    assert "evidence is 'proof'; accepted: exact, bitwise, bound" in capsys.readouterr().err
    assert command("forms/loop", "--evidence", "text") == 2
    assert "none of these theorems has text evidence" in capsys.readouterr().err


# ------------------------------------------------------------------ what is shown


def test_one_theorem_is_shown_in_full(capsys):
    assert command("forms/split", "--quick", *EVIDENCE_HERE) == 0
    printed = " ".join(capsys.readouterr().out.split())
    theorem = catalogue()["forms/split"]
    for words in (theorem.statement, theorem.formula, theorem.left.description, theorem.right.description):
        assert words in printed
    assert "degree ≤ " in printed and "examples, error" in printed
    assert "lacks text: of the core alone" in printed and "none has been written" in printed
    assert "1 theorem, " in printed and "all hold" in printed


def test_the_list_says_what_is_had_and_lacked(capsys):
    assert command("mixers/gla", "--list") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("mixers/gla/") == 7
    assert "lacks exact: no polynomial map" in printed and "text over bytes of English prose" in printed


class Page(HTMLParser):
    """Balanced tags, anchors and what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("src", "data", "poster", "srcset") or (key == "href" and tag == "link"):
                self.loaded.append(value or "")
            elif key == "href":
                self.links.append(value or "")
            elif key == "id":
                self.anchors.add(value or "")
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Page:
    found = Page()
    found.feed(page)
    assert not found.open and not found.loaded and "@import" not in page and "url(" not in page
    assert {link.removeprefix("#") for link in found.links} <= found.anchors
    return found


def test_the_page_has_all_that_the_certificate_has(record):
    page = certificate_page(record)
    assert set(FEW) <= parsed(page).anchors
    for t in record["theorems"]:
        assert f"mixerzoo prove {t['name']}" in page
        for e in t["evidence"]:
            assert e["digest"] in page and f"{e['cases']:,}" in page
    for value in (record["seal"], record["made with"]["source"], record["made with"]["versions"]["torch"]):
        assert value in page
    assert f"All {len(FEW)} theorems hold" in page and "FAIL" not in page
    for reading in READ.values():
        assert reading.not_shown in page
    assert READ.keys() == set(EVIDENCE)


def test_failures_come_first_on_the_page(record):
    def fails(budget: Budget, tally: Tally) -> None:
        raise Counterexample("T = 1 <nan>")

    outcome = Theorem("forms/broken", "It is <not>.", "T < 9", {"exact": fails}, "a < b").run(Budget())
    settings = certificate.Settings(["forms/broken"], None, True, 0, None)
    page = certificate_page(certificate.certificate([outcome], settings))
    parsed(page)
    assert "1 of 1 theorem FAILS" in page and "It is &lt;not&gt;." in page and "a &lt; b" in page
    assert page.index("T = 1 &lt;nan&gt;") < page.index('id="evidence"')


def test_the_command_writes_the_page(tmp_path):
    path = tmp_path / "proofs.html"
    assert command("forms/loop", "--quick", "--html", path, *EVIDENCE_HERE) == 0
    assert "The theorem holds, on" in path.read_text(encoding="utf-8")


def test_the_list_in_the_docs_is_that_of_the_catalogue():
    path = Path(__file__).resolve().parents[2] / "docs" / "theorems.md"
    written, now = path.read_text(encoding="utf-8"), theorems_page(catalogue().values())
    assert written == now, "make it again: mixerzoo prove --docs docs/theorems.md"
    assert all(len(line) <= 120 for line in written.splitlines())
