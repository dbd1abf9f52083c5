"""Encoders of transformers with patterns: the model in eager attention with the same dense mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracles_hf_parts import Largest, assert_same, dense, results, widened

import patterncc as pc
from patterncc.errors import BackendError, PatternValueError

NEAR = pc.window(5, 5) | pc.global_tokens([0])
EACH = pc.heads([pc.window(3, 3), pc.chunked(10), NEAR, pc.full()])
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bert(**changes: Any) -> Any:
    from transformers import BertConfig, BertModel

    return widened(BertModel(BertConfig(**SMALL | changes), add_pooling_layer=False))


def roberta() -> Any:
    from transformers import RobertaConfig, RobertaModel

    return widened(RobertaModel(RobertaConfig(**SMALL), add_pooling_layer=False))


def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, attention_dropout=0, dropout=0
    )
    return widened(DistilBertModel(config))


def vit() -> Any:
    from transformers import ViTConfig, ViTModel

    del (small := dict(SMALL))["vocab_size"]
    config = ViTConfig(**small, image_size=24, patch_size=4)
    return widened(ViTModel(config, add_pooling_layer=False))


def wav2vec2() -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        **SMALL | {"vocab_size": 32},
        conv_dim=(16, 16),
        conv_stride=(4, 4),
        conv_kernel=(4, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    return widened(Wav2Vec2Model(config))


def tokens(n: int = 30, lengths: tuple[int, ...] = (30, 21)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(n) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 64, (len(lengths), n), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def inputs_of(model: Any) -> dict[str, Any]:
    match model.main_input_name:
        case "pixel_values":
            return {"pixel_values": torch.randn(2, 3, 24, 24, dtype=torch.float64)}
        case "input_values":
            return {"input_values": torch.randn(2, 480, dtype=torch.float64)}
        case _:
            return tokens()


def tolerance(model: Any) -> float:
    """ViT's own eager attention takes its softmax in float32, whatever the model is in."""
    return 1e-5 if model.config.model_type == "vit" else 1e-9


@pytest.mark.parametrize(
    ("made", "where"),
    [
        (bert, r"encoder\.layer\.{}\.attention\.self"),
        (roberta, r"encoder\.layer\.{}\.attention\.self"),
        (distilbert, r"transformer\.layer\.{}\.attention"),
        (vit, r"layers\.{}\.attention"),
        (wav2vec2, r"encoder\.layers\.{}\.attention"),
    ],
    ids=["bert", "roberta", "distilbert", "vit", "wav2vec2"],
)
def test_outputs_and_gradients_are_those_of_the_dense_mask(
    made: Callable[[], Any], where: str
) -> None:
    model = made()
    inputs = inputs_of(model)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        before = results(model, **inputs)
        with pc.hf.apply(model, pc.Stack([NEAR, EACH])) as handle:
            got = results(model, **inputs)
        with dense(model, {where.format(0): NEAR, where.format(1): EACH}):
            expected = results(model, **inputs)
        assert len(handle.layers) == 2
        kept = inputs.get("attention_mask", torch.ones(expected[0].shape[:2])).bool()
        assert (got[0] - before[0])[kept].abs().max() > 1e-3
        assert_same((got[0][kept], {}), (expected[0][kept], {}), tolerance(model))
        after = results(model, **inputs)
        assert torch.equal(after[0], before[0])
        assert all(torch.equal(after[1][name], grad) for name, grad in before[1].items())


def test_gradients_with_padding() -> None:
    """Of the tokens alone: what padding's own rows give differs by what dense masks make of it."""
    model, inputs = bert(), tokens()
    keep = inputs["attention_mask"].bool()

    def grads() -> dict[str, Any]:
        model.zero_grad()
        model(**inputs).last_hidden_state[keep].square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    nothing = torch.zeros(1)
    with pc.hf.apply(model, pc.Stack([NEAR, EACH])):
        got = nothing, grads()
    layer = r"encoder\.layer\.{}\.attention\.self"
    with dense(model, {layer.format(0): NEAR, layer.format(1): EACH}):
        expected = nothing, grads()
    assert_same(got, expected)


