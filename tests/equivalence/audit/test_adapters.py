"""Adapters: what they say is checked, what is not said is guessed, and what is right is not accused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixerzoo.equivalence.audit import AGREE, DISAGREE, PROPERTIES, UNSUPPORTED, audit, examine
from mixerzoo.equivalence.audit.targets import find
from mixerzoo.equivalence.audit.targets.adapter import Argument, Output, State
from mixerzoo.equivalence.audit.targets.guess import guess
from mixerzoo.equivalence.audit.targets.kernel import kernel, kernel_target
from mixerzoo.equivalence.audit.targets.load import TargetError, load, load_file
from mixerzoo.equivalence.audit.targets.module import ModuleAdapter, module_target
from mixerzoo.mixers import REGISTRY

exhibits = load_file(Path(__file__).parent / "exhibits.py")


def verdicts(target, properties=tuple(PROPERTIES)):
    return {f.property: f for f in audit([target], properties)}


# ---------------------------------------------------------------- what is right


def test_the_core():
    """Every property, with an adapter that is guessed."""
    (target,) = find("mixerzoo.kernels:recurrence")
    found = verdicts(target)
    assert {n: f.example for n, f in found.items() if f.verdict != AGREE} == {}


@pytest.mark.parametrize(
    "name", ["mamba2", "gated-deltanet", "mlstm", "rwkv4", "softmax", "gla-bidirectional"]
)
def test_mixers(name):
    found = verdicts(module_target(name, REGISTRY[name].factory))
    assert not {n: f.example for n, f in found.items() if f.verdict == DISAGREE}
    outside = {n for n, f in found.items() if f.verdict == UNSUPPORTED} - {"decay_extremes"}
    assert outside == (set() if REGISTRY[name].causal else {"decode", "chunked_prefill", "state_gradients"})


# The parameter that sets decays, with a value at which nothing is forgotten and one at which everything is.
ENDS = {
    "mamba": ("A_log", -40.0, 12.0),
    "mamba2": ("A_log", -40.0, 12.0),
    "gated-deltanet": ("A_log", -40.0, 12.0),
    "kda": ("A_log", -40.0, 12.0),
    "comba": ("A_log", -40.0, 12.0),
    "s4d": ("log_A_real", -40.0, 12.0),
    "lru": ("nu_log", -40.0, 10.0),
    "longhorn": ("dt_head.bias", -1e4, 1e4),
    "rwkv4": ("time_decay", -40.0, 10.0),
    "rwkv6": ("time_decay", -40.0, 10.0),
    "rwkv7": ("w_lora.2.bias", -1e4, 1e4),
    "rg-lru": ("rg_lru.recurrent_param", -40.0, 1e4),
    "mlstm": ("fgate_preact.bias", 1e4, -1e4),
    "simple-gla": ("gk_proj.bias", 1e4, -1e4),
    "gla": ("gk_proj.1.bias", 1e4, -1e4),
    "hgrn": ("forget_gate.bias", 1e4, -1e4),
    "mingru": ("gate_proj.bias", 1e4, -1e4),
    "gateloop": ("size_proj.bias", 1e4, -1e4),
}


@pytest.mark.parametrize("name", ENDS)
def test_mixers_at_the_ends(name):
    """Within a few roundings of float32, and gradients are finite."""
    parameter, never, always = ENDS[name]
    adapter = ModuleAdapter(
        {"d_model": 8},
        state="state",
        step="step",
        extremes={"nothing forgotten": {parameter: never}, "everything forgotten": {parameter: always}},
    )
    found = examine(module_target(name, REGISTRY[name].factory, adapter), "decay_extremes")
    assert found.verdict == AGREE, found
    assert found.example == "2 cases"


# ---------------------------------------------------------------- what is guessed


def heads_second(query, key, value, decay, h0=None, return_state=False):
    """With factors for decays, and a state [B, H, V, K]."""
    S = query.new_zeros(*query.shape[:2], value.shape[-1], key.shape[-1]) if h0 is None else h0
    o = []
    for q, k, v, a in zip(*(x.unbind(2) for x in (query, key, value, decay)), strict=True):
        S = a[..., None, None] * S + v[..., None] * k[..., None, :]
        o.append((S @ q[..., None])[..., 0])
    return torch.stack(o, 2), S


def in_chunks(q, k, v, g, initial_state=None, chunk_size=64, output_final_state=False):
    assert q.shape[1] % chunk_size == 0
    o, S = exhibits.one(q, k, v, g, initial_state)
    return (o, S) if output_final_state else o


def test_guess():
    found = guess(exhibits.right, "right")
    assert {n: (a.shape, a.drawn) for n, a in found.arguments.items()} == {
        "q": ("B T H K", "normal"),
        "k": ("B T H K", "unit"),
        "v": ("B T H V", "normal"),
        "g": ("B T H", "log_decay"),
    }
    assert found.output == Output("B T H V")
    assert found.state == (State("B H K V"),)
    assert (found.mask, found.cu_seqlens, found.multiple) == ("mask", "cu_seqlens", 1)


def test_guess_another_layout():
    found = guess(heads_second, "heads_second")
    assert found.arguments["value"].shape == "B H T V"
    assert found.arguments["decay"] == Argument("B H T", "decay")
    assert found.output == Output("B H T V")
    assert found.state == (State("B H V K", argument="h0"),)
    assert found.constants == {"return_state": True}
    target = kernel("heads_second", heads_second, found)
    decode = verdicts(target, ("decode", "state_gradients", "decay_extremes"))
    assert {f.verdict for f in decode.values()} == {AGREE}


def test_guess_chunks():
    found = guess(in_chunks, "in_chunks")
    assert found.constants == {"chunk_size": 4, "output_final_state": True}
    assert found.multiple == 4
    found = verdicts(kernel("in_chunks", in_chunks, found), ("decode", "chunked_prefill", "batch"))
    assert found["decode"].verdict == UNSUPPORTED  # single tokens are no multiple of 4
    assert found["decode"].example == "it takes lengths that are multiples of 4"
    assert found["chunked_prefill"].verdict == found["batch"].verdict == AGREE


def gated(q, k, v, g, beta, theta):
    raise AssertionError


def two_decays(q, k, v, g, alpha):
    raise AssertionError


def refuses(q, k, v):
    raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (gated, "gated needs 'theta', which is not known; accepted: an adapter, or the names q, query"),
        (
            two_decays,
            "two_decays takes 'g' and 'alpha', of which one at most would be a decay; accepted: an ",
        ),
        (refuses, r"no way of calling refuses was found.*RuntimeError: not today"),
        (lambda q, k: q, "takes no values; accepted: an argument named v or value"),
    ],
)
def test_what_is_not_guessed(function, said):
    with pytest.raises(TargetError, match=said):
        guess(function, getattr(function, "__name__", ""))


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constants": {"chunks": 4}}, "gives k an argument 'chunks'; accepted: q, k, v, g, initial_state"),
        ({"mask": "masks"}, "gives k an argument 'masks'; accepted: q, k, v, g"),
        (
            {"arguments": {"q": Argument("B T H K")}},
            "k needs 'k', which the adapter does not name; accepted: an",
        ),
        ({"output": Output("B T H Z")}, "shape of output is 'B T H Z', where Z has no size; accepted: B, D"),
        (
            {"arguments": {**exhibits.ARGUMENTS, "g": Argument("B T H", "log")}},
            "g is drawn 'log'; accepted: nor",
        ),
        ({"dtypes": ("half",)}, "dtypes has 'half'; accepted: float64, float32"),
        ({"mask_means": "pad"}, "mask_means is 'pad'; accepted: 'token', 'padding'"),
        ({"multiple": 0}, "multiple is 0; accepted: a positive integer"),
        ({"step": "two"}, "step is 'two'; accepted: a name in .*exhibits, or package.module:name"),
    ],
)
def test_adapters_that_do_not_fit(changes, said):
    with pytest.raises(TargetError, match=said):
        kernel("k", exhibits.right, replace(exhibits.FULL, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": "masks"}, "gives m.forward an argument 'masks'; accepted: x, state, mask"),
        ({"step": "advance"}, "step is 'advance', which m has not; accepted: one of its methods"),
        ({"layout": "D T B"}, "layout is 'D T B'; accepted: 'B T D' or 'T B D'"),
        ({"extremes": {"none": {"a": 0.0}}}, r"extremes\['none'\] has 'a'; accepted: proj.weight, proj.bias"),
        ({"arguments": {"d": 4}}, r"m\(d=4\) raises TypeError: .*unexpected keyword argument 'd'"),
    ],
)
def test_adapters_of_modules_that_do_not_fit(changes, said):
    with pytest.raises(TargetError, match=said):
        module_target("m", exhibits.Right, replace(ModuleAdapter({"d_model": 8}, state="state"), **changes))


def test_adapters_of_another_kind():
    with pytest.raises(
        TargetError, match="ADAPTER is int; accepted: an Adapter for a kernel, a ModuleAdapter"
    ):
        kernel_target("k", exhibits.right, 3)
    with pytest.raises(TargetError, match="ADAPTER is Adapter; accepted: a ModuleAdapter, for a module"):
        module_target("m", exhibits.Right, exhibits.FULL)
    with pytest.raises(TargetError, match=r"m needs 'rank'; accepted: a ModuleAdapter with it in its arg"):
        module_target("m", type("Odd", (torch.nn.Module,), {"__init__": lambda self, rank: None}))


def test_a_result_that_is_not_there():
    adapter = replace(exhibits.FULL, output=Output("B T H V", at=(2,)))
    found = examine(kernel("k", exhibits.right, adapter), "gradients")
    assert found.verdict == UNSUPPORTED
    assert found.example == "its adapter finds outputs at (2,), where its result has none"


def parallel(q, k, v, g):
    return exhibits.attention(q, k, v, g)[0]


def test_without_a_state():
    """It cannot be gone on from, and that is not taken for the beginning of another sequence."""
    adapter = replace(exhibits.PLAIN, state=(), output=Output("B T H V", at=()))
    (found,) = {f.example for f in verdicts(kernel("k", parallel, adapter), exhibits.PIECES).values()}
    assert found == "it returns no state"
    (found,) = {f.example for f in verdicts(module_target("m", torch.nn.Identity), exhibits.PIECES).values()}
    assert found == "its forward takes no state and returns none"
    # With another function for single tokens, these can be compared from the first one on.
    adapter = replace(adapter, step=exhibits.one, step_adapter=exhibits.PLAIN)
    assert examine(kernel("k", parallel, adapter), "decode").verdict == AGREE
    adapter = replace(adapter, step=exhibits.one_clamped)
    assert examine(kernel("k", parallel, adapter), "decode").verdict == DISAGREE


# ---------------------------------------------------------------- without float64


def floats_only(q, k, v, g, initial_state=None):
    assert q.dtype == torch.float32, "takes float32"
    return exhibits.attention(q, k, v, g, initial_state)


def test_rounding_is_no_disagreement():
    """In float32 a tolerance is measured; a fault that is larger is still seen."""
    adapter = replace(exhibits.PLAIN, dtypes=("float32",))
    found = verdicts(kernel("k", floats_only, adapter))
    assert {n: f.example for n, f in found.items() if f.verdict == DISAGREE} == {}
    assert found["fp64"].example == "it takes float32"
    for name in ("decode", "chunked_prefill", "gradients", "state_gradients", "decay_extremes"):
        assert found[name].verdict == AGREE, name
    # Rounding was there to be seen.
    assert 1e-8 < found["decode"].difference < 1e-5

    clamped = replace(adapter, step=exhibits.one_clamped)
    assert examine(kernel("k", floats_only, clamped), "decode").verdict == DISAGREE
    for fault, broken in (("detached_q", "gradients"), ("initial_detached", "state_gradients")):
        target = kernel(fault, getattr(exhibits, fault), adapter)
        assert examine(target, broken).verdict == DISAGREE


def test_in_bfloat16_alone():
    """There is nothing to compare precision with."""
    adapter = replace(exhibits.PLAIN, dtypes=("bfloat16",), tolerance=0.05)
    found = verdicts(kernel("k", exhibits.right, adapter), ("decode", "low_precision", "gradients", "fp64"))
    assert found["decode"].verdict == AGREE
    assert found["decode"].difference > 1e-9
    assert {found[n].verdict for n in ("low_precision", "gradients", "fp64")} == {UNSUPPORTED}


def test_a_documented_smallest_decay():
    """What lies beyond it is not asked for."""
    arguments = {**exhibits.ARGUMENTS, "g": Argument("B T H", "log_decay", least=-5.0)}
    target = kernel("k", exhibits.cumsum_difference, replace(exhibits.STEPPED, arguments=arguments))
    found = examine(target, "decay_extremes")
    assert found.verdict == AGREE
    assert found.example == "2 cases"


def test_modules_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mykernels.py").write_text("def twice(q, k, v):\n    return 2 * q\n")
    (tmp_path / "yourkernels").mkdir()
    (tmp_path / "yourkernels" / "inner.py").write_text("def once(q, k, v):\n    return q\n")
    before = list(sys.path)
    with pytest.raises(TargetError, match="mykernels does not import"):
        load("mykernels:twice")
    monkeypatch.chdir(tmp_path)
    assert load("mykernels:twice")(1, 0, 0) == 2
    assert load("yourkernels.inner:once")(1, 0, 0) == 1
    assert sys.path == before


def test_the_width_of_a_module_that_has_a_default(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self, size=6):\n"
        "        super().__init__()\n"
        "        self.proj = torch.nn.Linear(size, size)\n"
        "    def forward(self, x):\n"
        "        return self.proj(x).cumsum(1)\n"
        "class Odd(Mine):\n"
        "    def forward(self, x):\n"
        "        raise RuntimeError('never')\n"
    )
    (target,) = find(f"{file}:Mine")
    assert "[B, T, 6]" in target.note
    found = verdicts(target, ("batch", "gradients", "decode"))
    assert [f.verdict for f in found.values()] == [AGREE, AGREE, UNSUPPORTED]
    with pytest.raises(TargetError, match=r"does not take x \[B, T, 8\]: RuntimeError: never"):
        find(f"{file}:Odd")


def test_what_remembers_earlier_calls_gets_no_allowance(tmp_path):
    file = tmp_path / "leaky.py"
    file.write_text(
        "import torch\n"
        "class Leaky(torch.nn.Module):\n"
        "    kept = 0.0\n"
        "    def __init__(self, d_model):\n"
        "        super().__init__()\n"
        "        self.proj = torch.nn.Linear(d_model, d_model)\n"
        "    def forward(self, x):\n"
        "        y = self.proj(x).cumsum(1) + Leaky.kept\n"
        "        Leaky.kept = y[:1, -1:].detach() / 2\n"
        "        return y\n"
    )
    (target,) = find(f"{file}:Leaky")
    assert examine(target, "interleaved").verdict == DISAGREE
