"""Between modules: which mixers are others with their weights tied, or set to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...mixers import RecurrentMixer, build
from ...mixers.base import Tokens
from ..theorem import Budget, Collection, Side, Tally
from .examples import Expected, agree

THEOREMS = Collection(
    {
        "exact": "the gates of both are no polynomials; links/* of the core have it",
        "bitwise": "norms and gates round",
        "bound": "bounds are carried through the core alone: forms/*",
        "coq": "the model has the core alone",
        "text": "mixers/*/streaming run each on text",
    }
)

WIDTH = 8
OVER = "float64, random inputs and weights, T to 25, B = 2; each form"


def _random(name: str, seed: int, **options: Any) -> RecurrentMixer:
    torch.manual_seed(seed)
    mixer = build(name, WIDTH, **options).double()
    assert isinstance(mixer, RecurrentMixer)
    for p in mixer.parameters():
        p.add_(0.4 * torch.randn_like(p))
    return mixer


def _shared(general: RecurrentMixer, special: RecurrentMixer, *left_out: str) -> None:
    """The weights of special in general, but for those of other shapes."""
    weights = {n: p for n, p in special.state_dict().items() if n not in left_out}
    general.load_state_dict(weights, strict=False)


def _outputs(mixer: RecurrentMixer, x: Tensor, form: str) -> Tensor:
    """Of the core, before the readout."""
    state = mixer.initial_state(len(x), dtype=x.dtype)
    tokens = Tokens(torch.arange(x.shape[1]).expand(x.shape[:2]), None)
    return mixer.recur(mixer.operands(x, state, tokens), state.recurrent, tokens, form)[0]


def _expected(mixer: RecurrentMixer, x: Tensor, form: str) -> dict[str, Expected]:
    o = _outputs(mixer, x, form)
    return {"outputs": Expected(o, o.abs().max(), 1e-12)}


def _link(
    name: str,
    statement: str,
    formula: str,
    special: tuple[str, dict[str, Any]],
    general: tuple[str, dict[str, Any]],
    tie: Callable[[Any, Any], None],
) -> None:
    """`tie` gives the general mixer the weights with which it is the special one."""

    @THEOREMS(
        f"links/{name}",
        statement,
        OVER,
        "property",
        formula=formula,
        left=Side(
            f"the core of {general[0]}, its weights tied",
            lambda other, one, x, form: {"outputs": _outputs(other, x, form)},
        ),
        right=Side(f"the core of {special[0]}", lambda other, one, x, form: _expected(one, x, form)),
    )
    def check(budget: Budget, tally: Tally) -> None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for seed in range(budget.pick(3, 12)):
                one = _random(special[0], budget.seed + seed, **special[1])
                other = _random(general[0], budget.seed + seed + 1000, **general[1])
                tie(other, one)
                x = torch.randn(2, 1 + 8 * (seed % 4), WIDTH, dtype=torch.float64)
                for form in one.forms:
                    arguments = other, one, x, form
                    where = f"{form}, T = {x.shape[1]}, seed {seed}"
                    tally.error(agree(where, tally.left(*arguments), tally.right(*arguments)))


def _each_channel(of_heads: Tensor, channels: int) -> Tensor:
    return of_heads.repeat_interleave(channels, 0)


def _one_write(product: Any, net: Any) -> None:
    _shared(product, net)


def _one_rate(kda: Any, net: Any) -> None:
    _shared(kda, net, "dt_bias", "o_norm.weight", "g_proj.weight")
    kda.dt_bias.copy_(_each_channel(net.dt_bias, net.head_dim))
    kda.f_proj.weight.copy_(_each_channel(net.a_proj.weight, net.head_dim))


def _own_key(comba: Any, net: Any) -> None:
    _shared(comba, net)
    comba.D.zero_()
    comba.decay.fill_(1e3)


def _no_decay(gated: Any, net: Any) -> None:
    _shared(gated, net)
    gated.dt_bias.fill_(-1e4)


def _one_gate(gla: Any, simple: Any) -> None:
    _shared(gla, simple, "gk_proj.weight", "gk_proj.bias")
    down, up = gla.gk_proj
    down.weight.copy_(torch.eye(WIDTH, dtype=torch.float64))
    up.weight.copy_(_each_channel(simple.gk_proj.weight, gla.head_dim))
    up.bias.copy_(_each_channel(simple.gk_proj.bias, gla.head_dim))


SHARED = {"num_heads": 4, "num_key_heads": 2, "head_v_dim": 3}

_link(
    "deltaproduct-gated-deltanet",
    "Gated DeltaProduct with one write for each token is Gated DeltaNet.",
    "n_h = 1 ⇒ GatedDeltaProduct(x; w) = GatedDeltaNet(x; w)",
    ("gated-deltanet", SHARED | {"allow_neg_eigval": True}),
    ("gated-deltaproduct", SHARED | {"num_householder": 1}),
    _one_write,
)
_link(
    "kda-gated-deltanet",
    "KDA whose key channels decay at one rate in each head is Gated DeltaNet.",
    "a_{t,h,i} = a_{t,h} for all i ⇒ KDA(x; w) = GatedDeltaNet(x; w)",
    ("gated-deltanet", SHARED),
    ("kda", SHARED | {"low_rank_gates": False}),
    _one_rate,
)
_link(
    "comba-gated-deltanet",
    "Comba that erases by its key as it is (b = ∞) and leaves its query alone (d = 0) is Gated DeltaNet.",
    "σ(b) = 1, d = 0 ⇒ Comba(x; w) = GatedDeltaNet(x; w)",
    ("gated-deltanet", SHARED),
    ("comba", SHARED),
    _own_key,
)
_link(
    "gated-deltanet-deltanet",
    "Gated DeltaNet whose gates let everything through is DeltaNet.",
    "a_t = 1 ⇒ GatedDeltaNet(x; w) = DeltaNet(x; w)",
    ("deltanet", SHARED),
    ("gated-deltanet", SHARED),
    _no_decay,
)
_link(
    "gla-simple-gla",
    "GLA whose key channels share one gate in each head is simple GLA.",
    "a_{t,h,i} = a_{t,h} for all i ⇒ GLA(x; w) = SimpleGLA(x; w)",
    ("simple-gla", {"num_heads": 2}),
    ("gla", {"num_heads": 2, "gate_rank": WIDTH}),
    _one_gate,
)
