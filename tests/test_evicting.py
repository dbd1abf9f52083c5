"""A transformers model gives the same tokens through a cache that evicts, in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import patterncc as pc
from patterncc.errors import BackendError, PatternValueError
from patterncc.fidelity import named_text, open_model

SINKS = pc.causal() & (pc.window(11) | pc.sink(4))
SHORT = pc.causal() & (pc.window(4) | pc.sink(2))
PATTERNS: dict[str, Any] = {
    "window": pc.causal() & pc.window(5),
    "sinks": SHORT,
    "chunks": pc.causal() & pc.chunked(8),
    "layers": pc.Stack([SHORT, pc.causal()]),
    "heads of a group": pc.heads([SHORT, pc.causal() & pc.window(2), pc.causal(), SHORT]),
    "random": pc.causal() & (pc.window(2) | pc.random_edges(2, past=True)),
    "strided": pc.causal() & (pc.window(2) | pc.strided(6)),
    "nothing to read": pc.causal() & pc.window(3) & ~pc.window(0),
}
FREE = ("window", "sinks", "chunks", "layers", "heads of a group", "nothing to read")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3, "do_sample": False},
    "chunks": {"do_sample": False, "prefill_chunk_size": 4},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama(**more: Any) -> Any:
    """A random Llama of 2 layers, 4 heads on 2 key heads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**{**sizes, **heads, "pad_token_id": 0, "eos_token_id": None, **more})
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


IDS = torch.randint(1, 97, (2, 10), generator=torch.Generator().manual_seed(1))


def generated(model: Any, ids: torch.Tensor, cache: Any, **way: Any) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        out: torch.Tensor = model.generate(ids, past_key_values=cache, max_new_tokens=16, **way)
    return out


CASES = [(name, way) for name in PATTERNS for way in ("greedy", "chunks")]
CASES += [(name, way) for name in ("sinks", "heads of a group") for way in ("sampling", "beams")]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_same_tokens(model: Any, name: str, way: str) -> None:
    with pc.hf.apply(model, PATTERNS[name]):
        whole = generated(model, IDS, DynamicCache(), **WAYS[way])
        cache = pc.hf.EvictingCache(model, tokens=26, poison=True)
        assert torch.equal(generated(model, IDS, cache, **WAYS[way]), whole)
        assert cache.plan is not None
        batch = len(IDS) * WAYS[way].get("num_beams", 1)
        assert cache.nbytes == batch * cache.plan.capacity_bytes
        assert cache.full_nbytes == batch * 25 * 2 * 2 * 2 * 8 * 4  # layers, heads, K and V, dim
        assert cache.nbytes < cache.full_nbytes


