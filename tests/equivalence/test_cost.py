"""The cost meter: counters against counts by hand, the model against hand-made cases, the command."""

import importlib.util
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from interpreter import passed_interpreted

from mixerzoo.equivalence.cli import main
from mixerzoo.equivalence.cost import Cost, KernelCost, OperationCost, Product, count, measure, model
from mixerzoo.equivalence.cost.cards import CARDS
from mixerzoo.equivalence.cost.least import least
from mixerzoo.equivalence.cost.operators import Call, Case, call_of, calls_of_mixer
from mixerzoo.equivalence.cost.record import from_json, to_json
from mixerzoo.kernels import OuterDecay, recurrence

HAVE_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed")


@needs_triton
def test_under_the_interpreter():
    passed_interpreted(Path(__file__).with_name("cost_interpreted.py"))


# ------------------------------------------------------------------ torch operations


def of(call):
    """{operation: (calls, read, written)}"""
    with count(kernels=False) as cost:
        call()
    return {name: (x.calls, x.read, x.written) for name, x in cost.operations.items()}


def test_views_and_allocations_are_free():
    x = torch.randn(6, 4)
    assert of(lambda: x.t().reshape(4, 6)[1:].unsqueeze(0).expand(3, -1, -1).detach()) == {}
    assert of(lambda: (torch.empty(5), x.new_empty(3), torch.empty_like(x), x.contiguous())) == {}


def test_reads_inputs_and_writes_outputs():
    x, y = torch.randn(6, 4), torch.randn(6, 4).to(torch.bfloat16)
    assert of(lambda: x.sum(0)) == {"sum": (1, 96, 16)}
    assert of(lambda: x + y) == {"add": (1, 96 + 48, 96)}
    assert of(lambda: x * x) == {"mul": (1, 96, 96)}
    assert of(lambda: x.t().contiguous()) == {"clone": (1, 96, 96)}
    assert of(lambda: y.float()) == {"_to_copy": (1, 48, 96)}
    assert of(lambda: torch.cat([x, x[:1]])) == {"cat": (1, 96 + 16, 112)}
    assert of(lambda: x.sum(0).sum()) == {"sum": (2, 96 + 16, 16 + 4)}
    assert of(lambda: torch.where(x > 0, x, y)) == {"gt": (1, 96, 24), "where": (1, 24 + 96 + 48, 96)}


def test_expanded_elements_count_once():
    x = torch.randn(1, 4).expand(6, 4)
    assert of(lambda: x.clone()) == {"clone": (1, 16, 96)}
    assert of(lambda: torch.zeros(()).expand(8, 8) + 1) == {"zeros": (1, 0, 4), "add": (1, 4, 256)}


def test_in_place_and_filling():
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    assert of(lambda: x.add_(y)) == {"add_": (1, 192, 96)}
    assert of(lambda: x.copy_(y)) == {"copy_": (1, 96, 96)}
    assert of(lambda: x.zero_()) == {"zero_": (1, 0, 96)}
    assert of(lambda: torch.zeros_like(x)) == {"zeros_like": (1, 0, 96)}
    assert of(lambda: torch.add(x, y, out=x)) == {"add": (1, 192, 96)}


def test_selecting_reads_what_it_returns():
    x, i = torch.randn(100, 4), torch.tensor([3, 5])
    assert of(lambda: x.index_select(0, i)) == {"index_select": (1, 32 + 16, 32)}
    assert of(lambda: x[i]) == {"index": (1, 32 + 16, 32)}
    assert of(lambda: float(x[0, 0])) == {"_local_scalar_dense": (1, 4, 0)}


def test_products_of_torch():
    x, w = torch.randn(3, 5, 8), torch.randn(7, 8)
    with count(kernels=False) as cost:
        torch.nn.functional.linear(x, w)
    assert cost.nominal == cost.executed == 2 * 15 * 8 * 7
    assert cost.launches == 1


def test_kernels_without_the_interpreter_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), count():
        pass


# ------------------------------------------------------------------ the least


def test_least_by_hand():
    """B = 1, T = 512, one head of 64 keys and values in bfloat16, a float32 decay per step."""
    call = call_of(Case("scalar", head_dim=64))
    o, state = torch.empty(1, 512, 1, 64, dtype=torch.bfloat16), torch.empty(1, 1, 64, 64)
    forward, backward = least(call, [o, state])
    qkv, decay, out, s = 3 * 512 * 64 * 2, 512 * 4, 512 * 64 * 2, 64 * 64 * 4
    assert forward.bytes == qkv + decay + out + s
    assert backward.bytes == qkv + decay + out + (qkv + decay)
    assert forward.flops == 512 * (4 * 64 * 64 + 17 * 128)
    assert backward.flops == 512 * (10 * 64 * 64 + 17 * 5 * 64)


