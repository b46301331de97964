"""`python tests/mutants`: change the code in small ways, one at a time, and see whether anything notices."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .guards import THEOREM, Project, measure_tests, measure_theorems
from .isolation import Guard, Pool, fork, guarded, preload
from .operators import Mutant, mutants
from .store import Map, Reason, Result, Results, fingerprint, reasons

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).with_name("survivors.toml")

CORE = (
    *("forms", "tree", "fold", "scan", "delta", "scores", "passing", "gradients", "scan_gradient"),
    *("steps", "decays", "memory", "large", "order", "one_step", "operator", "ops"),
)
MIXERZOO = Project(
    ROOT,
    "mixerzoo",
    (
        *(
            f"tests/kernels/test_{n}.py"
            for n in (
                *("forms", "tree", "fold", "scan", "gradients", "saved", "memory", "large"),
                *("delta", "operator", "errors", "step"),
            )
        ),
        *(p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "tests/mixers").glob("test_[!c]*.py"))),
    ),
    preload=(
        "torch",
        "numpy",
        "pytest",
        "hypothesis.strategies",
        "safetensors.torch",
        "triton.language",
        "transformers",
        "transformers.modeling_utils",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "rich.table",
    ),
)


def guarded_files(root: Path = ROOT) -> list[str]:
    """What is mutated unless files are named: the core's forms, gradients and operator, and all mixers."""
    if not (root / "mixers").exists():
        return []
    mixers = sorted(p.relative_to(root).as_posix() for p in (root / "mixers").rglob("*.py"))
    return [*(f"kernels/{n}.py" for n in CORE), *(m for m in mixers if not m.endswith("__init__.py"))]


# ------------------------------------------------------------------ which guards


def _listen(run: Callable[[Callable[[str], None]], None], log: Path, heard: Callable[[str], None]) -> None:
    """`run` in a process of its own, line by line."""
    pid, pipe = fork(run, str(log))
    with os.fdopen(pipe, encoding="utf-8") as lines:
        for line in lines:
            heard(line.rstrip("\n"))
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"measuring the guards failed; see {log}")


def measure(project: Project, files: list[str], tests: bool, found: Map, console: Console) -> None:
    """Run every guard once, unchanged code, and keep which lines of the files it runs; what an earlier,
    interrupted run measured is not measured again."""
    if found.stale(files):
        found.forget({f: fingerprint(project.root, f) for f in files})

    def hear(line: str) -> None:
        name, record = json.loads(line)
        found.guards[name] = record

    def sending(tell: Callable[[str], None]) -> Callable[[str, dict[str, Any]], None]:
        return lambda name, record: tell(json.dumps([name, record]))

    found.write()
    log = found.path.with_name("measure.log")
    for source in (("theorems",) if project.theorems else ()) + (project.tests if tests else ()):
        if source in found.measured:
            continue
        console.print(f"measuring which lines are run by {source}")

        def run(tell: Callable[[str], None], source: str = source) -> None:
            if source == "theorems":
                measure_theorems(project, files, sending(tell))
            else:
                measure_tests(project, [source], files, sending(tell))

        _listen(run, log, hear)
        found.measured.append(source)
        found.write()


class Guards:
    """Of every line, the guards that run it, and in which order to try them."""

    def __init__(self, found: Map, slowest: float, only: str | None = None, hang: float = 4.0) -> None:
        self.hang, self.only = hang, only
        self.seconds = {
            n: g["seconds"]
            for n, g in found.guards.items()
            if g["seconds"] <= slowest and only in (None, "theorems" if n.startswith(THEOREM) else "tests")
        }
        self.lines: dict[str, dict[str, set[int]]] = defaultdict(dict)
        self.share: dict[tuple[str, str], float] = {}
        for name in self.seconds:
            lines = found.guards[name]["lines"]
            every = sum(map(len, lines.values()))
            for file, these in lines.items():
                self.lines[file][name] = set(these)
                self.share[file, name] = len(these) / every
        self.kills: Counter[tuple[str, str, str]] = Counter()

    def drop(self, name: str, chain: list[Guard]) -> None:
        """A guard that is none; or, if it is no guard's name, the tests of the file that it names."""
        gone = [g.name for g in chain if g.name == name or name.endswith(g.name.split("::")[0])]
        for guard in gone or [g.name for g in chain]:
            for names in self.lines.values():
                names.pop(guard, None)

    def learn(self, mutant: Mutant, guard: str) -> None:
        self.kills[mutant.file, mutant.function, guard] += 1

    def of(self, mutant: Mutant, budget: float) -> list[Guard]:
        """Theorems before tests; of each the killers of the function's other mutants first, then those that
        are short and about this file; as many as take `budget` seconds, and one at least."""
        first, final = mutant.lines
        at = range(first, final + 1)
        files = self.lines[mutant.file]
        names = [n for n, lines in files.items() if not lines.isdisjoint(at)]
        if not mutant.inside:  # what runs at import serves all
            names = list(files)

        def order(name: str) -> tuple[int, float]:
            kills = self.kills[mutant.file, mutant.function, name]
            return -kills, (self.seconds[name] + 0.02) / self.share[mutant.file, name]

        chosen = []
        for theorem in (True, False):
            spent = 0.0
            for name in sorted((n for n in names if n.startswith(THEOREM) == theorem), key=order):
                if spent and spent + self.seconds[name] > budget:
                    break
                spent += self.seconds[name]
                chosen.append(Guard(name, self.seconds[name], self.hang + 8 * self.seconds[name]))
        return chosen


