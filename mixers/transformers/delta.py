"""The delta rule: Qwen3-Next, Qwen3.5, OLMo hybrid, Kimi Linear and Bailing hybrid.

States are laid out alike.
"""

from __future__ import annotations

from typing import Any

from ..gated_delta_net import GatedDeltaNet
from ..kimi_delta_attention import KimiDeltaAttention
from .adapters import CacheLayerAdapter
from .recipe import Recipe, Tensors, accepts, renamed, same


def gated(theirs: Any) -> GatedDeltaNet:
    accepts(theirs, "hidden_act", theirs.activation, "silu", "swish")
    norm = theirs.o_norm if hasattr(theirs, "o_norm") else theirs.norm
    return GatedDeltaNet(
        theirs.hidden_size,
        num_heads=theirs.num_v_heads,
        head_dim=theirs.head_k_dim,
        num_key_heads=theirs.num_k_heads,
        head_v_dim=theirs.head_v_dim,
        conv_width=theirs.conv_kernel_size,
        allow_neg_eigval=getattr(theirs, "allow_neg_eigval", False),
        eps=norm.variance_epsilon,
    )


QWEN = {
    "in_proj_z": "g_proj",
    "in_proj_b": "b_proj",
    "in_proj_a": "a_proj",
    "norm": "o_norm",
    "out_proj": "o_proj",
}


def qwen3_5_weights(theirs: Any, tensors: Tensors) -> Tensors:
    ours = renamed(**QWEN)(theirs, tensors)
    qkv = ours.pop("in_proj_qkv.weight").split([theirs.key_dim, theirs.key_dim, theirs.value_dim])
    return ours | dict(zip(("q_proj.weight", "k_proj.weight", "v_proj.weight"), qkv, strict=True))


def qwen3_next_weights(theirs: Any, tensors: Tensors) -> Tensors:
    """Rows run by key heads: of each its q, k, and v, z, b, a of the value heads that share it."""
    ours = renamed(**QWEN)(theirs, tensors)
    heads, K = theirs.num_k_heads, theirs.head_k_dim
    group = theirs.num_v_heads // heads
    V = group * theirs.head_v_dim

    for name, sizes in (
        ("in_proj_qkvz.weight", {"q": K, "k": K, "v": V, "g": V}),
        ("in_proj_ba.weight", {"b": group, "a": group}),
    ):
        parts = ours.pop(name).unflatten(0, (heads, -1)).split(list(sizes.values()), 1)
        ours |= {f"{n}_proj.weight": x.flatten(0, 1) for n, x in zip(sizes, parts, strict=True)}
    return ours


def kimi(theirs: Any) -> KimiDeltaAttention:
    accepts(theirs, "hidden_act", theirs.activation, "silu", "swish")
    gate = theirs.forget_gate
    return KimiDeltaAttention(
        theirs.hidden_size,
        num_heads=theirs.num_heads,
        head_dim=theirs.head_dim,
        conv_width=theirs.conv_kernel_size,
        low_rank_gates=hasattr(gate, "f_a_proj"),
        lower_bound=gate.lower_bound if getattr(gate, "safe_gate", False) else None,
        eps=theirs.o_norm.variance_epsilon,
    )


def kimi_weights(theirs: Any, tensors: Tensors) -> Tensors:
    ours = {name.removeprefix("forget_gate."): x for name, x in tensors.items()}
    if ours["A_log"].ndim > 1:
        ours["A_log"] = ours["A_log"].flatten()
    low_rank = {
        "f_a_proj": "f_proj.0",
        "f_b_proj": "f_proj.1",
        "g_a_proj": "g_proj.0",
        "g_b_proj": "g_proj.1",
    }
    return renamed(**low_rank)(theirs, ours)


RECIPES = (
    Recipe("qwen3_next", "Qwen3NextGatedDeltaNet", gated, qwen3_next_weights, CacheLayerAdapter),
    Recipe("qwen3_5", "Qwen3_5GatedDeltaNet", gated, qwen3_5_weights, CacheLayerAdapter),
    Recipe("qwen3_5_moe", "Qwen3_5MoeGatedDeltaNet", gated, qwen3_5_weights, CacheLayerAdapter),
    Recipe("olmo_hybrid", "OlmoHybridGatedDeltaNet", gated, same, CacheLayerAdapter),
    Recipe("kimi_linear", "KimiLinearDeltaAttention", kimi, kimi_weights, CacheLayerAdapter),
    Recipe("bailing_hybrid", "BailingHybridDeltaAttention", kimi, kimi_weights, CacheLayerAdapter),
)
