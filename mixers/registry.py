"""The mixers by name, with what tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .arguments import shown
from .bailing_attention import BailingLightningAttention
from .base import Mixer
from .bidirectional import both_ways
from .comba import Comba
from .cosformer import CosFormer
from .delta_net import DeltaNet
from .gated_delta_net import GatedDeltaNet
from .gated_delta_product import GatedDeltaProduct
from .gated_linear_attention import GLA, SimpleGLA
from .gated_slot_attention import GatedSlotAttention
from .gateloop import GateLoop
from .hgrn import HGRN
from .hgrn2 import HGRN2
from .kimi_delta_attention import KimiDeltaAttention
from .lightning_attention import LightningAttention
from .linear_attention import LinearAttention
from .longhorn import Longhorn
from .lru import LRU
from .mamba import Mamba
from .mamba2 import Mamba2
from .mamba3 import Mamba3
from .minimal_rnn import MinGRU, MinLSTM
from .mlstm import MLSTM
from .retnet import RetNet
from .rg_lru import RGLRU
from .rwkv4 import RWKV4
from .rwkv6 import RWKV6
from .rwkv7 import RWKV7
from .s4d import S4D
from .s5 import S5
from .softmax_attention import SoftmaxAttention
from .transnormer import TransNormer, TransNormerLLM


@dataclass(frozen=True)
class Entry:
    """A mixer of the registry.

    Attributes:
        name: as `build` takes it.
        factory: (d_model, **options) -> Mixer.
        family: "linear attention", "delta rule", "state space", "linear rnn" or "softmax attention".
        decay: how the state decays, in words.
        gating: what is gated by the input, in words.
        paper: authors, year, arXiv number.
        causal: whether outputs depend on no later input. What does not stream has no state and no step.
    """

    name: str
    factory: Callable[..., Mixer]
    family: str
    decay: str
    gating: str
    paper: str
    causal: bool = True


REGISTRY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "linear-attention",
            LinearAttention,
            "linear attention",
            "none",
            "none; divided by the sum of weights",
            "Katharopoulos et al. 2020, arXiv:2006.16236",
        ),
        Entry(
            "cosformer",
            CosFormer,
            "linear attention",
            "none; cosine of the distance",
            "none; divided by the sum of weights",
            "Qin et al. 2022, arXiv:2202.08791",
        ),
        Entry(
            "transnormer",
            TransNormer,
            "linear attention",
            "none",
            "none; normalised",
            "Qin et al. 2022, arXiv:2210.10340",
        ),
        Entry(
            "transnormer-llm",
            TransNormerLLM,
            "linear attention",
            "constant, one for each head; rotation",
            "output gate",
            "Qin et al. 2023, arXiv:2307.14995",
        ),
        Entry(
            "lightning",
            LightningAttention,
            "linear attention",
            "constant, one for each head",
            "output gate (sigmoid)",
            "MiniMax 2025, arXiv:2501.08313",
        ),
        Entry(
            "lightning-bailing",
            BailingLightningAttention,
            "linear attention",
            "constant, one for each head; rotation",
            "output gate (sigmoid)",
            "Ling Team 2025, arXiv:2510.19338",
        ),
        Entry(
            "retnet",
            RetNet,
            "linear attention",
            "constant, one for each head; rotation",
            "output gate (silu)",
            "Sun et al. 2023, arXiv:2307.08621",
        ),
        Entry(
            "retnet-bidirectional",
            both_ways(RetNet),
            "linear attention",
            "constant, one for each head, in both directions; rotation",
            "output gate (silu)",
            "Sun et al. 2023, arXiv:2307.08621; Fan et al. 2023, arXiv:2309.11523",
            causal=False,
        ),
        Entry(
            "gla",
            GLA,
            "linear attention",
            "by the input, one for each key channel",
            "output gate (silu)",
            "Yang et al. 2023, arXiv:2312.06635",
        ),
        Entry(
            "gla-bidirectional",
            both_ways(GLA),
            "linear attention",
            "by the input, one for each key channel, in both directions",
            "output gate (silu)",
            "Yang et al. 2023, arXiv:2312.06635",
            causal=False,
        ),
        Entry(
            "simple-gla",
            SimpleGLA,
            "linear attention",
            "by the input, one for each head",
            "output gate (silu)",
            "Yang et al. 2023, arXiv:2312.06635; Peng et al. 2021, arXiv:2103.02143",
        ),
        Entry(
            "hgrn2",
            HGRN2,
            "linear attention",
            "by the input, one for each key channel, bounded from below",
            "forget gate tied to the keys",
            "Qin et al. 2024, arXiv:2404.07904",
        ),
        Entry(
            "gated-slot-attention",
            GatedSlotAttention,
            "linear attention",
            "by the input, one for each slot",
            "forget gate tied to the writes; softmax over slots",
            "Zhang et al. 2024, arXiv:2409.07146",
        ),
        Entry(
            "rwkv6",
            RWKV6,
            "linear attention",
            "by the input, one for each key channel",
            "token shift; bonus for the current token; output gate (silu)",
            "Peng et al. 2024, arXiv:2404.05892",
        ),
        Entry(
            "deltanet",
            DeltaNet,
            "delta rule",
            "none; what a key retrieves is replaced",
            "write strength β",
            "Yang et al. 2024, arXiv:2406.06484",
        ),
        Entry(
            "gated-deltanet",
            GatedDeltaNet,
            "delta rule",
            "by the input, one for each head; what a key retrieves is replaced",
            "write strength β; output gate (silu)",
            "Yang et al. 2024, arXiv:2412.06464",
        ),
        Entry(
            "gated-deltaproduct",
            GatedDeltaProduct,
            "delta rule",
            "by the input, one for each head; several keys of each token replace what they retrieve",
            "write strengths β; output gate (silu)",
            "Siems et al. 2025, arXiv:2502.10297",
        ),
        Entry(
            "kda",
            KimiDeltaAttention,
            "delta rule",
            "by the input, one for each key channel; what a key retrieves is replaced",
            "write strength β; output gate (sigmoid)",
            "Kimi Team 2025, arXiv:2510.26692",
        ),
        Entry(
            "comba",
            Comba,
            "delta rule",
            "by the input, one for each head; what a scaled key retrieves is replaced",
            "write strength β; output gate (sigmoid)",
            "Hu et al. 2025, arXiv:2506.02475",
        ),
        Entry(
            "rwkv7",
            RWKV7,
            "delta rule",
            "by the input, one for each key channel; what a key of its own retrieves is erased",
            "token shift; erasing rate; output gate",
            "Peng et al. 2025, arXiv:2503.14456",
        ),
        Entry(
            "mamba",
            Mamba,
            "state space",
            "by the input, one for each channel and state: exp(ΔA)",
            "step size, input and output maps; output gate (silu)",
            "Gu & Dao 2023, arXiv:2312.00752",
        ),
        Entry(
            "mamba2",
            Mamba2,
            "state space",
            "by the input, one for each head: exp(ΔA)",
            "step size, input and output maps; output gate (silu)",
            "Dao & Gu 2024, arXiv:2405.21060",
        ),
        Entry(
            "hgrn",
            HGRN,
            "linear rnn",
            "by the input, one for each channel, bounded from below",
            "forget gate tied to the input gate; output gate (sigmoid)",
            "Qin et al. 2023, arXiv:2311.04823",
        ),
        Entry(
            "hgrn-complex",
            partial(HGRN, complex=True),
            "linear rnn",
            "by the input, one for each channel, bounded from below; rotation",
            "forget gate tied to the input gate; output gate (sigmoid)",
            "Qin et al. 2023, arXiv:2311.04823",
        ),
        Entry(
            "mamba3",
            Mamba3,
            "state space",
            "by the input, one for each head: exp(ΔA); rotation by the input",
            "step size, trapezoidal rule, input and output maps; output gate (silu)",
            "Lahoti et al. 2026, arXiv:2603.15569",
        ),
        Entry(
            "s4d",
            S4D,
            "state space",
            "constant, one for each channel and state: exp(ΔA); rotation",
            "none",
            "Gu et al. 2022, arXiv:2206.11893",
        ),
        Entry(
            "s5",
            S5,
            "state space",
            "constant, one for each state: exp(ΔΛ); rotation",
            "none",
            "Smith et al. 2022, arXiv:2208.04933",
        ),
        Entry(
            "lru",
            LRU,
            "linear rnn",
            "constant, one for each state; rotation",
            "none; inputs normalised by the decay",
            "Orvieto et al. 2023, arXiv:2303.06349",
        ),
        Entry(
            "longhorn",
            Longhorn,
            "state space",
            "by the input, one for each channel and state: 1 - Δk²",
            "step size tied to the decay, input and output maps; output gate (silu)",
            "Liu et al. 2024, arXiv:2407.14207",
        ),
        Entry(
            "mingru",
            MinGRU,
            "linear rnn",
            "by the input, one for each channel",
            "forget gate tied to the input gate",
            "Feng et al. 2024, arXiv:2410.01201",
        ),
        Entry(
            "minlstm",
            MinLSTM,
            "linear rnn",
            "by the input, one for each channel",
            "forget and input gate, which sum to 1",
            "Feng et al. 2024, arXiv:2410.01201",
        ),
        Entry(
            "gateloop",
            GateLoop,
            "linear attention",
            "by the input, one for each channel; rotation by the input",
            "none",
            "Katsch 2023, arXiv:2311.01927",
        ),
        Entry(
            "rg-lru",
            RGLRU,
            "linear rnn",
            "by the input, one for each channel",
            "input gate, normalised by the decay; output gate (gelu)",
            "De et al. 2024, arXiv:2402.19427",
        ),
        Entry(
            "mlstm",
            MLSTM,
            "linear rnn",
            "by the input, one for each head",
            "exponential input gate; divided by the sum of weights or 1; output gate (sigmoid)",
            "Beck et al. 2024, arXiv:2405.04517",
        ),
        Entry(
            "rwkv4",
            RWKV4,
            "linear rnn",
            "constant, one for each channel",
            "exponential input gate; divided by the sum of weights; output gate (sigmoid)",
            "Peng et al. 2023, arXiv:2305.13048",
        ),
        Entry(
            "softmax",
            SoftmaxAttention,
            "softmax attention",
            "none: every token is kept",
            "none",
            "Vaswani et al. 2017, arXiv:1706.03762",
        ),
    )
}


def build(name: str, d_model: int, **options: Any) -> Mixer:
    """The mixer of this name; options are those of its class.

    >>> build("lightning", 64, num_heads=4).d_model
    64

    Raises:
        TypeError: name is not a string, or an option is of another type.
        ValueError: no mixer has this name, or an option is out of range.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {shown(name)}; accepted: {', '.join(map(repr, REGISTRY))}")
    if name not in REGISTRY:
        raise ValueError(f"name is {name!r}; accepted: {', '.join(map(repr, REGISTRY))}")
    return REGISTRY[name].factory(d_model, **options)
