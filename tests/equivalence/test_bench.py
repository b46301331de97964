"""Bars: what is compared computes the same; ratios, verdicts and the command. No test looks at a time."""

import json
from functools import partial

import pytest
import torch

from mixerzoo.equivalence.bench import command, decoding, elementwise, memory, products, references, yardstick
from mixerzoo.equivalence.bench.bar import Bar, Effort, Measured, Missing, in_turns, look
from mixerzoo.equivalence.cli import main
from mixerzoo.kernels import OuterDecay, recurrence
from oracle import error


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
    if core.name.endswith("numba"):
        pytest.importorskip("numba")
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
    q, k, v, la, S = decoding.operands(2)
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


@pytest.mark.parametrize("T", [1, 70])
@pytest.mark.parametrize("name", ["mamba", "hgrn"])
def test_the_yardstick_computes_the_same(name, T):
    """Outputs, the final state, and the gradients of both: blocks of 32 steps, the last one ragged."""
    try:
        yardstick.library()
    except Missing as e:
        pytest.skip(str(e))
    core = next(c for c in elementwise.CORES if c.name == name)
    x = {n: y.requires_grad_() for n, y in core.inputs(T, 128).items()}
    if name == "mamba":
        by_hand = yardstick.mamba(x["dt"][0], x["A"], x["B"][0], x["C"][0], x["x"][0])
        v = (x["dt"] * x["x"])[..., None]
        o, S = recurrence(
            x["C"][:, :, None], x["B"][:, :, None], v, OuterDecay(x["dt"], x["A"]), backend="torch"
        )
        ours = o[0, ..., 0], S[0, ..., 0]
    else:
        by_hand = yardstick.hgrn(x["l"][0], x["v"][0])
        one = torch.ones(1, T, 1, 1)
        o, S = recurrence(one, one, x["v"][:, :, None], None, x["l"][:, :, None], backend="torch")
        ours = o[0, :, 0], S[0, 0, 0]
    assert torch.equal(core.by_hand(x), by_hand[0]) and error(core.ours(x, "torch"), by_hand[0]) < 1e-6
    g = [torch.randn_like(y) for y in ours]
    leaves = list(x.values())
    found = [[*y, *torch.autograd.grad(y, leaves, g)] for y in (by_hand, ours)]
    for one, other in zip(*found, strict=True):
        assert error(one, other) < 2e-6


def test_the_yardstick_refuses_what_it_does_not_do():
    try:
        yardstick.library()
    except Missing as e:
        pytest.skip(str(e))
    x = torch.zeros(3, 5)
    with pytest.raises(ValueError, match="has 5 channels; accepted: a multiple of"):
        yardstick.hgrn(x, x)
    x = torch.zeros(3, 128, dtype=torch.float64)
    with pytest.raises(TypeError, match="accepted: float32"):
        yardstick.hgrn(x, x)


def test_without_a_compiler_the_yardstick_is_missing(monkeypatch):
    yardstick.library.cache_clear()
    monkeypatch.setattr(yardstick, "compilers", list)
    (result,) = [look(b, Effort(1, 0.0, True)) for b in elementwise.bars() if b.name == "hgrn-torch-forward"]
    assert result.ratio is None and "C++ compiler" in result.missing
    monkeypatch.setattr(yardstick, "compilers", lambda: ["false"])
    with pytest.raises(Missing, match=r"compiles elementwise\.cpp"):
        yardstick.library()


@pytest.mark.skipif(not memory.RESET.exists(), reason="needs Linux's /proc")
def test_memory_is_seen():
    """What lives at once is counted, and what comes back is not."""
    size = 1 << 26

    def call(n):
        kept = [torch.ones(size // 4) for _ in range(n)]
        return kept[:1]

    for n in (1, 3):
        assert memory.most(lambda n=n: call(n)) == pytest.approx((n - 1) * size, abs=size / 16)


@pytest.mark.skipif(not memory.RESET.exists(), reason="needs Linux's /proc")
def test_what_a_walk_needs():
    """A process of its own; a call that keeps B·T·D·N would be seen."""
    m = memory.measure("mamba", "torch", False, effort=Effort(quick=True), T=2048)
    assert m.other == 4 * 512 * 1536 * 16 and m.ratio < 0.5
    bars = {b.name: b for b in memory.bars()}
    assert {"mamba-torch-forward", "mamba-numba-forward-backward", "stream", "decode"} <= set(bars)


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


def test_tables(tmp_path, monkeypatch):
    """Model types by kinds of calls; bold what is not as wanted; a dash for what was not measured."""
    ratios = {"a-b-forward": 2.0, "a-b-decode": 0.5, "c-forward-backward": 1.234}
    every = {
        f"layers/{n}": Bar("layers", n, "", lambda e, r=r: measured(r), at_least=0.95)
        for n, r in ratios.items()
    }
    every["import/mixers"] = Bar("import", "mixers", "", lambda e: measured(0.1), at_most=0.3)
    monkeypatch.setattr(command, "bars", lambda: every)
    file = tmp_path / "bench.md"
    assert main(["bench", "--quick", "--markdown", str(file)]) == 0
    lines = file.read_text(encoding="utf-8").splitlines()
    assert torch.__version__ in lines[0]
    assert "| `a-b` | 2 | – | **0.5** |" in lines and "| `c` | – | 1.23 | – |" in lines
    assert "| import/mixers | 0.1 | ≤ 0.3 |" in lines
    assert main(["bench", "--markdown", str(tmp_path)]) == 2


def measured(ratio):
    return Measured(ratio, ratio, 1.0, 1)


def test_every_bar_has_a_name_of_its_own():
    every = command.bars()
    groups = {name.partition("/")[0] for name in every}
    assert {"products", "attention", "references", "elementwise", "decoding", "growth", "import"} <= groups
    assert "memory" in groups
    assert all((b.at_most is None) != (b.at_least is None) for b in every.values())