@pytest.mark.parametrize("name", FREE)
def test_a_length_that_is_not_known(model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned again when it is outgrown, by one token or by a chunk of them."""
    monkeypatch.setattr("patterncc.integrations.hf.planned.LEAST", 4)
    ids = IDS[:, :3]
    with pc.hf.apply(model, PATTERNS[name]), torch.no_grad():
        whole = model(torch.cat([ids, IDS, IDS], 1)).logits
        cache, got = pc.hf.EvictingCache(model, poison=True), []
        for part in (ids, *torch.split(IDS, 1, 1), *torch.split(IDS, 5, 1)):
            got.append(model(part, past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(got, 1), whole)
        assert cache.get_seq_length() == 23 and cache.get_max_length() == -1
        cache.reset()
        again = [model(part, past_key_values=cache).logits for part in torch.split(IDS, 1, 1)]
        torch.testing.assert_close(torch.cat(again, 1), model(IDS).logits)


def test_what_is_held(model: Any) -> None:
    """Counts and bytes, step by step, of a window and two sinks."""
    with pc.hf.apply(model, SHORT), torch.no_grad():
        cache = pc.hf.EvictingCache(model, tokens=10)
        model(IDS[:, :4], past_key_values=cache)
        for t in range(4, 10):
            model(IDS[:, t : t + 1], past_key_values=cache)
            expected = [j for j in range(t + 1) if j < 2 or j >= t - 4]
            assert [cache.held(layer, head) for layer in (0, 1) for head in (0, 1)] == [
                expected
            ] * 4
        assert cache.nbytes == 2 * 2 * 2 * 7 * 2 * 8 * 4  # batch, layers, heads, keys, K and V, dim
        assert cache.full_nbytes == 2 * 2 * 2 * 10 * 2 * 8 * 4
        assert repr(cache) == "EvictingCache(2 layers, 10 tokens, 3,584 of 5,120 bytes)"


def test_a_prompt_that_reads_both_ways(model: Any) -> None:
    prefix = pc.causal() & pc.window(3) | pc.prefix(10)
    with pc.hf.apply(model, prefix, ahead=True):
        whole = generated(model, IDS, DynamicCache(), do_sample=False)
        cache = pc.hf.EvictingCache(model, tokens=26, poison=True)
        assert torch.equal(generated(model, IDS, cache, do_sample=False), whole)
        with pytest.raises(PatternValueError, match="layer 0 reads later positions"):
            generated(model, IDS[:, :5], pc.hf.EvictingCache(model, tokens=26))


def test_edges_drawn_for_one_length(model: Any) -> None:
    drawn = pc.causal() & (pc.window(2) | pc.random_edges(2))
    with pc.hf.apply(model, drawn), pytest.raises(PatternValueError, match="drawn for one length"):
        pc.hf.EvictingCache(model, tokens=26)
    with pc.hf.apply(model, drawn, length=30):
        whole = generated(model, IDS, DynamicCache(), do_sample=False)
        cache = pc.hf.EvictingCache(model, poison=True)
        assert torch.equal(generated(model, IDS, cache, do_sample=False), whole)
        with pytest.raises(PatternValueError, match=r"tokens=31, .* length=30"):
            pc.hf.EvictingCache(model, tokens=31)


@pytest.mark.parametrize("option", ["sinks", "softcap"])
def test_options_of_scores(option: str) -> None:
    """Models with sinks of their own (gpt-oss) and softcaps (Gemma 2)."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 97}
    sizes |= {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
    if option == "sinks":
        made: Any = GptOssForCausalLM(GptOssConfig(num_local_experts=4, **sizes)).eval()
    else:
        made = Gemma2ForCausalLM(Gemma2Config(attn_logit_softcapping=2.0, **sizes)).eval()
    for pattern in (SHORT, PATTERNS["heads of a group"]):
        with pc.hf.apply(made, pattern):
            whole = generated(made, IDS, DynamicCache(), do_sample=False)
            cache = pc.hf.EvictingCache(made, tokens=26, poison=True)
            assert torch.equal(generated(made, IDS, cache, do_sample=False), whole)


def test_padding_on_the_left(model: Any) -> None:
    way = {"attention_mask": left_padded(), "do_sample": False}
    with pc.hf.apply(model, pc.causal() & pc.window(5)):
        whole = generated(model, IDS, DynamicCache(), **way)
        cache = pc.hf.EvictingCache(model, tokens=26, poison=True)
        assert torch.equal(generated(model, IDS, cache, **way), whole)
    with (
        pc.hf.apply(model, SHORT),
        pytest.raises(BackendError, match="padding on the left, and a pattern that counts"),
    ):
        generated(model, IDS, pc.hf.EvictingCache(model, tokens=26), **way)


def test_an_encoder_and_a_decoder() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "vocab_size": 97}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}
    more = {"max_source_positions": 20, "max_target_positions": 40, "pad_token_id": 0}
    ends = {"decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2}
    given = {**sizes, **heads, **more, **ends, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    whisper = WhisperForConditionalGeneration(WhisperConfig(**given)).eval()
    features = torch.randn(1, 8, 40)
    ids = IDS[:1].repeat(1, 2)
    with pc.hf.apply(whisper, decoder=SHORT), torch.no_grad():
        whole = whisper(features, decoder_input_ids=ids).logits
        cache = EncoderDecoderCache(pc.hf.EvictingCache(whisper, 20, poison=True), DynamicCache())
        state, got = whisper.model.encoder(features), []
        for part in torch.split(ids, 1, 1):
            step = {"encoder_outputs": state, "past_key_values": cache}
            got.append(whisper(decoder_input_ids=part, **step).logits)
        torch.testing.assert_close(torch.cat(got, 1), whole)


def test_a_pretrained_model() -> None:
    """Logits of a whole pass, on real text, and bytes as planned."""
    found = open_model("glassllm")
    ids = torch.tensor([found.encode(named_text("kjv").words[:4000])[:48]])
    with torch.no_grad(), pc.hf.apply(found.model, SINKS):
        whole = found.model(ids, use_cache=False).logits
        cache = pc.hf.EvictingCache(found.model, 48, poison=True)
        parts = [found.model(ids[:, :20], past_key_values=cache).logits]
        for t in range(20, 48):
            parts.append(found.model(ids[:, t : t + 1], past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
        assert cache.plan is not None
        assert cache.nbytes == cache.plan.capacity_bytes == cache.plan.full_bytes // 3


def undone(model: Any) -> None:
    with pc.hf.apply(model, SHORT):
        cache = pc.hf.EvictingCache(model)
        model(IDS, past_key_values=cache)
    model(IDS[:, :1], past_key_values=cache)


def test_a_pattern_that_is_put_in_again(model: Any) -> None:
    with torch.no_grad():
        with pc.hf.apply(model, SHORT):
            whole = model(IDS).logits
            cache = pc.hf.EvictingCache(model)
            model(IDS[:, :9], past_key_values=cache)
        with pc.hf.apply(model, SHORT):
            last = model(IDS[:, 9:], past_key_values=cache).logits
    torch.testing.assert_close(last, whole[:, 9:])


def another_pattern(model: Any) -> None:
    with pc.hf.apply(model, SHORT):
        cache = pc.hf.EvictingCache(model)
        model(IDS, past_key_values=cache)
    with pc.hf.apply(model, SINKS):
        model(IDS[:, :1], past_key_values=cache)


def another_copy(model: Any) -> None:
    """The keys of one model handed to the attention of another, by hand."""
    with pc.hf.apply(model, SHORT):
        cache = pc.hf.EvictingCache(model)
        model(IDS, past_key_values=cache)
        cache.update = lambda k, v, layer: (k, v)
        model(IDS[:, :1], past_key_values=cache)


def dense_instead(model: Any) -> None:
    """No call is answered from keys that are not all there."""
    with pc.hf.apply(model, SHORT, fallback="dense"):
        cache = pc.hf.EvictingCache(model)
        model(IDS, attention_mask=left_padded(), past_key_values=cache)


def left_padded() -> torch.Tensor:
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    return mask


def too_many(model: Any) -> None:
    with pc.hf.apply(model, SHORT):
        generated(model, IDS, pc.hf.EvictingCache(model, tokens=20), do_sample=False)


def another_batch(model: Any) -> None:
    with pc.hf.apply(model, SHORT):
        cache = pc.hf.EvictingCache(model)
        model(IDS, past_key_values=cache)
        model(IDS[:1, :1], past_key_values=cache)


def unknown_length(model: Any) -> None:
    with pc.hf.apply(model, PATTERNS["strided"]):
        model(IDS, past_key_values=pc.hf.EvictingCache(model))


def taken_back(model: Any) -> None:
    with pc.hf.apply(model, SHORT):
        cache = pc.hf.EvictingCache(model)
        model(IDS, past_key_values=cache)
        cache.crop(0)
        cache.crop(-1)


def looked_up(model: Any) -> None:
    with pc.hf.apply(model, SHORT):
        cache = pc.hf.EvictingCache(model)
        generated(model, IDS[:1].repeat(1, 2), cache, prompt_lookup_num_tokens=2, do_sample=False)


def with_gradient(model: Any) -> None:
    with pc.hf.apply(model, SHORT), torch.enable_grad():
        cache = pc.hf.EvictingCache(model)
        model(IDS, past_key_values=cache)
        model(IDS[:, :1], past_key_values=cache)


def shared(model: Any) -> None:
    other = llama()
    other.config.num_kv_shared_layers = 1
    with pc.hf.apply(other, SHORT):
        pc.hf.EvictingCache(other)


def relative(model: Any) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=97, decoder_start_token_id=0, **sizes))
    with pc.hf.apply(t5.eval(), decoder=SHORT):
        cache = EncoderDecoderCache(pc.hf.EvictingCache(t5), DynamicCache())
        t5(IDS, decoder_input_ids=IDS[:, :1], past_key_values=cache)


REFUSED: dict[Callable[[Any], object], str] = {
    lambda m: pc.hf.EvictingCache(m): "carries no pattern; make the cache while one is applied",
    another_pattern: "another one put in its place",
    undone: "has been undone, or another one put in its place",
    another_copy: "the cache hands over 1 keys without saying which",
    dense_instead: "padding on the left, and a pattern that counts",
    too_many: "21 tokens, and the cache is planned for 20; make it with tokens=21",
    another_batch: r"keys of shape \(1, 2, 1, 8\).* holds 2 sequences of 2 heads of 8",
    unknown_length: r"which keys can go depends on .* say it: EvictingCache\(model, tokens=",
    taken_back: "1 tokens cannot be taken back",
    looked_up: "tokens cannot be taken back",
    with_gradient: "EvictingCache has no gradient",
    shared: "layers that read the keys of earlier ones",
    relative: "a bias by distance",
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_refused(model: Any, case: Callable[[Any], object]) -> None:
    with pytest.raises((BackendError, PatternValueError), match=REFUSED[case]), torch.no_grad():
        case(model)
