"""`patterncc fidelity`: held to the same model with a dense mask in eager attention."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import spearmanr

import patterncc as pc
from patterncc.cli import main
from patterncc.fidelity import (
    Candidate,
    Pretrained,
    Spread,
    Text,
    fidelity,
    named_text,
    open_model,
    read_text,
    sequences,
)
from patterncc.fidelity import pretrained as packages
from patterncc.fidelity.foresee import kept, participation, rank_correlation, rows_of

WORDS = " ".join(f"the cat {k} sat on mat {k * k % 97}" for k in range(200))
ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
    'no pictures or conversations in it, "and what is the use of a book," thought Alice "without '
    'pictures or conversations?" So she was considering in her own mind (as well as she could, for '
    "the hot day made her feel very sleepy and stupid), whether the pleasure of making a "
    "daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly "
)
NEAR = pc.causal() & (pc.window(5) | pc.sink(2))


def genesis() -> str:
    """Real prose."""
    return named_text("kjv").words[:12_000]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokenizer(folder: Path) -> None:
    """Characters as tokens, [CLS] and [SEP] around a text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}
    vocabulary |= {c: k + 3 for k, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789 ")}
    made = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)


def llama(folder: Path, **more: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,  # so that attention is far from even
        **more,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


def bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A causal model and an encoder as save_pretrained writes them, weights at random."""
    root = tmp_path_factory.mktemp("models")
    return {"causal": llama(root / "llama"), "encoder": bert(root / "bert")}


def eager(model: Pretrained, ids: torch.Tensor, stack: pc.Stack) -> torch.Tensor:
    """The oracle: the same weights in eager attention, a dense mask for each layer by a hook."""
    hooks, n = [], ids.shape[1]
    modules = [m for m in model.model.modules() if hasattr(m, "layer_idx") and hasattr(m, "config")]
    for module in modules:
        heads = [pc.lower(p, n).dense() for p in stack.heads(module.layer_idx)]
        mask = torch.from_numpy(np.stack(heads))[None]
        bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)

        def give(_: object, args: tuple, kwargs: dict, bias: torch.Tensor = bias) -> tuple:
            if len(args) > 1:  # BERT hands its mask on by position
                return (args[0], bias, *args[2:]), kwargs
            return args, kwargs | {"attention_mask": bias}

        hooks.append(module.register_forward_pre_hook(give, with_kwargs=True))
    model.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model.model(ids)
            return out.logits if model.kind == "causal" else out.last_hidden_state.mean(1)
    finally:
        model.model.set_attn_implementation("sdpa")
        for hook in hooks:
            hook.remove()


def test_a_causal_model_is_held_to_eager_attention_under_the_mask(folders: dict) -> None:
    model = open_model(str(folders["causal"]))
    assert (model.kind, model.layers, model.longest) == ("causal", 2, 64)
    assert (model.before, model.after) == ((0,), (1,))
    cut = sequences(model, [Text("w", WORDS)], 40, 3)
    assert cut.ids.shape == (3, 40) and set(cut.ids[:, 0].tolist()) == {0}
    stacks = {
        "near": pc.Stack(NEAR),
        "layers": pc.Stack([pc.causal() & pc.chunked(8), pc.causal()]),
        "heads": pc.Stack(pc.heads([NEAR, NEAR, pc.causal(), pc.causal() & pc.strided(3)])),
    }
    found = fidelity(model, {name: Candidate(s) for name, s in stacks.items()}, cut)
    dense = eager(model, cut.ids, pc.Stack(pc.causal())).double().log_softmax(-1)
    for row, stack in zip(found.rows, stacks.values(), strict=True):
        sparse = eager(model, cut.ids, stack).double().log_softmax(-1)
        kl = (dense.exp() * (dense - sparse)).sum(-1).mean(1)
        top1 = (dense.argmax(-1) == sparse.argmax(-1)).double().mean(1)
        loss = torch.nn.functional.cross_entropy(
            sparse[:, :-1].flatten(0, 1), cut.ids[:, 1:].flatten()
        )
        assert row.measured["kl"].mean == pytest.approx(float(kl.mean()), rel=1e-3)
        assert row.measured["kl"].most == pytest.approx(float(kl.max()), rel=1e-3)
        error = float(kl.std()) / 3**0.5
        assert row.measured["kl"].error == pytest.approx(error, rel=1e-2)
        assert row.measured["top1"].mean == pytest.approx(float(top1.mean()), abs=0.02)
        assert row.perplexity() == pytest.approx(float(loss.exp()), rel=1e-4)
        assert row.measured["kl"].mean > 0.01  # the pattern changes something
    counted = pc.lower(NEAR, 40).count() / (40 * 41 / 2)
    assert found.rows[0].foreseen.figures["density"] == pytest.approx(counted)
    assert found.rows[1].foreseen.depth_to_full == 2


def test_an_encoder_is_held_to_eager_attention_under_the_mask(folders: dict) -> None:
    model = open_model(str(folders["encoder"]))
    assert (model.kind, model.pooling) == ("encoder", "mean")
    cut = sequences(model, [Text("a", WORDS), Text("b", WORDS[::-1])], 48, 4)
    assert cut.sources == ("a", "a", "b", "b")
    stack = pc.Stack(pc.window(6, 6) | pc.global_tokens([0]))
    found = fidelity(model, {"near": Candidate(stack)}, cut)
    dense, sparse = eager(model, cut.ids, pc.Stack(pc.full())), eager(model, cut.ids, stack)
    cosine = torch.nn.functional.cosine_similarity(dense, sparse)
    (row,) = found.rows
    assert row.measured["cosine"].mean == pytest.approx(float(cosine.mean()), abs=1e-5)
    assert row.measured["cosine"].least == pytest.approx(float(cosine.min()), abs=1e-5)
    assert row.by_text["b"].mean == pytest.approx(float(cosine[2:].mean()), abs=1e-5)
    assert row.score < 0.999 and found.agreement["kept"] is None
    assert "give three patterns" in str(found)


def test_dense_patterns_change_nothing_and_the_model_is_left_as_it_was(folders: dict) -> None:
    model = open_model(str(folders["causal"]))
    cut = sequences(model, [Text("w", WORDS)], 32, 2)
    before = model.model(cut.ids).logits
    found = fidelity(model, {"same": Candidate(pc.Stack(pc.causal()))}, cut)
    (row,) = found.rows
    assert abs(row.measured["kl"].mean) < 1e-6 and row.measured["top1"].mean == 1
    assert row.foreseen.figures["kept"] == pytest.approx(1)
    assert "reads every pair at 32 tokens" in found.notes[0]
    assert torch.equal(model.model(cut.ids).logits, before)
    assert model.model.config._attn_implementation == "sdpa"


def test_figures_of_rollout_are_those_of_dense_products() -> None:
    from patterncc.analysis.flow.rollout import rollout

    def phi(mask: np.ndarray, depth: int) -> np.ndarray:
        mixed = 0.5 * np.eye(len(mask)) + 0.5 * mask / mask.sum(1, keepdims=True)
        return np.linalg.matrix_power(mixed, depth)

    masks = [pc.lower(p, 48).dense() for p in (pc.causal(), NEAR)]
    slow = np.minimum(*(phi(mask, 3) for mask in masks)).sum(1).mean()
    found = kept(*(rows_of(rollout(p, 48, depth=3)) for p in (pc.causal(), NEAR)))
    assert found == pytest.approx(slow, abs=1e-12)
    shared = 1 / (phi(masks[1], 3) ** 2).sum(1).mean()
    assert participation(rows_of(rollout(NEAR, 48, depth=3))) == pytest.approx(shared)


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, 9).tolist(), rng.normal(size=9).tolist()
        assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation([1, None, 2], [1, 2, 3]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_sequences_lie_apart_and_spread_evenly(folders: dict) -> None:
    model = open_model(str(folders["encoder"]))
    ids = model.encode(WORDS)
    cut = sequences(model, [Text("w", WORDS)], 34, 10)
    body = cut.ids[:, 1:-1]
    starts = [k * (len(ids) - 32) // 9 for k in range(10)]
    assert all(b.tolist() == ids[a : a + 32] for a, b in zip(starts, body, strict=True))
    short = sequences(model, [Text("w", WORDS[:100])], 34, 10)
    assert len(short.ids) == 3 and short.notes == ("w: 3 sequences of 34 tokens, not 10",)
    assert Spread.of([0.5]) == Spread(0.5, None, 0.5, 0.5)


def test_long_files_are_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "long.txt"
    file.write_text("é" * 300, encoding="utf-8-sig")
    monkeypatch.setattr("patterncc.fidelity.texts.MOST_BYTES", 100)
    found = read_text(file)
    assert found.words == "é" * 48 and "the first 100 bytes" in found.notes[0]


def run(*words: object) -> Any:
    return CliRunner().invoke(main, ["fidelity", *map(str, words)])


def test_the_command_prints_a_table_and_one_json_object(folders: dict, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text(WORDS)
    asked = (folders["causal"], "streaming-llm:recent=8", "causal() & window(3)", "gpt-oss")
    options = ("--text", text, "--length", 32, "--count", 2)
    table = run(*asked, *options)
    assert table.exit_code == 0, table.output
    assert "rank correlation" in table.stdout and "streaming-llm recent=8" in table.stdout
    wide = [line for line in table.stdout.splitlines() if len(line) > 120]
    assert not [line for line in wide if str(tmp_path.parent) not in line]
    found = json.loads(run(*asked, *options, "--json").stdout)
    assert found == json.loads(run(*asked, *options, "--json").stdout)  # nothing is random
    assert found["schema"] == "patterncc.fidelity/1" and found["sequences"] == 2
    names = ["streaming-llm recent=8", "causal() & window(3)", "gpt-oss"]
    assert [row["name"] for row in found["patterns"]] == names
    assert set(found["patterns"][0]["measured"]) == {"kl", "top1"}
    assert set(found["agreement"]) == {"participation", "kept", "density", "reach"}
    assert any("gpt-oss: reads every pair at 32 tokens" in note for note in found["notes"])


def test_what_cannot_be_measured_is_refused(folders: dict, tmp_path: Path) -> None:
    from transformers import T5Config

    causal, near = folders["causal"], "causal() & window(3)"
    words, short, binary = (tmp_path / name for name in ("words.txt", "short.txt", "x.bin"))
    words.write_text(WORDS)
    short.write_text("a cat")
    binary.write_bytes(b"\xff\xfe\x00")
    pickled, bare, other, seq2seq, weights = (
        tmp_path / name for name in ("pickled", "bare", "other", "t5", "weights")
    )
    for folder in (pickled, bare, other, seq2seq, weights):
        folder.mkdir()
    (pickled / "config.json").write_text((causal / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"")
    for folder in (other, seq2seq, weights):
        for file in causal.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text('{"model_type": "no-such-model"}')
    T5Config().save_pretrained(seq2seq)
    deeper = json.loads((causal / "config.json").read_text()) | {"num_hidden_layers": 3}
    (weights / "config.json").write_text(json.dumps(deeper))
    (tmp_path / "memory.yaml").write_text(f"memory: 4\nlayers:\n  - edges: {near}\n")
    refusals = {
        (tmp_path / "nowhere", near): "no folder",
        (bare, near): "no config.json",
        (pickled, near): "its weights are pickled (pytorch_model.bin)",
        (other, near): "does not know this model",
        (seq2seq, near): "t5 is an encoder-decoder",
        (weights, near): "the weights lack model.layers.2",
        (causal, "window(3, 3)"): "layer 0 reads later tokens",
        (causal, "causal() & windw(3)"): "did you mean 'window'?",
        (causal, tmp_path / "memory.yaml"): "memory of 4 positions",
        (causal, near, "--text", short): "5 tokens for",
        (causal, near, "--text", binary): "not UTF-8",
        (causal, near, "--text", "kvj"): "texts that are there already: kjv",
        (causal, near, "--length", 100): "takes at most 64 tokens",
        (causal, near, "--alpha", 2): "alpha is the weight",
        (causal, 'causal() & documents("docs")', "--bind", "other=[3]"): "none of the patterns",
        (causal, 'causal() & documents("docs")'): "docs",
        (causal, near, "-p", "w=3"): "an expression has no parameters",
    }
    for asked, message in refusals.items():
        given = asked if "--text" in asked else (*asked, "--text", words)
        found = run(*given)
        assert found.exit_code == 2 and message in " ".join(found.stderr.split()), (
            asked,
            found.output,
        )


def test_a_model_of_another_number_of_heads_is_refused(folders: dict) -> None:
    model = open_model(str(folders["causal"]))
    cut = sequences(model, [Text("w", WORDS)], 32, 1)
    stack = pc.Stack(pc.heads([NEAR, NEAR]))
    with pytest.raises(pc.PatternValueError, match=r"two: .*4 heads, its layer 2 patterns"):
        fidelity(model, {"two": Candidate(stack)}, cut)


def test_a_model_that_answers_nan_is_refused(folders: dict) -> None:
    model = open_model(str(folders["causal"]))
    cut = sequences(model, [Text("w", WORDS)], 32, 1)
    torch.nn.init.constant_(model.model.lm_head.weight, torch.nan)
    with pytest.raises(pc.BackendError, match="its answer holds NaN"):
        fidelity(model, {"near": Candidate(pc.Stack(NEAR))}, cut)


def test_another_file_than_the_tested_one_is_refused() -> None:
    with pytest.raises(pc.BackendError, match=r"glassllm: weights/en.npz has digest .*==0.1.0"):
        packages.check_digest("glassllm", b"", packages.GLASSLLM_SHA256, "weights/en.npz")


def test_glassllm_is_the_original_and_stays_close_under_a_window() -> None:
    model = open_model("glassllm")
    cut = sequences(model, [Text("kjv", genesis())], 128, 4)
    with torch.no_grad():
        logits = model.model(cut.ids[:2], use_cache=False).logits
    original = torch.from_numpy(packages.original_logits(cut.ids[:2].numpy()))
    assert (logits - original).abs().max() < 1e-4
    windows = {w: pc.causal() & (pc.window(w) | pc.sink(4)) for w in (64, 32, 8)}
    found = fidelity(model, {str(w): Candidate(pc.Stack(p)) for w, p in windows.items()}, cut)
    kl = [row.measured["kl"].mean for row in found.rows]
    assert kl[0] < 0.004 < kl[1] < 0.016 < kl[2] and found.agreement["kept"] == 1
    assert found.rows[1].measured["top1"].mean > 0.92
    sparse = eager(model, cut.ids, pc.Stack(windows[32])).double().log_softmax(-1)
    dense = eager(model, cut.ids, pc.Stack(pc.causal())).double().log_softmax(-1)
    truth = float((dense.exp() * (dense - sparse)).sum(-1).mean())
    assert kl[1] == pytest.approx(truth, rel=1e-3)


def test_glassllm_keeps_its_next_tokens_on_a_text_that_it_was_trained_for() -> None:
    """128 tokens of Lewis Carroll; a window of 32 that counts the token itself, and 4 sinks."""
    model = open_model("glassllm")
    cut = sequences(model, [Text("Carroll", ALICE)], 128, 1)
    assert cut.ids[0].tolist() == model.encode(ALICE)[:128]
    stack = pc.Stack(pc.causal() & (pc.window(31) | pc.sink(4)))
    (row,) = fidelity(model, {"32": Candidate(stack)}, cut).rows
    assert row.measured["kl"].mean <= 0.008 and row.measured["top1"].mean >= 0.95


def test_minilm_keeps_its_embeddings_under_a_window_and_a_global_token() -> None:
    model = open_model("minilm")
    assert (model.kind, model.layers, model.longest) == ("encoder", 6, 512)
    assert (model.before, model.after) == ((101,), (102,))
    cut = sequences(model, [Text("kjv", genesis())], 256, 2)
    stack = pc.Stack(pc.window(64, 64) | pc.global_tokens([0]))
    (row,) = fidelity(model, {"64": Candidate(stack)}, cut).rows
    truth = torch.nn.functional.cosine_similarity(
        eager(model, cut.ids, pc.Stack(pc.full())), eager(model, cut.ids, stack)
    )
    assert row.measured["cosine"].mean == pytest.approx(float(truth.mean()), abs=1e-5)
    assert row.measured["cosine"].least > 0.95
