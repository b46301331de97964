"""The lemmas that Coq's kernel checks, for every length: from their sources, on this machine, now.

`coq/` holds the proofs. `coq/Statements.v` states each cited lemma once more, beside the theorems of the
catalogue that cite it; nothing counts as checked but what

- compiles, without a warning,
- says what is stated there (the statement is a type, and the lemma is accepted for it), and
- assumes nothing (`Print Assumptions` finds it closed under the global context).

Needs `coqc`, Debian's package `coq`, and nothing from Python but its standard library:

    python equivalence/machine_checked.py --build build/coq     check, and keep what was compiled
    python equivalence/machine_checked.py --table               what each lemma says, as Markdown
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "coq"
STATEMENTS = "Statements.v"
QUESTIONS = "Questions.v"  # made from it
# Warnings are errors, but for names that a later Coq deprecates.
OPTIONS = ("-q", "-w", "+default,deprecated", "-Q", ".", "Mixerzoo")
CLOSED = "Closed under the global context"

_CITATION = re.compile(
    r"^\(\*\* (?P<theorems>[^\n]+)\n(?P<words>.*?)\n\s*Models (?P<models>.*?)\. \*\)\n"
    r"Check \(@(?P<name>\w+) : (?P<statement>.*?)\)\.$",
    re.DOTALL | re.MULTILINE,
)
_COMMENT = re.compile(r"\(\*.*?\*\)", re.DOTALL)
_ASSUMED = re.compile(r"\b(Admitted|admit|Axioms?|Parameters?|Conjecture)\b")


class NotInstalled(Exception):
    """There is no coqc on this machine."""


class DoesNotCompile(Exception):
    """Coq does not accept the proofs; what it says of them."""


@dataclass(frozen=True)
class Lemma:
    """A lemma, as `Statements.v` cites it.

    theorems: names of the catalogue's theorems that it is evidence for.
    words, models: what it says, and of which code.
    statement: the same in Coq.
    """

    name: str
    theorems: tuple[str, ...]
    words: str
    models: str
    statement: str


@dataclass(frozen=True)
class Checked:
    """coqc's version, and of every lemma None, or what is wrong with it."""

    version: str
    problems: dict[str, str | None]

    @property
    def holds(self) -> bool:
        return all(problem is None for problem in self.problems.values())


def cited(source: Path = SOURCE) -> list[Lemma]:
    """The lemmas of `Statements.v`, in its order.

    Raises:
        ValueError: a statement there has no comment of the form that all others have, or is there twice.
    """
    text = (source / STATEMENTS).read_text(encoding="utf-8")
    found = [
        Lemma(
            m["name"],
            tuple(name.strip() for name in m["theorems"].split(",")),
            " ".join(m["words"].split()),
            " ".join(m["models"].split()),
            m["statement"],
        )
        for m in _CITATION.finditer(text)
    ]
    names = [lemma.name for lemma in found]
    every = re.findall(r"^Check \(@?(\w+)", text, re.MULTILINE)
    if names != every or len(set(names)) != len(names):
        odd = [name for name in every if name not in names or every.count(name) > 1]
        raise ValueError(
            f"{STATEMENTS}: {', '.join(odd)} must be cited once, with theorems, words and models"
        )
    return found


def files(source: Path = SOURCE) -> list[str]:
    """The files of the development, each after those that it needs."""
    lines = (source / "_CoqProject").read_text(encoding="utf-8").split()
    return [name for name in lines if name.endswith(".v")]


def version() -> str:
    """What coqc says it is.

    Raises:
        NotInstalled: there is none.
    """
    if shutil.which("coqc") is None:
        raise NotInstalled("there is no coqc on PATH; it is in Debian's package coq")
    said = subprocess.run(("coqc", "--print-version"), capture_output=True, text=True, check=True).stdout
    return said.split()[0]


def _compile(name: str, build: Path) -> str:
    """What coqc prints for a file of the folder.

    Raises:
        DoesNotCompile: what it says is wrong.
    """
    run = subprocess.run(("coqc", *OPTIONS, name), cwd=build, capture_output=True, text=True)
    if run.returncode:
        raise DoesNotCompile(run.stderr.strip())
    return run.stdout


def _assumed(source: Path) -> list[str]:
    """Where a file of the folder says that it assumes something."""
    found = []
    for name in files(source):
        text = (source / name).read_text(encoding="utf-8")
        bare = _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
        for i, line in enumerate(bare.splitlines(), 1):
            found += [f"{name}, line {i}: {m[0]}" for m in _ASSUMED.finditer(line)]
    return found


def _questions(header: str, lemmas: list[Lemma]) -> tuple[str, list[int]]:
    """A file that asks whether each lemma is what is stated; on which line each begins."""
    text, begins = header, []
    for lemma in lemmas:
        begins.append(text.count("\n") + 1)
        text += f"Definition stated_{lemma.name} : {lemma.statement} := @{lemma.name}.\n"
    return text, begins


