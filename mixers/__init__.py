"""Mixers: thin layers over the one recurrence. Gate map, core, readout."""

from .bailing_attention import BailingLightningAttention
from .base import Mixer, MixerState, RecurrentMixer
from .bidirectional import Bidirectional
from .comba import Comba
from .cosformer import CosFormer
from .delta_net import DeltaNet
from .gated_delta_net import GatedDeltaNet
from .gated_delta_product import GatedDeltaProduct
from .gated_linear_attention import GLA, SimpleGLA
from .gated_slot_attention import GatedSlotAttention
from .gateloop import GateLoop
from .hgrn import HGRN, LowerBounds
from .hgrn2 import HGRN2
from .hybrid import HybridConfig, HybridLM, HybridState
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
from .registry import REGISTRY, Entry, build
from .retnet import RetNet
from .rg_lru import RGLRU
from .rwkv4 import RWKV4
from .rwkv6 import RWKV6
from .rwkv7 import RWKV7
from .s4d import S4D
from .s5 import S5
from .softmax_attention import SoftmaxAttention
from .transformers import from_transformers
from .transnormer import TransNormer, TransNormerLLM

__all__ = [
    "GLA",
    "HGRN",
    "HGRN2",
    "LRU",
    "MLSTM",
    "REGISTRY",
    "RGLRU",
    "RWKV4",
    "RWKV6",
    "RWKV7",
    "S4D",
    "S5",
    "BailingLightningAttention",
    "Bidirectional",
    "Comba",
    "CosFormer",
    "DeltaNet",
    "Entry",
    "GateLoop",
    "GatedDeltaNet",
    "GatedDeltaProduct",
    "GatedSlotAttention",
    "HybridConfig",
    "HybridLM",
    "HybridState",
    "KimiDeltaAttention",
    "LightningAttention",
    "LinearAttention",
    "Longhorn",
    "LowerBounds",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "MinGRU",
    "MinLSTM",
    "Mixer",
    "MixerState",
    "RecurrentMixer",
    "RetNet",
    "SimpleGLA",
    "SoftmaxAttention",
    "TransNormer",
    "TransNormerLLM",
    "build",
    "from_transformers",
]
