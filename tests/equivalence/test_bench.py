"""Bars: what is compared computes the same; ratios, verdicts and the command. No test looks at a time."""

import json
from functools import partial

import pytest
import torch

from mixerzoo.equivalence.bench import command, decoding, products, references
from mixerzoo.equivalence.bench.bar import Bar, Effort, Measured, Missing, in_turns, look
from mixerzoo.equivalence.cli import main


def bar(ratio, **wanted):
    return Bar("group", "name", "what", lambda effort: Measured(ratio, ratio, 1.0, 3), **wanted)


def test_a_bar_is_met_or_not():
    quick = Effort(quick=True)
    for ratio, wanted, met in (
        (1.9, {"at_most": 1.9}, True),
        (2.0, {"at_most": 1.9}, False),
        (12.0, {"at_least": 12.0}, True),
        (11.0, {"at_least": 12.0}, False),
    ):
        result = look(bar(ratio, **wanted), quick)
        assert (result.met, result.ratio) == (met, ratio)

    def absent(effort):
        raise Missing("a yardstick")

    result = look(Bar("group", "name", "what", absent, at_most=1.0), quick)
    assert result.met is None and result.ratio is None and result.missing == "a yardstick"


def test_calls_are_measured_in_turns():
    order = []
    m = in_turns(partial(order.append, "one"), partial(order.append, "other"), Effort(rounds=4))
    assert order == ["one", "other"] * 5 and m.rounds == 4  # and once before, to warm up
    assert m.ratio == pytest.approx(m.one / m.other)


@pytest.mark.parametrize("core", references.CORES, ids=lambda c: c.name)
def test_references_compute_the_same(core):
    pytest.importorskip("transformers")
    x = core.inputs(128)
    theirs, ours = core.theirs(x), core.ours(x)
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()
    leaves = [y.requires_grad_() for y in x.values()]
    for one, other in zip(
        torch.autograd.grad(core.theirs(x).sum(), leaves),
        torch.autograd.grad(core.ours(x).sum(), leaves),
        strict=True,
    ):
        assert (one - other).abs().max() < 1e-3 * other.abs().max()


def test_a_reference_that_computes_something_else_is_no_yardstick():
    core = references.CORES[0]
    wrong = references.Core("wrong", "", core.inputs, core.theirs, lambda x: 2 * core.ours(x), 1, 1)
    pytest.importorskip("transformers")
    with pytest.raises(Missing, match="computes the same"):
        references.measure(wrong, False, Effort(1, 0.0, True))


def test_the_plain_step_is_a_step():
    q, k, v, la, S = decoding._operands(2)
    from mixerzoo.kernels import step

    state = S
    for _ in range(decoding.TIMES):
        _, state = step(q, k, v, la, state=state)
    kept = S.clone()
    x = (q, k, v, la, kept)
    run = decoding.plain(x)
    (cell,) = (
        c.cell_contents
        for c in run.__closure__
        if isinstance(c.cell_contents, torch.Tensor)
        and c.cell_contents.shape == (2 * decoding.HEADS, decoding.DIM, decoding.DIM)
    )
    run()
    assert (cell.view_as(state) - state).abs().max() < 1e-4 * state.abs().max()


def test_products_are_those_of_a_chunk():
    _, forward = products.products(128, False)
    _, backward = products.products(128, True)
    C, K, V = products.CHUNK, products.DIM, products.DIM
    whole = 2 * C * (K + V) + 4 * K * V
    assert forward == pytest.approx(((C - 1) * (K + V) + 4 * K * V) / whole)
    assert backward == pytest.approx(((C - 1) * (3 * K + 2 * V) + 10 * K * V) / whole)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "bars", lambda: {"group/name": bar(3.0, at_most=2.0)})
    file = tmp_path / "bench.json"
    assert main(["bench", "--quick", "group", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "✗ group/name" in out and "0 of 1 bars met" in out
    (result,) = json.loads(file.read_text())["results"]
    assert result["ratio"] == 3.0 and result["met"] is False and result["wanted"] == "≤ 2"
    assert main(["bench", "other"]) == 2
    assert "accepted: group" in capsys.readouterr().err
    assert main(["bench", "--threads", "-1"]) == 2


def test_every_bar_has_a_name_of_its_own():
    every = command.bars()
    groups = {name.partition("/")[0] for name in every}
    assert {"products", "attention", "references", "decoding", "growth", "import"} <= groups
    assert all((b.at_most is None) != (b.at_least is None) for b in every.values())
