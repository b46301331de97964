"""A certificate: what a run of the theorems found, written so that another run can be held against it.

    mixerzoo prove --quick --json proofs.json
    mixerzoo prove --replay proofs.json

What is compared is what the statements are, what was counted and measured, and a digest of every number
that took part in a comparison. Times are written too, apart: they are not compared. Floating point numbers
are written as the shortest decimals that read back as the same bits.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .text import english
from .theorem import Outcome

FORMAT = "mixerzoo certificate 1"
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("kernels", "mixers", "equivalence")


class Settings(NamedTuple):
    """What a run is determined by, together with the code, the versions and the machine."""

    names: Sequence[str] | None
    kinds: Sequence[str] | None
    quick: bool
    seed: int
    text: Path | None


class InvalidCertificate(ValueError):
    """A file is no certificate, or was changed after it was written."""


# ------------------------------------------------------------------ what it was made with


def versions() -> dict[str, str]:
    """Of this package, of what its numbers depend on, and of what checks its proofs."""
    found = {"mixerzoo": _version("mixerzoo"), "python": platform.python_version()}
    found |= {"torch": str(torch.__version__), "numpy": np.__version__}
    found |= {name: _version(name) for name in ("hypothesis", "triton")}
    return {**found, "coqc": _coqc()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _coqc() -> str:
    program = shutil.which("coqc")
    if program is None:
        return "not installed"
    printed = subprocess.run([program, "--print-version"], capture_output=True, text=True, check=False)
    return printed.stdout.split()[0] if printed.returncode == 0 and printed.stdout else "unknown"


@functools.cache
def source() -> str:
    """SHA-256 of this package's own code: the names and bytes of all its Python and Coq files."""
    digest = hashlib.sha256()
    files = [p for folder in SOURCES for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".v")]
    for path in sorted(files, key=lambda p: p.relative_to(ROOT).as_posix()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """What the last bits of floating point numbers may depend on."""
    cuda = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if cuda else "none",
    }


# ------------------------------------------------------------------ writing and reading


def certificate(outcomes: Sequence[Outcome], settings: Settings) -> dict[str, Any]:
    """The record of a run, ready for JSON."""
    theorems = []
    seconds: dict[str, dict[str, float]] = {}
    for o in outcomes:
        entry = json.loads(json.dumps(o.as_dict()))
        seconds[o.name] = {e["kind"]: e.pop("seconds") for e in entry["evidence"]}
        theorems.append({"name": o.name, "passed": o.passed, **entry})
    return sealed(
        {
            "format": FORMAT,
            "made with": {"versions": versions(), "source": source(), "machine": machine()},
            "run": {
                "names": None if settings.names is None else list(settings.names),
                "evidence": None if settings.kinds is None else list(settings.kinds),
                "quick": settings.quick,
                "seed": settings.seed,
                "text": {
                    "file": None if settings.text is None else str(settings.text),
                    "sha256": _text_digest(outcomes, settings.text),
                },
            },
            "passed": all(o.passed for o in outcomes),
            "theorems": theorems,
            "not compared": {"seconds": seconds},
        }
    )


def _text_digest(outcomes: Sequence[Outcome], path: Path | None) -> str | None:
    """Of the text, if one was read: not every Python ships the text that is read by default."""
    if not any(e.kind == "text" for o in outcomes for e in o.evidence):
        return None
    return hashlib.sha256(english(path)).hexdigest()


def _seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of all but the seal itself and what is not compared."""
    compared = {key: value for key, value in record.items() if key not in ("seal", "not compared")}
    text = json.dumps(compared, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "seal": _seal(record)}


def as_json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def read(path: str | Path) -> dict[str, Any]:
    """The certificate in a file.

    Raises:
        OSError: it cannot be read.
        InvalidCertificate: it is no certificate, or its seal is not that of its contents.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InvalidCertificate(f"{path} is not JSON: {e}") from e
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InvalidCertificate(f"{path} is not a certificate; accepted: JSON whose format is {FORMAT!r}")
    if record.get("seal") != _seal(record):
        raise InvalidCertificate(
            f"{path} was changed after it was written: its seal is not that of its contents"
        )
    try:
        settings_of(record)
        if not all(
            isinstance(t["name"], str) and isinstance(t["evidence"], list) for t in record["theorems"]
        ):
            raise TypeError("a theorem has no name or no evidence")
        record["made with"]["versions"].items()
    except (KeyError, TypeError, AttributeError) as e:
        raise InvalidCertificate(f"{path} is incomplete: {type(e).__name__} {e}") from e
    return record


def settings_of(record: Mapping[str, Any]) -> Settings:
    """What to run for a certificate to be made again: the very theorems that it lists."""
    run = record["run"]
    file = run["text"]["file"]
    return Settings(
        [t["name"] for t in record["theorems"]],
        run["evidence"],
        bool(run["quick"]),
        int(run["seed"]),
        None if file is None else Path(file),
    )


# ------------------------------------------------------------------ comparing


class Difference(NamedTuple):
    """A field that two certificates do not agree in: of `one`, and of `other`."""

    field: str
    one: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.one)}, here {_short(self.other)}"


MISSING = "missing"


def _short(value: Any) -> str:
    if isinstance(value, dict) and "passed" in value:  # evidence, where the other side has none
        return "gathered"
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words if len(words) <= 72 else f"{words[:69]}…"


def differences(one: Any, other: Any, field: str = "") -> Iterator[Difference]:
    """Everything in which two values differ, down to single fields."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(k for k in other if k not in one)]:
            inner = f"{field} · {key}" if field else str(key)
            yield from differences(one.get(key, MISSING), other.get(key, MISSING), inner)
    elif isinstance(one, float) and isinstance(other, float):
        if one.hex() != other.hex():
            yield Difference(field, one, other)
    elif type(one) is not type(other) or one != other:
        yield Difference(field, one, other)


class Comparison(NamedTuple):
    """What a certificate and its replay differ in.

    made_with: versions, source and machine. These may differ where the results do not.
    run: what was asked for: the text.
    results: what was stated, counted, measured or compared.
    """

    made_with: list[Difference]
    run: list[Difference]
    results: list[Difference]

    @property
    def same(self) -> bool:
        return not self.results and not self.run


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> Comparison:
    """A certificate and another of the same theorems, field by field, bit by bit."""
    return Comparison(
        list(differences(one["made with"], other["made with"])),
        list(differences(one["run"]["text"]["sha256"], other["run"]["text"]["sha256"], "text · sha256")),
        [
            *differences(_by_name(one), _by_name(other)),
            *differences(one["passed"], other["passed"], "passed"),
        ],
    )


def _by_name(record: Mapping[str, Any]) -> dict[str, Any]:
    """Theorems by name, their evidence by kind, so that a difference can be named."""
    found: dict[str, Any] = {}
    for theorem in record["theorems"]:
        evidence = {e.get("kind", MISSING): e for e in theorem["evidence"]}
        for kind, e in evidence.items():
            if e.get("passed", MISSING) is None:
                evidence[kind] = f"absent, {e.get('absent')}"
        found[theorem["name"]] = {**theorem, "evidence": evidence}
    return found
