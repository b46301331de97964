"""Every kernel compiles ahead of time, without a GPU, for all targets: no spills, fits, uses matrix units."""

import importlib.util
import json
import types

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton
import triton.language as tl

from mixerzoo.equivalence.cli import main
from mixerzoo.equivalence.code_lines import code_lines
from mixerzoo.kernels.triton_core import aot

# Bytes of stack that are known to be spilled (docs/triton.md says why), by target, decay, dtype, head size:
# all of them in chunk_backward, but where a forward is named. What is not here may not spill.
KNOWN = {
    ("sm_90", "gated_delta", "bfloat16", 128): 232,
    ("sm_90", "dplr", "bfloat16", 64): 224,
    ("sm_100", "gated_delta", "bfloat16", 64): 112,
    ("sm_80", "gated_delta", "bfloat16", 64): 128,
    ("sm_80", "outer", "bfloat16", 64): 8,
    ("sm_90", "scalar", "bfloat16", 128): 376,
    ("sm_90", "key", "bfloat16", 128): 208,
    ("sm_90", "outer", "bfloat16", 128): 16,
    ("sm_90", "both", "bfloat16", 64): 56,
    ("sm_90", "key", "float32", 64): 264,
    ("sm_90", "both", "float32", 64): 144,
    ("sm_100", "scalar", "bfloat16", 128): 96,
    ("sm_100", "both", "bfloat16", 128): 96,
}
# What is compiled here, minutes of it: every decay, target, dtype and head size, but not each with each.
# `mixerzoo aot` has all.
COMPILED = {
    "sm_90": ["scalar 64", "scalar 128", "key 64", "key 128", "outer 128", "both 64", "mamba1 64", "hgrn 64",
              "gated_delta 128", "kda 64", "dplr 64"],
    "sm_100": ["scalar 64", "scalar 128", "both 128", "gated_delta 64", "mamba1 64"],
    "sm_80": ["scalar 128", "outer 64", "gated_delta 64", "hgrn 64"],
    "gfx942": ["scalar 64", "key 128", "gated_delta 64", "mamba1 64", "hgrn 64"],
}  # fmt: skip
SINGLE = {"sm_90": ["key 64", "both 64"], "gfx942": ["outer 64"]}
KNOWN_FORWARD = {
    ("sm_90", "key", "float32", 64): 16, ("sm_90", "gated_delta", "bfloat16", 128): 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """bfloat16 everywhere; float32, whose compilation takes longer, on two targets."""
    matrix = [
        aot.Case(target, decay, dtype, int(dim))
        for dtype, compiled in (("bfloat16", COMPILED), ("float32", SINGLE))
        for target, names in compiled.items()
        for decay, dim in map(str.split, names)
    ]
    return [row for some in aot.compile_all(matrix) for row in some]


@pytest.mark.parametrize("target", aot.TARGETS)
def test_no_spills_and_fits(rows, target):
    """(Compilers differ by a few registers: what is known to spill may spill a quarter more.)"""
    for row in (row for row in rows if row.target == target):
        where = (row.target, row.decay, row.dtype, row.head_dim)
        known = {"chunk_backward": KNOWN, "chunk_forward": KNOWN_FORWARD}.get(row.kernel, {}).get(where, 0)
        assert row.spills <= 1.25 * known, (row.kernel, where, row.spills)
        assert row.shared <= row.shared_limit and row.registers > 0
        assert row.matrix or not row.kernel.startswith("chunk")


@pytest.mark.parametrize("target", aot.TARGETS)
def test_matrix_units_multiply(rows, target):
    mnemonics = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "MMA", "gfx942": "v_mfma"}
    kernels = [row for row in rows if row.target == target and row.kernel.startswith("chunk")]
    assert {(row.dtype, row.head_dim) for row in kernels} >= {("bfloat16", 64), ("bfloat16", 128)}
    assert any(mnemonics[target] in name for row in kernels for name in row.matrix)


@pytest.mark.parametrize("target,mnemonic", [("sm_90", "HGMMA"), ("sm_100", "UTCHMMA")])
def test_one_decay_per_step_takes_the_largest_matrix_instructions(rows, target, mnemonic):
    """wgmma and tcgen05 for every product of the scalar bodies."""
    found = [
        row
        for row in rows
        if (row.target, row.decay, row.dtype) == (target, "scalar", "bfloat16")
        and row.kernel.startswith("chunk")
    ]
    assert len(found) == 6
    assert all(set(row.matrix) == {mnemonic} for row in found), [row.matrix for row in found]


