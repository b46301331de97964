"""MiniMax-01 as transformers has it: its config and its weights under the names used here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .checkpoint import with_tensors
from .config import LINEAR, SOFTMAX, HybridConfig

if TYPE_CHECKING:
    from .model import HybridLM

# Decays, which are computed here from the layer's place.
BUFFERS = re.compile(r".*\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)")
NAMES = (
    (r"lm_head\.", "head."),
    (r"model\.embed_tokens\.", "embedding."),
    (r"model\.norm\.", "norm."),
    (r"model\.layers\.(\d+)\.input_layernorm\.", r"layers.\1.mixer_norm."),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.", r"layers.\1.mlp_norm."),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj\.", r"layers.\1.mixer.out_proj."),
    (r"model\.layers\.(\d+)\.self_attn\.", r"layers.\1.mixer."),
    (r"model\.layers\.(\d+)\.mlp\.", r"layers.\1.mlp."),
)


def convert(cls: type[HybridLM], model: Any) -> HybridLM:
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "minimax" or not hasattr(model, "lm_head"):
        raise TypeError(f"model is {type(model).__name__}; accepted: transformers' MiniMaxForCausalLM")
    ours = config_of(config)
    tensors: dict[str, Tensor] = {}
    for name, x in model.state_dict().items():
        if not BUFFERS.fullmatch(name) and not (ours.tied and name == "lm_head.weight"):
            tensors[renamed(name)] = x.detach().clone()
    return with_tensors(cls, ours, tensors, "model")


def config_of(theirs: Any) -> HybridConfig:
    rotary = theirs.rope_parameters
    for name, found, accepted in (
        ("hidden_act", theirs.hidden_act, "silu"),
        ("sliding_window", theirs.sliding_window, None),
        ("rope_parameters['rope_type']", rotary["rope_type"], "default"),
    ):
        if found != accepted:
            raise ValueError(f"model.config.{name} is {found!r}; accepted: {accepted!r}")
    heads = theirs.num_attention_heads
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // heads
    types = {"linear_attention": LINEAR, "full_attention": SOFTMAX}
    return HybridConfig(
        vocab_size=theirs.vocab_size,
        d_model=theirs.hidden_size,
        num_layers=theirs.num_hidden_layers,
        layer_types=tuple(types[layer_type] for layer_type in theirs.layer_types),
        linear_options={"num_heads": heads, "head_dim": head_dim},
        softmax_options={
            "num_heads": heads,
            "head_dim": head_dim,
            "num_kv_heads": theirs.num_key_value_heads,
            "rotary_base": rotary["rope_theta"],
        },
        mlp_dim=theirs.intermediate_size,
        num_experts=theirs.num_local_experts,
        experts_per_token=theirs.num_experts_per_tok,
        norm_eps=theirs.rms_norm_eps,
        tied=theirs.tie_word_embeddings,
        postnorm=True,
        linear_alpha=theirs.linear_attn_alpha_factor,
        linear_beta=theirs.linear_attn_beta_factor,
        softmax_alpha=theirs.full_attn_alpha_factor,
        softmax_beta=theirs.full_attn_beta_factor,
        mlp_alpha=theirs.mlp_alpha_factor,
        mlp_beta=theirs.mlp_beta_factor,
        init_std=theirs.initializer_range,
    )


def renamed(name: str) -> str:
    for pattern, ours in NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, ours, name, count=1)
    return name
