"""Tiny random models of architectures that treat hidden states, logits or attention each in its own way."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from finetune_trainer import architecture

VOCABULARY = 96

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_WINDOWED = {**_SIZES, "sliding_window": 4}
_BOTH = ["sliding_attention", "full_attention"]

KINDS: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "mistral": _WINDOWED,
    "qwen2": {**_WINDOWED, "use_sliding_window": True, "layer_types": _BOTH},
    "qwen3": _SIZES,
    "gemma2": {**_WINDOWED, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_WINDOWED, "final_logit_softcapping": 0.5, "layer_types": _BOTH},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {**_SIZES, "num_key_value_heads": 4},
    "granite": {**_SIZES, "logits_scaling": 8.0},
    "cohere": {**_SIZES, "logit_scale": 0.0625},
    "phi3": _SIZES,
    "falcon": {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "phimoe": {**_WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": {
        **_SIZES,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_layer_start_index": 0,
        "moe_intermediate_size": 32,
    },
    "gpt_oss": {**_WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**_SIZES, **_EXPERTS},
    "qwen3_moe": {**_SIZES, **_EXPERTS, "moe_intermediate_size": 32},
    "minimax": {**_SIZES, **_EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
    "xglm": {
        "vocab_size": VOCABULARY, "d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 0,
    },
    "gemma3": {
        "text_config": {**_WINDOWED, "layer_types": _BOTH},
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        "mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92,
    },
    "qwen2_5_vl": {
        "text_config": {**_SIZES, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "fullatt_block_indexes": [1], "window_size": 28, "patch_size": 14,
        },
        "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93,
    },
}  # fmt: skip

OURS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "granite", "cohere", "phi3")
"""Those that can use the attention of the trainer."""
THEIRS = {
    "gemma2": "Gemma2ForCausalLM keeps the attention of transformers (eager)",
    "gpt_oss": "GptOssForCausalLM keeps the attention of transformers (eager)",
    "phimoe": "PhimoeForCausalLM keeps the attention of transformers (sdpa)",
    "gemma3": "Gemma3ForConditionalGeneration keeps the attention of transformers (sdpa)",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration keeps the attention of transformers (sdpa)",
}
"""Those that need their own attention, and what is logged of them."""
ALL = tuple(kind for kind in KINDS if kind != "xglm")
"""Not XGLM: the gradients of the biases of its keys are zero but for rounding."""


def model(kind: str, **settings: Any) -> PreTrainedModel:
    """In evaluation mode: some architectures have dropout by default."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **KINDS[kind])
    found: PreTrainedModel = architecture.auto_class(config).from_config(config, **settings)
    found.train(False)
    return found
