"""From the fields of a config to the pattern of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patterncc.config import families as family
from patterncc.config.families import FAMILIES, KV_HEADS, LEGACY, NAMES, OUTER, Family
from patterncc.config.source import MAX_HEADS, MAX_LAYERS, Fields, Source, open_source
from patterncc.errors import PatternValueError, suggest
from patterncc.pattern import Pattern, check_int
from patterncc.primitives import (
    causal,
    chunked,
    convolution,
    full,
    global_tokens,
    recurrent,
    topk,
    window,
)

_KINDS = (
    *(family.FULL, family.SLIDING, family.CHUNKED, family.RECURRENT),
    *(family.CONV, family.MIXED, family.MIXED_SLIDING, family.ALONE),
)
_SPEAKING = ("layer_types", "sliding_window", "attention_chunk_size")
_TWO_STACKS = ("t5", "mt5", "bart", "mbart", "pegasus", "led", "bigbird_pegasus", "marian")
_IMAGES = (
    "the language model alone: the encoders of images or sound are left out, and where their "
    "tokens stand no config says (Gemma 3 lets the tokens of one image read one another both ways)"
)


@dataclass(frozen=True)
class ModelTopology:
    """A model's layers as patterns, next to the input first, and what its config leaves open.

    `kv_from[l]` is the layer whose keys and values layer l reads: its own but for models that
    share them.  `kv_heads` is the number of key/value heads, None where every query head has its
    own.  `notes` are sentences: what is assumed, approximate, or not in the config.
    """

    name: str
    model_type: str
    layers: tuple[Pattern, ...]
    notes: tuple[str, ...]
    kv_from: tuple[int, ...]
    kv_heads: int | None = None


def read(source: Source, length: int | None = None) -> ModelTopology:
    """The topology of a model from its config.json, the folder that holds it, or a dict.

    `length` is the number of tokens, for the families whose edges depend on it (BigBird: its last
    block is global); without it, the config's max_position_embeddings.

    >>> found = read({"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 4096})
    >>> found.layers
    (causal() & window(4095), causal() & window(4095))

    Raises PatternError for what cannot be read, PatternValueError for a config that is not a
    model's, a model_type that is unknown and says nothing of its layers, and a field that is
    missing, of the wrong type or out of range.
    """
    where, name, given = open_source(source)
    if length is not None:
        check_int("from_hf", "length", length, 1)
    where, given, notes = _language_model(where, given)
    f, known, model_type = _family(where, given)
    f.notes += notes
    count = _count(f)
    match model_type:
        case "longformer":
            layers = _longformer(f, count)
        case "big_bird" if not f.flag("is_decoder") and f.get("attention_type") != "original_full":
            layers = [_big_bird(f, length)] * count
        case _:
            kinds = _kinds(f, known, count)
            made = {kind: _pattern(f, known, kind) for kind in dict.fromkeys(kinds)}
            layers = [made[kind] for kind in kinds]
    kv_from = _kv_from(f, layers)
    kv_heads = _kv_heads(f, model_type)
    for note in known.notes:
        f.note(note)
    return ModelTopology(name, model_type, tuple(layers), tuple(f.notes), kv_from, kv_heads)


def _language_model(
    where: str, given: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any], list[str]]:
    """The config of the text decoder, which multimodal configs hold under text_config."""
    model_type = given.get("model_type")
    if given.get("is_encoder_decoder") or model_type in _TWO_STACKS:
        raise PatternValueError(
            f"{where}: is_encoder_decoder: an encoder-decoder has two stacks and a cross-attention "
            "between them; write a pattern file for each stack"
        )
    for key in ("text_config", "thinker_config", "llm_config"):
        inner = given.get(key)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise PatternValueError(
                f"{where}: {key} is {inner!r}; it is the config of a language model, an object"
            )
        if "model_type" not in inner and model_type in OUTER:
            inner = {**inner, "model_type": OUTER[str(model_type)]}
        return _language_model(f"{where}: {key}", inner)[:2] + ([_IMAGES],)
    return where, given, []


def _family(where: str, given: Mapping[str, Any]) -> tuple[Fields, Family, str]:
    """The fields under their newer names, the family's defaults with them."""
    fields = dict(given)
    for name, older in NAMES.items():
        for other in older:
            if fields.get(name) is None and fields.get(other) is not None:
                fields[name] = fields[other]
    model_type = fields.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise PatternValueError(f"{where}: model_type is {model_type!r}; it is a name, as 'llama'")
    model_type = OUTER.get(model_type or "", model_type or "")
    f = Fields(where, fields)
    if model_type in FAMILIES:
        f.defaults = FAMILIES[model_type].defaults
        return f, FAMILIES[model_type], model_type
    if not any(name in fields for name in ("num_hidden_layers", *_SPEAKING)):
        raise f.wrong(
            "no model_type that is known here and no num_hidden_layers: not a model's config",
            "give the config.json that lies beside a model's weights",
        )
    near = suggest(model_type, FAMILIES)
    if not any(fields.get(name) is not None for name in _SPEAKING):
        known = f"model_type '{model_type}' is not known here" if model_type else "no model_type"
        raise f.wrong(
            f"{known}, and there is no layer_types, "
            "sliding_window or attention_chunk_size to go by",
            f"{near if near.startswith('did') else 'docs/config.md lists the families'}; or write "
            "its layers as a pattern file",
        )
    both = _reads_both_ways(f)
    f.note(
        f"model_type {model_type!r} is not known here: {'both ways' if both else 'causal'}, as its "
        "architectures, layer_types, sliding_window and attention_chunk_size say; its code may "
        f"differ{'; ' + near if near.startswith('did') else ''}"
    )
    return f, Family(_by_fields, both_ways=both), model_type


def _reads_both_ways(f: Fields) -> bool:
    """Whether `architectures` names an encoder's head and no decoder's."""
    named = " ".join(str(x) for x in f.listed("architectures") or [])
    return "ForMaskedLM" in named and "ForCausalLM" not in named


def _count(f: Fields) -> int:
    """num_hidden_layers; where it is left out, the length of the list of layers."""
    if f.given.get("num_hidden_layers") is None:
        for name in ("layer_types", "hybrid_override_pattern"):
            listed = f.given.get(name)
            if isinstance(listed, list | tuple | str) and listed:
                return check_int(f.where, f"the length of {name}", len(listed), 1, MAX_LAYERS)
    return f.number("num_hidden_layers", 1, MAX_LAYERS)


def _by_fields(f: Fields, count: int) -> list[str]:
    """As transformers reads a config that lists no layers: windows, else chunks, else full."""
    off = f.given.get("use_sliding_window") is False
    if f.get("sliding_window") is not None and not off:
        return [family.SLIDING] * count
    chunks = f.get("attention_chunk_size") is not None
    return [family.CHUNKED if chunks else family.FULL] * count


def _kinds(f: Fields, known: Family, count: int) -> list[str]:
    listed = f.listed("layer_types", count) if known.list_wins else None
    if listed is None:
        return known.rule(f, count)
    kinds = []
    for l, kind in enumerate(listed):
        kind = LEGACY.get(str(kind), str(kind))
        if kind not in (*_KINDS, *family.CHOSEN):
            raise f.wrong(
                f"layer_types[{l}] is '{kind}', a kind of layer unknown here",
                f"{suggest(kind, (*_KINDS, *LEGACY))}",
            )
        kinds.append(kind)
    return kinds


def _pattern(f: Fields, known: Family, kind: str) -> Pattern:
    match kind:
        case family.FULL:
            return full() if _both_ways(f, known) else causal()
        case family.SLIDING:
            return _window(f, known)
        case family.CHUNKED:
            return causal() & chunked(f.number("attention_chunk_size"))
        case family.RECURRENT:
            return recurrent()
        case family.CONV:
            return convolution(f.number("conv_L_cache"))
        case family.MIXED:
            return causal() | recurrent()
        case family.MIXED_SLIDING:
            return _window(f, known) | recurrent()
        case _ if kind in family.CHOSEN:
            return _chosen(f, kind)
        case _:
            f.note("layers of feed-forward alone move nothing between tokens: window(0)")
            return window(0)


def _chosen(f: Fields, kind: str) -> Pattern:
    """Which of the earlier keys a layer that chooses by content may read."""
    if kind in family.INDEXED and f.get("index_topk") is not None and "index_kpool" not in f.given:
        count = f.number("index_topk")
        f.note(
            f"{kind}: a query reads at most {count} of the earlier keys (index_topk), chosen by "
            "content while the model runs"
        )
        return causal() & topk(count)
    if kind == "minimax_m3_sparse" and f.get("index_topk_blocks") is not None:
        count, block, least = (_of_minimax(f, *names) for names in _MINIMAX)
        local = min(count, least)
        f.note(
            f"{kind}: a query reads at most {count} blocks of {block} earlier keys, chosen by "
            f"content while the model runs, by each group of heads for itself; its last {local} "
            "are always among them"
        )
        rest = topk(count - local, block)
        return causal() & (window(local - 1, block=block) | rest if local else rest)
    f.note(
        f"{kind}: which of the earlier keys a query reads is chosen by content while the "
        "model runs; causal() is what it may read at most"
    )
    return causal()


_MINIMAX = (
    ("index_topk_blocks", "sparse_topk_blocks", 1),
    ("index_block_size", "sparse_block_size", 1),
    ("index_local_blocks", "sparse_local_block", 0),
)


def _of_minimax(f: Fields, name: str, older: str, least: int) -> int:
    """A field as newer configs name it; sparse_attention_config wins, as in transformers."""
    inner = f.given.get("sparse_attention_config")
    if isinstance(inner, Mapping) and inner.get(older) is not None:
        return check_int(f.where, f"sparse_attention_config.{older}", inner[older], least)
    return f.number(name, least)


def _window(f: Fields, known: Family) -> Pattern:
    """The window as the mask functions of transformers cut it."""
    if known.window == "local_attention":  # ModernBERT counts the window's whole width
        half = f.number("local_attention", 2) // 2
        return window(half, half) if known.both_ways else causal() & window(half - 1)
    if "use_sliding_window" in known.defaults and not f.flag("use_sliding_window"):
        raise f.wrong(
            "layer_types has sliding_attention, and use_sliding_window is false, which "
            "takes the window away",
            "set use_sliding_window to true or all layer_types to full_attention",
        )
    size = f.number(known.window)
    if known.flip and f.flag(known.flip):
        return window(size // 2, size // 2)
    if _both_ways(f, known):
        return window(size, size)
    return causal() & window(size - 1)


def _both_ways(f: Fields, known: Family) -> bool:
    if known.both_ways:
        if f.flag("is_decoder"):
            f.note("is_decoder: causal; cross-attention to an encoder is left out")
        return not f.flag("is_decoder")
    if known.flip and f.flag(known.flip):
        return True
    return f.given.get("is_causal") is False


def _longformer(f: Fields, count: int) -> list[Pattern]:
    """attention_window is the whole width, one number or one a layer."""
    widths = f.get("attention_window")
    if not isinstance(widths, list | tuple):
        widths = [f.number("attention_window", 2)] * count
    listed = Fields(f.where, {"attention_window": widths}).listed("attention_window", count)
    assert listed is not None
    found: list[Pattern] = []
    for l, width in enumerate(listed):
        half = check_int(f.where, f"attention_window[{l}]", width, 2) // 2
        if width % 2:
            raise f.wrong(f"attention_window[{l}] is {width}", "it is even: half on each side")
        found.append(window(half, half))
    return found


def _big_bird(f: Fields, length: int | None) -> Pattern:
    """What transformers' block-sparse BigBird reads in evaluation.

    Its random block indices are all zero there: block 0, which is global already.
    """
    block, drawn = f.number("block_size"), f.number("num_random_blocks", 0)
    if f.get("attention_type") != "block_sparse":
        raise f.wrong(
            f"attention_type is {f.get('attention_type')!r}", "known: block_sparse, original_full"
        )
    n = f.number("max_position_embeddings") if length is None else length
    shortest = (5 + 2 * drawn) * block
    f.note(
        f"up to {shortest} tokens, and in every later call after one such, BigBird's code switches "
        "to full attention"
    )
    if n <= shortest:
        f.note(f"laid for {n} tokens: full attention")
        return full()
    f.note(
        f"laid for {n} tokens: the last block of {block}, which is global, stands at the end; for "
        "another length give length="
    )
    f.note(
        "in evaluation the random blocks of the shipped code are all block 0, so there are no "
        "random edges; keys of block 0 count once more for each in the softmax"
    )
    f.note(
        f"in training, numpy draws {drawn} random blocks a row and head, seeded by the layer, from "
        f"the first {1024 if n in (1024, 3072, 4096) else shortest} tokens alone"
    )
    last = (n - 1) // block * block
    ends = global_tokens(range(block)) | global_tokens(range(last, n))
    return window(1, 1, block=block) | ends


def _kv_from(f: Fields, layers: list[Pattern]) -> tuple[int, ...]:
    """Layers at the end that read the keys and values of the last layer of their kind before."""
    own = tuple(range(len(layers)))
    shared = f.get("num_kv_shared_layers")
    if shared is None or check_int(f.where, "num_kv_shared_layers", shared, 0) == 0:
        return own
    first = len(layers) - shared
    kept = {layer: l for l, layer in enumerate(layers[: max(0, first)])}
    if first < 1 or set(layers) - set(kept):
        raise f.wrong(
            f"num_kv_shared_layers is {shared} of {len(layers)} layers, which leaves no layer "
            "of some kind with keys and values of its own",
            "make it smaller",
        )
    f.note(
        f"layers {first} to {len(layers) - 1} read the keys and values of layer "
        + " or ".join(str(l) for l in sorted({kept[x] for x in layers[first:]}))
        + " (num_kv_shared_layers)"
    )
    return own[:first] + tuple(kept[layer] for layer in layers[first:])


def _dividing(f: Fields, kv_heads: int) -> int:
    """A number of key/value heads that the query heads, where the config says them, divide into."""
    heads = f.given.get("num_attention_heads")
    if isinstance(heads, int) and heads % kv_heads:
        raise f.wrong(
            f"num_key_value_heads is {kv_heads} and num_attention_heads {heads}",
            "every key/value head serves as many query heads, so it divides their number",
        )
    return kv_heads


def _kv_heads(f: Fields, model_type: str) -> int | None:
    """How many key/value heads there are; None where every query head has its own."""
    value = f.given.get("num_key_value_heads", f.given.get("num_kv_heads"))
    if model_type in ("falcon", "gpt_bigcode") and not f.flag("new_decoder_architecture"):
        return 1 if f.given.get("multi_query", True) else None
    if value is None and isinstance(inner := f.given.get("attn_config"), Mapping):
        value = inner.get("kv_n_heads")  # DBRX
    if isinstance(value, list | tuple):
        f.note("num_key_value_heads is a list: the layers differ, and the stack holds no number")
        return None
    if value is not None:
        return _dividing(f, check_int(f.where, "num_key_value_heads", value, 1, MAX_HEADS))
    if "num_key_value_heads" in f.given or model_type not in KV_HEADS:
        return None
    value = KV_HEADS[model_type]
    f.note(f"num_key_value_heads is not in the config: {value}, the default of transformers")
    return value