def test_least_of_erasure_by_hand():
    """beta [B, T, H] in float32, or a pair (x, y) like k, and their gradients."""
    o, state = torch.empty(1, 64, 1, 32, dtype=torch.bfloat16), torch.empty(1, 1, 32, 32)
    qkv, decay, out, s = 3 * 64 * 32 * 2, 64 * 32 * 4, 64 * 32 * 2, 32 * 32 * 4
    for operator, more in (("kda", 64 * 4), ("dplr", 2 * 64 * 32 * 2)):
        call = call_of(Case(operator, head_dim=32, length=64))
        forward, backward = least(call, [o, state])
        assert forward.bytes == qkv + decay + more + out + s
        assert backward.bytes == qkv + decay + more + out + (qkv + decay + more)
        states, seen, before = (6, 17, 15) if operator == "kda" else (8, 34, 30)
        assert forward.flops == 64 * (states * 32 * 32 + (seen + before) * 64)
        if operator == "kda":
            assert backward.flops == 64 * (16 * 32 * 32 + 17 * 5 * 32 + 15 * 6 * 32)
        else:
            assert backward.flops == 64 * (22 * 32 * 32 + 34 * 5 * 32 + 15 * 12 * 32)


def test_least_of_states_masks_and_expanded_operands():
    plain, states, masked = (
        least(call, list(recurrence(**call.operands)))
        for variants in ((), ("state",), ("mask",))
        for call in [call_of(Case("vector", head_dim=16, length=64, variants=variants))]
    )
    s = 16 * 16 * 4
    assert states[0].bytes == plain[0].bytes + s
    assert states[1].bytes == plain[1].bytes + 3 * s  # the state and its gradient, the final one's gradient
    # every eighth of k, v and the decays is not read; the mask is
    assert plain[0].bytes - masked[0].bytes == (2 * 64 * 16 * 2 + 64 * 16 * 4) // 8 - 64
    v = torch.randn(1, 8, 4, 1)
    q = torch.randn(1, 8, 1, 16)
    dt, A = torch.rand(1, 8, 4), -torch.rand(4, 16)
    call = Call({"q": q, "k": q[:, :1].expand_as(q), "v": v, "log_decay": OuterDecay(dt, A)})
    forward, backward = least(call, [v, torch.empty(1, 4, 16, 1)])
    inputs = 4 * (8 * 16 + 16 + 32 + 32 + 64)
    assert forward.bytes == inputs + 4 * (32 + 64)
    assert backward.bytes == inputs + 4 * 32  # nothing asks for a gradient
    assert forward.flops == 4 * 8 * 4 * 16  # elementwise: no chunks


# ------------------------------------------------------------------ the model


def test_occupancy_by_hand():
    """As in NVIDIA's occupancy calculator: 65,536 registers, 228 KB, 64 warps and 32 programs an SM."""
    h100, mi300 = CARDS["H100"], CARDS["MI300X"]
    # 128 registers * 32 = 4096 per warp, 4 warps in each of 4 parts: 16 warps
    assert model.occupancy(h100, 4, 128, 16384) == model.Occupancy(4, "registers")
    # 129 are given as 136: 4352 per warp, 3 in each part: 12 warps
    assert model.occupancy(h100, 4, 129, 0) == model.Occupancy(3, "registers")
    assert model.occupancy(h100, 8, 129, 0) == model.Occupancy(1, "registers")
    assert model.occupancy(h100, 1, 129, 0) == model.Occupancy(12, "registers")
    # 99 KB and one of its own: two in 228
    assert model.occupancy(h100, 4, 32, 99 * 1024) == model.Occupancy(2, "shared memory")
    assert model.occupancy(CARDS["A100"], 4, 32, 99 * 1024) == model.Occupancy(1, "shared memory")
    assert model.occupancy(h100, 8, 16, 0) == model.Occupancy(8, "warps")
    assert model.occupancy(h100, 1, 16, 0) == model.Occupancy(32, "programs")
    assert model.occupancy(h100, 4, 32, 300000).programs == 0
    # 169 of 512 registers are given as 176: two waves on each of 4 SIMDs
    assert model.occupancy(mi300, 4, 169, 16384) == model.Occupancy(2, "registers")
    assert model.occupancy(mi300, 4, 64, 16384) == model.Occupancy(4, "shared memory")


def kernel(programs, launches=1, **fields):
    return KernelCost(launches=launches, programs=programs, **fields)


