"""Models of transformers at toy size, with weights of order one, and their exact evaluation in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
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
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
MAMBA = {"mamba_d_state": 6, "mamba_dt_rank": 3}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 6,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
QWEN = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 8,
}
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

# By model type: the class of the configuration, and its options besides SIZES and TOKENS.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "minimax": (
        "MiniMaxConfig",
        ATTENTION | MIXED | {"head_dim": 8, "block_size": 8, "num_local_experts": 2},
    ),
    "mamba": ("MambaConfig", {"state_size": 6}),
    "falcon_mamba": ("FalconMambaConfig", {"state_size": 6}),
    "jamba": (
        "JambaConfig",
        ATTENTION | MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    ),
    "zamba": (
        "ZambaConfig",
        ATTENTION
        | MAMBA
        | {
            "num_hidden_layers": 4,
            "n_mamba_heads": 2,
            "layers_block_type": ["hybrid", "linear_attention", "hybrid", "linear_attention"],
        },
    ),
    "mamba2": (
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2, "chunk_size": 8},
    ),
    "bamba": ("BambaConfig", ATTENTION | MAMBA2 | {"attn_layer_indices": [1]}),
    "falcon_h1": (
        "FalconH1Config",
        ATTENTION
        | MAMBA2
        | {
            "mamba_d_ssm": 64,
            "ssm_in_multiplier": 0.7,
            "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
            "mamba_rms_norm": True,
        },
    ),
    "nemotron_h": (
        "NemotronHConfig",
        ATTENTION
        | {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 6,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        ATTENTION
        | MAMBA2
        | {
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 32,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "zamba2": (
        "Zamba2Config",
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
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        ATTENTION
        | {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "num_key_value_heads": 1,
            "attention_window_size": 16,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "xlstm": ("xLSTMConfig", {"hidden_size": 128, "num_heads": 4, "chunk_size": 8}),
    "rwkv": ("RwkvConfig", {"context_length": 64, "rescale_every": 1}),
    "qwen3_next": (
        "Qwen3NextConfig",
        ATTENTION | MIXED | QWEN | EXPERTS | {"shared_expert_intermediate_size": 16},
    ),
    "qwen3_5": ("Qwen3_5TextConfig", ATTENTION | MIXED | QWEN),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig",
        MIXED
        | QWEN
        | EXPERTS
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "shared_expert_intermediate_size": 16},
    ),
    "olmo_hybrid": ("OlmoHybridConfig", ATTENTION | MIXED | QWEN | {"linear_num_key_heads": 4}),
    "kimi_linear": ("KimiLinearConfig", LATENT | MIXED | KIMI),
    "bailing_hybrid": ("BailingHybridConfig", LATENT | MIXED | KIMI | {"q_lora_rank": 8}),
}


class ExactFloat64(TorchFunctionMode):
    """Their code with its casts to float32 taken out: wherever it says float32, float64 is meant."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {k: _wide(v) for k, v in (kwargs or {}).items()}
        return func(*map(_wide, args), **named)


def _wide(x: Any) -> Any:
    return torch.float64 if x is torch.float32 else x


def toy(model_type: str, seed: int = 1, **options: Any) -> Any:
    """A causal language model in float64, in evaluation mode, whose every parameter is random."""
    import transformers

    name, own = CONFIGS[model_type]
    config = getattr(transformers, name)(**(SIZES | TOKENS | own | options))
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # decays are computed in it at construction
    try:
        with ExactFloat64(), torch.no_grad():
            # Experts one by one: the grouped product has no float64.
            model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
            model = model.double().eval()
            for p in model.parameters():
                p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else p.shape[-1] ** -0.5))
    finally:
        torch.set_default_dtype(before)
    return model


def first_mixer(model: nn.Module, kind: str) -> nn.Module:
    """The first module in it of this class."""
    return next(m for m in model.modules() if type(m).__name__ == kind)


def logits(model: Any, pieces: list[Tensor], mask: Tensor | None = None, cache: Any = None) -> Tensor:
    """Of a sequence that is given piece by piece, with the cache handed on; mask as `generate` makes it.

    model may be a list, of one for each piece."""
    models = model if isinstance(model, list) else [model] * len(pieces)
    out, seen = [], 0
    for model, ids in zip(models, pieces, strict=True):
        named = "state" if model.config.model_type == "rwkv" else "cache"
        positions = "position_ids" in inspect.signature(model.forward).parameters
        seen += ids.shape[1]
        valid = torch.ones(len(ids), seen, dtype=torch.long) if mask is None else mask[:, :seen]
        kwargs: dict[str, Any] = {"use_cache": True}
        if cache is not None:
            kwargs[named] = cache
        if positions:
            kwargs["position_ids"] = (valid.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if mask is not None and (ids.shape[1] > 1 or positions):
            kwargs["attention_mask"] = valid
        output = model(ids, **kwargs)
        cache = getattr(output, named, cache)
        out.append(output.logits)
    return torch.cat(out, 1)


def relative(x: Tensor, reference: Tensor) -> float:
    """The largest difference, by the largest number of the reference."""
    return float((x - reference).detach().abs().max() / reference.detach().abs().max())
