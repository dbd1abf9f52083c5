"""Configs of Hugging Face models, held token by token to the masks that transformers builds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc import (
    Stack,
    causal,
    chunked,
    convolution,
    full,
    global_tokens,
    lower,
    recurrent,
    topk,
    window,
)
from patterncc.config import read
from patterncc.config.families import FAMILIES, LEGACY
from patterncc.errors import PatternError, PatternValueError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
auto = pytest.importorskip("transformers.models.auto.configuration_auto")

N = 40
SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
}
FEW = {"num_local_experts": 2, "num_experts_per_tok": 1}
MAMBA = {"mamba_d_state": 4, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_n_groups": 1}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of is not ours
        yield


def model_of(model_type: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """A tiny model with random weights, and its config as it would be written to a file."""
    config = auto.CONFIG_MAPPING[model_type](**{**SMALL, **fields})
    torch.manual_seed(0)
    config._experts_implementation = "eager"  # the grouped one has no float64
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    return model, json.loads(config.to_json_string(use_diff=True))


def masks_of(model: Any, n: int = N) -> dict[int, np.ndarray]:
    """The mask that reaches the attention of each layer, as the model builds it."""
    seen: dict[int, np.ndarray] = {}

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> tuple[Any, None]:
        index = getattr(module, "layer_idx", len(seen))
        index = len(seen) if index is None else index
        seen[index] = np.ones((n, n), bool) if mask is None else (mask[0, 0] == 0).numpy()
        wide = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        return wide.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("probe", attend)
    masking = transformers.masking_utils
    masking.AttentionMaskInterface.register("probe", masking.eager_mask)
    model.set_attn_implementation("probe")
    with torch.no_grad():
        model(input_ids=torch.arange(n)[None] % 31 + 1)
    return seen


def reads_of(model: Any, layers: Any, n: int = N, **inputs: Any) -> np.ndarray:
    """Which inputs of each layer every output depends on, by gradient, in float64."""
    leaves: list[Any] = []
    outs: list[Any] = []

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        leaves.append(x.detach().requires_grad_())
        if args:
            return (leaves[-1], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": leaves[-1]}

    def after(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        outs.append(out[0] if isinstance(out, tuple) else out)

    model.double()
    for layer in layers:
        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after, with_kwargs=True)
    ids = (torch.arange(n) % 31 + 1).expand(n, n)  # copy i of the sequence asks for query i
    model(input_ids=ids, **inputs)
    weight = torch.randn(outs[0].shape[-1], dtype=torch.float64, generator=torch.manual_seed(1))
    sum((y.diagonal()[..., :n].T @ weight).sum() for y in outs).backward()
    return np.stack([(x.grad[:, :n] != 0).any(-1).numpy() for x in leaves])


ATTENTION = [
    ("llama", {}),
    ("gpt2", {"n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 64}),
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 8, "is_causal": False}),
    ("mixtral", {"sliding_window": 5, **FEW}),
    ("ministral", {"sliding_window": 7, "head_dim": 8}),
    ("gemma2", {"sliding_window": 8, "head_dim": 8}),
    ("gemma3_text", {"sliding_window": 8, "head_dim": 8}),
    ("gemma3_text", {"sliding_window": 8, "head_dim": 8, "use_bidirectional_attention": True}),
    ("gemma3_text", {"sliding_window": 9, "head_dim": 8, "layer_types": ["sliding_attention"] * 6}),
    ("gpt_oss", {"sliding_window": 6, "head_dim": 8, **FEW}),
    ("llama4_text", {"attention_chunk_size": 8, "head_dim": 8, "intermediate_size_mlp": 16, **FEW}),
    ("llama4_text", {
        "attention_chunk_size": 7, "head_dim": 8, "intermediate_size_mlp": 16, **FEW,
        "no_rope_layers": [0, 1, 1, 0, 1, 0],
    }),
    ("qwen2", {"sliding_window": 8}),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}),
    ("qwen3", {
        "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4, "head_dim": 8,
    }),
    ("qwen3_moe", {
        "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4, "head_dim": 8,
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
    }),
    ("phi3", {"sliding_window": 11}),
    ("phi3", {}),
    ("cohere2", {"sliding_window": 8}),
    ("cohere2", {"sliding_window": 8, "sliding_window_pattern": 3}),
    ("starcoder2", {"sliding_window": 9}),
    ("olmo3", {"sliding_window": 9}),
    ("exaone4", {"sliding_window": 9}),
    ("smollm3", {"sliding_window": 9, "use_sliding_window": True}),
    ("cwm", {"sliding_window": 9}),
    ("modernbert", {"local_attention": 10, "global_attn_every_n_layers": 2}),
    ("modernbert", {"local_attention": 11}),
    ("modernbert-decoder", {"local_attention": 10}),
    ("bert", {}),
    ("bert", {"is_decoder": True}),
    ("roberta", {}),
    ("qwen2_moe", {
        "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4, "num_experts": 2,
        "num_experts_per_tok": 1, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }),
    ("phimoe", {"sliding_window": 8, **FEW}),
    ("ultrabert", {"sliding_window": 8, "architectures": ["UltraBertForMaskedLM"]}),
    ("ministral3", {"sliding_window": 8, "head_dim": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "fields"), ATTENTION, ids=lambda x: str(x)[:60])
def test_edges_are_the_mask_that_transformers_builds(model_type: str, fields: Any) -> None:
    model, config = model_of(model_type, **fields)
    built = masks_of(model)
    layers = read(config).layers
    assert sorted(built) == list(range(len(layers)))
    for l, layer in enumerate(layers):
        assert np.array_equal(lower(layer, N).dense(), built[l]), (l, layer)


def test_gemma_3n_masks_and_shared_keys() -> None:
    model, config = model_of(
        "gemma3n_text", sliding_window=8, head_dim=8, num_hidden_layers=10, num_kv_shared_layers=4,
        hidden_size_per_layer_input=4, laurel_rank=2, vocab_size_per_layer_input=32,
        activation_sparsity_pattern=None,
    )  # fmt: skip
    found = read(config)
    built = masks_of(model)
    for l, layer in enumerate(found.layers):
        assert np.array_equal(lower(layer, N).dense(), built[l]), l
    assert found.kv_from == (0, 1, 2, 3, 4, 5, 5, 5, 5, 4)
    assert any("num_kv_shared_layers" in note for note in found.notes)


RECURRENT = [
    ("jamba", {
        "attn_layer_period": 3, "attn_layer_offset": 1, "num_hidden_layers": 3, "num_experts": 2,
        "num_experts_per_tok": 1, "mamba_d_state": 4,
    }),
    ("falcon_h1", {"num_hidden_layers": 1, "head_dim": 8, "mamba_d_ssm": 32, **MAMBA}),
    ("zamba", {
        "num_hidden_layers": 5, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
    }),
    ("zamba2", {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 4, "n_mamba_heads": 2, "chunk_size": 8,
    }),
    ("lfm2", {"num_hidden_layers": 3, "full_attn_idxs": [1], "conv_L_cache": 3}),
    ("lfm2", {"num_hidden_layers": 2, "full_attn_idxs": [], "conv_L_cache": 5}),
    ("bamba", {"num_hidden_layers": 2, "attn_layer_indices": [1], "head_dim": 8, **MAMBA}),
    ("recurrent_gemma", {"num_hidden_layers": 3, "attention_window_size": 7, "head_dim": 8}),
    ("qwen3_next", {
        "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 1, "num_experts": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    }),
    ("mamba", {"num_hidden_layers": 1, "state_size": 4}),
    ("nemotron_h", {
        "layers_block_type": ["mamba", "attention", "mlp"], "head_dim": 8, "mamba_num_heads": 2,
        "mamba_head_dim": 16, "ssm_state_size": 4, "n_groups": 1, "chunk_size": 8,
    }),
    ("granitemoehybrid", {
        "layer_types": ["mamba", "attention"], "num_hidden_layers": 2, **FEW, **MAMBA,
        "shared_intermediate_size": 16,
    }),
    ("minimax", {"num_hidden_layers": 2, "head_dim": 8, "block_size": 4, **FEW}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "fields"), RECURRENT, ids=lambda x: str(x)[:60])
def test_edges_are_what_the_layers_of_hybrids_read(model_type: str, fields: Any) -> None:
    n = 24
    model, config = model_of(model_type, **fields)
    built = reads_of(model, model.layers, n, use_cache=False)
    layers = read(config).layers
    for l, layer in enumerate(layers):
        edges = lower(layer, n).dense() | np.eye(n, dtype=bool)
        assert np.array_equal(edges, built[l]), (l, layer)


def test_gpt_neo() -> None:
    model, config = model_of(
        "gpt_neo", num_hidden_layers=4, attention_types=[[["global", "local"], 2]], window_size=7,
        num_heads=2,
    )  # fmt: skip
    built = reads_of(model, model.h)
    layers = read(config).layers
    assert layers == (causal(), causal() & window(6)) * 2
    for l, layer in enumerate(layers):
        assert np.array_equal(lower(layer, N).dense(), built[l]), (l, layer)


def test_longformer() -> None:
    model, config = model_of("longformer", num_hidden_layers=2, attention_window=[8, 16])
    n = 32
    found = read(config)
    assert found.layers == (window(4, 4), window(8, 8))
    built = reads_of(model, model.encoder.layer, n)
    for l, layer in enumerate(found.layers):
        assert np.array_equal(lower(layer, n).dense(), built[l]), l
    assert any("global_attention_mask" in note for note in found.notes)


def test_longformer_with_global_tokens() -> None:
    """As the note says: unite each layer with the global tokens of the batch."""
    n = 32
    model, config = model_of("longformer", num_hidden_layers=1, attention_window=8)
    chosen = torch.zeros(n, n, dtype=torch.long)
    chosen[:, [0, 20]] = 1
    built = reads_of(model, model.encoder.layer, n, global_attention_mask=chosen)
    edges = lower(read(config).layers[0] | global_tokens([0, 20]), n).dense()
    assert np.array_equal(edges, built[0])


def test_big_bird_in_training_draws_from_the_first_blocks() -> None:
    """What the note says of training: random keys of the first (5 + 2 r) blocks alone."""
    n = 60
    model, config = model_of(
        "big_bird", num_hidden_layers=1, block_size=4, num_random_blocks=1, hidden_act="gelu",
        attention_type="block_sparse", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    found = read(config, length=n)
    built = reads_of(model.train(), model.encoder.layer, n)[0]
    fixed = lower(found.layers[0], n).dense()
    drawn = built & ~fixed
    assert not (fixed & ~built).any() and drawn.any()
    assert np.flatnonzero(drawn.any(0)).max() < 28
    assert any("first 28 tokens" in note for note in found.notes)


@pytest.mark.parametrize("n", [20, 36, 44])
def test_big_bird_in_evaluation(n: int) -> None:
    """Block 4, one random block: sparse above 28 tokens."""
    model, config = model_of(
        "big_bird", num_hidden_layers=1, block_size=4, num_random_blocks=1,
        attention_type="block_sparse", hidden_act="gelu",
    )  # fmt: skip
    found = read(config, length=n)
    built = reads_of(model, model.encoder.layer, n)
    assert np.array_equal(lower(found.layers[0], n).dense(), built[0])
    assert any("in evaluation" in note for note in found.notes) == (n > 28)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_a_config_omits_is_what_transformers_assumes(model_type: str) -> None:
    """The least config there is, against the whole one that transformers makes of nothing."""
    config = auto.CONFIG_MAPPING[model_type]()
    least = read({"model_type": model_type})
    assert len(least.layers) == config.num_hidden_layers
    assert least.layers == read(json.loads(config.to_json_string(use_diff=False))).layers
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and model_type not in ("longformer", "big_bird"):
        by_kind = dict(zip((LEGACY.get(k, k) for k in kinds), least.layers))
        assert least.layers == tuple(by_kind[LEGACY.get(k, k)] for k in kinds)
    assert any("num_hidden_layers is not in the config" in note for note in least.notes)


LOCAL, WIDE = "sliding_attention", "full_attention"


def stack(**config: object) -> list[object]:
    return list(Stack.from_hf({"num_hidden_layers": 6, **config}))


def near(w: int) -> object:
    return causal() & window(w - 1)


def test_families_by_their_fields() -> None:
    assert stack(model_type="llama") == [causal()] * 6
    assert stack(model_type="llama", is_causal=False) == [full()] * 6
    assert stack(model_type="mistral", sliding_window=4096) == [near(4096)] * 6
    assert stack(model_type="gemma2", sliding_window=8) == [near(8), causal()] * 3
    assert stack(model_type="gemma3_text", sliding_window=8) == [near(8)] * 5 + [causal()]
    windowed = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4}
    assert stack(model_type="qwen2", **windowed) == [causal()] * 4 + [near(8)] * 2
    local = causal() & chunked(64)
    found = stack(model_type="llama4_text", attention_chunk_size=64)
    assert found == [local] * 3 + [causal()] + [local] * 2
    both = causal() | recurrent()
    assert stack(model_type="falcon_h1") == [both] * 6
    nemotron = stack(model_type="nemotron_h", hybrid_override_pattern="M-M*E-")
    assert nemotron == [recurrent(), window(0), recurrent(), causal(), window(0), window(0)]
    lfm = stack(model_type="lfm2", full_attn_idxs=[2, 5], conv_L_cache=3)
    assert lfm == [convolution(3), convolution(3), causal()] * 2


def test_a_family_of_no_name_is_read_from_its_layers() -> None:
    assert stack(layer_types=[LOCAL, WIDE] * 3, sliding_window=128) == [near(128), causal()] * 3
    assert stack(layer_types=["mamba"] * 6) == [recurrent()] * 6
    assert list(Stack.from_hf({"layer_types": ["mamba"] * 3})) == [recurrent()] * 3
    assert stack(model_type="new", attention_chunk_size=5) == [causal() & chunked(5)] * 6
    assert (
        stack(model_type="new", layer_types=["hybrid_sliding"] * 6, sliding_window=9)
        == [near(9) | recurrent()] * 6
    )
    found = read({"model_type": "new", "num_hidden_layers": 1, "sliding_window": 9})
    assert any("'new' is not known" in note for note in found.notes)


def test_the_language_model_inside_a_multimodal_one() -> None:
    inner = {"num_hidden_layers": 2, "sliding_window": 8}
    found = read({"text_config": inner, "model_type": "gemma3", "vision_config": {}})
    assert found.model_type == "gemma3_text"
    assert found.layers == (near(8),) * 2
    assert any("images" in note for note in found.notes)


def test_notes_say_what_a_config_cannot() -> None:
    assert any("no edges" in note for note in read({"model_type": "gpt_oss"}).notes)
    training = read({"model_type": "big_bird"})
    assert any("first 1024 tokens" in note for note in training.notes)
    assert any("first 704 tokens" in n for n in read({"model_type": "big_bird"}, length=2048).notes)
    assert not read({"model_type": "llama", "num_hidden_layers": 2}).notes


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, "not a model's config"),
        ({"num_labels": 3}, "num_hidden_layers"),
        ({"model_type": 7}, "model_type is 7"),
        ({"model_type": "lama", "num_hidden_layers": 2}, "did you mean 'llama'"),
        ({"model_type": "llama", "num_hidden_layers": "six"}, "num_hidden_layers.*integer"),
        ({"model_type": "llama", "num_hidden_layers": True}, "num_hidden_layers.*integer"),
        ({"model_type": "llama", "num_hidden_layers": 2.5}, "num_hidden_layers.*integer"),
        ({"model_type": "llama", "num_hidden_layers": 0}, "at least 1"),
        ({"model_type": "llama", "num_hidden_layers": 10**9}, "at most"),
        ({"num_hidden_layers": 2, "layer_types": [WIDE]}, "one entry"),
        ({"num_hidden_layers": 2, "layer_types": WIDE}, "is a list"),
        ({"num_hidden_layers": 1, "layer_types": ["slidng_attention"]}, "did you mean"),
        ({"num_hidden_layers": 1, "layer_types": [[1]]}, "unknown here"),
        ({"num_hidden_layers": 1, "layer_types": [LOCAL]}, "sliding_window is missing"),
        ({"num_hidden_layers": 1, "sliding_window": -4}, "sliding_window.*at least 1"),
        ({"num_hidden_layers": 1, "sliding_window": 0}, "sliding_window.*at least 1"),
        ({"num_hidden_layers": 1, "is_encoder_decoder": True}, "two stacks"),
        ({"model_type": "t5", "num_layers": 6}, "two stacks"),
        ({"model_type": "gemma3", "text_config": []}, "text_config"),
        ({"model_type": "qwen2", "use_sliding_window": "yes"}, "use_sliding_window.*true, false"),
        ({"model_type": "jamba", "attn_layer_period": 4, "attn_layer_offset": 4}, "at most 3"),
        ({"model_type": "jamba", "attn_layer_period": 0}, "attn_layer_period.*at least 1"),
        ({"model_type": "zamba2", "num_hidden_layers": 9}, "layers_block_type"),
        ({"model_type": "gemma3n_text", "num_hidden_layers": 9}, "num_kv_shared_layers"),
        ({"model_type": "longformer", "attention_window": [7] * 12}, "even"),
        ({"model_type": "longformer", "attention_window": [8]}, "one entry"),
        ({"model_type": "big_bird", "attention_type": "dense"}, "attention_type"),
        ({"model_type": "big_bird", "block_size": 0}, "block_size.*at least 1"),
        ({"model_type": "gpt_neo", "attention_types": [[["global"], 10**12]]}, "at most 24"),
        ({"model_type": "gpt_neo", "attention_types": [3]}, "attention_types"),
        ({"model_type": "llama4_text", "no_rope_layers": [1]}, "no_rope_layers"),
        ({"model_type": "recurrent_gemma", "block_types": ["x"]}, "block_types"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "hybrid_override_pattern"),
        ({"model_type": "modernbert", "local_attention": "wide"}, "local_attention.*integer"),
    ],
)
def test_what_a_config_cannot_be(config: dict[str, object], word: str) -> None:
    with pytest.raises(PatternValueError, match=word) as raised:
        Stack.from_hf(config)
    assert str(raised.value).startswith("config: ")


def test_layers_that_choose_by_content_are_bounded() -> None:
    found = read({"model_type": "new", "layer_types": ["indexed_attention", WIDE]})
    assert found.layers == (causal(), causal())
    assert any("at most" in note for note in found.notes)


MLA = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_hidden_layers": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 2,
    "num_key_value_heads": 2, "index_head_dim": 8, "index_n_heads": 2, "n_shared_experts": 1,
}  # fmt: skip


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa"])
def test_sparse_attention_by_an_indexer(model_type: str) -> None:
    """What the indexer of each layer chose, bound as topk, is what the layer reads."""
    n = 24
    model, config = model_of(model_type, index_topk=5, **MLA)
    found = read(config)
    assert found.layers == (causal() & topk(5),) * 2
    assert "at most 5 of the earlier keys" in " ".join(found.notes)
    chosen: list[Any] = []
    for layer in model.layers:
        layer.self_attn.indexer.register_forward_hook(lambda *x: chosen.append(x[2][0].numpy()))
    built = reads_of(model, model.layers, n, use_cache=False)
    for l, layer in enumerate(found.layers):
        edges = lower(layer, n, layer=l, topk=np.stack(chosen)).dense() | np.eye(n, dtype=bool)
        assert np.array_equal(edges, built[l]), l


def test_sparse_attention_in_blocks() -> None:
    """MiniMax M3: blocks of keys, the query's own always among them."""
    n, sparse = 24, "minimax_m3_sparse"
    model, config = model_of(
        "minimax_m3_vl_text", layer_types=[sparse, "full_attention"], num_hidden_layers=2,
        index_topk_blocks=2, index_block_size=4, index_n_heads=1, index_head_dim=8, head_dim=8,
        dense_intermediate_size=16, shared_intermediate_size=16, rotary_dim=4, **FEW,
    )  # fmt: skip
    first, second = read(config).layers
    assert first == causal() & (window(0, block=4) | topk(1, block=4)) and second == causal()
    chosen: list[Any] = []
    indexer = model.layers[0].self_attn.indexer
    indexer.register_forward_hook(lambda *x: chosen.append(x[2]))
    built = reads_of(model, model.layers, n, use_cache=False)
    own = np.arange(n)[:, None] // 4
    blocks = chosen[0][0, 0].numpy() if hasattr(chosen[0], "numpy") else chosen[0][0][0, 0].numpy()
    rest = np.where(blocks == own, -1, blocks).max(axis=1, keepdims=True)
    edges = lower(first, n, topk=rest).dense() | np.eye(n, dtype=bool)
    assert np.array_equal(edges, built[0])


