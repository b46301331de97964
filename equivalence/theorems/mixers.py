"""Properties of every mixer of the registry, and of a stack of them on real text."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from ...mixers import REGISTRY, Mixer, MixerState, build
from ..text import english
from ..theorem import Budget, Check, Collection, Side, Tally, Theorem
from .examples import Expected, agree, drawn
from .papers import PAPERS, Paper

WIDTH = 8
TOLERANCE = 1e-10  # in float64: norms and gates add a few digits to the rounding of the core

# What a mixer is built with besides its defaults.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "linear-attention": ({}, {"num_heads": 2, "bias": False}),
    "transnormer": ({}, {"num_heads": 2}),
    "transnormer-llm": (
        {},
        {"layer_idx": 1, "num_layers": 3},
        {"layer_idx": 1, "num_layers": 2, "lrpe": True},
    ),
    "lightning": ({}, {"layer_idx": 1, "num_layers": 3}, {"num_heads": 1, "head_dim": 5}),
    "lightning-bailing": (
        {},
        {"layer_idx": 1, "num_layers": 3, "silu": True, "norm_groups": 2},
        {"num_heads": 3, "head_dim": 4, "qk_norm": False, "rotary_dim": 4, "norm_groups": 4},
    ),
    "deltanet": (
        {},
        {"num_heads": 2, "num_key_heads": 1, "head_v_dim": 3, "allow_neg_eigval": True},
        {"conv_width": 1, "use_conv_bias": True},
    ),
    "gated-deltanet": (
        {},
        {"num_heads": 4, "num_key_heads": 2, "head_dim": 3, "head_v_dim": 5, "allow_neg_eigval": True},
        {"conv_width": 2, "use_conv_bias": True},
    ),
    "kda": (
        {},
        {"num_heads": 2, "num_key_heads": 1, "head_v_dim": 3, "low_rank_gates": False, "lower_bound": -5.0},
        {"conv_width": 2, "use_conv_bias": True, "allow_neg_eigval": True},
    ),
    "gated-deltaproduct": (
        {},
        {"num_heads": 2, "num_key_heads": 1, "head_v_dim": 3, "num_householder": 3, "conv_width": 2},
        {"num_householder": 1, "allow_neg_eigval": False, "use_conv_bias": True},
    ),
    "comba": (
        {},
        {"num_heads": 4, "num_key_heads": 2, "head_v_dim": 3, "correction": 0.02},
        {"conv_width": 1, "use_conv_bias": True, "erase_decayed": False},
    ),
    "rwkv6": (
        {},
        {"num_heads": 2, "layer_idx": 1, "num_layers": 3, "mix_rank": 3, "decay_rank": 2},
        {"num_heads": 3, "head_dim": 2},
    ),
    "rwkv7": (
        {},
        {"num_heads": 2, "layer_idx": 1, "num_layers": 3, "decay_rank": 2, "rate_rank": 3, "gate_rank": 4},
        {"num_heads": 3, "head_dim": 2},
    ),
    "cosformer": ({}, {"num_heads": 2, "max_length": 24, "bias": False}),
    "retnet": ({}, {"num_heads": 2, "head_v_dim": 3}, {"num_heads": 1, "head_dim": 5, "rotary_base": 100.0}),
    "retnet-bidirectional": ({}, {"num_heads": 2, "head_v_dim": 3}),
    "gla": ({}, {"num_heads": 2, "head_v_dim": 3, "gate_rank": 2, "gate_divisor": 1.0}, {"head_dim": 3}),
    "gla-bidirectional": ({}, {"num_heads": 2, "head_v_dim": 3, "gate_rank": 2, "gate_divisor": 1.0}),
    "simple-gla": ({}, {"num_heads": 2, "head_v_dim": 3, "gate_divisor": 1.0}, {"head_dim": 3}),
    "hgrn2": (
        {},
        {"num_heads": 2, "head_v_dim": 3, "layer_idx": 1, "num_layers": 3},
        {"head_dim": 3, "lower_bound": 0.9, "bias": True},
    ),
    "gated-slot-attention": (
        {},
        {"num_heads": 2, "head_v_dim": 3, "num_slots": 5, "gate_divisor": 1.0},
        {"head_dim": 3, "num_slots": 1},
    ),
    "mamba": (
        {},
        {"d_state": 3, "conv_width": 2, "expand": 1, "use_conv_bias": False},
        {"conv_width": 1},
        {"dt_rank": 3, "norm_eps": 1e-6, "use_bias": True},
        {"num_heads": 4, "dt_rank": 2, "norm_eps": 1e-5, "norm_weights": False},
    ),
    "mamba2": (
        {"d_state": 4},
        {
            "num_heads": 4,
            "n_groups": 2,
            "d_state": 3,
            "norm_before_gate": True,
            "time_step_limit": (0.1, 1.0),
        },
        {
            "head_dim": 3,
            "d_state": 2,
            "use_norm": False,
            "use_bias": True,
            "use_out_bias": False,
            "conv_width": 1,
        },
    ),
    "mamba3": (
        {"d_state": 6},
        {"num_heads": 4, "n_groups": 2, "d_state": 5, "rope_fraction": 1.0, "use_norm": True},
        {"head_dim": 3, "d_state": 4, "expand": 1, "A_floor": 0.7},
    ),
    "s4d": ({"d_state": 4}, {"d_state": 6, "init": "inv"}),
    "s5": ({"d_state": 6}, {"d_state": 2, "dt_max": 1.0}),
    "lru": ({}, {"d_state": 5, "r_min": 0.9, "max_phase": 0.3}),
    "longhorn": (
        {},
        {"d_state": 3, "conv_width": 2, "expand": 1, "use_conv_bias": False, "use_bias": True},
        {"conv_width": 1, "dt_rank": 3},
    ),
    "mingru": ({}, {"expand": 2, "positive_state": False, "bias": False}),
    "minlstm": ({}, {"expand": 2, "positive_state": False, "bias": False}),
    "gateloop": ({}, {"num_heads": 8, "bias": False}, {"num_heads": 1, "head_dim": 3}),
    "rg-lru": ({}, {"width": 12, "num_heads": 3, "conv_width": 2}, {"num_heads": 1, "conv_width": 1}),
    "mlstm": (
        {},
        {"num_heads": 2, "key_dim": 5, "gate_soft_cap": None, "normaliser_eps": 0.1, "bias": True},
        {"forget_gate": "exp", "gate_soft_cap": 2.0, "head_dim": 3},
    ),
    "rwkv4": ({}, {"width": 5, "layer_idx": 1, "num_layers": 3}),
    "hgrn": ({}, {"layer_idx": 1, "num_layers": 3}, {"expand": 2}),
    "hgrn-complex": ({}, {"layer_idx": 1, "num_layers": 3}, {"expand": 2}),
    "softmax": (
        {},
        {"num_heads": 4, "num_kv_heads": 2},
        {"num_heads": 1, "head_dim": 5, "rotary_base": None},
        {"num_heads": 4, "num_kv_heads": 2, "window": 3},
    ),
}


@functools.lru_cache(maxsize=256)
def mixer(name: str, variant: int, seed: int, dtype: torch.dtype = torch.float64) -> Mixer:
    options = VARIANTS.get(name, ({},))[variant]
    return randomised(lambda: build(name, WIDTH, **options), seed, dtype)


def randomised(make: Callable[[], Mixer], seed: int, dtype: torch.dtype = torch.float64) -> Mixer:
    """A mixer whose every parameter is random: fresh ones are often 0, 1, or so small that nothing shows."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = make().to(dtype)
        for p in module.parameters():
            size = 0.5 if p.ndim < 2 else 0.5 / math.sqrt(p.shape[-1])
            p.add_(size * torch.randn(p.shape, dtype=dtype))
    return module.requires_grad_(False)