# ------------------------------------------------------------------ the run


def choose(of_file: list[Mutant], sample: int | None, seed: int) -> list[Mutant]:
    """All of them, or a sample that the seed and the file's name decide, in the order of the text. A larger
    sample of the same seed holds the smaller."""
    if sample is None or sample >= len(of_file):
        return of_file
    places = list(range(len(of_file)))
    random.Random(f"{seed} {of_file[0].file}").shuffle(places)
    return [of_file[i] for i in sorted(places[:sample])]


def run_mutants(
    project: Project,
    chosen: list[Mutant],
    guards: Guards,
    results: Results,
    jobs: int,
    budget: float,
    progress: Callable[[Result | None], None] = lambda result: None,
    complain: Callable[[str], None] = print,
) -> None:
    """Every mutant in a process of its own; what comes out goes into the results."""
    sources = {f: (project.root / f).read_text(encoding="utf-8") for f in {m.file for m in chosen}}
    prints = {f: fingerprint(project.root, f) for f in sources}
    by_name = {str(m): m for m in chosen}
    pool, waiting = Pool(jobs), list(reversed(chosen))
    chains: dict[str, list[Guard]] = {}
    sound: set[str] = set()  # guards seen to hold on the code as it is, in this run

    def holds(name: str, chain: list[Guard], mutant: Mutant) -> bool:
        """Whether what failed with the change holds without."""
        if name in sound:
            return True
        one = [g for g in chain if g.name == name] or [g for g in chain if g.name.split("::")[0] in name]
        run = _task(project, project.module(mutant.file), sources[mutant.file], one[:1] or chain)
        alone = Pool(1)
        alone.start(name, run)
        ended: list[Any] = []
        while not ended:
            ended = alone.wait()
        if ended[0][1] == "survived":
            sound.add(name)
        return name in sound

    def add(mutant: Mutant, outcome: str, guard: str, seconds: float) -> None:
        result = Result(str(mutant), mutant.file, prints[mutant.file], outcome, guard, round(seconds, 2))
        results.add(result)
        if outcome == "killed":
            guards.learn(mutant, guard)
        progress(result)

    try:
        while waiting or pool.running:
            while waiting and not pool.full:
                mutant = waiting.pop()
                chain = chains[str(mutant)] = guards.of(mutant, budget)
                if not chain:
                    if guards.only is None:  # guards of the other kind may reach it
                        add(mutant, "unreached", "", 0.0)
                    continue
                changed, module = mutant.apply(sources[mutant.file]), project.module(mutant.file)
                pool.start(str(mutant), _task(project, module, changed, chain))
            for key, outcome, guard, seconds in pool.wait():
                if outcome != "survived" and not holds(guard, chains[key], by_name[key]):
                    complain(f"{guard} fails on the code as it is, and guards nothing")
                    guards.drop(guard, chains[key])
                    waiting.append(by_name[key])
                else:
                    add(by_name[key], outcome, guard, seconds)
            progress(None)
    finally:
        pool.stop()


def _task(
    project: Project, module: str, source: str, chain: list[Guard]
) -> Callable[[Callable[[str], None]], None]:
    return lambda tell: guarded(project, module, source, chain, tell)


# ------------------------------------------------------------------ the report


@dataclass(frozen=True)
class Score:
    file: str
    mutants: int
    run: int
    killed: int
    timeouts: int
    survivors: list[str]
    explained: dict[str, Reason]

    @property
    def equivalent(self) -> int:
        return sum(r.kind == "equivalent" for r in self.explained.values())

    @property
    def share(self) -> float:
        """Killed, of those that can be."""
        return self.killed / max(1, self.run - self.equivalent)


def scores(every: dict[str, list[Mutant]], results: Results, why: dict[str, Reason]) -> list[Score]:
    found = []
    for file, of_file in every.items():
        done = [results.of[str(m)] for m in of_file if str(m) in results.of]
        alive = [r.mutant for r in done if not r.killed]
        found.append(
            Score(
                file,
                len(of_file),
                len(done),
                sum(r.killed for r in done),
                sum(r.outcome == "timeout" for r in done),
                alive,
                {m: why[m] for m in alive if m in why},
            )
        )
    return found


