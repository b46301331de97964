"""Language models that mix tokens by recurrences, and in some layers by softmax attention."""

from .config import HybridConfig
from .model import HybridLM, HybridState

__all__ = ["HybridConfig", "HybridLM", "HybridState"]