@dataclass(frozen=True)
class Case:
    """Arguments of a mixer; the numbers in them follow from `seed`."""

    name: str
    variant: int
    length: int
    batch: int
    form: str
    seed: int

    def __str__(self) -> str:
        options = VARIANTS.get(self.name, ({},))[self.variant]
        built = ", ".join([f"{self.name!r}", str(WIDTH), *(f"{k}={v!r}" for k, v in options.items())])
        return (
            f"build({built}), B = {self.batch}, T = {self.length}, form={self.form!r}, float64, "
            f"seed {self.seed}"
        )

    def module(self) -> Mixer:
        return mixer(self.name, self.variant, self.seed % 4)

    @property
    def causal(self) -> bool:
        """Whether there is a state to go on from."""
        return self.module().causal

    def generator(self, salt: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + 1000 * salt)

    def inputs(self, salt: int = 0) -> Tensor:
        return torch.randn(
            self.batch, self.length, WIDTH, generator=self.generator(salt), dtype=torch.float64
        )


def cases(name: str, longest: int = 12) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        name=st.just(name),
        variant=st.integers(0, len(VARIANTS.get(name, ({},))) - 1),
        length=st.integers(1, longest),
        batch=st.integers(1, 3),
        form=st.sampled_from(mixer(name, 0, 0).forms),
        seed=st.integers(0, 999),
    )