def test_a_full_card_is_bound_by_the_slowest_work():
    card = CARDS["H100"]
    x = kernel(132, distinct_read=3_000_000, distinct_written=350_000, read=9_000_000, arithmetic=10**6)
    time = model.kernel_time(card, x)
    assert time.seconds == pytest.approx(1e-6)
    assert (time.bound, time.share) == ("memory", 1.0)
    x.flops[Product("bf16")] = 989_400_000 * 5
    assert model.kernel_time(card, x).seconds == pytest.approx(5e-6)
    assert model.kernel_time(card, x).bound == "matrix"
    x.flops = {Product("fp32", "bf16x6"): 989_400_000, Product("fp32", "tf32x3"): 494_700_000}
    assert model.kernel_time(card, x).seconds == pytest.approx(9e-6)
    x.special = int(132 * 16 * 1.98e9 * 20e-6)
    assert model.kernel_time(card, x).bound == "special"
    assert model.kernel_time(card, x).seconds == pytest.approx(20e-6)
    x.arithmetic = int(66.9e12 * 30e-6)
    assert model.kernel_time(card, x).bound == "arithmetic"
    assert model.kernel_time(card, x, double=True).arithmetic == pytest.approx(30e-6 * 66.9 / 33.5)


def test_a_small_grid_has_its_share_of_the_card():
    card = CARDS["H100"]
    full = model.kernel_time(card, kernel(132, distinct_read=10**6, special=10**6))
    for programs in (1, 33, 66):
        part = model.kernel_time(card, kernel(programs, distinct_read=10**6, special=10**6))
        assert part.memory == pytest.approx(full.memory * 132 / programs)
        assert part.special == pytest.approx(full.special * 132 / programs)
    # one program more than processors: another round
    over = model.kernel_time(card, kernel(133, distinct_read=10**6, special=10**6))
    assert over.memory == pytest.approx(full.memory)
    assert over.special == pytest.approx(full.special * 264 / 133)
    # programs of two launches do not run together
    assert model.kernel_time(card, kernel(132, 2, special=10**6)).share == pytest.approx(0.5)
    # as many sequences as processors: the same time, until they are full
    x = kernel(1, distinct_read=10**4)
    assert model.kernel_time(card, x, 132).seconds == pytest.approx(model.kernel_time(card, x).seconds)


def test_a_pass_is_the_sum_of_its_parts():
    card = CARDS["A100"]
    cost = Cost(
        {"a": kernel(108, distinct_read=2_039_000), "b": kernel(108, special=108 * 16 * 1410 * 3)},
        {"sum": OperationCost(1, 2_039_000, 2_039_000), "zeros": OperationCost(1, 0, 0)},
    )
    found = model.pass_time(card, cost)
    assert found.seconds == pytest.approx(1e-6 + 3e-6 + 2e-6)
    assert found.bound == "special"
    assert found.torch == pytest.approx(2e-6)
    assert model.pass_time(card, cost, 2).torch == pytest.approx(4e-6)
    assert model.least_time(card, 2_039_000, 312, "bf16", 3) == pytest.approx(3e-6)
    assert model.kernel_time(card, KernelCost()).seconds == 0


def test_cards():
    for card in CARDS.values():
        r = card.rates
        assert r["bf16"] == r["fp16"] > r["tf32"] > r["fp32"] >= r["vector fp32"] > r["vector fp64"]
        # two FLOPs of each of 128 lanes (A100: 64) of a processor per clock, give or take the clock; MI300X
        # issues two instructions at once
        lanes = r["vector fp32"] / (2 * card.clock * card.processors)
        assert lanes == pytest.approx({"A100": 64}.get(card.name, 128), rel=0.02)
        assert math.isclose(card.special, card.processors * 16 * card.clock)


# ------------------------------------------------------------------ records, cases, measurements


def test_a_cost_survives_json():
    cost = Cost(
        {"k": kernel(2, read=3, written=4, flops={Product("fp32", "bf16x6"): 10, Product("bf16"): 1})},
        {"sum": OperationCost(1, 2, 3, 4)},
    )
    record = json.loads(json.dumps(to_json(cost)))
    assert from_json(record) == cost
    assert record["executed_flops"] == 61 + 4
    assert record["nominal_flops"] == 11 + 4
    assert record["kernels"]["k"]["flops"][0] == {
        "operands": "fp32", "precision": "bf16x6", "flops": 10, "times": 6, "format": "bf16",
    }  # fmt: skip


def test_calls_of_a_mixer_are_what_the_layer_hands_over():
    (call,) = calls_of_mixer(Case(mixer="hgrn", d_model=16, length=8, dtype="float32"))
    assert call.operands["q"].stride(1) == 0 or call.operands["q"].shape[3] == 1
    assert call.operands["v"].requires_grad and call.operands["v"].is_leaf
    assert "backend" not in call.options
    from mixerzoo.mixers import base

    assert base.recurrence is recurrence  # put back


