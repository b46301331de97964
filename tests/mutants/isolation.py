"""A process of its own for every mutant: the changed source takes the place of the file's, then guards run.

The parent has imported torch and the like, but nothing of the package; a fork of it costs milliseconds, and
imports the package anew, with the change in it.
"""

from __future__ import annotations

import gc
import importlib
import linecache
import os
import resource
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType
from typing import Any

from .guards import THEOREM, Chosen, Project, run_pytest, theorem_holds, without_shrinking

MEMORY = 4 << 30  # bytes that a mutant may take beyond what its parent has


class Changed(SourceFileLoader):
    """Loads a module from the given text instead of its file's."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source
        # inspect.getsource, by which Triton reads its kernels, shall see the change too.
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str:
        return self.source


class Finder:
    """Ahead of all others: finds the module where they do, and has it loaded from the changed source."""

    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        for finder in sys.meta_path:
            found = (
                None if finder is self else getattr(finder, "find_spec", lambda *_: None)(name, path, target)
            )
            if found is not None and found.origin is not None:
                found.loader = Changed(name, found.origin, self.source)
                return found
        return None


def preload(project: Project) -> None:
    for name in project.preload:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"not here: {name}", file=sys.stderr)
    loaded = [m for m in sys.modules if m == project.package or m.startswith(project.package + ".")]
    if loaded:
        raise RuntimeError(f"{loaded} were imported before the mutants; accepted: none of {project.package}")
    gc.collect()
    gc.freeze()


def fork(run: Callable[[Callable[[str], None]], None], log: str | None = None) -> tuple[int, int]:
    """`run` in a new process, given a function that sends a line; its process id, and where lines arrive."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    code = 1
    try:
        os.close(read)
        os.setpgid(0, 0)
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        run(lambda line: os.write(write, (line + "\n").encode()) and None)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def limit_memory() -> None:
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


@dataclass(frozen=True)
class Guard:
    name: str
    seconds: float
    limit: float  # processor seconds after which it counts as hanging


def guarded(
    project: Project, module: str, source: str, guards: list[Guard], tell: Callable[[str], None]
) -> None:
    """In the mutant's process: the guards one after the other, to the first that fails."""
    if os.path.exists("/proc/self/statm"):
        limit_memory()
    sys.meta_path.insert(0, Finder(module, source))  # type: ignore[arg-type]
    limits = {g.name: g.limit for g in guards}
    longest = max(limits.values())

    def before(name: str) -> None:
        tell(f"start {name}")
        # The default answer to this signal is death.
        signal.setitimer(signal.ITIMER_PROF, limits.get(name, longest))

    theorems = [g.name for g in guards if g.name.startswith(THEOREM)]
    if theorems:
        without_shrinking()
    for name in theorems:
        before(name)
        if not theorem_holds(name.removeprefix(THEOREM)):
            tell(f"killed {name}")
            return
    tests = [g.name for g in guards if not g.name.startswith(THEOREM)]
    if tests:
        before("import of the tests")
        plugin = Chosen(tests, before)
        status = run_pytest(project, list(dict.fromkeys(t.partition("::")[0] for t in tests)), plugin)
        # 5: no test is left, which nobody would notice either.
        if plugin.failed is not None or status not in (0, 5):
            tell(f"killed {plugin.failed or 'pytest itself'}")
            return
    tell("survived")


@dataclass
class Running:
    """A mutant's process as its parent sees it."""

    key: str
    pid: int
    pipe: int
    began: float = field(default_factory=time.monotonic)
    guard: str = ""
    heard: float = field(default_factory=time.monotonic)
    text: str = ""

    def hear(self) -> bool:
        """Read what it says; whether it has ended."""
        data = os.read(self.pipe, 65536)
        self.heard = time.monotonic()
        self.text += data.decode()
        for line in self.text.splitlines():
            if line.startswith("start "):
                self.guard = line.removeprefix("start ")
        return not data

    def end(self) -> tuple[str, str]:
        """(killed, survived or timeout; by which guard)."""
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        last = self.text.splitlines()[-1] if self.text else ""
        if last == "survived":
            return "survived", ""
        if last.startswith("killed "):
            return "killed", last.removeprefix("killed ")
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL):
            return "timeout", self.guard
        # It fell over outside the guards' own care: an import failed, or the interpreter did.
        return "killed", self.guard or "import"


class Pool:
    """At most `jobs` processes at a time."""

    def __init__(self, jobs: int, patience: float = 120.0) -> None:
        """patience: seconds of silence after which a process is taken to sleep for good."""
        self.jobs, self.patience = jobs, patience
        self.selector = selectors.DefaultSelector()
        self.running: dict[int, Running] = {}

    @property
    def full(self) -> bool:
        return len(self.running) >= self.jobs

    def start(self, key: str, run: Callable[[Callable[[str], None]], None]) -> None:
        pid, pipe = fork(run)
        self.running[pipe] = Running(key, pid, pipe)
        self.selector.register(pipe, selectors.EVENT_READ)

    def wait(self) -> list[tuple[str, str, str, float]]:
        """(key, outcome, guard, seconds) of those that end now; may be none."""
        ended = []
        for selected, _ in self.selector.select(timeout=1.0):
            one = self.running[selected.fd]
            if one.hear():
                self.selector.unregister(one.pipe)
                del self.running[one.pipe]
                ended.append((one.key, *one.end(), time.monotonic() - one.began))
        for one in self.running.values():
            if time.monotonic() - one.heard > self.patience:
                os.killpg(one.pid, signal.SIGKILL)
        return ended

    def stop(self) -> None:
        for one in self.running.values():
            os.killpg(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