# ------------------------------------------------------------------ what is compared

Found = dict[str, Tensor]
Wanted = dict[str, Expected]


def _rows(state: MixerState, i: int, j: int) -> MixerState:
    parts = (getattr(state, f.name) for f in fields(state))
    return MixerState(*(None if p is None else p[i:j] for p in parts))  # type: ignore[arg-type]


def _parts(state: MixerState) -> dict[str, Tensor]:
    """What a state holds, row by row; of a cache, the places in use."""
    found = {}
    for f in fields(state):
        x = getattr(state, f.name)
        if x is None:
            continue
        if f.name in ("keys", "values"):
            for row, n in enumerate(state.position.tolist()):
                found[f"{f.name}, row {row}"] = x[row, :n]
        elif f.name == "stabiliser":
            unwritten = x.isneginf()  # of what has seen no token
            found[f.name] = x.masked_fill(unwritten, 0)
            found[f"{f.name}, unwritten"] = unwritten
        else:
            found[f.name] = x
    return found


def flat(what: str, y: Tensor, state: MixerState | None) -> Found:
    """Outputs, and all that a state holds, by name."""
    parts = {} if state is None else _parts(state)
    return {f"{what}, outputs": y, **{f"{what}, state.{name}": x for name, x in parts.items()}}


def expect(what: str, y: Tensor, state: MixerState | None) -> Wanted:
    """The same as what is wanted: each to the tolerance of its largest number."""
    return {name: wanted(x) for name, x in flat(what, y, state).items()}


def wanted(x: Tensor, tolerance: float = TOLERANCE) -> Expected:
    largest = float(x.abs().amax()) if x.numel() and x.dtype != torch.bool else 1.0
    return Expected(x, max(largest, 1e-6), tolerance)


# ------------------------------------------------------------------ whole, pieces, tokens

Run = tuple[Tensor, MixerState | None]


def _streamed(module: Mixer, x: Tensor, cuts: list[int], form: str) -> Run:
    """In the pieces that the cuts make."""
    state, outputs = None, []
    for i, j in itertools.pairwise([0, *cuts, x.shape[1]]):
        y, state = module(x[:, i:j], state, form=form)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def _token_by_token(module: Mixer, x: Tensor) -> Run:
    state, outputs = None, []
    for t in range(x.shape[1]):
        y, state = module.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def _ways(case: Case) -> dict[str, Callable[[Mixer, Tensor], Run]]:
    """To run a sequence that must all give the same, by name."""
    ways: dict[str, Callable[[Mixer, Tensor], Run]] = {
        f"form {case.form}": lambda module, x: module(x, form=case.form)
    }
    if case.causal:
        cuts = torch.randint(0, case.length + 1, (2,), generator=case.generator(1)).sort().values.tolist()
        ways[f"pieces cut at {cuts}"] = lambda module, x: _streamed(module, x, cuts, case.form)
        ways["token by token"] = _token_by_token
    return ways


def in_all_ways(case: Case) -> Found:
    found: Found = {}
    for what, run in _ways(case).items():
        found |= flat(what, *run(case.module(), case.inputs()))
    return found


def whole(case: Case) -> Wanted:
    y, state = case.module()(case.inputs(), form="recurrent")
    expected: Wanted = {}
    for what in _ways(case):
        expected |= expect(what, y, state)
    return expected


# ------------------------------------------------------------------ padding, packing, batching


def _mask(case: Case, call: int) -> Tensor:
    return torch.rand(case.batch, case.length, generator=case.generator(2 + call)) < 0.6


def _goes_on(case: Case) -> Tensor:
    """Which rows have a token in the step that follows."""
    return torch.rand(case.batch, generator=case.generator(5)) < 0.6


def padded(case: Case) -> Found:
    """Masked inputs are NaN here: they must not be looked at. A second call goes on from the state, and then
    one step."""
    module = case.module()
    found: Found = {}
    state: Any = None
    for call in range(2 if case.causal else 1):
        x, mask = case.inputs(call), _mask(case, call)
        y, state = module(x.masked_fill(~mask[..., None], math.nan), state, mask=mask, form=case.form)
        found[f"call {call}, outputs at padding"] = y[~mask]
        for b in range(case.batch):
            what = f"call {call}, mask {mask[b].int().tolist()}, row {b}"
            found |= flat(what, y[b : b + 1, mask[b]], _rows(state, b, b + 1))
    if case.causal:
        now = _goes_on(case)
        y_t, after = module.step(case.inputs(9)[:, 0].masked_fill(~now[:, None], math.nan), state, mask=now)
        for b in range(case.batch):
            found |= flat(f"step, row {b} of {now.int().tolist()}", y_t[b : b + 1], _rows(after, b, b + 1))
    return found


