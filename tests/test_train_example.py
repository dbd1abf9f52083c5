"""The training example: the same start for both, resuming without a trace, its checks and files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

PROGRAM = Path(__file__).parent.parent / "examples" / "train_char_lm.py"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The program as a module; one thread, since tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("train_char_lm", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    place = tmp_path_factory.mktemp("text") / "text.txt"
    place.write_text("A line of text with some regularity in it.\n" * 200, encoding="utf-8")
    return example.read_text(place)


def test_a_resumed_run_is_the_unbroken_run(
    example: ModuleType, texts: object, tmp_path: Path
) -> None:
    settings = replace(example.QUICK, steps=8, every=4)
    whole = example.train(settings, texts, tmp_path / "whole.pt")
    example.train(settings, texts, tmp_path / "broken.pt", until=5)  # written after step 4
    resumed = example.train(settings, texts, tmp_path / "broken.pt", resume=True)
    for name, run in whole.items():
        assert resumed[name].losses == run.losses and len(run.losses) == 8
        assert [(s, l) for s, _, l in resumed[name].curve] == [(s, l) for s, _, l in run.curve]
        for a, b in zip(resumed[name].model.parameters(), run.model.parameters(), strict=True):
            assert torch.equal(a, b)
    assert not list(tmp_path.glob("*.part"))


def test_both_start_alike_and_learn(example: ModuleType, texts: object, tmp_path: Path) -> None:
    settings = replace(example.QUICK, steps=30, every=30, rate=1e-2, warm_up=3)
    runs = example.train(settings, texts, tmp_path / "checkpoint.pt")
    fresh = [example.Run(way, settings).model for way in (example.sparse, example.dense)]
    for a, b in zip(*(model.parameters() for model in fresh), strict=True):
        assert torch.equal(a, b)
    for run in runs.values():
        (first, _, before), (last, _, after) = run.curve
        assert (first, last) == (0, 30) and after < 0.8 * before


def test_the_pattern_is_what_the_sparse_model_computes(example: ModuleType) -> None:
    import patterncc as pc

    n = 300
    mask = torch.from_numpy(pc.lower(example.PATTERN, n).dense())
    q, k, v = torch.randn(3, 1, 2, n, 16).unbind()
    masked = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(example.sparse(q, k, v), masked)


def test_other_settings_are_not_resumed(example: ModuleType, texts: object, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint.pt"
    short = replace(example.QUICK, steps=1)
    example.train(short, texts, place)
    with pytest.raises(SystemExit, match="leave out --resume"):
        example.train(replace(short, seed=1), texts, place, resume=True)


def test_a_text_that_is_too_short_is_refused(example: ModuleType, tmp_path: Path) -> None:
    place = tmp_path / "short.txt"
    place.write_text("short\n" * 50, encoding="utf-8")
    with pytest.raises(SystemExit, match="25 characters; a stretch has 257"):
        example.train(example.QUICK, example.read_text(place), tmp_path / "checkpoint.pt")


def test_the_quick_form_prints_a_summary_and_draws(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(example, "QUICK", replace(example.QUICK, steps=3))
    runs = example.main(["--quick", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "reached after 2 of 2 layers" in shown and "times as fast" in shown
    assert set(runs) == {"pattern", "dense"}
    drawn = (tmp_path / "curve.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and len(drawn) > 10_000
