"""Memory of large results: whose it is, and how much is kept."""

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mixerzoo.kernels import large, memory, recurrence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_large_results_are_plain_tensors(dtype):
    """In numpy's memory: contiguous, aligned like torch's own, of the dtype asked for."""
    like = torch.empty(0)
    for sizes in ((3, 5), (large.LARGE >> 2, 3)):
        x = memory.new(like, *sizes, dtype=dtype)
        assert x.shape == sizes and x.dtype == dtype and x.is_contiguous()
        assert x.data_ptr() % large.ALIGNED == 0
        x.fill_(2.0)
        assert x.sum(dtype=torch.float64) == 2 * x.numel()


def test_memory_of_large_results_is_taken_again_only_when_it_is_free():
    n, like = (large.LARGE >> 2) + 5, torch.empty(0)
    first = memory.new(like, n)
    at, view = first.data_ptr(), first[3:]
    second = memory.new(like, n)
    assert second.data_ptr() != at
    del first
    assert memory.new(like, n).data_ptr() != at  # the view holds it
    del view
    assert memory.new(like, n).data_ptr() == at
    results = recurrence(*(torch.randn(1, 8200, 8, 128) for _ in range(3)))[0]
    assert results.nbytes >= large.LARGE
    kept = results.clone()
    recurrence(*(torch.randn(1, 8200, 8, 128) for _ in range(3)))
    assert torch.equal(results, kept)


def test_so_much_memory_is_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(large, "_idle", [])
    monkeypatch.setattr(large, "KEPT", 20 << 20)
    held = [large.take(size << 20) for size in (4, 4, 6, 9)]
    assert not large._idle
    while held:
        del held[0]
    assert [room.size >> 20 for room in large._idle] == [8, 10]  # not the two of 6 that were freed first


def test_threads_never_share_memory():
    def run(seed):
        for _ in range(50):
            x = large.take(large.LARGE)
            x[::4096] = seed
            time.sleep(0)
            assert (x[::4096] == seed).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


AGAIN = """
import resource, torch
from mixerzoo.kernels import recurrence
q, k, v = (torch.randn(1, 2048, 8, 128, requires_grad=True) for _ in range(3))
pages = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.autograd.grad(recurrence(q, k, v, -torch.ones(8))[0].sum(), (q, k, v))
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(pages)[4])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_pages_of_results_are_not_given_back_after_every_call():
    """Results of 8 MB, 2,048 pages each, in a process that has freed nothing larger."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", AGAIN], env=plain, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1000
