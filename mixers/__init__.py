"""Mixers: thin layers over the one recurrence. Gate map, core, readout."""

from .base import Mixer, MixerState, RecurrentMixer
from .hgrn import HGRN, LowerBounds
from .hybrid import HybridConfig, HybridLM, HybridState
from .lightning_attention import LightningAttention
from .linear_attention import LinearAttention
from .mamba import Mamba
from .registry import REGISTRY, Entry, build
from .softmax_attention import SoftmaxAttention
from .transnormer import TransNormer, TransNormerLLM

__all__ = [
    "HGRN",
    "REGISTRY",
    "Entry",
    "HybridConfig",
    "HybridLM",
    "HybridState",
    "LightningAttention",
    "LinearAttention",
    "LowerBounds",
    "Mamba",
    "Mixer",
    "MixerState",
    "RecurrentMixer",
    "SoftmaxAttention",
    "TransNormer",
    "TransNormerLLM",
    "build",
]
