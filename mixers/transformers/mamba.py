"""Mamba, Falcon Mamba, Jamba and Zamba."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..mamba import Mamba
from .adapters import CacheLayerAdapter
from .recipe import Recipe, Tensors, accepts, has_bias, ratio, same


class MambaAdapter(CacheLayerAdapter):
    """Theirs [B, channels, N], in Zamba [B, heads, channels of a head, N]; ours [B, channels, N, 1]."""

    def to_ours(self, recurrent: Tensor) -> Tensor:
        return recurrent.reshape(len(recurrent), -1, recurrent.shape[-1], 1)

    def to_theirs(self, recurrent: Tensor) -> Tensor:
        return recurrent[..., 0]


class ZambaAdapter(MambaAdapter):
    def to_theirs(self, recurrent: Tensor) -> Tensor:
        heads = self.mixer.num_heads
        return recurrent[..., 0].unflatten(1, (heads, -1))


def build(theirs: Any, **options: Any) -> Mamba:
    accepts(theirs, "hidden_act", theirs.activation, "silu", "swish")
    return Mamba(
        theirs.hidden_size,
        d_state=theirs.ssm_state_size,
        expand=ratio(theirs, "intermediate_size", theirs.intermediate_size, theirs.hidden_size),
        conv_width=theirs.conv_kernel_size,
        dt_rank=theirs.time_step_rank,
        use_bias=has_bias(theirs.in_proj),
        use_conv_bias=has_bias(theirs.conv1d),
        **options,
    )


def falcon_mamba(theirs: Any) -> Mamba:
    return build(theirs, norm_eps=theirs.rms_eps, norm_weights=False)


def jamba(theirs: Any) -> Mamba:
    return build(theirs, norm_eps=theirs.dt_layernorm.variance_epsilon)


def zamba(theirs: Any) -> Mamba:
    return build(theirs, num_heads=theirs.n_mamba_heads)


def zamba_weights(theirs: Any, tensors: Tensors) -> Tensors:
    """Their W_in has the rows of x and z by turns; maps have the heads in a dimension of their own."""
    names = {
        "x_proj_weight": "x_proj.weight",
        "dt_proj_weight": "dt_proj.weight",
        "dt_proj_bias": "dt_proj.bias",
    }
    ours = {}
    for name, x in tensors.items():
        if name.startswith("in_proj."):
            x = x.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        elif name in names or name in ("A_log", "D"):
            x = x.flatten(0, 1)
        ours[names.get(name, name)] = x
    return ours


RECIPES = (
    Recipe("mamba", "MambaMixer", build, same, MambaAdapter),
    Recipe("falcon_mamba", "FalconMambaMixer", falcon_mamba, same, MambaAdapter),
    Recipe("jamba", "JambaMambaMixer", jamba, same, MambaAdapter),
    Recipe("zamba", "ZambaMambaMixer", zamba, zamba_weights, ZambaAdapter),
)
