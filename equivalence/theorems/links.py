"""Between families: which mixers are special cases of which, as statements about the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch

from ...kernels import forms, recurrence
from ...mixers import HGRN, LightningAttention, TransNormerLLM
from ...mixers.base import Tokens
from ..algebra import Field, Integer, Words, add, inverse, multiply, subtract
from ..theorem import Budget, Collection, Counterexample, Side, Tally
from .examples import Expected, agree
from .identities import LATTICE, Case, identity, minus_infinity
from .problems import HEADS, Operands, Problem, Run, definition, run_form

THEOREMS = Collection(
    {
        "bound": "both sides are the core, whose rounding forms/* bound",
        "text": "between cores; mixers/*/streaming run each mixer on text",
    }
)

OVER = "both directions, shared heads, lengths to 9; each form"


def _shapes(budget: Budget, key: str, value: str) -> list[Problem]:
    lengths = (1, 2, 5) if budget.quick else (1, 2, 3, 5, 7, 9)
    return [
        Problem(T, 1 + T % 4, reverse=reverse, heads=heads, key_decay=key, value_decay=value)
        for T in lengths
        for heads in HEADS
        for reverse in (False, True)
    ]


# The arguments of a special case, as those of the general one.
Rewriting = Callable[[Problem, Operands], tuple[Problem, Operands]]


def _each_form(what: str, rewrite: Rewriting, back: Callable[[Problem, Run], Run] | None = None) -> Side:
    """Each form, on the rewritten arguments; `back` undoes what the rewriting did to the layout."""

    def run(form: str, p: Problem, x: Operands) -> Run:
        found = run_form(form, *rewrite(p, x))
        return found if back is None else back(p, found)

    return Side(f"each form, {what}", run)


def _step_by_step(what: str, rewrite: Rewriting) -> Side:
    return Side(f"step by step, {what}", lambda form, p, x: definition(*rewrite(p, x)))


def _as_it_is(p: Problem, x: Operands) -> tuple[Problem, Operands]:
    return p, x


def _link(
    name: str,
    statement: str,
    formula: str,
    left: Side,
    right: Side,
    decays: tuple[str, str],
    over: str = OVER,
) -> None:
    """A theorem about the core with decays of these kinds, over all shapes."""

    @identity
    def check(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
        for p in _shapes(budget, *decays):
            x = p.operands(rng)
            for form in forms.FORMS:
                yield Case(f"the {form} form, {p}", (form, p, x), p.degree)

    THEOREMS(f"links/{name}", statement, over, "exact", formula=formula, left=left, right=right)(check)
    if "dt·A" not in decays:
        THEOREMS.also(f"links/{name}", "bitwise", LATTICE)(check.on_lattice)


_link(
    "slope-zero",
    "A log-decay of 0 is no decay: Lightning attention and RetNet at slope 0 are linear attention.",
    "R(q, k, v, log a = 0) = R(q, k, v)",
    _each_form("with log-decays of 0", lambda p, x: (p, x._replace(log_decay=torch.zeros_like(x.log_decay)))),
    _step_by_step("without decay", lambda p, x: (p, x._replace(log_decay=None))),
    ("[H]", "none"),
)


def _every_step_alike(p: Problem, x: Operands) -> tuple[Problem, Operands]:
    return p, x._replace(log_decay=x.log_decay.expand(p.batch, p.length, p.heads[0]))


_link(
    "constant-is-scalar",
    "A constant decay per head is one per step that does not change: Lightning attention and RetNet (without "
    "rotation) are Mamba-2 with constant gates.",
    "R(q, k, v, a_h) = R(q, k, v, a_{t,h} := a_h)",
    _each_form("with the decay of every step", _every_step_alike),
    _step_by_step("with the constant", _as_it_is),
    ("[H]", "none"),
)


def _all_keys_alike(p: Problem, x: Operands) -> tuple[Problem, Operands]:
    return p, x._replace(log_decay=x.log_decay[..., None].expand(*x.log_decay.shape, p.key_dim))


_link(
    "scalar-is-vector",
    "A scalar decay is a vector decay with equal entries: Mamba-2 is gated linear attention with tied gates.",
    "R(q, k, v, a_{t,h}) = R(q, k, v, a_{t,h,i} := a_{t,h})",
    _each_form("with a vector of equal entries", _all_keys_alike),
    _step_by_step("with the scalar", _as_it_is),
    ("[B,T,H]", "none"),
)


def _tied(x: Operands) -> Integer:
    """A of one state of each head, for all of them."""
    return Integer(np.repeat(x.outer.parts[0][:, :1], x.k.shape[-1], 1))


def _scalar(p: Problem, x: Operands) -> tuple[Problem, Operands]:
    return p, x._replace(log_decay=x.log_decay * Integer(_tied(x).parts[0][:, 0]), outer=None)


_link(
    "mamba-tied",
    "The decay dt·A with A the same for all states of a head is scalar: such a Mamba is Mamba-2.",
    "R(q, k, v, a_{t,h,i} = exp(dt_{t,h} A_h)) = R(q, k, v, a_{t,h} = exp(dt_{t,h} A_h))",
    _each_form("with dt·A, its A tied", lambda p, x: (p, x._replace(outer=_tied(x)))),
    _step_by_step("with the scalar dt A", _scalar),
    ("dt·A", "none"),
    f"{OVER}; A whole numbers up to 3",
)
_link(
    "mamba",
    "The decay dt·A is a vector over the keys: Mamba is gated linear attention whose log-decays are dt·A.",
    "R(q, k, v, dt, A) = R(q, k, v, log a_{t,h,i} := dt_{t,h} A_{h,i})",
    _each_form("with dt and A", _as_it_is),
    _step_by_step(
        "with the vector",
        lambda p, x: (p, x._replace(log_decay=x.log_decay[..., None] * x.outer, outer=None)),
    ),
    ("dt·A", "none"),
    f"{OVER}; A whole numbers up to 3",
)


def _spread(p: Problem, x: Operands) -> tuple[Problem, Operands]:
    """One head for each value, with copies of its query and key."""
    B, T, H, K, V = p.batch, p.length, p.heads[0], p.key_dim, p.value_dim

    def copies(y: Any) -> Any:
        """[B,T,Hx,K] to one copy for each head and value, [B,T,HV,K]."""
        return y[:, :, :, None].expand(B, T, y.shape[2], H * V // y.shape[2], K).reshape(B, T, H * V, K)

    wide = Problem(T, p.block, reverse=p.reverse, heads=(H * V,) * 3, key_decay="[B,T,H]", value_dim=1)
    return wide, x._replace(
        q=copies(x.q),
        k=copies(x.k),
        v=x.v.reshape(B, T, H * V, 1),
        log_decay=x.log_decay_v.reshape(B, T, H * V),
        log_decay_v=None,
        initial_state=x.initial_state.mT.reshape(B, H * V, K, 1),
    )


def _gathered(p: Problem, found: Run) -> Run:
    B, T, H, K, V = p.batch, p.length, p.heads[0], p.key_dim, p.value_dim
    return Run(found.outputs.reshape(B, T, H, V), found.state.reshape(B, H, V, K).mT)


_link(
    "values-are-heads",
    "A decay over values is one head for each value, with a scalar decay over keys: HGRN is gated linear "
    "attention with heads of width one.",
    "R(q, k, v, b_{t,h,j})_j = R(q, k, v_j, a_{t,(h,j)} := b_{t,h,j})",
    _each_form("with a head for each value", _spread, _gathered),
    _step_by_step("with the decay over values", _as_it_is),
    ("none", "[B,T,H,V]"),
)


def _forgetting(p: Problem, x: Operands) -> tuple[Problem, Operands]:
    first = torch.arange(p.length) == (p.length - 1 if p.reverse else 0)
    return p, x._replace(log_decay=torch.where(first[:, None], minus_infinity(x.log_decay), x.log_decay))


_link(
    "reset-is-empty-state",
    "A decay of 0 is an empty state: the recurrence from any state whose first decay is 0 is the recurrence "
    "from zero.",
    "a_1 = 0 ⇒ R(q, k, v, a, S_0) = R(q, k, v, a, 0)",
    _each_form("from any state, its first decay 0", _forgetting),
    _step_by_step("from zero", lambda p, x: (p, x._replace(initial_state=torch.zeros_like(x.initial_state)))),
    ("[B,T,H]", "none"),
)


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


def _turned_back(form: str, p: Problem, x: Operands, c: Field, s: Field) -> Run:
    """The real core on q and k turned back by the angle so far; its state turned forward at the end."""
    n = p.key_dim // 2
    cos, sin = Field(np.ones((2, 2, n), np.uint64)), Field.zeros(2, 2, n)
    qs: list[Any] = []
    ks: list[Any] = []
    for t in range(p.length):
        cos, sin = cos * c[:, t] - sin * s[:, t], sin * c[:, t] + cos * s[:, t]
        qs.append(_turned(x.q[:, t], cos, -sin))
        ks.append(_turned(x.k[:, t], cos, -sin))
    o, S = run_form(form, p, x._replace(q=torch.stack(qs, 1), k=torch.stack(ks, 1)))
    return Run(o, _turned(S.mT, cos[:, :, None], sin[:, :, None]).mT)


def _complex(form: str, p: Problem, x: Operands, c: Field, s: Field) -> Run:
    """The plain loop, whose state is turned at every step."""
    S: Any = x.initial_state
    outputs: list[Any] = []
    for t in range(p.length):
        la = x.log_decay[:, t]
        a = (la if la.ndim == 3 else la[..., None]).exp()
        S = a[..., None] * _turned(S.mT, c[:, t, :, None], s[:, t, :, None]).mT
        S = S + x.k[:, t, :, :, None] * x.v[:, t, :, None]
        outputs.append((x.q[:, t, :, None] @ S)[:, :, 0])
    return Run(torch.stack(outputs, 1), S)


@THEOREMS(
    "links/rotation",
    "A complex decay is a real one with q and k turned against time. "
    "So LRPE (TransNormerLLM), RetNet, complex HGRN, LRU and GateLoop are the real core.",
    "rotations that vary in time; decays scalar or differing between the pairs; lengths to 12; each form",
    "exact",
    formula="S_t = a_t ∘ R_t S_{t−1} + k_t v_tᵀ, o_t = S_tᵀ q_t:  S_t = Q_t S'_t,  Q_t = R_t ⋯ R_1,\n"
    "(o, S') = R(Q_t⁻¹ q_t, Q_t⁻¹ k_t, v_t, a_t)",
    left=Side("each form of the real core, q and k turned back", _turned_back),
    right=Side("the complex recurrence, a plain loop that turns the state", _complex),
)
@identity
def rotation(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    n, V = 2, 3
    for T in (1, 2, 5) if budget.quick else range(1, 13):
        for key in ("[B,T,H]", "[B,T,H,K]"):
            p = Problem(T, 3, heads=(2, 2, 2), key_decay=key, value_decay="none", key_dim=2 * n)
            x = p.operands(rng)._replace(initial_state=Field.zeros(2, 2, 2 * n, V), scale=1)
            if key == "[B,T,H,K]":
                half = x.log_decay[..., :n]
                x = x._replace(log_decay=torch.cat([half, half], -1))
            c, s = (Field(w) for w in _rotations(rng, 2, T, 2, n))
            for form in forms.FORMS:
                # Each rotation is a quotient of degree 2 and stands in q and in k.
                yield Case(f"the {form} form, {p}", (form, p, x, c, s), p.degree + 8 * T)


def _one_key(form: str, p: Problem, x: Operands) -> Run:
    one = Field(np.ones((p.batch, p.length, 1, 1), np.uint64))
    return run_form(form, p, x._replace(q=one, k=one))


def _elementwise(form: str, p: Problem, x: Operands) -> Run:
    h: Any = x.initial_state[:, :, 0]
    hs: list[Any] = []
    for t in range(p.length):
        h = x.log_decay_v[:, t].exp() * h + x.v[:, t]
        hs.append(h)
    return Run(torch.stack(hs, 1), h[:, :, None])


@THEOREMS(
    "links/elementwise",
    "With K = 1 and q = k = 1, the core with a decay over values is an elementwise recurrence: HGRN, RG-LRU "
    "and minimal RNNs.",
    "lengths to 20 (quick: 8); each form",
    "exact",
    formula="R(1, 1, v, b = f) = (h_1 … h_T),  h_t = f_t ∘ h_{t−1} + v_t",
    left=Side("each form with K = 1, q = k = 1", _one_key),
    right=Side("the elementwise recurrence, a plain loop", _elementwise),
)
@identity
def elementwise(budget: Budget, rng: np.random.Generator) -> Iterator[Case]:
    for T in range(1, budget.pick(9, 21)):
        p = Problem(T, 1 + T % 5, key_decay="none", key_dim=1)
        x = p.operands(rng)._replace(scale=1)
        for form in forms.FORMS:
            yield Case(f"the {form} form, {p}", (form, p, x), p.degree)


# ------------------------------------------------------------------ between modules

NO_POLYNOMIAL = {"exact": "the decays of both are made by functions that are no polynomials"}


def _rates(mixer: Any) -> torch.Tensor:
    x = torch.zeros(1, 1, 1, dtype=torch.float64)
    tokens = Tokens(torch.zeros(1, 1, dtype=torch.int64), None)
    found: torch.Tensor = mixer.double().operands(x, mixer.initial_state(1, dtype=x.dtype), tokens).log_decay
    return found


@THEOREMS(
    "links/transnormer-llm-lightning",
    "TransNormerLLM without LRPE and Lightning attention decay at the same rates, in every layer of every "
    "depth: their cores are one.",
    "1 to 16 heads (quick: 6), every layer of up to 12 (quick: 4)",
    "bitwise",
    formula="log a_h = −2^{−8h/H} (1 − l/(L − 1 + 1e-5) + 1e-5), the same float64 for both",
    left=Side(
        "the log-decays of TransNormerLLM",
        lambda options: _rates(TransNormerLLM(1, lrpe=False, **options)),
    ),
    right=Side(
        "the log-decays of LightningAttention",
        lambda options: _rates(LightningAttention(1, **options)),
    ),
    reasons=NO_POLYNOMIAL,
)
def transnormer_llm_lightning(budget: Budget, tally: Tally) -> None:
    for heads in range(1, budget.pick(7, 17)):
        for layers in range(1, budget.pick(5, 13)):
            for layer in range(layers):
                options = {"num_heads": heads, "head_dim": 1, "layer_idx": layer, "num_layers": layers}
                left, right = tally.left(options), tally.right(options)
                if not torch.equal(left, right):
                    raise Counterexample(f"{left} is not {right}, for {options}")
                tally.bitwise()


def _made(D: int, seed: int) -> HGRN:
    torch.manual_seed(seed)
    both = HGRN(D, complex=True, layer_idx=1, num_layers=3).double()
    assert isinstance(both.theta, torch.Tensor)
    both.theta.zero_()
    return both


def _core_of(mixer: HGRN, x: torch.Tensor, form: str) -> torch.Tensor:
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    core = mixer.operands(x, mixer.initial_state(len(x), dtype=x.dtype), Tokens(position, None))
    return recurrence(core.q, core.k, core.v, None, core.log_decay_v, form=form)[0]


def _two_real(both: HGRN, x: torch.Tensor, form: str) -> dict[str, Expected]:
    """On the real and on the imaginary inputs, with the weights of the complex one."""
    D, found = x.shape[-1], {}
    for i, part in enumerate(("real", "imaginary")):
        rows = slice(i * D, (i + 1) * D)
        real = HGRN(D, layer_idx=1, num_layers=3).double()
        real.forget_gate = both.forget_gate
        real.input_proj.weight.copy_(both.input_proj.weight[rows])
        real.input_proj.bias.copy_(both.input_proj.bias[rows])
        o = _core_of(real, x, form)
        found[f"{part} part"] = Expected(o, o.abs().max(), 1e-12)
    return found


def _halves(both: HGRN, x: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    D, o = x.shape[-1], _core_of(both, x, form)
    return {"real part": o[..., :D], "imaginary part": o[..., D:]}


@THEOREMS(
    "links/hgrn-zero-phase",
    "Complex HGRN at phase θ = 0 is two real HGRNs side by side, on the real and on the imaginary inputs.",
    "float64, 8 channels, random inputs and gates, T to 30; each form",
    "property",
    formula="θ = 0 ⇒ (h_re, h_im)(x) = (HGRN_re(x), HGRN_im(x))",
    left=Side("the core of complex HGRN, θ = 0", _halves),
    right=Side("the cores of two real ones", _two_real),
    reasons={"exact": "the gates of both are made by functions that are no polynomials"},
)
def hgrn_zero_phase(budget: Budget, tally: Tally) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for seed in range(budget.pick(3, 12)):
            both = _made(8, budget.seed + seed)
            x = torch.randn(2, 1 + 10 * (seed % 4), 8, dtype=torch.float64)
            for form in forms.FORMS:
                where = f"the {form} form, T = {x.shape[1]}, seed {seed}"
                tally.error(agree(where, tally.left(both, x, form), tally.right(both, x, form)))
