"""A random model of each architecture that docs/models.md lists: tiny for tests, wider for benchmarks/models.py."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
GROUPED = SHAPE | {"intermediate_size": 64, "num_key_value_heads": 1}
LLAMA = GROUPED | {"head_dim": 16}
WINDOW = {"sliding_window": 6}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 2,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
ALTERNATE = {"layer_types": ["sliding_attention", "full_attention"]}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", LLAMA),
    "Qwen2": ("Qwen2", GROUPED),
    "Qwen2, windows": ("Qwen2", GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "Qwen2-MoE": ("Qwen2Moe", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "Qwen3": ("Qwen3", LLAMA),
    "Qwen3-MoE": ("Qwen3Moe", LLAMA | EXPERTS),
    "Qwen3-Next": ("Qwen3Next", LLAMA | EXPERTS | DELTA | {"shared_expert_intermediate_size": 16}),
    "Qwen3.5": ("Qwen3_5Text", LLAMA | DELTA),
    "Qwen3.5-MoE": ("Qwen3_5MoeText", LLAMA | EXPERTS | DELTA | {"shared_expert_intermediate_size": 16}),
    "Gemma": ("Gemma", LLAMA),
    "Gemma 2": ("Gemma2", LLAMA | WINDOW | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}),
    "Gemma 3": ("Gemma3Text", LLAMA | WINDOW | ALTERNATE | {"query_pre_attn_scalar": 16}),
    "Gemma 3n": (
        "Gemma3nText",
        LLAMA
        | WINDOW
        | ALTERNATE
        | {
            "vocab_size_per_layer_input": 48,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": None,
            "intermediate_size": 64,
        },
    ),
    "Gemma 4": (
        "Gemma4Text",
        LLAMA
        | WINDOW
        | ALTERNATE
        | {"global_head_dim": 16, "vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 8},
    ),
    "gpt-oss": ("GptOss", LLAMA | LOCAL | WINDOW),
    "Mistral": ("Mistral", LLAMA | {"sliding_window": None}),
    "Mistral, windows": ("Mistral", LLAMA | WINDOW),
    "Ministral": ("Ministral", LLAMA | WINDOW | ALTERNATE),
    "Mixtral": ("Mixtral", LLAMA | LOCAL | {"sliding_window": None}),
    "Mixtral, windows": ("Mixtral", LLAMA | LOCAL | WINDOW),
    "OLMo": ("Olmo", GROUPED),
    "OLMo 2": ("Olmo2", GROUPED),
    "OLMo 3": ("Olmo3", GROUPED | WINDOW | ALTERNATE),
    "OLMo hybrid": ("OlmoHybrid", GROUPED | DELTA),
    "OLMoE": ("Olmoe", GROUPED | EXPERTS),
    "FlexOlmo": ("FlexOlmo", GROUPED | EXPERTS),
    "Granite": ("Granite", GROUPED | {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "Granite-MoE": ("GraniteMoe", GROUPED | LOCAL),
    "Granite hybrid": (
        "GraniteMoeHybrid",
        GROUPED | LOCAL | MAMBA | {"shared_intermediate_size": 16, "layer_types": ["mamba", "attention"]},
    ),
    "Granite, windows": ("GraniteSWA", GROUPED | WINDOW),
    "LFM2": ("Lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "LFM2-MoE": ("Lfm2Moe", GROUPED | EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "Phi": ("Phi", SHAPE | {"intermediate_size": 64}),
    "Phi-3": ("Phi3", GROUPED),
    "Phi-3, windows": ("Phi3", GROUPED | WINDOW),
    "Phi-3.5-MoE": ("Phimoe", GROUPED | LOCAL),
    "Falcon": ("Falcon", SHAPE),
    "Falcon, ALiBi": ("Falcon", SHAPE | {"alibi": True}),
    "Falcon-H1": ("FalconH1", LLAMA | MAMBA | {"mamba_d_ssm": 64}),
    "Falcon-Mamba": ("FalconMamba", SHAPE | {"state_size": 4}),
    "Bamba": ("Bamba", GROUPED | MAMBA | {"attn_layer_indices": [1]}),
    "Mamba": ("Mamba", SHAPE | {"state_size": 4}),
    "Mamba 2": ("Mamba2", SHAPE | {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}),
    "Jamba": (
        "Jamba",
        GROUPED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "Nemotron": ("Nemotron", LLAMA),
    "Nemotron-H": (
        "NemotronH",
        LLAMA
        | {
            "layers_block_type": ["mamba", "attention", "mlp"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "DeepSeek-V2": ("DeepseekV2", GROUPED | LATENT | ROUTED | {"head_dim": 8}),
    "DeepSeek-V3": ("DeepseekV3", GROUPED | LATENT | ROUTED),
    "Kimi linear": (
        "KimiLinear",
        GROUPED
        | LATENT
        | ROUTED
        | {
            "num_local_experts": 4,
            "q_lora_rank": None,
            "linear_head_dim": 8,
            "linear_num_heads": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "GLM": ("Glm", LLAMA),
    "GLM-4": ("Glm4", LLAMA),
    "GLM-4-MoE": ("Glm4Moe", LLAMA | ROUTED),
    "Command R": ("Cohere", GROUPED),
    "Command R7B": ("Cohere2", LLAMA | WINDOW | ALTERNATE),
    "StableLM": ("StableLm", GROUPED),
    "StarCoder2": ("Starcoder2", GROUPED | {"sliding_window": None}),
    "StarCoder2, windows": ("Starcoder2", GROUPED | WINDOW),
    "GPT-2": ("GPT2", SHAPE),
    "GPT-BigCode": ("GPTBigCode", SHAPE),
    "GPT-Neo": (
        "GPTNeo",
        SHAPE | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    ),
    "GPT-NeoX": ("GPTNeoX", SHAPE | {"intermediate_size": 64}),
    "GPT-J": ("GPTJ", SHAPE | {"rotary_dim": 8}),
    "CodeGen": ("CodeGen", SHAPE | {"rotary_dim": 8, "num_attention_heads": 4}),
    "OPT": ("OPT", SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "BLOOM": ("Bloom", SHAPE),
    "MPT": ("Mpt", SHAPE),
    "XGLM": ("XGLM", SHAPE | {"ffn_dim": 64, "attention_heads": 2}),
    "BioGPT": ("BioGpt", SHAPE | {"intermediate_size": 64}),
    "SmolLM3": ("SmolLM3", GROUPED),
    "EXAONE 4": ("Exaone4", LLAMA | WINDOW | ALTERNATE),
    "ERNIE 4.5": ("Ernie4_5", LLAMA),
    "ERNIE 4.5-MoE": ("Ernie4_5_Moe", LLAMA | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}),
    "Hunyuan": ("HunYuanDenseV1", LLAMA),
    "Hunyuan-MoE": ("HunYuanMoEV1", LLAMA | {"num_experts": 4, "moe_topk": 2}),
    "MiniMax": ("MiniMax", LLAMA | LOCAL | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}),
    "MiniMax-M2": ("MiniMaxM2", LLAMA | LOCAL),
    "RecurrentGemma": (
        "RecurrentGemma",
        LLAMA | {"lru_width": 32, "attention_window_size": 6, "block_types": ["recurrent", "attention"]},
    ),
    "RWKV": ("Rwkv", SHAPE | {"context_length": 64, "attention_hidden_size": 32}),
    "xLSTM": (
        "xLSTM",
        SHAPE | {"num_blocks": 2, "num_heads": 2, "qk_dim_factor": 0.5, "chunk_size": 8, "mode": "inference"},
    ),
    "Llama 4": (
        "Llama4Text",
        LLAMA
        | LOCAL
        | {
            "attention_chunk_size": 6,
            "intermediate_size_mlp": 64,
            "layer_types": ["chunked_attention", "full_attention"],
            "moe_layers": [1],
            "num_experts_per_tok": 1,
            "no_rope_layers": [1, 0],
        },
    ),
    "Apertus": ("Apertus", GROUPED),
    "Arcee": ("Arcee", LLAMA),
    "Seed-OSS": ("SeedOss", LLAMA),
    "Helium": ("Helium", LLAMA),
    "NanoChat": ("NanoChat", LLAMA),
    "dots.llm1": ("Dots1", LLAMA | ROUTED),
    "AFMoE": (
        "Afmoe",
        LLAMA
        | WINDOW
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "num_dense_layers": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "MiMo-V2": (
        "MiMoV2Flash",
        LLAMA
        | WINDOW
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "v_head_dim": 16},
    ),
    "Persimmon": ("Persimmon", SHAPE | {"intermediate_size": 64}),
    "DiffLlama": ("DiffLlama", GROUPED | {"num_key_value_heads": 2}),
    "JetMoe": ("JetMoe", GROUPED | LOCAL | {"kv_channels": 16, "num_key_value_heads": 2}),
    "Youtu": ("Youtu", GROUPED | LATENT),
    "VaultGemma": (
        "VaultGemma",
        LLAMA | WINDOW | ALTERNATE | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    ),
}


FLOAT32 = ("XGLM",)
"""Those that transformers cannot run in float64."""
FUSED = ("Falcon, ALiBi",)
"""Those whose step-by-step attention is wrong in transformers: it adds the position biases twice."""


WIDTHS = (
    *("hidden_size", "intermediate_size", "head_dim", "global_head_dim", "v_head_dim", "query_pre_attn_scalar"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "intermediate_size_mlp"),
    *("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "mamba_d_head", "mamba_d_ssm"),
    *("mamba_head_dim", "mamba_dt_rank", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"),
    *("ffn_dim", "word_embed_proj_dim", "lru_width", "attention_hidden_size", "rotary_dim", "kv_channels"),
)
"""Settings that grow with the width of a model."""


def model_of(
    name: str, std: float = 0.2, dtype: torch.dtype = torch.float32, wider: int = 1, **changes: Any
) -> PreTrainedModel:
    """In evaluation mode, `wider` times as wide as CONFIGS says. Matrices are normal with `std`; vectors, such as norms
    and biases, are not at their first values either."""
    kind, settings = CONFIGS[name]
    wide = {key: wider * value for key, value in settings.items() if key in WIDTHS and value is not None}
    config = getattr(transformers, f"{kind}Config")(**settings | wide | changes)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.data = std * noise if parameter.ndim > 1 else parameter.data + 0.1 * noise
    return model.eval()
