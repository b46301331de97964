"""The report: one page that holds every proof and figure, and loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mixerzoo.equivalence import certificate, cli, report
from mixerzoo.equivalence.figures import FIGURES
from mixerzoo.equivalence.figures.plan import Inputs
from mixerzoo.equivalence.theorem import EvidenceOutcome, Outcome
from mixerzoo.mixers.registry import REGISTRY


def outcome(name: str, statement: str, kind: str, **given: Any) -> Outcome:
    found: dict[str, Any] = {"kind": kind, "passed": True, "cases": 10, "seconds": 0.1} | given
    return Outcome(name, statement, "T < 9", (EvidenceOutcome(**found),))


HELD = outcome("forms/chunk", "Chunk < recurrent & equal to `it`.", "exact", bound=7e-16)
MIXERS = [
    outcome(f"mixers/{name}/padding", "Padding is nothing.", "property", worst=2e-16) for name in REGISTRY
]
FAILED = outcome("operator/mask", "A mask.", "property", passed=False, failure="T = 1 <nan>")


@pytest.fixture
def run(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `mixerzoo report` with these outcomes and the tiny models; returns status and page."""

    def ran(outcomes: list[Outcome], figures: int = len(FIGURES)) -> tuple[int, str]:
        monkeypatch.setattr(report, "FIGURES", list(FIGURES)[-figures:])
        monkeypatch.setattr(report, "prove", lambda **options: outcomes)
        monkeypatch.setattr(report, "prepare", lambda steps, text: inputs)
        monkeypatch.setattr(
            report, "with_models", lambda given, progress, names: inputs._replace(plan=given.plan)
        )
        status = cli.main(["report", "-o", str(tmp_path / "report"), "--seed", "3"])
        return status, (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

    return ran


class Loads(HTMLParser):
    """Collects what a browser would load or follow, checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("src", "srcset", "data", "poster") or (key == "href" and tag == "link"):
                self.loaded.append(value or "")
            elif key == "href":
                self.links.append(value or "")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(run, inputs: Inputs, tmp_path: Path) -> None:
    status, page = run([HELD, *MIXERS])
    assert status == 0
    parser = Loads()
    parser.feed(page)
    assert not parser.open
    assert len(parser.loaded) == len(FIGURES) and all(s.startswith("data:image/") for s in parser.loaded)
    accepted = r"#|data:|proofs\.html$|https://arxiv\.org/abs/"
    assert all(re.match(accepted, link) for link in parser.links)
    assert "@import" not in page and "url(" not in page and "<script" not in page
    assert all(o.name in page for o in (HELD, *MIXERS))
    assert "Chunk &lt; recurrent &amp; equal to <code>it</code>." in page
    for name in FIGURES:
        assert f'id="{name}"' in page
        assert (tmp_path / "report" / "figures" / f"{name}.json").exists()
    for name, training in inputs.trainings.items():
        assert page.count(name) >= 4, "in the tables of proofs, models, samples and mixers"
        assert f"{training.parameters:,}" in page
    for value in ("torch", "triton", "platform", "--seed 3"):
        assert value in page
    assert f"All {1 + len(MIXERS)} theorems hold" in page
    proofs = (tmp_path / "report" / "proofs.html").read_text(encoding="utf-8")
    assert f"All {1 + len(MIXERS)} theorems hold" in proofs and HELD.name in proofs
    record = certificate.read(tmp_path / "report" / "proofs.json")
    assert record["run"]["seed"] == 3 and len(record["theorems"]) == 1 + len(MIXERS)


def test_a_failed_proof_is_prominent_and_fails_the_command(run, capsys: pytest.CaptureFixture[str]) -> None:
    status, page = run([HELD, FAILED], figures=1)
    assert status == 1
    assert "1 of 2 theorems FAIL" in page
    assert page.index("T = 1 &lt;nan&gt;") < page.index('id="proofs"')
    assert "operator/mask" in capsys.readouterr().out


def test_a_model_that_disagrees_with_itself_fails_the_command(run, inputs: Inputs) -> None:
    name, training = next(iter(inputs.trainings.items()))
    sound = training.float64
    object.__setattr__(training, "float64", sound._replace(decode=1e-3))
    try:
        status, page = run([HELD], figures=1)
    finally:
        object.__setattr__(training, "float64", sound)
    assert status == 1 and f"disagree with themselves: {name}" in page


def test_errors_say_what_is_accepted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_bytes(b"x" * 1100)
    assert cli.main(["report", "-o", str(tmp_path / "out"), "--text", str(short)]) == 2
    printed = capsys.readouterr().err
    assert f"--text is {short}" in printed and "accepted: more than 1290" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("blocked", "accepted"),
    [
        ("out", "a folder, or the name of a new one"),
        ("out/figures", "a folder, or the name of a new one"),
        ("out/index.html", "a file in a folder that exists"),
        ("out/proofs.json", "a file in a folder that exists"),
        ("out/proofs.html", "a file in a folder that exists"),
    ],
)
def test_an_output_in_the_way_is_refused_before_any_work(
    blocked: str,
    accepted: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "prove", lambda **options: pytest.fail("theorems were run"))
    path = tmp_path / blocked
    if "a file" in accepted:
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept")
    assert cli.main(["report", "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mixerzoo report: ")
    assert f"--output is {path}; accepted: {accepted}" in line
