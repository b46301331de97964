"""Mixers: thin layers over the one recurrence. Gate map, core, readout."""

from .bailing_attention import BailingLightningAttention
from .base import Mixer, MixerState, RecurrentMixer
from .delta_net import DeltaNet
from .gated_delta_net import GatedDeltaNet
from .hgrn import HGRN, LowerBounds
from .hybrid import HybridConfig, HybridLM, HybridState
from .kimi_delta_attention import KimiDeltaAttention
from .lightning_attention import LightningAttention
from .linear_attention import LinearAttention
from .mamba import Mamba
from .mamba2 import Mamba2
from .registry import REGISTRY, Entry, build
from .softmax_attention import SoftmaxAttention
from .transnormer import TransNormer, TransNormerLLM

__all__ = [
    "HGRN",
    "REGISTRY",
    "BailingLightningAttention",
    "DeltaNet",
    "Entry",
    "GatedDeltaNet",
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
]