def test_fields_of_layers_that_choose() -> None:
    m3 = {"model_type": "minimax_m3_vl_text", "num_hidden_layers": 2}
    inner = {"sparse_attention_freq": [0, 1], "sparse_block_size": 64, "sparse_topk_blocks": 8}
    found = read({**m3, "sparse_attention_config": {**inner, "sparse_local_block": 0}})
    assert found.layers == (causal(), causal() & topk(8, block=64))
    assert read({"model_type": "deepseek_v32"}).layers == (causal() & topk(2048),) * 61
    pooled = {"model_type": "new", "layer_types": ["indexed_attention"], "index_topk": 8}
    assert read({**pooled, "index_kpool": 2}).layers == (causal(),)
    with pytest.raises(PatternValueError, match="sparse_attention_config is 3; it is an object"):
        read({**m3, "sparse_attention_config": 3})
    with pytest.raises(PatternValueError, match=r"sparse_attention_config\.sparse_block_size must"):
        read({**m3, "sparse_attention_config": {**inner, "sparse_block_size": 0}})


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=3),
    st.lists(st.one_of(st.none(), st.integers(0, 3), st.just([[1]]), st.just(LOCAL)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
)  # fmt: skip
NAMED = sorted({name for known in FAMILIES.values() for name in known.defaults}) + [
    *("layer_types", "layers_block_type", "is_causal", "is_decoder", "text_config", "block_types"),
    *("no_rope_layers", "full_attn_idxs", "attn_layer_indices", "use_bidirectional_attention"),
    *("is_encoder_decoder", "num_layers"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*FAMILIES, "other", None]), st.dictionaries(st.sampled_from(NAMED), JUNK))
