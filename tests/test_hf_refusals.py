"""What a model under a pattern refuses, by name and with the remedy; what undoing leaves."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles_hf import W, eager, floats, model_of, text
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    DynamicCache,
    StaticCache,
)
from transformers.models.llama import modeling_llama

import patterncc as pc
from patterncc.errors import BackendError, PatternError, PatternValueError
from patterncc.integrations.hf.layouts import Layouts
from patterncc.integrations.hf.serve import check_read_in_time

SINKS = pc.causal() & (pc.window(4) | pc.sink(2))
NARROW = pc.causal() & pc.window(4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (pc.Stack([SINKS] * 3), "2 layers, the stack 3, which does not"),
        (pc.heads([SINKS] * 3), "4 heads, its layer 3 patterns; give one"),
        (None, "no pattern given"),
    ],
)
def test_other_numbers_of_layers_and_heads(pattern: Any, message: str) -> None:
    model = model_of("llama")
    with pytest.raises(PatternValueError, match=message):
        pc.hf.apply(model, pattern)
    assert not any(hasattr(m, "_patterncc") for m in model.modules())


def test_options_of_apply() -> None:
    model = model_of("llama")
    for wrong in ({"dropout": "off"}, {"fallback": "sdpa"}, {"length": 0}):
        with pytest.raises(PatternValueError, match=f"hf.apply: {next(iter(wrong))}"):
            pc.hf.apply(model, SINKS, **wrong)
    with pytest.raises(BackendError, match="Linear has no module that takes its attention from"):
        pc.hf.apply(torch.nn.Linear(2, 2), SINKS)
    with (
        pc.hf.apply(model, SINKS),
        pytest.raises(BackendError, match="carries a pattern; take it out with"),
    ):
        pc.hf.apply(model, SINKS)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (pc.window(2, 2), {}, "reads later positions, .* ahead=True"),
        (SINKS | pc.edges(torch.ones(9, 9).numpy() > 0), {}, "reads later positions"),
        ("streaming-llm", {}, "not a str; a pattern file is read by pc.load"),
        ([SINKS], {}, "not a list; several layers are pc.Stack"),
        (None, {"encoders": SINKS}, "'encoders' is no argument.* did you mean 'encoder'"),
        (SINKS, {"lenght": 9}, "'lenght' is no argument.* did you mean 'length'"),
        (pc.Stack([SINKS] * 5), {}, "2 layers, the stack 5, .* this one cut"),
    ],
)
def test_slips_of_the_pen(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PatternError, match=message):
        pc.hf.apply(model_of("llama"), given, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_mask": floats([torch.ones(9, 9).bool()])}, "mask of shape .* given by hand"),
        ({"output_attentions": True}, "output_attentions asks for weights"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 1]])}, "padding between tokens"),
        ({"some_bias": torch.ones(9)}, "a tensor some_bias of shape .9,., which may change"),
        ({"position_ids": torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5]])}, "position_ids jump and"),
    ],
    ids=["mask", "weights", "holes", "unknown", "positions"],
)
@torch.no_grad()
def test_calls_that_cannot_be_served(given: dict[str, Any], message: str) -> None:
    model = model_of("llama")
    with pc.hf.apply(model, SINKS), pytest.raises(BackendError, match=message):
        model(text(1, 9), **given)


@torch.no_grad()
def test_padding_on_the_left_without_a_mask() -> None:
    model, ids = model_of("llama"), text(2, 9)
    ids[0, :3] = 0
    with pc.hf.apply(model, SINKS), pytest.raises(BackendError, match="positions are not known"):
        model(ids)
    with pc.hf.apply(model, NARROW):
        model(ids)  # a window is the same wherever the sequence begins


def test_dropout_is_named_and_left_out_on_request() -> None:
    for family, field in (("llama", "attention_dropout"), ("gpt2", "attn_pdrop")):
        model, ids = model_of(family, **{field: 0.25}).train(), text(1, 9)
        with pc.hf.apply(model, SINKS):
            with pytest.raises(BackendError, match=f"dropout 0.25 .* set config.{field} to 0"):
                model(ids)
            model.eval()(ids)
        with pc.hf.apply(model.train(), SINKS, dropout="ignore") as handle:
            model(ids, labels=ids).loss.backward()
        assert handle.notes == ("attention dropout is left out",)


@torch.no_grad()
def test_caches_that_dropped_keys_or_cannot_be_made_longer() -> None:
    model, ids = model_of("mistral"), text(1, 2 * W)
    cache = model(ids).past_key_values
    short = model(ids[:, :3]).past_key_values
    with pc.hf.apply(model, SINKS):
        with pytest.raises(BackendError, match=f"seen {2 * W} tokens and holds the last {W - 1}"):
            model(ids[:, :1], past_key_values=cache)
        fixed = StaticCache(model.config, max_cache_len=40)
        with pytest.raises(BackendError, match=f"StaticCache of windows of {W} keys"):
            model(ids, past_key_values=fixed)
        model(ids[:, 3:4], past_key_values=short)
        assert short.is_sliding == [False, False]


@torch.no_grad()
def test_graphs_drawn_for_one_length_do_not_grow() -> None:
    model, ids = model_of("llama"), text(1, 9)
    drawn = pc.causal() & (pc.window(2) | pc.random_edges(1))
    with pc.hf.apply(model, drawn):
        model(ids, use_cache=False)
        with pytest.raises(PatternValueError, match=r"random_edges\(1\) are drawn .* length=N"):
            model.generate(ids, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    with pc.hf.apply(model, pc.causal() & (pc.window(2) | pc.random_edges(1, past=True))):
        model.generate(ids, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)


@torch.no_grad()
def test_a_mask_that_the_model_adds_is_refused_or_run_densely() -> None:
    model, ids, given = model_of("llama"), text(1, 9), {}
    made = modeling_llama.create_causal_mask

    def more(**told: Any) -> Any:
        return made(**told, or_mask_function=lambda b, h, i, j: j == 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama, "create_causal_mask", more)
        want = model(ids, **given).logits
        with (
            pc.hf.apply(model, SINKS),
            pytest.raises(BackendError, match="a mask of its own, or_masks, that patterncc does"),
        ):
            model(ids)
        with pc.hf.apply(model, SINKS, fallback="dense") as handle:
            got = model(ids).logits
            model(ids)
    assert torch.equal(got, want)
    assert [(f.layer, f.calls) for f in handle.fallbacks] == [
        (f"model.layers.{l}.self_attn", 2) for l in (0, 1)
    ]
    assert all("or_masks" in f.why for f in handle.fallbacks)


@torch.no_grad()
def test_dense_calls_are_counted_and_others_stay_sparse() -> None:
    model, ids = model_of("llama"), text(1, 9)
    want, by_hand = eager(model, ids, SINKS), floats([torch.ones(9, 9).tril().bool()])
    with pc.hf.apply(model, SINKS, fallback="dense") as handle:
        torch.testing.assert_close(model(ids).logits, want, rtol=1e-4, atol=1e-4)
        assert not handle.fallbacks
        got = model(ids, attention_mask=by_hand).logits
    assert torch.equal(got, model(ids).logits)
    assert {f.calls for f in handle.fallbacks} == {1}


@torch.no_grad()
def test_a_model_that_ran_its_own_mask_goes_on_with_it() -> None:
    model, ids = model_of("llama", "patterncc"), text(1, 9)
    by_hand, holes = floats([torch.ones(9, 9).tril().bool()]), torch.ones(1, 9, dtype=torch.long)
    holes[0, 4] = 0
    want = model(ids, attention_mask=holes).logits
    with pc.hf.apply(model, SINKS, fallback="dense") as handle:
        assert torch.equal(model(ids, attention_mask=holes).logits, want)
        with pytest.raises(BackendError, match="given by hand"):
            model(ids, attention_mask=by_hand)
    assert {f.calls for f in handle.fallbacks if "between tokens" in f.why} == {1}
    assert model.config._attn_implementation == "patterncc"


@torch.no_grad()
def test_undoing_leaves_no_trace() -> None:
    model, ids = model_of("gemma3"), text(1, 9)
    before, state = model(ids).logits, {k: dict(vars(m)) for k, m in model.named_modules()}
    config = json.dumps(model.config.to_dict(), default=str)
    handle = pc.hf.apply(model, SINKS)
    assert json.dumps(model.config.to_dict(), default=str) == config
    assert not torch.equal(model(ids).logits, before)
    handle.undo()
    handle.undo()
    assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == "eager"
    for name, module in model.named_modules():
        assert set(vars(module)) == set(state[name])
        assert not module._forward_pre_hooks
    with pytest.raises(ZeroDivisionError), pc.hf.apply(model, SINKS):
        raise ZeroDivisionError
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_a_copy_carries_the_pattern_and_is_undone_alone() -> None:
    model, ids = model_of("gemma3"), text(1, 9)
    before = model(ids).logits
    handle = pc.hf.apply(model, SINKS)
    under, other = model(ids).logits, copy.deepcopy(model)
    handle.undo()
    assert torch.equal(other(ids).logits, under) and torch.equal(model(ids).logits, before)
    pc.hf.undo(other)
    assert torch.equal(other(ids).logits, before)


@torch.no_grad()
def test_a_saved_model_holds_nothing_of_ours(tmp_path: Path) -> None:
    model, ids = model_of("llama"), text(1, 9)
    want, keys = model(ids).logits, list(model.state_dict())
    with pc.hf.apply(model, SINKS):
        assert list(model.state_dict()) == keys
        model.save_pretrained(tmp_path)
    assert "patterncc" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(again(ids).logits, want)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="patterncc")
    torch.testing.assert_close(ours(ids).logits, want, rtol=1e-4, atol=1e-4)
    config = AutoConfig.from_pretrained(tmp_path)
    made = AutoModelForCausalLM.from_config(config, attn_implementation="patterncc")
    assert made.config._attn_implementation == "patterncc"
    assert isinstance(ours(ids).past_key_values, DynamicCache)


@torch.no_grad()
def test_other_attention_chosen_under_a_pattern_is_not_run_densely() -> None:
    model, ids = model_of("llama"), text(1, 9)
    with pc.hf.apply(model, SINKS):
        model.set_attn_implementation("sdpa")
        with pytest.raises(BackendError, match=r"told to run attn_implementation='sdpa' .* undo"):
            model(ids)
    bert = bert_of()
    with pc.hf.apply(bert, NARROW):
        bert.set_attn_implementation("sdpa")
        with pytest.raises(BackendError, match="told to run attn_implementation="):
            bert(ids)


def bert_of() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = BertConfig(num_attention_heads=2, vocab_size=61, pad_token_id=0, **sizes)
    return BertModel._from_config(config, attn_implementation="eager").eval()


@torch.no_grad()
def test_a_handle_undoes_its_own_pattern_alone() -> None:
    model, ids = model_of("llama"), text(1, 9)
    first = pc.hf.apply(model, SINKS)
    first.undo()
    with pc.hf.apply(model, NARROW):
        want = model(ids).logits
        first.undo()
        assert torch.equal(model(ids).logits, want)


@pytest.mark.parametrize(
    ("pattern", "start", "later"),
    [
        (NARROW | pc.prefix(6), 4, 6),
        (pc.window(3, 2), 8, None),
        (pc.heads([NARROW] * 3 + [pc.chunked(4)]), 6, 8),
    ],
    ids=["prefix", "window", "heads"],
)
def test_keys_that_come_after_their_readers_were_answered(
    pattern: Any, start: int, later: int | None
) -> None:
    layouts = Layouts(pattern, 0, {})
    assert not layouts.only_past  # else nothing is looked at
    with pytest.raises(BackendError, match=f"before {start} read keys from {start} .* in one call"):
        check_read_in_time(layouts, start, 1)
    check_read_in_time(layouts, 0, 9)
    if later is not None:
        check_read_in_time(layouts, later, 1)


@torch.no_grad()
def test_a_cache_cannot_show_later_keys_to_tokens_that_were_answered() -> None:
    model = model_of("llama")
    with pc.hf.apply(model, pc.window(3, 2), ahead=True):
        model(text(1, 9), use_cache=False)
        with pytest.raises(BackendError, match="read keys from 9 on, which came after"):
            model.generate(text(1, 9), max_new_tokens=4, do_sample=False)
