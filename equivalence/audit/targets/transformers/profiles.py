"""The linear mixers of transformers: a configuration of toy size for each, and how its decays are set."""

from __future__ import annotations

from typing import Any

from . import calls, decays
from .profile import Profile

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 32,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
LINEAR = {"layer_types": ["linear_attention"] * 2}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
WITH_ATTENTION = {"linear, then full attention": MIXED}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
MAMBA = {"mamba_d_state": 6, "mamba_dt_rank": 3}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 6,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
# Limits of the step size that bind: an option of every Mamba-2 (of two of them, only the lower one).
LIMITS = {"time_step_limit = (0.5, 0.9)": {"time_step_limit": (0.5, 0.9)}}
LOWER_LIMIT = {"time_step_min = 0.5": {"time_step_min": 0.5}}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 8,
}
QWEN = DELTA | {"head_dim": 8}
KIMI = {
    "linear_head_dim": 6,
    "linear_num_heads": 4,
    "mlp_layer_types": ["dense", "sparse"],
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
SHORT_CONV = ATTENTION | {"layer_types": ["conv", "full_attention"]}
WINDOW_ONLY = {"decay_extremes": "a short convolution has no decay"}
CONSTANT = {"decay_extremes": "its decays are constants of the heads"}


def bias(option: str) -> dict[str, dict[str, Any]]:
    """Input projections with a bias, which padding that is 0 before them is not after."""
    return {f"{option} = True": {option: True}}


PROFILES: tuple[Profile, ...] = (
    Profile(
        "minimax",
        "MiniMaxConfig",
        "MiniMaxLightningAttention",
        ATTENTION | LINEAR | {"head_dim": 8, "block_size": 8, "num_local_experts": 2},
        apart=WITH_ATTENTION,
        contract=CONSTANT,
        call=calls.MiniMax(),
    ),
    Profile(
        "mamba",
        "MambaConfig",
        "MambaMixer",
        {"state_size": 6},
        apart=bias("use_bias"),
        decays=decays.MAMBA,
    ),
    Profile(
        "falcon_mamba",
        "FalconMambaConfig",
        "FalconMambaMixer",
        {"state_size": 6},
        apart=bias("use_bias"),
        decays=decays.MAMBA,
    ),
    Profile(
        "jamba",
        "JambaConfig",
        "JambaMambaMixer",
        ATTENTION | MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
        apart=bias("mamba_proj_bias"),
        decays=decays.MAMBA,
    ),
    Profile(
        "zamba",
        "ZambaConfig",
        "ZambaMambaMixer",
        ATTENTION
        | MAMBA
        | {
            "num_hidden_layers": 4,
            "n_mamba_heads": 2,
            "layers_block_type": ["hybrid", "linear_attention", "hybrid", "linear_attention"],
        },
        apart=bias("mamba_proj_bias"),
        decays=decays.MAMBA,
    ),
    Profile(
        "mamba2",
        "Mamba2Config",
        "Mamba2Mixer",
        {"num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2, "chunk_size": 8},
        LIMITS,
        bias("use_bias"),
        decays.MAMBA2,
    ),
    Profile(
        "bamba",
        "BambaConfig",
        "BambaMixer",
        ATTENTION | MAMBA2 | {"attn_layer_indices": [1]},
        LIMITS,
        bias("mamba_proj_bias"),
        decays.MAMBA2,
    ),
    Profile(
        "falcon_h1",
        "FalconH1Config",
        "FalconH1Mixer",
        ATTENTION
        | MAMBA2
        | {
            "mamba_d_ssm": 64,
            "ssm_in_multiplier": 0.7,
            "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
            "mamba_rms_norm": True,
        },
        LIMITS,
        bias("mamba_proj_bias"),
        decays.MAMBA2,
    ),
    Profile(
        "nemotron_h",
        "NemotronHConfig",
        "NemotronHMamba2Mixer",
        ATTENTION
        | {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 6,
            "n_groups": 2,
            "chunk_size": 8,
        },
        LOWER_LIMIT,
        bias("use_bias"),
        decays.MAMBA2,
    ),
    Profile(
        "granitemoehybrid",
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridMambaLayer",
        ATTENTION
        | MAMBA2
        | {
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 32,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
        LIMITS,
        bias("mamba_proj_bias"),
        decays.MAMBA2,
    ),
    Profile(
        "zamba2",
        "Zamba2Config",
        "Zamba2MambaMixer",
        ATTENTION
        | {
            "num_hidden_layers": 3,
            "mamba_d_state": 6,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 2,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "num_mem_blocks": 1,
            "use_shared_attention_adapter": False,
        },
        LOWER_LIMIT,
        bias("add_bias_linear"),
        decays.MAMBA2,
    ),
    Profile(
        "recurrent_gemma",
        "RecurrentGemmaConfig",
        "RecurrentGemmaRecurrentBlock",
        ATTENTION
        | {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "num_key_value_heads": 1,
            "attention_window_size": 64,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
        decays=decays.RG_LRU,
        call=calls.RecurrentGemma(),
    ),
    Profile(
        "xlstm",
        "xLSTMConfig",
        "xLSTMLayer",
        {"hidden_size": 128, "num_heads": 4, "chunk_size": 8},
        decays=decays.XLSTM,
        call=calls.XLSTM(),
    ),
    Profile(
        "rwkv",
        "RwkvConfig",
        "RwkvSelfAttention",
        {"context_length": 64, "rescale_every": 1},
        decays=decays.RWKV,
        call=calls.RWKV(),
    ),
    Profile(
        "qwen3_next",
        "Qwen3NextConfig",
        "Qwen3NextGatedDeltaNet",
        ATTENTION | MIXED | QWEN | EXPERTS | {"shared_expert_intermediate_size": 16},
        decays=decays.QWEN3_NEXT,
    ),
    Profile(
        "qwen3_5",
        "Qwen3_5TextConfig",
        "Qwen3_5GatedDeltaNet",
        ATTENTION | MIXED | QWEN,
        decays=decays.GATED_DELTA,
    ),
    Profile(
        "qwen3_5_moe",
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeGatedDeltaNet",
        MIXED
        | QWEN
        | EXPERTS
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "shared_expert_intermediate_size": 16},
        decays=decays.GATED_DELTA,
    ),
    Profile(
        "qwen4_exp",
        "Qwen4ExpTextConfig",
        "Qwen4ExpTextGatedDeltaNet",
        MIXED
        | QWEN
        | EXPERTS
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "shared_expert_intermediate_size": 16,
            "hc_count": 2,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        },
        decays=decays.GATED_DELTA,
    ),
    Profile(
        "lara_mini",
        "LaraMiniConfig",
        "LaraMiniGatedDeltaNet",
        MIXED
        | QWEN
        | EXPERTS
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "shared_expert_intermediate_size": 16},
        decays=decays.GATED_DELTA,
    ),
    Profile(
        "olmo_hybrid",
        "OlmoHybridConfig",
        "OlmoHybridGatedDeltaNet",
        ATTENTION | MIXED | QWEN | {"linear_num_key_heads": 4},
        decays=decays.GATED_DELTA,
    ),
    Profile(
        "kimi_linear",
        "KimiLinearConfig",
        "KimiLinearDeltaAttention",
        LATENT | MIXED | KIMI,
        decays=decays.KIMI,
    ),
    Profile(
        "bailing_hybrid",
        "BailingHybridConfig",
        "BailingHybridDeltaAttention",
        LATENT | MIXED | KIMI | {"q_lora_rank": 8},
        decays=decays.KIMI,
    ),
    Profile(
        "glm5_next",
        "Glm5NextTextConfig",
        "Glm5NextTextLinearAttention",
        LATENT
        | LINEAR
        | {
            "q_lora_rank": 8,
            "qk_rope_head_dim": 0,
            "linear_head_dim": 6,
            "linear_num_heads": 4,
            "mlp_layer_types": ["dense", "sparse"],
            "n_routed_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "indexer_types": ["full", "full"],
            "hc_mult": 2,
        },
        decays=decays.KIMI,
        model="Glm5NextTextModel",
    ),
    Profile(
        "lfm2",
        "Lfm2Config",
        "Lfm2ShortConv",
        SHORT_CONV,
        apart=bias("conv_bias"),
        contract=WINDOW_ONLY,
    ),
    Profile(
        "lfm2_moe",
        "Lfm2MoeConfig",
        "Lfm2MoeShortConv",
        SHORT_CONV | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        apart=bias("conv_bias"),
        contract=WINDOW_ONLY,
    ),
    Profile(
        "lfm3",
        "Lfm3Config",
        "Lfm3ShortConv",
        SHORT_CONV | {"head_dim": 8},
        apart=bias("conv_bias"),
        contract=WINDOW_ONLY,
    ),
)
