"""What guards the code: the theorems of `mixerzoo prove --quick`, and the tests; and which lines each runs.

Both run in processes of their own (see `isolation`), so that nothing here imports the package.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

THEOREM = "theorem "  # in front of a theorem's name; a test goes by its pytest id


@dataclass(frozen=True)
class Project:
    """Where the code is: `root`/a/b.py is module package.a.b.

    tests: files of tests, as pytest is given them. theorems: whether the package has a catalogue of them.
    preload: modules of others to import once, before the processes part.
    """

    root: Path
    package: str
    tests: tuple[str, ...]
    theorems: bool = True
    preload: tuple[str, ...] = ()

    def module(self, file: str) -> str:
        parts = Path(file).with_suffix("").parts
        return ".".join((self.package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


# ------------------------------------------------------------------ theorems


def _kinds() -> list[str]:
    """Of evidence that sees the code. Coq's does not."""
    return [k for k in importlib.import_module("mixerzoo.equivalence.theorem").EVIDENCE if k != "coq"]


def theorem_names() -> list[str]:
    chosen, _ = importlib.import_module("mixerzoo.equivalence.prove").choose(None, _kinds())
    return [theorem.name for theorem in chosen]


def theorem_holds(name: str) -> bool:
    prove = importlib.import_module("mixerzoo.equivalence.prove").prove
    return all(outcome.passed for outcome in prove([name], quick=True, kinds=_kinds()))


def without_shrinking() -> None:
    """A counterexample is enough: finding its smallest form is what takes hypothesis longest."""
    engine = importlib.import_module("hypothesis.internal.conjecture.engine")
    runner = getattr(engine, "ConjectureRunner", None)
    if hasattr(runner, "shrink_interesting_examples"):
        runner.shrink_interesting_examples = lambda self: None


# ------------------------------------------------------------------ tests


class Chosen:
    """A plugin of pytest: runs these tests, in this order; tells before each; stops at the first failure."""

    def __init__(self, names: list[str] | None, before: Callable[[str], None]) -> None:
        self.place = None if names is None else {name: i for i, name in enumerate(names)}
        self.before = before
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.place is not None:
            items[:] = [i for i in items if i.nodeid in self.place]
            items.sort(key=lambda i: self.place[i.nodeid])  # type: ignore[index]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.before(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = f"import of {report.nodeid}"


def run_pytest(project: Project, files: list[str], *plugins: Any, first_failure: bool = True) -> int:
    """pytest's exit status."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
    if first_failure:
        options.append("-x")
    os.chdir(project.root)
    return int(pytest.main([*options, *files], plugins=list(plugins)))


# ------------------------------------------------------------------ which lines a guard runs


class Lines:
    """The lines of `files` that run, as {file: lines}."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.names = {os.path.realpath(root / f): f for f in files}
        self.known: dict[str, str | None] = {}
        self.seen: dict[str, set[int]] = {}

    def _file(self, name: str) -> str | None:
        if name not in self.known:
            self.known[name] = self.names.get(os.path.realpath(name))
        return self.known[name]

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        file = self._file(frame.f_code.co_filename)
        if file is None:
            return None
        lines = self.seen.setdefault(file, set())

        def line(frame: FrameType, event: str, arg: object) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line

    @contextmanager
    def watched(self) -> Iterator[None]:
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)

    def take(self) -> dict[str, list[int]]:
        found = {file: sorted(lines) for file, lines in self.seen.items() if lines}
        self.seen = {}
        return found


Record = dict[str, Any]  # {"seconds": ..., "lines": {file: [...]}}


def measure_theorems(project: Project, files: list[str], tell: Callable[[str, Record], None]) -> None:
    """Every theorem that holds: how long it takes and which lines of the files it runs."""
    lines = Lines(project.root, files)
    for name in theorem_names():
        with lines.watched():
            holds = theorem_holds(name)
        began = time.process_time()  # of the second time: what is set up once is not the theorem's
        holds = theorem_holds(name) and holds
        seconds = time.process_time() - began
        found = lines.take()
        if holds and found:
            tell(THEOREM + name, {"seconds": round(seconds, 3), "lines": found})


class Measured:
    """A plugin of pytest that watches every test. The time is with the watching, and so too long."""

    def __init__(self, project: Project, files: list[str], tell: Callable[[str, Record], None]) -> None:
        self.lines, self.tell = Lines(project.root, files), tell
        self.reports: list[Any] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.reports.append(report)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.reports = []
        began = os.times()
        with self.lines.watched():
            yield
        ended, found = os.times(), self.lines.take()
        seconds = ended.user + ended.system - began.user - began.system
        elsewhere = ended.children_user - began.children_user  # in a process that does not see a change
        if found and elsewhere == 0 and len(self.reports) == 3 and all(r.passed for r in self.reports):
            self.tell(item.nodeid, {"seconds": round(seconds, 3), "lines": found})


def measure_tests(
    project: Project, tests: list[str], files: list[str], tell: Callable[[str, Record], None]
) -> None:
    status = run_pytest(project, tests, Measured(project, files, tell), first_failure=False)
    if status not in (0, 1, 5):  # all passed, some failed, there are none
        raise RuntimeError(f"pytest's exit status is {status}, of {', '.join(tests)}")
