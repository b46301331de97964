"""What is kept between runs, in build/mutants: which lines each guard runs, and what became of each mutant.

Both are of sources as they were: a file that has changed since has neither.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings its ancestor
    import tomli as tomllib  # type: ignore[no-redef]


def fingerprint(root: Path, file: str) -> str:
    return hashlib.sha256((root / file).read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """outcome: killed, timeout (which is killed too), survived, or unreached: no guard runs its line."""

    mutant: str
    file: str
    source: str  # fingerprint of the file
    outcome: str
    guard: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.outcome in ("killed", "timeout")


class Results:
    """One line of JSON each; the last of a mutant counts."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.of: dict[str, Result] = {}
        if path.exists():
            now: dict[str, str] = {}
            for line in path.read_text(encoding="utf-8").splitlines():
                one = Result(**json.loads(line))
                if one.file not in now:
                    now[one.file] = fingerprint(root, one.file) if (root / one.file).exists() else ""
                if one.source == now[one.file]:
                    self.of[one.mutant] = one

    def add(self, result: Result) -> None:
        self.of[result.mutant] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")


class Map:
    """Which lines of which files each guard runs, and how long it takes."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.sources: dict[str, str] = {}
        self.guards: dict[str, dict[str, Any]] = {}
        self.measured: list[str] = []  # theorems, and files of tests
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            self.sources, self.guards, self.measured = found["sources"], found["guards"], found["measured"]

    def stale(self, files: list[str]) -> list[str]:
        return [f for f in files if self.sources.get(f) != fingerprint(self.root, f)]

    def forget(self, sources: dict[str, str]) -> None:
        """Start anew, with these sources."""
        self.sources, self.guards, self.measured = sources, {}, []

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"sources": self.sources, "measured": self.measured, "guards": self.guards})
        self.path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Reason:
    kind: str
    because: str


# equivalent: the same function. speed: the same, another way. hardware: runs on a GPU, or in Triton, alone.
# chance: random starts, which one draw does not tell apart. open: seen, and left for the reason given.
KINDS = ("equivalent", "speed", "hardware", "chance", "open")


def reasons(path: Path) -> dict[str, Reason]:
    """Of each survivor that has one: [[reason]] kind, because, mutants = [...].

    Raises:
        ValueError: a kind that is not one of KINDS, an empty reason, or a mutant with two.
    """
    found: dict[str, Reason] = {}
    if not path.exists():
        return found
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("reason", []):
        if entry["kind"] not in KINDS or not entry["because"].strip():
            raise ValueError(f"{path.name}: kind is {entry['kind']!r}; accepted: {', '.join(KINDS)}, and why")
        for mutant in entry["mutants"]:
            if mutant in found:
                raise ValueError(f"{path.name}: two reasons for {mutant}")
            found[mutant] = Reason(entry["kind"], entry["because"])
    return found
