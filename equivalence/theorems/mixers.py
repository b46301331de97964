"""Properties of every mixer of the registry, and of a stack of them on real text."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ...mixers import REGISTRY, Mixer, MixerState, build
from ..text import english
from ..theorem import Budget, Collection, Counterexample, Tally, Theorem
from .examples import compare, run_examples
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


# ------------------------------------------------------------------ comparing


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
        else:
            found[f.name] = x
    return found


def compare_states(
    what: str, case: object, x: MixerState, reference: MixerState, tolerance: float = TOLERANCE
) -> float:
    a, b, worst = _parts(x), _parts(reference), 0.0
    if a.keys() != b.keys():
        raise Counterexample(f"{what}: the state holds {sorted(a)}, not {sorted(b)}, for {case}")
    for name in a:
        unwritten = a[name].isneginf() & b[name].isneginf()  # the stabiliser of what has seen no token
        found, expected = (z[name].masked_fill(unwritten, 0) for z in (a, b))
        largest = float(expected.abs().amax()) if expected.numel() else 1.0
        where = f"{what}, state.{name}"
        worst = max(worst, compare(where, case, found, expected, max(largest, 1e-6), tolerance))
    return worst


def compare_outputs(
    what: str, case: object, x: Tensor, reference: Tensor, tolerance: float = TOLERANCE
) -> float:
    largest = float(reference.abs().amax()) if reference.numel() else 1.0
    return compare(f"{what}, outputs", case, x, reference, max(largest, 1e-6), tolerance)


# ------------------------------------------------------------------ whole, pieces, tokens


def _streamed(module: Mixer, x: Tensor, cuts: list[int], form: str) -> tuple[Tensor, MixerState | None]:
    """In the pieces that the cuts make."""
    state, outputs = None, []
    for i, j in itertools.pairwise([0, *cuts, x.shape[1]]):
        y, state = module(x[:, i:j], state, form=form)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def _token_by_token(module: Mixer, x: Tensor) -> tuple[Tensor, MixerState | None]:
    state, outputs = None, []
    for t in range(x.shape[1]):
        y, state = module.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def check_streaming(case: Case) -> float:
    module, x = case.module(), case.inputs()
    y, state = module(x, form="recurrent")
    cuts = torch.randint(0, case.length + 1, (2,), generator=case.generator(1)).sort().values.tolist()
    worst = 0.0
    ways = {f"form {case.form}": module(x, form=case.form)}
    if case.causal:
        ways[f"pieces cut at {cuts}"] = _streamed(module, x, cuts, case.form)
        ways["token by token"] = _token_by_token(module, x)
    for what, (found, end) in ways.items():
        assert end is not None
        worst = max(worst, compare_outputs(what, case, found, y), compare_states(what, case, end, state))
    return worst


# ------------------------------------------------------------------ padding, packing, batching


def check_padding(case: Case) -> float:
    """Masked inputs are NaN here: they must not be looked at. A second call goes on from the state."""
    module, worst = case.module(), 0.0
    state: MixerState | None = None
    alone: list[Any] = [None] * case.batch
    for call in range(2 if case.causal else 1):
        x = case.inputs(call)
        mask = torch.rand(case.batch, case.length, generator=case.generator(2 + call)) < 0.6
        y, state = module(x.masked_fill(~mask[..., None], math.nan), state, mask=mask, form=case.form)
        if (y[~mask] != 0).any():
            raise Counterexample(f"outputs at padding are not 0, mask {mask.int().tolist()}, for {case}")
        for b in range(case.batch):
            what = f"call {call}, mask {mask[b].int().tolist()}, row {b}"
            y_alone, alone[b] = module(x[b : b + 1, mask[b]], alone[b], form="recurrent")
            worst = max(
                worst,
                compare_outputs(what, case, y[b : b + 1, mask[b]], y_alone),
                compare_states(what, case, _rows(state, b, b + 1), alone[b]),
            )
    if not case.causal:
        return worst
    x_t = case.inputs(9)[:, 0]
    now = torch.rand(case.batch, generator=case.generator(5)) < 0.6
    y_t, after = module.step(x_t.masked_fill(~now[:, None], math.nan), state, mask=now)
    for b in range(case.batch):
        what = f"step, mask {now.int().tolist()}, row {b}"
        expected = torch.zeros(1, WIDTH), alone[b]
        if now[b]:
            expected = module.step(x_t[b : b + 1], alone[b])
        worst = max(
            worst,
            compare_outputs(what, case, y_t[b : b + 1], expected[0]),
            compare_states(what, case, _rows(after, b, b + 1), expected[1]),
        )
    return worst


def check_packing(case: Case) -> float:
    """Two packed calls, the second going on from the states of the first."""
    module, worst, n = case.module(), 0.0, 3
    state: MixerState | None = None
    alone: list[Any] = [None] * n
    for call in range(2 if case.causal else 1):
        x = case.inputs(call)[:1]
        cuts = torch.randint(0, case.length + 1, (n - 1,), generator=case.generator(3 + call))
        offsets = [0, *cuts.sort().values.tolist(), case.length]
        y, state = module(x, state, cu_seqlens=torch.tensor(offsets), form=case.form)
        for i, (a, b) in enumerate(itertools.pairwise(offsets)):
            what = f"call {call}, offsets {offsets}, sequence {i}"
            y_alone, alone[i] = module(x[:, a:b], alone[i], form="recurrent")
            worst = max(
                worst,
                compare_outputs(what, case, y[:, a:b], y_alone),
                compare_states(what, case, _rows(state, i, i + 1), alone[i]),
            )
    return worst


def check_batching(case: Case) -> float:
    module, x, worst = case.module(), case.inputs(), 0.0
    y, state = module(x, form=case.form)
    for b in range(case.batch):
        y_alone, alone = module(x[b : b + 1], form=case.form)
        worst = max(
            worst,
            compare_outputs(f"row {b}", case, y[b : b + 1], y_alone),
            compare_states(f"row {b}", case, _rows(state, b, b + 1), alone),
        )
    return worst


def check_gradients(case: Case) -> float:
    """Of all parameters and the inputs; whole, by every form, and in two pieces."""
    module = copy.deepcopy(case.module()).requires_grad_()
    x = case.inputs().requires_grad_()
    weight = torch.randn(x.shape, generator=case.generator(6), dtype=torch.float64)
    leaves = {"x": x, **dict(module.named_parameters())}

    def gradients(y: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad((y * weight).sum(), list(leaves.values()), allow_unused=True)

    reference, worst = gradients(module(x, form="recurrent")[0]), 0.0
    largest = max(float(g.abs().amax()) for g in reference if g is not None)
    ways = {f"form {case.form}": module(x, form=case.form)[0]}
    if case.causal:
        pieces, _ = _streamed(module, x, [case.length // 2], case.form)
        ways[f"two pieces, form {case.form}"] = pieces
    for what, y in ways.items():
        for name, g, expected in zip(leaves, gradients(y), reference, strict=True):
            if expected is not None:
                assert g is not None
                where = f"{what}, gradient of {name}"
                worst = max(worst, compare(where, case, g, expected, largest, TOLERANCE))
    return worst


def check_paper(case: Case, paper: Paper | None = None) -> float:
    module, x, worst = case.module(), case.inputs(), 0.0
    y, _ = module(x, form=case.form)
    for b in range(case.batch):
        expected = (paper or PAPERS[case.name])(module, x[b])
        worst = max(worst, compare_outputs(f"row {b}, the paper's loop", case, y[b], expected))
    return worst


# ------------------------------------------------------------------ real text


def _on_text(name: str) -> Callable[[Budget, Tally], None]:
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
                return torch.cat(outputs, 1)

            reference = run([length])
            ragged = [7, 32, length - 39]
            for what, pieces in {
                "prefill in pieces": ragged,
                "decoded token by token": [1] * length,
                "prefill of half, then decoded": [length // 2] + [1] * (length - length // 2),
            }.items():
                tally.error(compare_outputs(what, where, run(pieces), reference, 1e-4))

    return check


# ------------------------------------------------------------------ the theorems

CHECKS: dict[str, tuple[str, Callable[[Case], float]]] = {
    "streaming": (
        "A whole sequence by any form, any split of it into pieces, and token by token by `step` are the "
        "same function: outputs and state.",
        check_streaming,
    ),
    "padding": (
        "Padding anywhere in a row changes nothing: outputs and state are those of the row without it, also "
        "when a later call, or a masked step, goes on from that state. Padded inputs (NaN, in these "
        "examples) are not looked at, and outputs there are 0.",
        check_padding,
    ),
    "packing": (
        "Packed sequences are the sequences run apart, also when a later packed call goes on; empty ones "
        "included.",
        check_packing,
    ),
    "batching": ("A row of a batch is that row alone.", check_batching),
    "gradients": (
        "The gradients of all parameters and inputs do not depend on the form, nor on a split into pieces.",
        check_gradients,
    ),
}
# What is left of them for a mixer without a state.
STATELESS: dict[str, tuple[str, Callable[[Case], float]]] = {
    "forms": ("All forms are the same function.", check_streaming),
    "padding": (
        "Padding anywhere in a row changes nothing: outputs are those of the row without it. Padded inputs "
        "(NaN, in these examples) are not looked at, and outputs there are 0.",
        check_padding,
    ),
    "packing": ("Packed sequences are the sequences run apart; empty ones included.", check_packing),
    "batching": CHECKS["batching"],
    "gradients": ("The gradients of all parameters and inputs do not depend on the form.", check_gradients),
}


def _theorem(name: str, property: str, statement: str, check: Callable[[Case], float]) -> Theorem:
    def run(budget: Budget, tally: Tally) -> None:
        run_examples(budget, tally, cases(name), check, 15, 100)

    over = f"float64, random parameters, {len(VARIANTS.get(name, ({},)))} configurations, B to 3, T to 12"
    return Theorem(f"mixers/{name}/{property}", statement, over, {"property": run})


def theorems() -> Collection:
    """Those of every mixer in the registry."""
    found = Collection()
    for name, entry in REGISTRY.items():
        if name in PAPERS:
            statement = f"The mixer is the recurrence of its paper ({entry.paper}), written as a plain loop."
            found.add(_theorem(name, "paper", statement, check_paper))
        for property, (statement, check) in (CHECKS if entry.causal else STATELESS).items():
            found.add(_theorem(name, property, statement, check))
        if not entry.causal:
            continue
        found.add(
            Theorem(
                f"mixers/{name}/text",
                "On real text, prefill, prefill in pieces and decoding token by token are the same, to 1e-4 "
                "in float32.",
                "English prose, bytes embedded at random, two layers with residual connections",
                {"text": _on_text(name)},
            )
        )
    return found
