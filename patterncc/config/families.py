"""What the configs of each family leave unsaid: defaults, and the rule that orders the layers.

A rule names the kind of every layer, as `layer_types` does in newer configs; topology.py turns a
kind into a pattern.  Defaults are those of transformers 5.23; the tests hold both to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from patterncc.config.source import Fields
from patterncc.pattern import check_int

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
RECURRENT, CONV, MIXED = "linear_attention", "conv", "hybrid"
MIXED_SLIDING, ALONE = "hybrid_sliding", "mlp"
CHOSEN = (
    "indexed_attention",
    "deepseek_sparse_attention",
    "qwen_sparse_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
)
"""Kinds of layers that choose by content, while the model runs, which keys a query reads."""

INDEXED = ("indexed_attention", "deepseek_sparse_attention")
"""Those of them that choose index_topk single keys."""

Rule = Callable[[Fields, int], list[str]]


def dense(_: Fields, count: int) -> list[str]:
    """Full attention in every layer, whatever else the config holds."""
    return [FULL] * count


def one_window(f: Fields, count: int) -> list[str]:
    """A window in every layer as soon as sliding_window has a value."""
    if f.given.get("layer_types") is not None:
        f.note("layer_types is in the config, and transformers ignores it for this model_type")
    return [FULL if f.get("sliding_window") is None else SLIDING] * count


def window_by_flag(f: Fields, count: int) -> list[str]:
    """A window in every layer if use_sliding_window says so."""
    return one_window(f, count) if f.flag("use_sliding_window") else [FULL] * count


def every(
    period: int | str, local: str = SLIDING, wide: str = FULL, first: bool = False
) -> Callable[[Fields, int], list[str]]:
    """One wide layer in `period`, the last of each period (or the first), the others local.

    `period` is a number or the name of the field that holds it.
    """

    def rule(f: Fields, count: int) -> list[str]:
        step = period if isinstance(period, int) else f.number(period)
        at = 0 if first else step - 1
        return [wide if l % step == at else local for l in range(count)]

    return rule


def after_first(f: Fields, count: int) -> list[str]:
    """Qwen: windows from layer max_window_layers on, if use_sliding_window says so."""
    if not f.flag("use_sliding_window"):
        return [FULL] * count
    dense_layers = f.number("max_window_layers", 0)
    return [FULL if l < dense_layers else SLIDING for l in range(count)]


def without_rope(local: str, wide: str) -> Rule:
    """Llama 4, SmolLM3: layers without rotary positions are the `wide` ones."""

    def rule(f: Fields, count: int) -> list[str]:
        rope = f.listed("no_rope_layers")
        if not rope:  # an empty list stands for "by the interval" in Llama 4's configs
            return every("no_rope_layer_interval", local, wide)(f, count)
        if len(rope) < count:
            raise f.wrong(
                f"no_rope_layers has {len(rope)} entries and the model {count} layers",
                "give one entry for each layer",
            )
        return [local if x else wide for x in rope[:count]]

    return rule


def smollm3(f: Fields, count: int) -> list[str]:
    """Windows in the layers without rotary positions, if use_sliding_window says so."""
    if not f.flag("use_sliding_window") or f.get("sliding_window") is None:
        return [FULL] * count
    return without_rope(FULL, SLIDING)(f, count)


def jamba(f: Fields, count: int) -> list[str]:
    """One attention layer in attn_layer_period, at attn_layer_offset; Mamba in between."""
    period = f.number("attn_layer_period")
    at = f.number("attn_layer_offset", 0, period - 1)
    return [FULL if l % period == at else RECURRENT for l in range(count)]


def zamba(f: Fields, count: int) -> list[str]:
    """Two Mamba layers, a hybrid one, then one hybrid layer in attn_layer_period."""
    period = f.number("attn_layer_period")
    at = f.number("attn_layer_offset", 0)
    rest = [MIXED if l % period == at else RECURRENT for l in range(count - 3)]
    return ([RECURRENT, RECURRENT, MIXED] + rest)[:count]


def zamba2(f: Fields, count: int) -> list[str]:
    """The order of Zamba2 2.7B, which is all that transformers knows without a list."""
    gaps = chain([6], repeat(5, 6), [4, 3])
    order = [kind for gap in gaps for kind in [RECURRENT] * gap + [MIXED]] + [RECURRENT] * 2
    if count != len(order):
        raise f.wrong(
            f"layers_block_type is missing, and {count} layers are not the {len(order)} of the "
            "default order",
            'give "layers_block_type" one entry for each layer',
        )
    return order


def bamba(f: Fields, count: int) -> list[str]:
    """Attention at attn_layer_indices, Mamba elsewhere."""
    at = f.listed("attn_layer_indices") or []
    return [FULL if l in at else RECURRENT for l in range(count)]


def lfm2(f: Fields, count: int) -> list[str]:
    """Attention at full_attn_idxs (everywhere without), short convolutions elsewhere."""
    at = f.listed("full_attn_idxs")
    return [FULL if at is None or l in at else CONV for l in range(count)]


def recurrent_gemma(f: Fields, count: int) -> list[str]:
    """block_types, repeated: recurrent blocks and attention in a window."""
    blocks = f.listed("block_types") or ["recurrent", "recurrent", "attention"]
    known = {"recurrent": RECURRENT, "attention": SLIDING}
    for block in blocks:
        if block not in list(known):  # a list in its place has no hash
            raise f.wrong(f"block_types has {block!r}", "known: attention, recurrent")
    return [known[blocks[l % len(blocks)]] for l in range(count)]


def nemotron(f: Fields, count: int) -> list[str]:
    """hybrid_override_pattern: M is Mamba, * attention, - and E feed-forward alone."""
    letters = f.get("hybrid_override_pattern")
    kinds = {"M": RECURRENT, "*": FULL, "-": ALONE, "E": ALONE}
    if not isinstance(letters, str) or set(letters) - set(kinds) or len(letters) != count:
        raise f.wrong(
            f"hybrid_override_pattern is {letters!r}",
            f"write one of M * - E for each of {count} layers",
        )
    return [kinds[x] for x in letters]


def indexed(_: Fields, count: int) -> list[str]:
    """DeepSeek's sparse attention in every layer."""
    return [CHOSEN[0]] * count


