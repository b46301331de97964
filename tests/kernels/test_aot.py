"""Every kernel compiles ahead of time, without a GPU, for all targets: no spills, fits, uses matrix units."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from mixerzoo.equivalence.cli import main
from mixerzoo.kernels.triton_core import aot


@pytest.fixture(scope="module")
def rows():
    return [row for some in aot.compile_all(aot.cases()) for row in some]


@pytest.mark.parametrize("target", aot.TARGETS)
def test_no_spills_and_fits(rows, target):
    found = [row for row in rows if row.target == target]
    assert not [
        (row.kernel, row.decay, row.dtype, row.head_dim, row.problems) for row in found if row.problems
    ]
    assert all(row.registers > 0 for row in found)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_matrix_units_multiply(rows, target):
    mnemonics = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "MMA", "gfx942": "v_mfma"}
    kernels = [row for row in rows if row.target == target and row.kernel.startswith("chunk")]
    assert {(row.dtype, row.head_dim) for row in kernels} == {
        (dtype, dim) for dtype in ("bfloat16", "float32") for dim in (64, 128)
    }
    assert all(row.matrix for row in kernels)
    assert any(mnemonics[target] in name for row in kernels for name in row.matrix)


def test_the_whole_family_is_there(rows):
    assert {row.kernel for row in rows} == {
        "chunk_states",
        "chunk_forward",
        "chunk_backward",
        "recurrent_forward",
        "recurrent_backward",
    }
    assert {row.decay for row in rows} == set(aot.DECAYS)


def test_spills_would_be_seen():
    """Too large a state for its warps spills, and the row says so."""
    case = aot.Case("sm_80", "key", "float32", 128)
    kernel, arguments, plan = next(x for x in aot.launches(case) if x[0].__name__ == "chunk_forward")
    arguments = {**arguments, "BK": 128, "BV": 128}
    import dataclasses

    compiled = aot.compile_launch(kernel, arguments, dataclasses.replace(plan, warps=1), aot.TARGETS["sm_80"])
    _, spills, _ = aot._inspect(compiled, aot.TARGETS["sm_80"])
    assert spills > 0


def test_command(tmp_path, capsys):
    file = tmp_path / "rows.json"
    status = main(
        ["aot", "--target", "sm_90", "--dtype", "bfloat16", "--head-dim", "64", "--json", str(file)]
    )
    assert status == 0
    assert "no spills" in capsys.readouterr().out
    assert file.stat().st_size > 100
    with pytest.raises(SystemExit):
        main(["aot", "--target", "sm_12"])
    assert main(["aot", "--head-dim", "0"]) == 2