def test_measuring(monkeypatch):
    """The path that needs a GPU, on the CPU: copies of the sequences share nothing and compute the same."""

    class Event:
        clock = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.clock += 1.0
            self.at = Event.clock

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.Tensor, "cuda", lambda x: x)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(measure, "recurrence", lambda *a, **k: recurrence(*a, **{**k, "backend": "torch"}))
    for variants in ((), ("state", "mask"), ("packed", "state")):
        case = Case("mamba1", length=8, dtype="float32", variants=variants)
        one, three = call_of(case), measure.many(call_of(case), 3)
        assert [x.requires_grad for _, x in three.tensors()] == [x.requires_grad for _, x in one.tensors()]
        o, s = recurrence(**one.operands)
        o3, s3 = recurrence(**three.operands)
        assert torch.allclose(o3, torch.cat([o] * 3, 1 if "packed" in variants else 0), atol=1e-5)
        assert torch.allclose(s3, torch.cat([s] * 3), atol=1e-5)
        assert measure.measure(case, 2) == {"forward": 1e-3, "backward": 1e-3}


def test_which_card_is_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure.card_here() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert measure.card_here() is CARDS["H100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert measure.card_here() is None


# ------------------------------------------------------------------ the command


@needs_triton
def test_command(tmp_path, capsys):
    file = tmp_path / "cost.json"
    options = "--operator scalar --head-dim 16 --length 16 --schedule fused --sequences 1 --sequences 264"
    arguments = ["cost", *options.split(), "--kernels", "--model", "--json", str(file)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for words in ("Counted", "By kernel", "Compiled", "Modelled, not measured", "No GPU here: not measured"):
        assert words in out or (words.startswith("No GPU") and torch.cuda.is_available())
    (record,) = json.loads(file.read_text())
    assert record["case"]["operator"] == "scalar"
    assert record["shape"] == {"B": 1, "T": 16, "H": 1, "K": 16, "V": 16}
    forward = record["passes"]["forward"]
    assert forward["least"]["bytes"] == 4 * 16 * 16 * 2 + 16 * 4 + 16 * 16 * 4
    assert forward["cost"]["read"] + forward["cost"]["written"] >= forward["least"]["bytes"]
    names = {row["kernel"] for row in record["compiled"] if row["pass"] == "forward"}
    assert names == set(forward["cost"]["kernels"])
    assert all(row["kinds"]["matrix"] > 0 and row["occupancy"]["programs"] > 0 for row in record["compiled"])
    one, many = forward["model"]
    assert (one["card"], one["sequences"], many["sequences"]) == ("H100", 1, 264)
    assert one["seconds"] > one["least_seconds"]
    assert many["seconds"] == pytest.approx(2 * one["seconds"])


@needs_triton
def test_command_counts_a_mixer(capsys):
    arguments = ["cost", "--mixer", "hgrn", "--d-model", "8", "--length", "8", "--schedule", "fused"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "hgrn 1×8" in out
    assert "no projections" in out


@needs_triton
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head-dim", "0"], "--head-dim is 0; accepted: 1 to 256"),
        (["--length", "0"], "--length is 0; accepted: at least 1"),
        (["--sequences", "0"], "--sequences is 0; accepted: at least 1"),
        (["--processes", "0"], "--processes is 0"),
        (["--mixer", "softmax"], "has no recurrence"),
        (["--mixer", "hgrn", "--with", "packed"], "--with is packed beside --mixer"),
        (["--card", "A100", "--target", "sm_90"], "--card is A100, which takes sm_80"),
        (["--json", "/no/such/folder/x.json"], "--json is /no/such/folder/x.json"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message, capsys):
    assert main(["cost", *arguments]) == 2
    assert message in capsys.readouterr().err


@needs_triton
@pytest.mark.parametrize("option", ["--operator", "--mixer", "--target", "--dtype", "--schedule", "--with"])
def test_unknown_names_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["cost", option, "nonsense"])
    assert "nonsense" in capsys.readouterr().err


@needs_triton
def test_what_cannot_be_counted_is_said(monkeypatch, capsys):
    from mixerzoo.equivalence.cost import counting

    def fail(*_):
        raise counting.CountFailed("scalar: ValueError: no")
        yield

    monkeypatch.setattr(counting, "count_all", fail)
    assert main(["cost", "--operator", "hgrn"]) == 1
    assert "no" in capsys.readouterr().err


@needs_triton
def test_a_failing_case_is_named():
    from mixerzoo.equivalence.cost.counting import CountFailed, count_all

    with pytest.raises(CountFailed, match=r"no_such.*KeyError"):
        list(count_all([Case("scalar", length=4, head_dim=4, dtype="no_such")]))


def test_without_triton(monkeypatch, capsys):
    from mixerzoo.equivalence.cost import command

    monkeypatch.setattr(command, "HAVE_TRITON", False)
    assert command.run(types.SimpleNamespace()) == 2
    assert "not installed" in capsys.readouterr().err


@needs_triton
def test_the_example_of_the_documentation_runs(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
    program = tmp_path / "example.py"
    program.write_text(text.split("```python\n")[1].split("```")[0], encoding="utf-8")
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("14004 0")