def specializations(case, B, T):
    """What the JIT would key its kernels by, for every launch of a call of this shape."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))
    keys = []
    for one in aot.launches(case, B, T):
        bind = create_function_from_signature(one.kernel.signature, one.kernel.params, backend)
        _, specialization, _ = bind(**one.arguments)
        keys.append((one.kernel.__name__, str(specialization), one.plan.warps))
    return keys


@pytest.mark.parametrize("schedule", ["fused", "split"])
@pytest.mark.parametrize("decay", [*aot.DECAYS, *aot.ERASING])
def test_lengths_and_batches_make_no_new_kernels(decay, schedule):
    """One kernel for each launch, however long and many the sequences are (until offsets need 64 bits)."""
    case = aot.Case("sm_90", decay, "bfloat16", 64, schedule)
    shapes = [(1, 1), (1, 17), (2, 64), (3, 1000), (8, 4096), (1, 1 << 16)]
    found = [specializations(case, B, T) for B, T in shapes]
    assert len({tuple(keys) for keys in found}) == 1


def test_the_whole_family_is_there(rows):
    assert {row.kernel for row in rows} == {
        "chunk_states",
        "chunk_forward",
        "chunk_backward",
        "recurrent_forward",
        "recurrent_backward",
        "step_kernel",
    }
    assert {row.decay for row in rows} >= set(aot.DECAYS)


def test_spills_would_be_seen():
    """Too large a state for its warps spills, and the row says so."""
    case = aot.Case("sm_80", "key", "float32", 64)
    one = next(x for x in aot.launches(case) if x.kernel.__name__ == "chunk_states")
    arguments = {**one.arguments, "BK": 64, "BV": 64}
    few = types.SimpleNamespace(warps=1, stages=one.plan.stages)
    target = aot.TARGETS["sm_80"]
    machine = aot.inspect(aot.compile_launch(one.kernel, arguments, few, target), target)
    assert machine.spills > 0
    assert machine.kinds["spill"] > 0


@triton.jit
def toy(x, y, n, BLOCK: tl.constexpr):
    """One of each kind of instruction."""
    at = tl.arange(0, BLOCK)
    a = tl.load(x + at[:, None] * BLOCK + at[None, :]).to(tl.float16)
    b = tl.dot(a, tl.trans(a))
    b = tl.exp2(b) * 3.0 + tl.sum(b, 1)[:, None]
    tl.store(y + at[:, None] * BLOCK + at[None, :], b)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_instructions_are_told_apart(target):
    x = torch.empty(64, 64, device="meta")
    arguments = {"x": x, "y": x, "n": 64, "BLOCK": 64}
    plan = types.SimpleNamespace(warps=4, stages=1)
    machine = aot.inspect(aot.compile_launch(toy, arguments, plan, aot.TARGETS[target]), aot.TARGETS[target])
    assert sum(machine.matrix.values()) == machine.kinds["matrix"] > 0
    for kind in ("special", "float", "global load", "global store", "shared load", "shared store"):
        assert machine.kinds[kind] > 0, kind
    assert machine.kinds["barrier"] > 0
    assert machine.kinds["spill"] == machine.spills == 0
    # 64 x 64 exponentials on 4 warps
    assert machine.kinds["special"] >= 64 * 64 // (4 * aot.TARGETS[target].warp)


def test_mnemonics():
    sass = [
        "HGMMA",
        "UTCHMMA",
        "FFMA2",
        "MUFU",
        "LDGSTS",
        "STG",
        "LDSM",
        "STS",
        "BAR",
        "SHFL",
        "LDL",
        "IADD3",
    ]
    found = aot.kinds_of([*sass, "SHFL"], "cuda")
    assert found == {
        "matrix": 2, "float": 1, "special": 1, "global load": 1, "global store": 1, "shared load": 1,
        "shared store": 1, "barrier": 1, "shuffle": 2, "spill": 1, "other": 1,
    }  # fmt: skip
    gcn = ["v_mfma_f32_16x16x16_bf16", "v_pk_fma_f32", "v_exp_f32_e32", "global_load_dwordx4", "s_mov_b32"]
    found = aot.kinds_of(gcn, "hip")
    assert [found[k] for k in ("matrix", "float", "special", "global load", "other")] == [1] * 5
    assert found["global store"] == 0


def test_what_the_whole_table_leaves_out():
    """Wide heads, the split schedule, and what may differ in a call, for one target."""
    left_out = aot.representative(["sm_90"], ["bfloat16"])
    matrix = [case for case in left_out if case.head_dim > 64 or len(case.variants) > 1]
    rows = [row for some in aot.compile_all(matrix) for row in some]
    assert {row.head_dim for row in rows} == {64, 128, 256}
    assert {v for row in rows for v in row.variants} == set(aot.VARIANTS)
    assert {row.schedule for row in rows} == {"fused", "split"}
    assert all(row.shared <= row.shared_limit for row in rows)


def test_launches_of_a_split_call():
    fused, split = ([x.kernel.__name__ for x in aot.launches(aot.Case("sm_90", "scalar", "bfloat16", 64, s))]
                    for s in ("fused", "split"))  # fmt: skip
    assert fused != split
    assert "step_kernel" in fused  # one step has no schedule
    assert "step_kernel" not in split
    grids = {x.kernel.__name__: x.grid for x in aot.launches(aot.Case("sm_90", "hgrn", "bfloat16", 64))}
    assert grids["recurrent_forward"] == 8  # one block of values, one head, eight sequences


def test_command(tmp_path, capsys):
    file = tmp_path / "rows.json"
    status = main(
        ["aot", "--target", "sm_90", "--dtype", "bfloat16", "--head-dim", "64", "--decay", "hgrn",
         "--instructions", "--json", str(file)]
    )  # fmt: skip
    assert status == 0
    out = capsys.readouterr().out
    assert "no spills" in out
    assert "barrier" in out
    rows = json.loads(file.read_text())
    assert {row["schedule"] for row in rows} == {"fused"}
    assert all(row["kinds"]["matrix"] == sum(row["matrix"].values()) for row in rows)
    with pytest.raises(SystemExit):
        main(["aot", "--target", "sm_12"])
    assert main(["aot", "--head-dim", "0"]) == 2


def test_the_family_stays_small(capsys):
    assert main(["aot", "--lines"]) == 0
    total = int(capsys.readouterr().out.splitlines()[-1].split()[0].replace(",", ""))
    assert 500 < total < 2100


def test_lines_of_code():
    source = '''"""Says
what."""

x = """not
a docstring"""  # why
# alone

def f():
    "Doc."
    return (
        1
    )
'''
    assert code_lines(source) == 2 + 1 + 3