def minimax_m3(f: Fields, count: int) -> list[str]:
    """Sparse layers where sparse_attention_config says so; full attention without it."""
    inner = f.get("sparse_attention_config")
    if inner is None:
        return [FULL] * count
    if not isinstance(inner, Mapping):
        raise f.wrong(f"sparse_attention_config is {inner!r}", "it is an object, or null")
    at = Fields(f.where, inner).listed("sparse_attention_freq", count)
    return [FULL] * count if at is None else ["minimax_m3_sparse" if x else FULL for x in at]


def gpt_neo(f: Fields, count: int) -> list[str]:
    """attention_types [[kinds, times], ...], kinds "global" or "local"."""
    named = {"global": FULL, "local": SLIDING}
    remedy = f'write [[["global", "local"], {max(1, count // 2)}]]'
    found: list[str] = []
    for item in f.listed("attention_types") or []:
        if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[0], list):
            raise f.wrong(f"attention_types has {item!r}", remedy)
        kinds, times = item
        for kind in kinds * check_int(f.where, "repeats in attention_types", times, 1, count):
            if kind not in list(named):
                raise f.wrong(f"attention_types has {kind!r}", "known: global, local")
            found.append(named[kind])
    if len(found) != count:
        raise f.wrong(f"attention_types gives {len(found)} layers of {count}", remedy)
    return found


@dataclass(frozen=True)
class Family:
    """How the layers of a model_type are ordered, and what its configs may leave out.

    `list_wins`: layer_types, where given, is what the model goes by.  `window` is the field that
    holds the window.  `both_ways`: queries read later keys too.  `flip` is the
    name of a flag that makes them do so.
    """

    rule: Rule
    defaults: Mapping[str, Any] = field(default_factory=dict)
    list_wins: bool = True
    window: str = "sliding_window"
    both_ways: bool = False
    flip: str = ""
    notes: tuple[str, ...] = ()


_SINKS = (
    "attention sinks of gpt-oss are one learned logit a head in the softmax, not tokens: "
    "they are no edges"
)
_LONGFORMER = (
    "global attention is chosen per batch by global_attention_mask (sequence classification: the "
    "first token; question answering: the question): unite each layer with "
    "global_tokens([...]) for yours"
)
_SHARED = "the attention blocks of Zamba share weights between layers, not keys and values"


def _n(layers: int, **more: Any) -> dict[str, Any]:
    return {"num_hidden_layers": layers, **more}


