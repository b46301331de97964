"""Mixers: thin layers over the one recurrence. Gate map, core, readout."""

from .bailing_attention import BailingLightningAttention
from .base import Mixer, MixerState, RecurrentMixer
from .comba import Comba
from .delta_net import DeltaNet
from .gated_delta_net import GatedDeltaNet
from .gated_delta_product import GatedDeltaProduct
from .hgrn import HGRN, LowerBounds
from .hybrid import HybridConfig, HybridLM, HybridState
from .kimi_delta_attention import KimiDeltaAttention
from .lightning_attention import LightningAttention
from .linear_attention import LinearAttention
from .mamba import Mamba
from .mamba2 import Mamba2
from .mlstm import MLSTM
from .registry import REGISTRY, Entry, build
from .rg_lru import RGLRU
from .rwkv4 import RWKV4
from .softmax_attention import SoftmaxAttention
from .transformers import from_transformers
from .transnormer import TransNormer, TransNormerLLM

__all__ = [
    "HGRN",
    "MLSTM",
    "REGISTRY",
    "RGLRU",
    "RWKV4",
    "BailingLightningAttention",
    "Comba",
    "DeltaNet",
    "Entry",
    "GatedDeltaNet",
    "GatedDeltaProduct",
    "HybridConfig",
    "HybridLM",
    "HybridState",
    "KimiDeltaAttention",
    "LightningAttention",
    "LinearAttention",
    "LowerBounds",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerState",
    "RecurrentMixer",
    "SoftmaxAttention",
    "TransNormer",
    "TransNormerLLM",
    "build",
    "from_transformers",
]