def unpadded(case: Case) -> Wanted:
    module = case.module()
    expected: Wanted = {}
    states: list[Any] = [None] * case.batch
    for call in range(2 if case.causal else 1):
        x, mask = case.inputs(call), _mask(case, call)
        nothing = torch.zeros(int((~mask).sum()), WIDTH, dtype=x.dtype)
        expected[f"call {call}, outputs at padding"] = Expected(nothing, 1.0, 0.0)
        for b in range(case.batch):
            what = f"call {call}, mask {mask[b].int().tolist()}, row {b}"
            y, states[b] = module(x[b : b + 1, mask[b]], states[b], form="recurrent")
            expected |= expect(what, y, states[b])
    if case.causal:
        x_t, now = case.inputs(9)[:, 0], _goes_on(case)
        for b in range(case.batch):
            y_t, after = torch.zeros(1, WIDTH, dtype=x_t.dtype), states[b]
            if now[b]:
                y_t, after = module.step(x_t[b : b + 1], states[b])
            expected |= expect(f"step, row {b} of {now.int().tolist()}", y_t, after)
    return expected


SEQUENCES = 3  # packed together


def _offsets(case: Case, call: int) -> list[int]:
    cuts = torch.randint(0, case.length + 1, (SEQUENCES - 1,), generator=case.generator(3 + call))
    return [0, *cuts.sort().values.tolist(), case.length]


def packed(case: Case) -> Found:
    """Two packed calls, the second going on from the states of the first."""
    module = case.module()
    found: Found = {}
    state: Any = None
    for call in range(2 if case.causal else 1):
        offsets = _offsets(case, call)
        x = case.inputs(call)[:1]
        y, state = module(x, state, cu_seqlens=torch.tensor(offsets), form=case.form)
        for i, (a, b) in enumerate(itertools.pairwise(offsets)):
            found |= flat(f"call {call}, offsets {offsets}, sequence {i}", y[:, a:b], _rows(state, i, i + 1))
    return found


def apart(case: Case) -> Wanted:
    module = case.module()
    expected: Wanted = {}
    states: list[Any] = [None] * SEQUENCES
    for call in range(2 if case.causal else 1):
        offsets = _offsets(case, call)
        x = case.inputs(call)[:1]
        for i, (a, b) in enumerate(itertools.pairwise(offsets)):
            y, states[i] = module(x[:, a:b], states[i], form="recurrent")
            expected |= expect(f"call {call}, offsets {offsets}, sequence {i}", y, states[i])
    return expected


def together(case: Case) -> Found:
    y, state = case.module()(case.inputs(), form=case.form)
    assert state is not None
    found: Found = {}
    for b in range(case.batch):
        found |= flat(f"row {b}", y[b : b + 1], _rows(state, b, b + 1))
    return found


def alone(case: Case) -> Wanted:
    module, x = case.module(), case.inputs()
    expected: Wanted = {}
    for b in range(case.batch):
        expected |= expect(f"row {b}", *module(x[b : b + 1], form=case.form))
    return expected


# ------------------------------------------------------------------ later inputs, gradients, papers


def _seen(case: Case) -> int:
    return int(torch.randint(1, case.length + 1, (), generator=case.generator(7)))


def another_future(case: Case) -> Found:
    n, x = _seen(case), case.inputs()
    y, _ = case.module()(torch.cat([x[:, :n], case.inputs(8)[:, n:]], 1), form=case.form)
    return {f"the first {n} outputs": y[:, :n]}


def its_future(case: Case) -> Wanted:
    n = _seen(case)
    y, _ = case.module()(case.inputs(), form=case.form)
    return {f"the first {n} outputs": wanted(y[:, :n])}