_DENSE = {
    "apertus": 32, "arcee": 32, "biogpt": 24, "bitnet": 30, "bloom": 2, "codegen": 28,
    "cohere": 40, "ctrl": 48, "dbrx": 24, "deepseek_v2": 32, "deepseek_v3": 61, "ernie4_5": 18,
    "ernie4_5_moe": 28, "falcon": 32, "flex_olmo": 32, "gemma": 28, "glm": 40, "glm4": 40,
    "glm4_moe": 46, "gpt2": 12, "gpt_bigcode": 12, "gpt_neox": 44, "gptj": 28, "granite": 32,
    "granitemoe": 32, "granitemoeshared": 32, "helium": 24, "hunyuan_v1_dense": 32,
    "hunyuan_v1_moe": 32, "jetmoe": 12, "llama": 32, "minicpm3": 62, "minimax_m2": 62, "mpt": 24,
    "nemotron": 32, "olmo": 32, "olmo2": 32, "olmoe": 16, "openai-gpt": 12, "opt": 12,
    "persimmon": 36, "phi": 24, "seed_oss": 64, "stablelm": 32, "xglm": 24,
}  # fmt: skip
_ENCODERS = {
    "albert": 12, "bert": 12, "camembert": 12, "deberta": 12, "deberta-v2": 24, "distilbert": 6,
    "electra": 12, "ernie": 12, "mpnet": 12, "roberta": 12, "xlm-roberta": 12,
}  # fmt: skip
_QWEN = {"use_sliding_window": False, "sliding_window": 4096}

FAMILIES: dict[str, Family] = {
    **{name: Family(dense, _n(count), list_wins=False) for name, count in _DENSE.items()},
    **{
        name: Family(dense, _n(count), list_wins=False, both_ways=True)
        for name, count in _ENCODERS.items()
    },
    "mistral": Family(one_window, _n(32, sliding_window=4096), list_wins=False),
    "mixtral": Family(one_window, _n(32), list_wins=False),
    "ministral": Family(one_window, _n(32, sliding_window=4096)),
    "ministral3": Family(one_window, _n(34), list_wins=False),
    "phi3": Family(one_window, _n(32), list_wins=False),
    "phimoe": Family(one_window, _n(32), list_wins=False),
    "starcoder2": Family(one_window, _n(30), list_wins=False),
    "gemma2": Family(every(2), _n(26, sliding_window=4096)),
    "gemma3_text": Family(
        every("sliding_window_pattern"),
        _n(26, sliding_window=4096, sliding_window_pattern=6),
        flip="use_bidirectional_attention",
    ),
    "gemma3n_text": Family(every(5), _n(35, sliding_window=512, num_kv_shared_layers=15)),
    "gpt_oss": Family(every(2), _n(36, sliding_window=128), notes=(_SINKS,)),
    "llama4_text": Family(
        without_rope(CHUNKED, FULL),
        _n(48, attention_chunk_size=8192, no_rope_layer_interval=4),
        notes=("chunks are counted from the first token that is not left padding",),
    ),
    "qwen2": Family(after_first, _n(32, max_window_layers=28, **_QWEN)),
    "qwen2_moe": Family(after_first, _n(24, max_window_layers=28, **_QWEN)),
    "qwen2_vl_text": Family(after_first, _n(80, max_window_layers=80, **_QWEN)),
    "qwen2_5_vl_text": Family(after_first, _n(80, max_window_layers=80, **_QWEN)),
    "qwen3": Family(after_first, _n(32, max_window_layers=28, **_QWEN)),
    "qwen3_moe": Family(window_by_flag, _n(24, **_QWEN), list_wins=False),
    "cohere2": Family(
        every("sliding_window_pattern"), _n(40, sliding_window=4096, sliding_window_pattern=4)
    ),
    "olmo3": Family(every(4), _n(32, sliding_window=4096)),
    "exaone4": Family(
        every("sliding_window_pattern"), _n(32, sliding_window=4096, sliding_window_pattern=4)
    ),
    "smollm3": Family(smollm3, _n(36, use_sliding_window=False, no_rope_layer_interval=4)),
    "cwm": Family(every(4, first=True), _n(64, sliding_window=8192)),
    "gpt_neo": Family(
        gpt_neo,
        _n(24, window_size=256, attention_types=[[["global", "local"], 12]]),
        window="window_size",
    ),
    "modernbert": Family(
        every("global_attn_every_n_layers", first=True),
        _n(22, local_attention=128, global_attn_every_n_layers=3),
        window="local_attention",
        both_ways=True,
    ),
    "modernbert-decoder": Family(
        every("global_attn_every_n_layers", first=True),
        _n(22, local_attention=128, global_attn_every_n_layers=3),
        window="local_attention",
    ),
    "jamba": Family(jamba, _n(32, attn_layer_period=8, attn_layer_offset=4), list_wins=False),
    "zamba": Family(zamba, _n(76, attn_layer_period=6, attn_layer_offset=4), notes=(_SHARED,)),
    "zamba2": Family(zamba2, _n(54), notes=(_SHARED,)),
    "falcon_h1": Family(lambda f, count: [MIXED] * count, _n(32), list_wins=False),
    "bamba": Family(bamba, _n(32), list_wins=False),
    "granitemoehybrid": Family(lambda f, count: [RECURRENT] * count, _n(32)),
    "nemotron_h": Family(nemotron, _n(4, hybrid_override_pattern="ME*-")),
    "recurrent_gemma": Family(
        recurrent_gemma, _n(26, attention_window_size=2048), False, "attention_window_size"
    ),
    "lfm2": Family(lfm2, _n(32, conv_L_cache=3)),
    "lfm2_moe": Family(lfm2, _n(32, conv_L_cache=3)),
    "qwen3_next": Family(
        every("full_attention_interval", RECURRENT), _n(48, full_attention_interval=4)
    ),
    "minimax": Family(every(2, RECURRENT, first=True), _n(32)),
    "mamba": Family(lambda f, count: [RECURRENT] * count, _n(32), list_wins=False),
    "mamba2": Family(lambda f, count: [RECURRENT] * count, _n(64), list_wins=False),
    "falcon_mamba": Family(lambda f, count: [RECURRENT] * count, _n(32), list_wins=False),
    "deepseek_v32": Family(indexed, _n(61, index_topk=2048), list_wins=False),
    "glm_moe_dsa": Family(indexed, _n(78, index_topk=2048), list_wins=False),
    "minimax_m3_vl_text": Family(
        minimax_m3, _n(60, index_topk_blocks=16, index_block_size=128, index_local_blocks=1)
    ),
    "longformer": Family(dense, _n(12, attention_window=512), False, notes=(_LONGFORMER,)),
    "big_bird": Family(
        dense,
        _n(
            12, attention_type="block_sparse", block_size=64, num_random_blocks=3,
            max_position_embeddings=4096,
        ),
        list_wins=False,
        both_ways=True,
    ),
}  # fmt: skip
"""Every family known by name; a config of another is read from its `layer_types` and windows."""

