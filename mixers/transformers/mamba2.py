"""Mamba-2: Bamba, Falcon-H1, Granite 4, Nemotron-H and Zamba2 have it too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..mamba2 import Mamba2
from .adapters import CacheLayerAdapter
from .recipe import Recipe, Tensors, accepts, has_bias, same


class Mamba2Adapter(CacheLayerAdapter):
    """Theirs [B, H, channels, N]; ours [B, H, N, channels]."""

    def to_ours(self, recurrent: Tensor) -> Tensor:
        return recurrent.mT

    def to_theirs(self, recurrent: Tensor) -> Tensor:
        return recurrent.mT


def build(theirs: Any) -> Mamba2:
    accepts(theirs, "hidden_act", theirs.activation, "silu", "swish")
    norm = getattr(theirs.norm, "variance_epsilon", None)  # Falcon-H1 may have none
    return Mamba2(
        theirs.hidden_size,
        num_heads=theirs.num_heads,
        head_dim=theirs.head_dim,
        d_state=theirs.ssm_state_size,
        n_groups=theirs.n_groups,
        conv_width=theirs.conv_kernel_size,
        use_bias=has_bias(theirs.in_proj),
        use_out_bias=has_bias(theirs.out_proj),
        use_conv_bias=has_bias(theirs.conv1d),
        use_norm=norm is not None,
        norm_before_gate=getattr(theirs.norm, "norm_before_gate", False),
        time_step_limit=tuple(theirs.time_step_limit),
        eps=1e-5 if norm is None else norm,
    )


def falcon_h1_weights(theirs: Any, tensors: Tensors) -> Tensors:
    """Their W_in u is multiplied before and after."""
    if not hasattr(theirs, "mup_vector"):
        raise ValueError(
            "mup_vector of FalconH1Mixer is missing; accepted: a mixer in its model, which sets it"
        )
    after = theirs.mup_vector.flatten()
    ours = dict(tensors)
    ours["in_proj.weight"] = tensors["in_proj.weight"] * after[:, None] * theirs.ssm_in_multiplier
    if "in_proj.bias" in tensors:
        ours["in_proj.bias"] = tensors["in_proj.bias"] * after
    return ours


RECIPES = (
    Recipe("mamba2", "Mamba2Mixer", build, same, Mamba2Adapter),
    Recipe("bamba", "BambaMixer", build, same, Mamba2Adapter),
    Recipe("falcon_h1", "FalconH1Mixer", build, falcon_h1_weights, Mamba2Adapter),
    Recipe("nemotron_h", "NemotronHMamba2Mixer", build, same, Mamba2Adapter),
    Recipe("granitemoehybrid", "GraniteMoeHybridMambaLayer", build, same, Mamba2Adapter),
    Recipe("zamba2", "Zamba2MambaMixer", build, same, Mamba2Adapter),
)
