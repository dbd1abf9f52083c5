"""Encoder-decoder models of transformers with patterns on each part, and T5's bias by distance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracles_hf_parts import Largest, assert_same, dense, results, widened

import patterncc as pc
from patterncc.errors import BackendError, PatternValueError

NEAR = pc.window(5, 5) | pc.global_tokens([0])
PAST = pc.causal() & (pc.window(6) | pc.sink(2))
ACROSS = pc.heads([pc.window(4, 4) | pc.sink(1)] * 2 + [pc.full(), pc.chunked(8) | pc.sink(1)])
PARTS: dict[str, Any] = {"encoder": NEAR, "decoder": PAST, "cross": ACROSS}
T5_NAMES = {
    "encoder": r"encoder\..*SelfAttention",
    "decoder": r"decoder\..*SelfAttention",
    "cross": r"decoder\..*EncDecAttention",
}
BART_NAMES = {
    "encoder": r".*encoder\.layers\.\d\.self_attn",
    "decoder": r".*decoder\.layers\.\d\.self_attn",
    "cross": r".*encoder_attn",
}
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def t5(kind: str = "t5", **changes: Any) -> Any:
    import transformers as hf

    config: Any
    config, model = {
        "t5": (hf.T5Config, hf.T5ForConditionalGeneration),
        "umt5": (hf.UMT5Config, hf.UMT5ForConditionalGeneration),
    }[kind]
    sizes = {
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "decoder_start_token_id": 0,
    }
    return widened(model(config(**sizes | changes)), 0.5)


def bart(**changes: Any) -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(**SIZES | changes, max_position_embeddings=64, forced_eos_token_id=None)
    return widened(BartForConditionalGeneration(config))


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        **SIZES,
        num_mel_bins=8,
        max_source_positions=30,
        max_target_positions=40,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return widened(WhisperForConditionalGeneration(config))


MODELS = {"t5": t5, "umt5": lambda: t5("umt5"), "bart": bart, "whisper": whisper}


def names(model: Any) -> dict[str, str]:
    return T5_NAMES if "t5" in model.config.model_type else BART_NAMES


def source(model: Any) -> dict[str, Any]:
    """Two sequences, the second shorter where the model takes padding."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, 8, 60, generator=generator, dtype=torch.float64)}
    mask = (torch.arange(30) < torch.tensor([[30], [23]])).long()
    return {"input_ids": torch.randint(3, 64, (2, 30), generator=generator), "attention_mask": mask}


def training(model: Any) -> dict[str, Any]:
    ids = torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(2))
    return source(model) | {"decoder_input_ids": ids, "use_cache": False}


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients_are_those_of_the_dense_mask(kind: str) -> None:
    """All parts at once, and each alone, when the others keep what they had."""
    model = MODELS[kind]()
    inputs = training(model)
    for implementation, given in [
        ("eager", tuple(PARTS)),
        ("eager", ("encoder",)),
        ("sdpa", ("decoder",)),
        ("sdpa", ("cross",)),
    ]:
        model.set_attn_implementation(implementation)
        before = results(model, **inputs)
        with pc.hf.apply(model, **{part: PARTS[part] for part in given}) as handle:
            got = results(model, **inputs)
        assert len(handle.layers) == 2 * len(given)
        with dense(model, {names(model)[part]: PARTS[part] for part in given}):
            expected = results(model, **inputs)
        assert_same(got, expected)
        assert (got[0] - before[0]).abs().max() > 1e-3
        after = results(model, **inputs)
        assert torch.equal(after[0], before[0])
        assert all(torch.equal(after[1][name], grad) for name, grad in before[1].items())


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_the_bias_is_learned(kind: str) -> None:
    """Its embedding's gradient is that of the eager model, and is not nothing."""
    model = t5(kind)
    inputs = source(model) | {"labels": torch.randint(3, 64, (2, 20))}
    with pc.hf.apply(model, **PARTS):
        grads = results(model, **inputs)[1]
    biases = [name for name in grads if "relative_attention_bias" in name]
    assert len(biases) == (2 if kind == "t5" else 4)
    assert all(grads[name].abs().max() > 1e-6 for name in biases)