def test_junk_is_refused_as_a_pattern_error(model_type: str, fields: dict[str, Any]) -> None:
    try:
        found = read({"model_type": model_type, **fields})
    except PatternError as error:
        assert len(str(error)) < 1000
    else:
        assert len(found.layers) == len(found.kv_from)


def test_files(tmp_path: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"num_hidden_layers": 3, "model_type": "llama"}))
    assert len(Stack.from_hf(path)) == len(Stack.from_hf(str(tmp_path))) == 3
    assert read(path).name == tmp_path.name
    for text in ("[", "[]", "[" * 100_000, '"' + "x" * 2**22 + '"', "9" * 10_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(PatternError, match=r"config\.json"):
            Stack.from_hf(path)
    with pytest.raises(PatternError, match="cannot read"):
        Stack.from_hf(tmp_path / "none.json")
    with pytest.raises(PatternError, match="to_dict"):
        Stack.from_hf(object())  # type: ignore[arg-type]


def test_the_command_line_shows_the_notes(tmp_path: Any) -> None:
    from click.testing import CliRunner

    from patterncc.cli import main

    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "big_bird", "num_hidden_layers": 2}))
    run = ["analyze", str(path), "--n", "1000", "-p", "length=1000", "--json"]
    done = CliRunner().invoke(main, run)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["depth_to_full"]["value"] == 2
    assert any("in evaluation" in note for note in answer["notes"])
    done = CliRunner().invoke(main, [*run[:4], "-p", "length=none"])
    assert done.exit_code == 2