@pytest.mark.parametrize("made", [bert, roberta, distilbert, vit, wav2vec2])
def test_by_registration_alone_the_model_runs_its_own_mask(made: Callable[[], Any]) -> None:
    model = made()
    inputs = inputs_of(model)
    model.set_attn_implementation("eager")
    expected = results(model, **inputs)
    pc.hf.register()
    model.set_attn_implementation("patterncc")
    assert_same(results(model, **inputs), expected, tolerance(model))


def test_bert_as_a_decoder() -> None:
    model = bert(is_decoder=True)
    inputs = tokens()
    near = pc.causal() & (pc.window(6) | pc.sink(2))
    with pc.hf.apply(model, near):
        got = model(**inputs).last_hidden_state
    with dense(model, {r"encoder\.layer\.\d\.attention\.self": near}):
        expected = model(**inputs).last_hidden_state
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[kept], expected[kept])


def test_two_towers_are_told_apart() -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 64, "intermediate_size": 48},
        vision_config={**tower, "image_size": 24, "patch_size": 4, "intermediate_size": 48},
    )
    model = widened(CLIPModel(config))
    with pytest.raises(PatternValueError, match=r"2 stacks .* pc.hf.apply\(model\.text_model"):
        pc.hf.apply(model, NEAR)
    inputs = tokens() | {"pixel_values": torch.randn(2, 3, 24, 24, dtype=torch.float64)}
    with pc.hf.apply(model.vision_model, NEAR):
        got = model(**inputs).image_embeds
    with dense(model, {r"vision_model.*self_attn": NEAR}):
        expected = model(**inputs).image_embeds
    torch.testing.assert_close(got, expected)


def test_a_causal_tower_is_not_made_to_look_ahead() -> None:
    """CLIP's text model says of its modules that they read both ways; its mask says otherwise."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    model = widened(CLIPTextModel(config))
    ids = tokens()["input_ids"]
    with (
        pc.hf.apply(model, NEAR),
        pytest.raises(BackendError, match=r"masks what is ahead.*pc\.causal\(\)"),
    ):
        model(ids)
    with pc.hf.apply(model, pc.causal() & NEAR):
        got = model(ids).last_hidden_state
    with dense(model, {r".*self_attn": pc.causal() & NEAR}):
        expected = model(ids).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_computes_with_its_mask_is_refused() -> None:
    from transformers import DogeConfig, DogeModel

    config = DogeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = DogeModel(config)
    model.set_attn_implementation("patterncc")
    with pytest.raises(BackendError, match=r"computes with its attention mask \(\.dtype\)"):
        model(tokens()["input_ids"])


def test_padding_on_the_left() -> None:
    """The first token stands at 0, wherever its slot is."""
    model, padded = bert(), tokens()
    flipped = {name: x.flip(1) for name, x in padded.items()}
    places = (flipped["attention_mask"].cumsum(1) - 1).clamp(min=0)
    alone = padded["input_ids"][1:, :21].flip(1)
    with pc.hf.apply(model, NEAR):
        got = model(**flipped, position_ids=places).last_hidden_state[1, 9:]
        expected = model(alone).last_hidden_state[0]
    torch.testing.assert_close(got, expected)


def test_dropout_in_training_is_refused_by_name() -> None:
    model = bert(attention_probs_dropout_prob=0.1)
    with pc.hf.apply(model, NEAR), torch.no_grad():
        model(**tokens())
        model.train()
        with pytest.raises(BackendError, match=r"encoder\.layer\.0.*dropout"):
            model(**tokens())


def test_a_stack_of_another_size_is_refused() -> None:
    model = bert()
    with pytest.raises(PatternValueError, match=r"encoder has 2 layers, the stack 3"):
        pc.hf.apply(model, pc.Stack([NEAR] * 3))
    with pytest.raises(PatternValueError, match=r"has 4 heads, its layer 3 patterns"):
        pc.hf.apply(model, pc.heads([NEAR] * 3))
    with pytest.raises(PatternValueError, match="no cross attention"):
        pc.hf.apply(model, cross=NEAR)


def test_no_square_tensor_at_8192_tokens() -> None:
    model = bert(max_position_embeddings=8192).float()
    ids = torch.randint(3, 64, (1, 8192))
    mask = torch.ones_like(ids)
    mask[:, 8000:] = 0
    with pc.hf.apply(model, NEAR), Largest() as largest:
        model(ids, attention_mask=mask).last_hidden_state.square().mean().backward()
    assert largest.most <= 8192 * 64
