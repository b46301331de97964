"""flash-linear-attention: references are found and loaded without the package, which need not import here."""

from __future__ import annotations

import sys

import pytest

from mixerzoo.equivalence.audit import AGREE, DISAGREE, UNSUPPORTED, examine
from mixerzoo.equivalence.audit.finding import PROPERTIES
from mixerzoo.equivalence.audit.targets import find, fla
from mixerzoo.equivalence.audit.targets.fla_kernels import KERNELS
from mixerzoo.equivalence.audit.targets.fla_references import REFERENCES
from mixerzoo.equivalence.audit.targets.load import TargetError

NO_IMPORT = "raise ImportError('0 active drivers')\n"
# Written for this test: the same names, arguments and layout, in one loop.
COMBA = """
import torch
from fla.ops.comba.helper import eye


def naive_recurrent_comba(q, k, v, p, beta, g, scale=None, initial_state=None, output_final_state=False):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    S = q.new_zeros(*q.shape[::2], q.shape[-1], v.shape[-1]) if initial_state is None else initial_state
    o = []
    for t in range(q.shape[1]):
        S = g[:, t].exp()[..., None, None] * S
        new = beta[:, t, :, None] * (v[:, t] - (p[:, t, ..., None] * S).sum(-2))
        S = S + k[:, t, ..., None] * new[..., None, :]
        o.append((scale * q[:, t, ..., None] * S).sum(-2))
    return torch.stack(o, 1) * eye(1, 1), S if output_final_state else None


def naive_chunk_comba(q, k, v, p, g, beta, chunk_size=64, scale=None, initial_state=None,
                      output_final_state=False):
    return naive_recurrent_comba(q, k, v, p, beta, LATER(g), scale, initial_state, output_final_state)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of that name with one operator, which cannot be imported as a whole."""

    def make(later):
        comba = tmp_path / "fla" / "ops" / "comba"
        comba.mkdir(parents=True)
        for folder in (comba.parent.parent, comba.parent, comba):
            (folder / "__init__.py").write_text(NO_IMPORT)
        (comba / "naive.py").write_text(COMBA.replace("LATER", later))
        (comba / "helper.py").write_text("from torch import eye\n")
        (comba / "chunk.py").write_text(NO_IMPORT)
        monkeypatch.syspath_prepend(tmp_path)
        return comba

    yield make
    for name in [n for n in sys.modules if n == "fla" or n.startswith("fla.")]:
        del sys.modules[name]


def test_references(installed):
    installed("")
    targets = {t.name: t for t in find("fla")}
    assert list(targets) == ["naive_recurrent_comba", "naive_chunk_comba"]
    for target in targets.values():
        for name in ("decode", "chunked_prefill", "fp64", "state_gradients", "decay_extremes"):
            found = examine(target, name)
            assert found.verdict == AGREE, found
    assert not {"fla", "fla.ops"} & set(sys.modules)  # neither run nor left behind


def test_another_form(installed):
    """Chunks whose decay is another than that of single tokens, as one mixer."""
    installed("(lambda g: 0.9 * g)")
    found = examine(find("fla")[1], "decode")
    assert found.verdict == DISAGREE
    assert found.difference > 0.01
    assert "from fla.ops.comba.naive import naive_chunk_comba, naive_recurrent_comba" in found.snippet


def test_what_does_not_import(installed):
    (installed("") / "naive.py").write_text("import a_library_that_is_not_there\n")
    first, second = find("fla")
    for target in (first, second):
        for name in PROPERTIES:
            found = examine(target, name)
            assert found.verdict == UNSUPPORTED
            assert found.example.startswith(
                "does not import here: ModuleNotFoundError: No module named 'a_lib"
            )


def test_a_version_without_some(installed):
    naive = installed("") / "naive.py"
    naive.write_text(naive.read_text().replace("naive_chunk_comba", "another_name"))
    assert [t.name for t in find("fla")] == ["naive_recurrent_comba"]


def test_kernels_need_a_gpu(installed, monkeypatch):
    installed("")
    monkeypatch.setattr(fla.torch.cuda, "is_available", lambda: True)
    found = [t for t in find("fla") if t.name == "chunk_comba"]
    assert len(found) == 1
    assert examine(found[0], "decode").example == "does not import here: ImportError: 0 active drivers"


def test_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "PathFinder" in str(f)])
    with pytest.raises(TargetError, match=r"^flash-linear-attention is not installed; `pip install flash"):
        find("fla")


def test_tables_name_functions():
    for text in (*REFERENCES, *KERNELS):
        where, _, name = text.partition(":")
        assert where and name
    # Of every pair of forms, the one for single tokens is looked at by itself as well.
    steps = {a.step for a in REFERENCES.values() if isinstance(a.step, str)} - {None}
    alone = {text.partition(":")[2] for text in REFERENCES}
    assert {s.partition(":")[2] or s for s in steps} - alone == {"naive_mesa_net_decoding_one_step"}
