"""Mixers: thin layers over the one recurrence. Gate map, core, readout."""

from .base import Mixer, MixerState
from .hgrn import HGRN
from .lightning_attention import LightningAttention
from .linear_attention import LinearAttention
from .mamba import Mamba

__all__ = ["HGRN", "LightningAttention", "LinearAttention", "Mamba", "Mixer", "MixerState"]