def _gradients(case: Case, run: Callable[[Mixer, Tensor], Run]) -> dict[str, Tensor]:
    """Of all parameters that count, and of the inputs."""
    module = copy.deepcopy(case.module()).requires_grad_()
    x = case.inputs().requires_grad_()
    weight = torch.randn(x.shape, generator=case.generator(6), dtype=torch.float64)
    leaves = {"x": x, **dict(module.named_parameters())}
    loss = (run(module, x)[0] * weight).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def _ways_of_gradients(case: Case) -> dict[str, Callable[[Mixer, Tensor], Run]]:
    ways: dict[str, Callable[[Mixer, Tensor], Run]] = {
        f"form {case.form}": lambda module, x: module(x, form=case.form)
    }
    if case.causal:
        what = f"two pieces, form {case.form}"
        ways[what] = lambda module, x: _streamed(module, x, [case.length // 2], case.form)
    return ways


def gradients(case: Case) -> Found:
    found: Found = {}
    for what, run in _ways_of_gradients(case).items():
        found |= {f"{what}, gradient of {name}": g for name, g in _gradients(case, run).items()}
    return found


def gradients_of_recurrent(case: Case) -> Wanted:
    """What an error is measured by is the largest gradient of all."""
    reference = _gradients(case, lambda module, x: module(x, form="recurrent"))
    largest = max(float(g.abs().amax()) for g in reference.values())
    expected: Wanted = {}
    for what in _ways_of_gradients(case):
        for name, g in reference.items():
            expected[f"{what}, gradient of {name}"] = Expected(g, largest, TOLERANCE)
    return expected


def outputs(case: Case) -> Found:
    y, _ = case.module()(case.inputs(), form=case.form)
    return {f"row {b}": y[b] for b in range(case.batch)}


def on_paper(case: Case, paper: Paper | None = None) -> Wanted:
    module, x, loop = case.module(), case.inputs(), paper or PAPERS[case.name]
    return {f"row {b}": wanted(loop(module, x[b])) for b in range(case.batch)}


# ------------------------------------------------------------------ real text


def _on_text(name: str) -> Check:
    """Two layers with residual connections on the embedded bytes, in float32."""

    def check(budget: Budget, tally: Tally) -> None:
        text = english(budget.text)
        length, starts = budget.pick(96, 512), budget.pick(1, 4)
        for n in range(starts):
            begin = n * (len(text) - length) // starts
            ids = torch.tensor(list(text[begin : begin + length]))
            g = torch.Generator().manual_seed(budget.seed)
            x = torch.randn(256, WIDTH, generator=g)[ids][None]
            layers = [mixer(name, 0, i, torch.float32) for i in range(2)]
            where = f"{name!r}, two layers, bytes {begin} to {begin + length} of the text"

            def run(pieces: list[int], x: Tensor = x, layers: list[Mixer] = layers) -> Tensor:
                states: list[MixerState | None] = [None] * len(layers)
                outputs, i = [], 0
                for size in pieces:
                    y = x[:, i : i + size]
                    for k, layer in enumerate(layers):
                        if size == 1:
                            out, states[k] = layer.step(y[:, 0], states[k])
                            y = y + out[:, None]
                        else:
                            out, states[k] = layer(y, states[k])
                            y = y + out
                    outputs.append(y)
                    i += size
                found = torch.cat(outputs, 1)
                tally.record(found)
                return found

            reference = wanted(run([length]), 1e-4)
            ragged = [7, 32, length - 39]
            for what, pieces in {
                "prefill in pieces": ragged,
                "decoded token by token": [1] * length,
                "prefill of half, then decoded": [length // 2] + [1] * (length - length // 2),
            }.items():
                tally.error(agree(where, {what: run(pieces)}, {what: reference}))

    return check


# ------------------------------------------------------------------ the theorems


class Property(NamedTuple):
    """What is stated of a mixer: in words and as a formula, of which two sides."""

    statement: str
    formula: str
    left: Side
    right: Side


RECURRENT = Side("the mixer in the recurrent form, all at once", whole)
PADDED = Side("the mixer on padded rows, whose padding is NaN, with their mask", padded)
UNPADDED = Side("each row without its padding, alone, in the recurrent form", unpadded)
PACKED = Side("the mixer on packed sequences, with cu_seqlens", packed)
APART = Side("each sequence apart, in the recurrent form", apart)
OF_RECURRENT = Side("torch.autograd through the recurrent form", gradients_of_recurrent)
OF_FORMS = "∂<w, M_form(x; θ)>/∂(x, θ) = ∂<w, M_recurrent(x; θ)>/∂(x, θ)"

CHECKS: dict[str, Property] = {
    "streaming": Property(
        "A whole sequence by any form, any split of it into pieces, and token by token by `step` are the "
        "same function: outputs and state.",
        "M(x_1 … x_T, s_0) = M(x_1 … x_c, s_0) then M(x_{c+1} … x_T, s_c) = step(x_T, … step(x_1, s_0))",
        Side("the mixer in any form, in pieces cut anywhere, and token by token", in_all_ways),
        RECURRENT,
    ),
    "padding": Property(
        "Padding anywhere in a row changes nothing: outputs and state are those of the row without it, also "
        "when a later call, or a masked step, goes on from that state. Padded inputs (NaN, in these "
        "examples) are not looked at, and outputs there are 0.",
        "M(x, s; m)[m] = M(x[m], s),  M(x, s; m)[¬m] = 0",
        PADDED,
        UNPADDED,
    ),
    "packing": Property(
        "Packed sequences are the sequences run apart, also when a later packed call goes on; empty ones "
        "included.",
        "M(x¹ x² x³, (s¹, s², s³); offsets) = M(x¹, s¹), M(x², s²), M(x³, s³)",
        PACKED,
        APART,
    ),
    "batching": Property(
        "A row of a batch is that row alone.",
        "M((x¹, …, x^B))^b = M(x^b)",
        Side("the rows of a batch, in any form", together),
        Side("each row alone, in the same form", alone),
    ),
    "causality": Property(
        "No output depends on a later input.",
        "x_s = x'_s for all s ≤ t ⇒ M(x)_s = M(x')_s for all s ≤ t",
        Side("the first outputs, in any form, when other inputs follow", another_future),
        Side("the first outputs of the sequence, in the same form", its_future),
    ),
    "gradients": Property(
        "The gradients of all parameters and inputs do not depend on the form, nor on a split into pieces.",
        OF_FORMS,
        Side("torch.autograd through any form, whole and in two pieces", gradients),
        OF_RECURRENT,
    ),
}
# What is left of them for a mixer without a state.
STATELESS: dict[str, Property] = {
    "forms": Property(
        "All forms are the same function.",
        "M_form(x) = M_recurrent(x)",
        Side("the mixer in any form", in_all_ways),
        RECURRENT,
    ),
    "padding": Property(
        "Padding anywhere in a row changes nothing: outputs are those of the row without it. Padded inputs "
        "(NaN, in these examples) are not looked at, and outputs there are 0.",
        "M(x; m)[m] = M(x[m]),  M(x; m)[¬m] = 0",
        PADDED,
        UNPADDED,
    ),
    "packing": Property(
        "Packed sequences are the sequences run apart; empty ones included.",
        "M(x¹ x² x³; offsets) = M(x¹), M(x²), M(x³)",
        PACKED,
        APART,
    ),
    "batching": CHECKS["batching"],
    "gradients": Property(
        "The gradients of all parameters and inputs do not depend on the form.",
        OF_FORMS,
        Side("torch.autograd through any form", gradients),
        OF_RECURRENT,
    ),
}
REASONS = {
    "exact": "no polynomial map: norms, gates, feature maps; forms/* and gradients/* have the core of it",
    "bitwise": "norms, gates and feature maps round",
    "bound": "bounds are carried through the core alone: forms/* and gradients/*",
    "coq": "the model has the core alone: see forms/*",
}


def _theorem(name: str, property: str, stated: Property) -> Theorem:
    count = len(VARIANTS.get(name, ({},)))
    configurations = "one configuration" if count == 1 else f"{count} configurations"
    text = "streaming has it" if REGISTRY[name].causal else "no state to decode from"
    found = Theorem(
        f"mixers/{name}/{property}",
        stated.statement,
        f"float64, random parameters, {configurations}, B to 3, T to 12",
        {"property": drawn(cases(name), 15, 100)},
        stated.formula,
        stated.left,
        stated.right,
        reasons=REASONS | {"text": text},
    )
    if property != "streaming":
        return found
    over = "bytes of English prose, embedded at random; two layers with residuals; float32, to 1e-4"
    return found.also("text", _on_text(name), over)


def theorems() -> Collection:
    """Those of every mixer in the registry."""
    found = Collection()
    for name, entry in REGISTRY.items():
        stated = {}
        if name in PAPERS:
            stated["paper"] = Property(
                f"The mixer is the recurrence of its paper ({entry.paper}), written as a plain loop.",
                "M(x)_t = y_t of the paper's recurrence, with the weights of M",
                Side("the mixer in any form", outputs),
                Side("the paper's loop, in equivalence/theorems/papers, in float64", on_paper),
            )
        stated |= CHECKS if entry.causal else STATELESS
        for property, what in stated.items():
            found.add(_theorem(name, property, what))
    return found
