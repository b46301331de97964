"""Asks workers, processes whose Triton interprets its kernels, to count cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from .operators import Case


class CountFailed(RuntimeError):
    """A case that could not be counted; the message says which, and why."""


class _Worker:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )

    def ask(self, case: Case) -> list[dict[str, Any]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(case.record()) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise CountFailed(f"{case}: the counting process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise CountFailed(f"{case}: {answer['error']}")
        return list(answer)


def count_all(cases: Sequence[Case], processes: int = 2) -> Iterator[list[dict[str, Any]]]:
    """Records of each case (see worker.run), in order, as they come.

    Raises:
        CountFailed: a case could not be counted.
    """
    workers = [_Worker() for _ in range(min(processes, len(cases)))]
    free: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def one(case: Case) -> list[dict[str, Any]]:
        worker = free.get()
        try:
            return worker.ask(case)
        finally:
            free.put(worker)

    pool = ThreadPoolExecutor(max(1, len(workers)))
    try:
        yield from pool.map(one, cases)
    finally:
        for worker in workers:
            worker.process.kill()
        pool.shutdown(cancel_futures=True)