def test_undone_a_model_carries_nothing() -> None:
    model = t5()
    before = [set(vars(module)) for module in model.modules()]
    pc.hf.apply(model, **PARTS).undo()
    assert [set(vars(module)) for module in model.modules()] == before
    attention = model.decoder.block[1].layer[1].EncDecAttention
    assert attention.has_relative_attention_bias is False


@pytest.mark.parametrize("kind", MODELS)
def test_by_registration_alone_the_model_runs_its_own_mask(kind: str) -> None:
    model = MODELS[kind]()
    inputs = training(model)
    model.set_attn_implementation("eager")
    expected = results(model, **inputs)
    tokens = model.generate(**source(model), max_new_tokens=8, do_sample=False)
    pc.hf.register()
    model.set_attn_implementation("patterncc")
    assert_same(results(model, **inputs), expected)
    assert torch.equal(model.generate(**source(model), max_new_tokens=8, do_sample=False), tokens)


def generated(model: Any, steps: int, **given: Any) -> torch.Tensor:
    """New tokens alone: Whisper leaves the first out."""
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False} | given
    ids: torch.Tensor = model.generate(**source(model), **options)
    return ids[:, -steps:]


def greedy(model: Any, steps: int) -> torch.Tensor:
    """The same by whole passes, no step against a cache."""
    ids = torch.full((2, 1), model.config.decoder_start_token_id)
    for _ in range(steps):
        with torch.no_grad():
            out = model(**source(model), decoder_input_ids=ids, use_cache=False).logits[:, -1]
        out[:, model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, out.argmax(-1)[:, None]], 1)
    return ids[:, 1:]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_the_same_tokens_where_the_pattern_is_the_models_own_mask(kind: str, cache: str) -> None:
    model = MODELS[kind]()
    given: dict[str, Any] = {"use_cache": False} if cache == "none" else {}
    if cache == "static":
        given = {"cache_implementation": "static"}
    for beams in (1, 3):
        expected = generated(model, 9, num_beams=beams, **given)
        with pc.hf.apply(model, encoder=pc.full(), decoder=pc.causal(), cross=pc.full()):
            assert torch.equal(generated(model, 9, num_beams=beams, **given), expected)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decoding_reads_what_a_whole_pass_reads(kind: str, cache: str) -> None:
    """Step by step, cross-attention's queries stand where the decoder's do."""
    model = MODELS[kind]()
    ids = torch.full((2, 1), model.config.decoder_start_token_id)
    across = pc.heads([pc.window(1, 3), pc.window(4, 4) | pc.sink(1), pc.full(), pc.chunked(4)])
    with dense(model, {names(model)["decoder"]: PAST, names(model)["cross"]: across}):
        for _ in range(14):
            out = model(**source(model), decoder_input_ids=ids, use_cache=False).logits[:, -1]
            out[:, model.config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, out.argmax(-1)[:, None]], 1)
    given = {"cache_implementation": "static"} if cache == "static" else {}
    with pc.hf.apply(model, decoder=PAST, cross=across):
        assert torch.equal(generated(model, 14, **given), ids[:, 1:])
    assert len(set(ids.flatten().tolist())) > 2


def test_cross_attention_of_an_encoder_model_made_a_decoder() -> None:
    """BERT numbers cross-attention as the self-attention of its layer."""
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
    )
    model = widened(BertLMHeadModel(config))
    states = torch.randn(2, 25, 32, dtype=torch.float64)
    ids = torch.randint(3, 64, (2, 12))
    seen = (torch.arange(25) < torch.tensor([[25], [17]])).long()
    given = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
    where = {r".*\.attention\.self": PAST, r".*crossattention\.self": ACROSS}
    with dense(model, where):
        expected = results(model, input_ids=ids, **given, use_cache=False)
    with pc.hf.apply(model, decoder=PAST, cross=ACROSS), torch.no_grad():
        cache, steps = None, []
        for t in range(12):
            out = model(ids[:, t : t + 1], **given, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), expected[0])
    with pc.hf.apply(model, decoder=PAST, cross=ACROSS):
        assert_same(results(model, input_ids=ids, **given, use_cache=False), expected)