KV_HEADS = {
    "bitnet": 5, "dbrx": 1, "ernie4_5": 2, "ernie4_5_moe": 4, "glm": 2, "glm4": 2, "glm4_moe": 8,
    "jetmoe": 16, "minimax_m2": 8, "seed_oss": 8, "mistral": 8, "mixtral": 8, "ministral": 8,
    "ministral3": 8, "phimoe": 8, "starcoder2": 2, "gemma2": 4, "gemma3_text": 4,
    "gemma3n_text": 2, "gpt_oss": 8, "llama4_text": 8, "qwen2_vl_text": 8, "qwen2_5_vl_text": 8,
    "qwen3_moe": 4, "smollm3": 4, "cwm": 8, "jamba": 8, "falcon_h1": 8, "bamba": 8,
    "nemotron_h": 8, "lfm2": 8, "lfm2_moe": 8, "qwen3_next": 2, "minimax": 8,
    "minimax_m3_vl_text": 4,
}  # fmt: skip
"""Key/value heads of the families that do not give every query head its own unless told to."""

OUTER = {
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "llama4": "llama4_text",
    "qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text", "mistral3": "mistral",
    "llava": "llama", "minimax_m3_vl": "minimax_m3_vl_text",
}  # fmt: skip
"""model_type of the language model inside a multimodal one, where its text_config omits it."""

NAMES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "layer_types": ("layers_block_type",),
}
"""Other names of a field, as older families wrote it."""

LEGACY = {"mamba": RECURRENT, "attention": FULL, "moe": ALONE, "short_conv": CONV}
"""Older names of the kinds of layers."""