def _assumptions(text: str, lemmas: list[Lemma], folder: Path) -> dict[str, str]:
    """What each lemma of a file of questions assumes. Asked of all at once, which is much faster, and of each
    only if that finds anything."""
    together = ", ".join(f"stated_{lemma.name}" for lemma in lemmas)
    text += f"Definition all_stated := ({together}, tt).\nPrint Assumptions all_stated.\n"
    (folder / QUESTIONS).write_text(text, encoding="utf-8")
    if _compile(QUESTIONS, folder).strip() == CLOSED:
        return {lemma.name: CLOSED for lemma in lemmas}
    for lemma in lemmas:
        text += f'Goal True. idtac "lemma {lemma.name}". Abort.\nPrint Assumptions stated_{lemma.name}.\n'
    (folder / QUESTIONS).write_text(text, encoding="utf-8")
    parts = re.split(r"^lemma (\w+)$", _compile(QUESTIONS, folder), flags=re.MULTILINE)
    return {name: said.strip() for name, said in zip(parts[1::2], parts[2::2], strict=True)}


def check(source: Path = SOURCE, build: Path | None = None) -> Checked:
    """Compile the proofs in `build` (None: a folder that is removed), and ask Coq of every cited lemma
    whether it is what is stated, and what it assumes.

    Raises:
        NotInstalled: there is no coqc.
        DoesNotCompile: a proof is wrong, assumes something, or causes a warning.
        ValueError: `Statements.v` cites something in another form (see `cited`).
    """
    said = version()
    lemmas = cited(source)
    if assumed := _assumed(source):
        raise DoesNotCompile("; ".join(assumed))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if build is None else build
        folder.mkdir(parents=True, exist_ok=True)
        for name in files(source):
            shutil.copyfile(source / name, folder / name)
            if name != STATEMENTS:
                _compile(name, folder)
        return Checked(said, _ask(lemmas, (source / STATEMENTS).read_text(encoding="utf-8"), folder))


def _ask(lemmas: list[Lemma], statements: str, folder: Path) -> dict[str, str | None]:
    """Of every lemma None, or what is wrong with it. Coq stops at an error: each is taken out in turn."""
    header = statements[: statements.index("(** ")]
    wrong: dict[str, str] = {}
    while True:
        asked = [lemma for lemma in lemmas if lemma.name not in wrong]
        text, begins = _questions(header, asked)
        try:
            answers = _assumptions(text, asked, folder)
            break
        except DoesNotCompile as e:
            where = re.search(rf'File ".*{QUESTIONS}", line (\d+)', str(e))
            place = int(where[1]) if where else 0
            blamed = [lemma for lemma, begin in zip(asked, begins, strict=True) if begin <= place]
            if not blamed:  # not of a lemma
                raise
            wrong[blamed[-1].name] = str(e)
    for lemma in asked:
        if answers.get(lemma.name) != CLOSED:
            wrong[lemma.name] = answers.get(lemma.name) or "Coq says nothing of it"
    return {lemma.name: wrong.get(lemma.name) for lemma in lemmas}


@functools.cache
def checked() -> Checked:
    """`check` of the package's own proofs, once in a process.

    Raises:
        NotInstalled, DoesNotCompile: see `check`.
    """
    return check()


def table(source: Path = SOURCE) -> str:
    """What each lemma says, as Markdown."""
    rows = [
        f"| `{lemma.name}` | {lemma.words} | {_code(lemma.models)} | {', '.join(lemma.theorems)} |"
        for lemma in cited(source)
    ]
    return "\n".join(["| lemma | what it says | models | cited by |", "|---|---|---|---|", *rows]) + "\n"


def _code(models: str) -> str:
    """The models of a lemma, what is in a file of the code in type."""
    return "; ".join(f"`{m}`" if m.startswith("kernels/") else m for m in models.split("; "))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the proofs in coq/, and what their lemmas assume.")
    parser.add_argument("--build", type=Path, metavar="DIR", help="compile here, and keep what was compiled")
    parser.add_argument("--table", action="store_true", help="only print what each lemma says, as Markdown")
    args = parser.parse_args(arguments)
    if args.table:
        print(table(), end="")
        return 0
    try:
        found = check(build=args.build)
    except (NotInstalled, DoesNotCompile, ValueError) as e:
        print(f"proofs not checked: {e}", file=sys.stderr)
        return 1
    for lemma in cited():
        print(f"{lemma.name}: {found.problems[lemma.name] or CLOSED}")
    wrong = sum(problem is not None for problem in found.problems.values())
    print(f"Coq {found.version}: {len(found.problems)} lemmas, {wrong} of them not what is cited")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