def test_a_slanted_band_for_speech() -> None:
    """Decoder position i reads encoder positions around 1.5 i, as a transcript follows speech."""
    model = whisper()
    band = pc.from_mask_mod(lambda b, h, i, j: (2 * j - 3 * i < 16) & (3 * i - 2 * j < 16), n=40)
    inputs = training(model)
    with dense(model, {BART_NAMES["cross"]: band}):
        expected = results(model, **inputs)
        ids = greedy(model, 12)
    with pc.hf.apply(model, cross=band):
        assert_same(results(model, **inputs), expected)
        assert torch.equal(generated(model, 12), ids)


def test_a_decoder_padded_on_the_left() -> None:
    """Its positions differ from one sequence to the next: only patterns that ask none are run."""
    model = bart()
    seen = torch.ones(2, 20, dtype=torch.long)
    seen[1, :6] = 0
    inputs = training(model) | {"decoder_attention_mask": seen}
    with (
        pc.hf.apply(model, cross=ACROSS),
        pytest.raises(BackendError, match=r"layers\.0\.encoder_attn.* padded on the left"),
    ):
        model(**inputs)
    with pc.hf.apply(model, cross=pc.sink(9)):
        got = model(**inputs).logits
    with dense(model, {BART_NAMES["cross"]: pc.sink(9)}):
        expected = model(**inputs).logits
    torch.testing.assert_close(got[seen.bool()], expected[seen.bool()])


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_activation_checkpoints(kind: str) -> None:
    model = MODELS[kind]()
    inputs = training(model)
    with pc.hf.apply(model, **PARTS):
        expected = results(model, **inputs)
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
        assert_same(results(model, **inputs), expected)


def test_a_bias_of_places_on_a_page_is_refused() -> None:
    from transformers import UdopConfig, UdopModel

    config = UdopConfig(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, image_size=32
    )
    model = UdopModel(config).eval()
    ids = torch.randint(3, 64, (1, 10))
    inputs = {"input_ids": ids, "bbox": torch.rand(1, 10, 4), "decoder_input_ids": ids}
    expected = model(**inputs).last_hidden_state
    with pc.hf.apply(model, decoder=pc.causal(), cross=pc.full()):
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected)
    with (
        pc.hf.apply(model, encoder=NEAR),
        pytest.raises(BackendError, match="not known to depend on the distance alone"),
    ):
        model(**inputs)


def test_dropout_in_training_is_refused_by_name() -> None:
    model = t5(dropout_rate=0.1).train()
    with (
        pc.hf.apply(model, decoder=PAST),
        pytest.raises(BackendError, match=r"decoder\.block\.0.*dropout"),
    ):
        model(**training(model))


def test_what_does_not_fit_is_refused() -> None:
    model = bart()
    with pytest.raises(PatternValueError, match=r"cross, layer 0: .* two sequences"):
        pc.hf.apply(model, cross=PAST)
    with pytest.raises(PatternValueError, match="name the part"):
        pc.hf.apply(model, NEAR)
    with pytest.raises(PatternValueError, match=r"decoder has 2 layers, the stack 3"):
        pc.hf.apply(model, decoder=pc.Stack([PAST] * 3))
    with pytest.raises(PatternValueError, match=r"encoder_attn has 4 heads, its layer 3"):
        pc.hf.apply(model, cross=pc.heads([NEAR] * 3))
    with pytest.raises(PatternValueError, match="no cross attention"):
        pc.hf.apply(t5().encoder, cross=NEAR)
    narrow = t5(relative_attention_num_buckets=32, relative_attention_max_distance=16)
    with pytest.raises(BackendError, match="max_distance 16 is not above half"):
        pc.hf.apply(narrow, encoder=NEAR)
    assert not any("_patterncc" in key for m in model.modules() for key in vars(m))


def test_no_square_tensor_at_8192_tokens() -> None:
    model = t5().float()
    ids = torch.randint(3, 64, (1, 8192))
    with pc.hf.apply(model, **PARTS | {"cross": pc.window(16, 16)}), Largest() as largest:
        out = model(input_ids=ids, decoder_input_ids=ids, use_cache=False)
        out.logits.square().mean().backward()
    assert largest.most <= 8192 * 64
