"""Between families: which mixers are special cases of which, as statements about the core."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from ...kernels import forms, recurrence
from ...mixers import HGRN, LightningAttention, TransNormerLLM
from ...mixers.base import Tokens
from ..algebra import Field, Integer, Log, Words, add, inverse, multiply, subtract
from ..theorem import Budget, Collection, Counterexample, Tally
from .examples import compare
from .problems import HEADS, Operands, Problem, definition, equal, run_form

THEOREMS = Collection()

OVER = "both directions, shared heads, lengths to 9; each form"


def _shapes(budget: Budget, key: str, value: str) -> list[Problem]:
    lengths = (1, 2, 5) if budget.quick else (1, 2, 3, 5, 7, 9)
    return [
        Problem(T, 1 + T % 4, reverse=reverse, heads=heads, key_decay=key, value_decay=value)
        for T in lengths
        for heads in HEADS
        for reverse in (False, True)
    ]


def _all_forms(p: Problem, x: Operands, reference: tuple[Any, Any], tally: Tally) -> None:
    """Every form on x gives the reference."""
    for form in forms.FORMS:
        o, S = run_form(form, p, x)
        equal(f"outputs of the {form} form", p, o, reference[0], "bthv")
        equal(f"final states of the {form} form", p, S, reference[1], "bhkv")
        tally.exact(p.degree)


@THEOREMS(
    "links/slope-zero",
    "A log-decay of 0 is no decay: Lightning attention and RetNet at slope 0 are linear attention.",
    OVER,
    "exact",
)
def slope_zero(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _shapes(budget, "[H]", "none"):
        x = p.operands(rng)
        reference = definition(p, x._replace(log_decay=None))
        _all_forms(p, x._replace(log_decay=x.log_decay.zeros_like()), reference, tally)


@THEOREMS(
    "links/constant-is-scalar",
    "A constant decay per head is one per step that does not change: Lightning attention and RetNet (without "
    "rotation) are Mamba-2 with constant gates.",
    OVER,
    "exact",
)
def constant_is_scalar(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _shapes(budget, "[H]", "none"):
        x = p.operands(rng)
        every_step = x.log_decay.expand(p.batch, p.length, p.heads[0])
        _all_forms(p, x._replace(log_decay=every_step), definition(p, x), tally)


@THEOREMS(
    "links/scalar-is-vector",
    "A scalar decay is a vector decay with equal entries: Mamba-2 is gated linear attention with tied gates.",
    OVER,
    "exact",
)
def scalar_is_vector(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _shapes(budget, "[B,T,H]", "none"):
        x = p.operands(rng)
        tied = x.log_decay[..., None].expand(*x.log_decay.shape, p.key_dim)
        _all_forms(p, x._replace(log_decay=tied), definition(p, x), tally)


@THEOREMS(
    "links/mamba",
    "The decay dt·A with A the same for all states of a head is scalar: such a Mamba is Mamba-2. With any A "
    "it is gated linear attention whose log-decays are dt·A.",
    f"{OVER}; A whole numbers up to 3",
    "exact",
)
def mamba(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _shapes(budget, "dt·A", "none"):
        x = p.operands(rng)
        tied = np.broadcast_to(rng.integers(0, 4, (p.heads[0], 1)), (p.heads[0], p.key_dim))
        scalar = x.log_decay * Integer(tied[:, 0])
        reference = definition(p, x._replace(log_decay=scalar, outer=None))
        _all_forms(p, x._replace(outer=Integer(tied)), reference, tally)
        vector = x.log_decay[..., None] * x.outer
        _all_forms(p, x, definition(p, x._replace(log_decay=vector, outer=None)), tally)


@THEOREMS(
    "links/values-are-heads",
    "A decay over values is one head for each value, with a scalar decay over keys: HGRN is gated linear "
    "attention with heads of width one.",
    OVER,
    "exact",
)
def values_are_heads(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _shapes(budget, "none", "[B,T,H,V]"):
        x = p.operands(rng)
        B, T, H, K, V = p.batch, p.length, p.heads[0], p.key_dim, p.value_dim

        def spread(y: Any, H: int = H, V: int = V, K: int = K, B: int = B, T: int = T) -> Any:
            """[B,T,Hx,K] to one copy for each head and value, [B,T,HV,K]."""
            return y[:, :, :, None].expand(B, T, y.shape[2], H * V // y.shape[2], K).reshape(B, T, H * V, K)

        o, S = definition(p, x)
        wide = Problem(T, p.block, reverse=p.reverse, heads=(H * V,) * 3, key_decay="[B,T,H]", value_dim=1)
        heads = x._replace(
            q=spread(x.q),
            k=spread(x.k),
            v=x.v.reshape(B, T, H * V, 1),
            log_decay=x.log_decay_v.reshape(B, T, H * V),
            log_decay_v=None,
            initial_state=x.initial_state.mT.reshape(B, H * V, K, 1),
        )
        reference = o.reshape(B, T, H * V, 1), S.mT.reshape(B, H * V, K, 1)
        _all_forms(wide, heads, reference, tally)


def _rotations(rng: np.random.Generator, *sizes: int) -> tuple[Words, Words]:
    """Random (c, s) with c² + s² = 1, by the rational parametrisation of the circle."""
    t = Field.random(rng, *sizes).parts[0]
    one, square = np.ones_like(t), multiply(t, t)
    over = inverse(add(one, square))
    return multiply(subtract(one, square), over), multiply(add(t, t), over)


def _turned(x: Field, c: Field, s: Field) -> Field:
    """The pairs (x_i, x_{i+n}) turned by (c, s)."""
    n = x.shape[-1] // 2
    a, b = x[..., :n], x[..., n:]
    return _cat(a * c - b * s, a * s + b * c)


def _cat(*xs: Field) -> Field:
    parts: Any = list(xs)
    return cast(Field, torch.cat(parts, -1))


@THEOREMS(
    "links/rotation",
    "A complex decay is a real one with q and k turned against time: with rotations R_t, the state "
    "S_t = a_t R_t S_{t-1} + k_t v_tᵀ read by q_t is the core run on k_t and q_t turned back by R_1 ⋯ R_t. "
    "So LRPE (TransNormerLLM), RetNet, complex HGRN, LRU and GateLoop are the real core.",
    "rotations that vary in time; decays scalar or differing between the pairs; lengths to 12; each form",
    "exact",
)
def rotation(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    n, V = 2, 3
    for T in (1, 2, 5) if budget.quick else range(1, 13):
        for key in ("[B,T,H]", "[B,T,H,K]"):
            p = Problem(T, 3, heads=(2, 2, 2), key_decay=key, value_decay="none", key_dim=2 * n)
            x = p.operands(rng)._replace(initial_state=Field.zeros(2, 2, 2 * n, V), scale=1)
            if key == "[B,T,H,K]":
                half = x.log_decay[..., :n]
                x = x._replace(log_decay=torch.cat([half, half], -1))
            c, s = (Field(w) for w in _rotations(rng, 2, T, 2, n))
            # The plain loop, and the angle so far.
            S: Any = x.initial_state
            outputs: list[Any] = []
            qs: list[Any] = []
            ks: list[Any] = []
            cos, sin = Field(np.ones((2, 2, n), np.uint64)), Field.zeros(2, 2, n)
            for t in range(T):
                la = x.log_decay[:, t]
                a = (la if key == "[B,T,H,K]" else la[..., None]).exp()
                S = a[..., None] * _turned(S.mT, c[:, t, :, None], s[:, t, :, None]).mT
                S = S + x.k[:, t, :, :, None] * x.v[:, t, :, None]
                outputs.append((x.q[:, t, :, None] @ S)[:, :, 0])
                cos, sin = cos * c[:, t] - sin * s[:, t], sin * c[:, t] + cos * s[:, t]
                qs.append(_turned(x.q[:, t], cos, -sin))
                ks.append(_turned(x.k[:, t], cos, -sin))
            q, k, reference = (torch.stack(y, 1) for y in (qs, ks, outputs))
            for form in forms.FORMS:
                o, end = run_form(form, p, x._replace(q=q, k=k))
                equal(f"outputs of the {form} form", p, o, reference, "bthv")
                back = _turned(end.mT, cos[:, :, None], sin[:, :, None]).mT
                equal(f"state of the {form} form, turned back", p, back, S, "bhkv")
                # Each rotation is a quotient of degree 2 and stands in q and in k.
                tally.exact(p.degree + 8 * T)


@THEOREMS(
    "links/elementwise",
    "With K = 1 and q = k = 1, the core with a decay over values is the elementwise recurrence "
    "h_t = f_t ∘ h_{t-1} + v_t: HGRN, RG-LRU and minimal RNNs.",
    "lengths to 20 (quick: 8); each form",
    "exact",
)
def elementwise(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for T in range(1, budget.pick(9, 21)):
        p = Problem(T, 1 + T % 5, key_decay="none", key_dim=1)
        x = p.operands(rng)
        one = Field(np.ones((p.batch, T, 1, 1), np.uint64))
        h: Any = x.initial_state[:, :, 0]
        hs: list[Any] = []
        for t in range(T):
            h = x.log_decay_v[:, t].exp() * h + x.v[:, t]
            hs.append(h)
        reference = torch.stack(hs, 1), h[:, :, None]
        _all_forms(p, x._replace(q=one, k=one, scale=1), reference, tally)


@THEOREMS(
    "links/reset-is-empty-state",
    "A decay of 0 is an empty state: the recurrence from any state whose first decay is 0 is the recurrence "
    "from zero.",
    OVER,
    "exact",
)
def reset_is_empty_state(budget: Budget, tally: Tally) -> None:
    rng = budget.rng()
    for p in _shapes(budget, "[B,T,H]", "none"):
        x = p.operands(rng)
        first = torch.arange(p.length) == (p.length - 1 if p.reverse else 0)
        nothing: Any = Log(np.zeros_like(x.log_decay.parts[0]))
        reset = x._replace(log_decay=torch.where(first[:, None], nothing, x.log_decay))
        empty = x._replace(initial_state=x.initial_state.zeros_like())
        _all_forms(p, reset, definition(p, empty), tally)


# ------------------------------------------------------------------ between modules


@THEOREMS(
    "links/transnormer-llm-lightning",
    "TransNormerLLM without LRPE and Lightning attention decay at the same rates, in every layer of every "
    "depth: their cores are one.",
    "1 to 16 heads (quick: 6), every layer of up to 12 (quick: 4)",
    "property",
)
def transnormer_llm_lightning(budget: Budget, tally: Tally) -> None:
    x = torch.zeros(1, 1, 1, dtype=torch.float64)
    for heads in range(1, budget.pick(7, 17)):
        for layers in range(1, budget.pick(5, 13)):
            for layer in range(layers):
                options: dict[str, Any] = {
                    "num_heads": heads,
                    "head_dim": 1,
                    "layer_idx": layer,
                    "num_layers": layers,
                }
                tokens = Tokens(torch.zeros(1, 1, dtype=torch.int64), None)
                rates: list[Any] = [
                    m.double().operands(x, m.initial_state(1, dtype=x.dtype), tokens).log_decay
                    for m in (TransNormerLLM(1, lrpe=False, **options), LightningAttention(1, **options))
                ]
                if not torch.equal(rates[0], rates[1]):
                    raise Counterexample(f"{rates[0]} is not {rates[1]}, for {options}")
                tally.error(0.0)


@THEOREMS(
    "links/hgrn-zero-phase",
    "Complex HGRN at phase θ = 0 is two real HGRNs side by side, on the real and on the imaginary inputs.",
    "float64, 8 channels, random inputs and gates, T to 30; each form",
    "property",
)
def hgrn_zero_phase(budget: Budget, tally: Tally) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for seed in range(budget.pick(3, 12)):
            torch.manual_seed(budget.seed + seed)
            T, D = 1 + 10 * (seed % 4), 8
            x = torch.randn(2, T, D, dtype=torch.float64)
            both = HGRN(D, complex=True, layer_idx=1, num_layers=3).double()
            assert isinstance(both.theta, torch.Tensor)
            both.theta.zero_()
            position = torch.arange(T).expand(2, T)
            for form in forms.FORMS:
                core = both.operands(x, both.initial_state(2, dtype=x.dtype), Tokens(position, None))
                o, _ = recurrence(core.q, core.k, core.v, None, core.log_decay_v, form=form)
                for i, part in enumerate(("real", "imaginary")):
                    rows = slice(i * D, (i + 1) * D)
                    real = HGRN(D, layer_idx=1, num_layers=3).double()
                    real.forget_gate = both.forget_gate
                    real.input_proj.weight.copy_(both.input_proj.weight[rows])
                    real.input_proj.bias.copy_(both.input_proj.bias[rows])
                    core = real.operands(x, real.initial_state(2, dtype=x.dtype), Tokens(position, None))
                    expected, _ = recurrence(core.q, core.k, core.v, None, core.log_decay_v, form=form)
                    what = f"{part} part, {form}, T = {T}, seed {seed}"
                    tally.error(compare(what, "θ = 0", o[..., rows], expected, expected.abs().max(), 1e-12))
