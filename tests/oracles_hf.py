"""Tiny decoder models of many families, and the same in eager attention with a dense mask."""

from __future__ import annotations

from typing import Any

import torch

import patterncc as pc

pc.hf.register()

W = 8  # sliding windows of the tiny models

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # else a random model repeats its last token
}
_TWO = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": W, "head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {"sliding_window": W, "head_dim": 16, "layer_types": _TWO, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3", {"sliding_window": W, "head_dim": 16, "layer_types": _TWO}),
    "qwen2": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gpt_oss": (
        "GptOss",
        {
            "sliding_window": W,
            "head_dim": 8,
            "layer_types": _TWO,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "phi3": ("Phi3", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}),
    "gpt2": ("GPT2", {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
}

_MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
_MLA = {
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8},
    **{"v_head_dim": 6, "n_routed_experts": 4, "n_group": 2, "topk_group": 1},
    **{"num_experts_per_tok": 1, "first_k_dense_replace": 2, "moe_intermediate_size": 16},
    "num_key_value_heads": 4,
}
_SHARED = {
    **{"head_dim": 8, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": _TWO * 2},
    **{"sliding_window": W, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 61},
    **{"laurel_rank": 4, "activation_sparsity_pattern": None, "altup_num_inputs": 2},
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere2": ("Cohere2", {"sliding_window": W, "layer_types": _TWO}),
    "deepseek_v3": ("DeepseekV3", _MLA),  # values of another width than keys
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma3n": ("Gemma3n", _SHARED),
    "glm4": ("Glm4", {"head_dim": 8}),
    "gpt_bigcode": ("GPTBigCode", {"attn_pdrop": 0.0}),  # one key head
    "gpt_neox": ("GPTNeoX", {}),
    "granite": ("Granite", {}),
    "olmo3": ("Olmo3", {"sliding_window": W}),
    "phi": ("Phi", {}),
    "qwen3_moe": ("Qwen3Moe", _MOE),
    "smollm3": ("SmolLM3", {}),
    "stablelm": ("StableLm", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": W}),
}
"""Further families, held to eager attention in fewer ways."""


def config_of(family: str, **fields: Any) -> Any:
    """The config of a tiny model."""
    import transformers

    name, more = (FAMILIES | OTHERS)[family]
    kind = f"{name}TextConfig" if name.startswith("Gemma3") else f"{name}Config"
    return getattr(transformers, kind)(**{**SIZES, **more, **fields})


def model_of(family: str, implementation: str = "eager", **fields: Any) -> Any:
    """A tiny random model, the same at every call."""
    import transformers

    name = (FAMILIES | OTHERS)[family][0]
    kind = getattr(transformers, f"{name}LMHeadModel" if family == "gpt2" else f"{name}ForCausalLM")
    config = config_of(family, **{"initializer_range": 0.3, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind._from_config(config, attn_implementation=implementation)
        for key, x in model.named_parameters():
            if key.endswith("sinks"):
                torch.nn.init.normal_(x)
    return model.eval()


def text(batch: int, n: int, seed: int = 3) -> torch.Tensor:
    """Token ids that are no special token."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (batch, n), generator=made)


def floats(masks: list[torch.Tensor]) -> torch.Tensor:
    """bool masks [n, n_k] of each sequence as the float mask [B, 1, n, n_k] of eager attention."""
    told = torch.stack(masks)[:, None]
    return torch.zeros(told.shape).masked_fill(~told, torch.finfo(torch.float32).min)


def dense(pattern: pc.Pattern, n: int, **sizes: Any) -> torch.Tensor:
    """bool [n, n]."""
    return torch.from_numpy(pc.lower(pattern, n, **sizes).dense())


def eager(model: Any, ids: torch.Tensor, pattern: pc.Pattern, **given: Any) -> torch.Tensor:
    """Logits of a whole pass of the model in eager attention, under the dense mask."""
    mask = floats([dense(pattern, ids.shape[1])] * len(ids))
    if hasattr(model.config, "layer_types") and model.config.layer_types:
        mask = dict.fromkeys(set(model.config.layer_types), mask)
    logits: torch.Tensor = model(ids, attention_mask=mask, use_cache=False, **given).logits
    return logits
