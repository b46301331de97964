"""The Triton core: its tests in the interpreter, in their own process, and what needs no Triton at all."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreter import passed_interpreted

from mixerzoo.kernels import triton_core
from mixerzoo.kernels.triton_core import config

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


SHARES = 6  # minutes in all: what runs tests side by side can hand them out


@needs_triton
@pytest.mark.parametrize("share", range(SHARES))
def test_interpreted(share: int) -> None:
    """test_triton_interpreted.py, where TRITON_INTERPRET is set before Triton is imported."""
    printed = passed_interpreted(HERE / "test_triton_interpreted.py", f"{share}/{SHARES}")
    assert re.search(r"\d\d+ passed", printed) and "skipped" not in printed


def test_importing_needs_neither_triton_nor_a_driver() -> None:
    """The package imports, and says that it cannot run, where importing Triton fails."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from mixerzoo.kernels import triton_core\n"
        "assert not triton_core.available(torch.zeros(1))\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])
    code = "import sys; from mixerzoo.kernels import triton_core; assert 'triton' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])


def test_not_available_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton_core.available(torch.zeros(1))
    assert not triton_core.available(torch.zeros(1), torch.zeros(1, device="meta"))


@pytest.mark.parametrize("K,V", [(1, 64), (16, 1), (15, 16)])
def test_small_heads_go_elementwise(K: int, V: int) -> None:
    assert config.regime_of(K, V) == "recurrent"
    assert config.regime_of(16, 16) == config.regime_of(256, 256) == "chunk"


def test_plans_suit_their_inputs() -> None:
    """Blocks are powers of two of at least 16 and no wider than they must be; precision follows dtypes."""
    targets = (config.SM_80, config.SM_90, config.SM_100, config.GFX942, config.INTERPRETER)
    kinds = ("scalar", "key", "outer", "both")
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    for target, decays, launch, dtype, (K, V) in itertools.product(
        targets, kinds, ("forward", "backward"), dtypes, ((16, 17), (128, 64), (256, 256))
    ):
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        plan = config.chunk_plan(
            target, launch, K=K, V=V, decays=decays, acc=acc, operands=[dtype] * 3, precision=None,
            chunk_size=None,
        )  # fmt: skip
        assert plan.BK & (plan.BK - 1) == 0 and plan.BV & (plan.BV - 1) == 0
        assert 16 <= plan.BK < 2 * K and 16 <= plan.BV < 2 * V
        assert plan.segment % plan.C == 0 and plan.warps >= 4
        assert plan.tree == (decays != "scalar") and not (plan.tree and plan.C not in (16, 32))
        if target.backend == "interpreter":
            continue
        assert plan.prec == (
            "bf16x6" if dtype == torch.float32
            else {"cuda": "tf32", "hip": "bf16x6"}[target.backend] if dtype == torch.float16
            else "ieee"
        )  # fmt: skip


def test_plans_of_erasure_have_all_keys() -> None:
    """What is erased is a sum over keys; and the system is inverted in about float32 whatever the dtype."""
    targets = (config.SM_80, config.SM_90, config.SM_100, config.GFX942, config.INTERPRETER)
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    for target, decays, erase, launch, dtype, (K, V) in itertools.product(
        targets, ("scalar", "key", "outer"), ("delta", "general"), ("forward", "backward"), dtypes,
        ((5, 17), (64, 64), (128, 64), (200, 256)),
    ):  # fmt: skip
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        plan = config.chunk_plan(
            target, launch, K=K, V=V, decays=decays, erase=erase, acc=acc, operands=[dtype] * 3,
            precision=None, chunk_size=None,
        )  # fmt: skip
        assert max(16, K) <= plan.BK < 2 * max(16, K)
        assert 16 <= plan.BV < 2 * max(16, V)
        assert plan.C in (16, 32) and plan.segment % plan.C == 0 and plan.warps >= 4
        assert config.walk_plan(plan).BK == plan.BK
        exact = acc == torch.float64 or target.backend == "interpreter"
        assert plan.solve == ("ieee" if exact else "tf32x3" if target.backend == "cuda" else "bf16x6")


def test_full_precision_unless_asked() -> None:
    for precision, found in ((None, "bf16x6"), ("tf32", "tf32")):
        plan = config.chunk_plan(
            config.SM_90, "forward", K=64, V=64, decays="scalar", acc=torch.float32,
            operands=[torch.float32] * 3, precision=precision, chunk_size=None,
        )  # fmt: skip
        assert plan.prec == found


def test_the_interpreter_has_the_blocks_of_sm_90() -> None:
    """What is counted there is what would run."""
    for launch, D in itertools.product(("forward", "backward"), (64, 128)):
        one, other = (
            config.chunk_plan(
                target, launch, K=D, V=D, decays="scalar", acc=torch.float32, operands=[dtype] * 3,
                precision=None, chunk_size=None,
            )
            for target, dtype in ((config.INTERPRETER, torch.float32), (config.SM_90, torch.bfloat16))
        )  # fmt: skip
        assert (one.block, one.segment) == (other.block, other.segment)


def test_few_programs_take_the_split_schedule() -> None:
    """auto: whole sequences while they fill the card, segments side by side otherwise."""
    few, many = (config.use_split("auto", config.SM_90, n, 4096, 64) for n in (16, 132))
    assert few and not many
    assert not config.use_split("auto", config.SM_90, 16, 128, 64)  # too short to gain
    assert config.use_split("split", config.SM_90, 9999, 1, 64)
    assert not config.use_split("fused", config.SM_90, 1, 99999, 64)