def total(parts: list[Score], name: str) -> Score:
    return Score(
        name,
        sum(s.mutants for s in parts),
        sum(s.run for s in parts),
        sum(s.killed for s in parts),
        sum(s.timeouts for s in parts),
        [m for s in parts for m in s.survivors],
        {m: r for s in parts for m, r in s.explained.items()},
    )


def table(parts: list[Score]) -> Table:
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("file", no_wrap=True)
    for title in ("mutants", "run", "killed", "by time", "survive", "equivalent", "score"):
        found.add_column(title, justify="right", no_wrap=True)
    for s in parts:
        percent = f"{100 * s.share:.1f}%" if s.run else ""
        numbers = (s.mutants, s.run, s.killed, s.timeouts, len(s.survivors), s.equivalent)
        found.add_row(s.file, *map(str, numbers), percent)
    return found


def report(console: Console, parts: list[Score], bar: float) -> int:
    """The scores, the survivors without a reason; 1 if there is one, or the score is below the bar."""
    ran = [s for s in parts if s.run]
    console.print(table([*ran, total(ran, "all")]))
    everything = total(ran, "all")
    unexplained = [m for m in everything.survivors if m not in everything.explained]
    kinds = Counter(r.kind for r in everything.explained.values())
    console.print()
    if kinds:
        console.print("survivors by reason: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    for mutant in unexplained:
        console.print(f"[red]without a reason:[/] {escape(mutant)}", soft_wrap=True)
    low = everything.share < bar
    if low:
        console.print(f"[red]the score is {100 * everything.share:.1f}%, below {100 * bar:g}%[/]")
    return 1 if low or unexplained or not everything.run else 0


# ------------------------------------------------------------------ the command


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python tests/mutants", description=__doc__)
    found.add_argument("files", nargs="*", metavar="FILE", help="what to mutate (all that is guarded)")
    found.add_argument(
        "--sample", type=int, metavar="N", help="so many mutants of each file, by --seed (all)"
    )
    found.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample (0)")
    found.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (1)")
    found.add_argument(
        "--budget",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds of theorems, and as many of tests, that a mutant must survive (20)",
    )
    found.add_argument("--slowest", type=float, default=5.0, metavar="S", help="leave out slower guards (5)")
    found.add_argument(
        "--hang",
        type=float,
        default=4.0,
        metavar="S",
        help="processor seconds, beside eight times its own, after which a guard counts as hanging (4)",
    )
    found.add_argument("--bar", type=float, default=95.0, metavar="P", help="the least score, per cent (95)")
    found.add_argument("--only", choices=("theorems", "tests"), help="guards of one kind only (both)")
    found.add_argument("--again", action="store_true", help="run survivors again")
    found.add_argument("--measure", action="store_true", help="measure anew which lines each guard runs")
    found.add_argument("--report", action="store_true", help="only report what earlier runs found")
    found.add_argument(
        "--keep", type=Path, default=ROOT / "build" / "mutants", metavar="DIR", help="where results are"
    )
    return found


def main(arguments: list[str] | None = None, project: Project = MIXERZOO, survivors: Path = SURVIVORS) -> int:
    args = parser().parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and a process that forks
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    files = args.files or guarded_files(project.root)
    every = {f: mutants(f, (project.root / f).read_text(encoding="utf-8")) for f in files}
    results = Results(args.keep / "results.jsonl", project.root)
    why = reasons(survivors)
    if not args.report:
        preload(project)
        found = Map(args.keep / "map.json", project.root)
        if args.measure:
            found.forget({})
        measure(
            project, sorted({*files, *guarded_files(project.root)}), args.only != "theorems", found, console
        )
        chosen = [m for f in files for m in choose(every[f], args.sample, args.seed)]
        fresh = [m for m in chosen if not _done(results.of.get(str(m)), args.again)]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # No thread may draw: this process forks.
        with Progress(*columns, console=console, auto_refresh=False) as bar:
            task = bar.add_task("mutants", total=len(fresh))

            def progress(result: Result | None) -> None:
                if result is not None:
                    bar.update(task, advance=1, description=result.file)
                    if not result.killed:
                        bar.console.print(f"{result.outcome}: {escape(result.mutant)}", soft_wrap=True)
                bar.refresh()

            say = partial(bar.console.print, style="yellow", markup=False, soft_wrap=True)
            guards = Guards(found, args.slowest, args.only, args.hang)
            run_mutants(project, fresh, guards, results, args.jobs, args.budget, progress, say)
    return report(console, scores(every, results, why), args.bar / 100)


def _done(result: Result | None, again: bool) -> bool:
    return result is not None and (result.killed or not again)
