"""The gallery: every pattern file loads, says where it comes from, and holds what it expects."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patterncc import load, lower
from patterncc.errors import Diagnostic
from patterncc.expect import prove
from patterncc.language import PatternFile, parse_expression
from patterncc.language.expectation import Expect, parse_expect
from patterncc.language.source import plain
from patterncc.language.values import Scope
from patterncc.primitives import PRIMITIVES
from patterncc.stack import Heads

FOLDER = Path(__file__).parent.parent / "patterns"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.stem for path in FILES]
NAMED = (
    *("bigbird", "butterfly", "expander", "gemma-3", "gpt-oss", "llama-4", "logsparse"),
    *("longformer", "longformer-dilated", "longnet", "mistral-7b", "neighbourhood-2d"),
    *("packed-documents", "prefix-lm", "retrieval", "routing", "sparse-transformer-fixed"),
    *("sparse-transformer-strided", "speculation-tree", "star-transformer", "streaming-llm"),
    "transformer-xl",
)

SMALL: dict[str, tuple[int, dict[str, object]]] = {
    "bigbird": (320, {"hubs": 3}),
    "butterfly": (70, {"block": 8}),
    "expander": (320, {"degree": 2}),
    "gemma-3": (60, {"sliding_window": 9}),
    "gpt-oss": (60, {"sliding_window": 9}),
    "llama-4": (60, {"chunk": 16}),
    "logsparse": (60, {}),
    "longformer": (60, {"half": 3}),
    "longformer-dilated": (60, {"w": 2}),
    "longnet": (100, {"unit": 8}),
    "mistral-7b": (60, {"sliding_window": 4}),
    "neighbourhood-2d": (56, {"side": "7 + 1", "reach_each_way": 2}),
    "packed-documents": (2048, {}),
    "prefix-lm": (60, {"prefix_length": 20}),
    "retrieval": (16, {"m": 4, "retrieved": 3}),
    "routing": (256, {}),
    "sparse-transformer-fixed": (60, {"stride": 8, "c": 2}),
    "sparse-transformer-strided": (60, {"stride": 8}),
    "speculation-tree": (9, {}),
    "star-transformer": (60, {}),
    "streaming-llm": (60, {"recent": 8}),
    "transformer-xl": (40, {"mem_len": 24}),
}


@pytest.fixture(params=FILES, ids=NAMES)
def file(request: pytest.FixtureRequest) -> PatternFile:
    return load(request.param)


def test_the_gallery_is_whole() -> None:
    assert sorted(NAMES) == sorted(NAMED)


def test_says_what_it_is_and_where_it_comes_from(file: PatternFile) -> None:
    assert file.name == Path(file.path).stem
    assert file.summary.endswith(".") and len(file.summary) < 100
    assert file.source
    assert file.expects
    assert file.edges


def test_every_expectation_is_proved(file: PatternFile) -> None:
    outcomes = prove(file)
    assert [str(o) for o in outcomes if o.holds is not True] == []
    assert {o.badge for o in outcomes} == {"exact"}


def test_reads_back_from_its_own_text(file: PatternFile) -> None:
    for layer in file.stack:
        for pattern in layer.patterns if isinstance(layer, Heads) else (layer,):
            assert parse_expression(str(pattern)) == pattern


def test_the_stacks_are_these() -> None:
    """A change to a published model's pattern is meant, or it is a mistake."""
    text = "".join(f"{path.stem}: {load(path).stack}\n" for path in FILES)
    golden = Path(__file__).parent / "golden" / "gallery.txt"
    assert text == golden.read_text(encoding="utf-8")


def test_most_primitives_stand_in_the_gallery() -> None:
    text = "".join(f"{load(path).stack}" for path in FILES)
    missing = {name for name in PRIMITIVES if not re.search(rf"\b{name}\(", text)}
    unseen = {"full", "random_edges", "axial", "topk", "edges", "recurrent", "convolution"}
    unseen |= {"spans", "boxes"}
    assert missing == unseen


def test_an_expander_with_a_hub_is_two_layers_deep() -> None:
    file = load(FOLDER / "expander.yaml", hubs=1)
    assert [o.holds for o in prove(replace(file, expects=(_expect("depth_to_full(n=4096) == 2"),)))]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_measures_agree_with_dense_masks(path: Path) -> None:
    """The slow way: bool matrices, multiplied layer by layer."""
    n, params = SMALL[path.stem]
    file = load(path, **params)
    layers = [_masks(file, n, index) for index in range(len(file.stack))]
    total = n * (n + file.stack.memory)
    density = sum(mask.sum() / len(masks) for masks in layers for mask in masks)
    documents = np.repeat(range(4), [700, 212, 900, 236]) if "docs" in file.bindings else None
    shares = _reach(layers, file.stack.memory, 3, documents)
    tiles = [_touched(masks, 16) for masks in layers]
    expects = [
        f"edges(n={n}) == {sum(int(mask.sum()) for masks in layers for mask in masks)}",
        f"{_about(density / total / len(layers))} density(n={n})",
        f"{_about(shares[2])} reach(n={n}, depth=2)",
        f"{_about(sum(tiles) / len(tiles))} tile_density(n={n}, block=16)",
        f"depth_to_full(n={n}) {'>' if shares[3] < 1 else '<='} 3",
    ]
    outcomes = prove(replace(file, expects=tuple(map(_expect, expects))))
    assert [str(o) for o in outcomes if o.holds is not True] == []


def _about(value: float) -> str:
    return f"{value - 1e-9:.12f} < {value + 1e-9:.12f} >" if value else "0 =="


def _expect(text: str) -> Expect:
    problems: list[Diagnostic] = []
    found = parse_expect(plain(text, "test"), Scope(), problems)
    assert found is not None, problems
    return found


def _masks(file: PatternFile, n: int, index: int) -> list[NDArray[np.bool_]]:
    options: dict[str, Any] = {"q_offset": file.stack.memory, "layer": index, **file.bindings}
    return [
        lower(p, n, head=head, **options).dense() for head, p in enumerate(file.stack.heads(index))
    ]


def _reach(
    layers: list[list[NDArray[np.bool_]]],
    memory: int,
    depth: int,
    documents: NDArray[np.int64] | None,
) -> list[float]:
    """Shares of the allowed pairs after 0 .. depth layers; memory rows read nothing."""
    n_k = layers[0][0].shape[1]
    steps = []
    for masks in layers:
        step = np.eye(n_k, dtype=bool)
        step[memory:] |= np.logical_or.reduce(masks)
        steps.append(step)
    causal = not any(np.triu(step, 1).any() for step in steps)
    allowed = np.tri(n_k, dtype=bool) if causal else np.ones((n_k, n_k), dtype=bool)
    if documents is not None:
        allowed &= documents[:, None] == documents
    reached, shares = np.eye(n_k, dtype=bool), []
    for level in range(depth + 1):
        shares.append(float((reached & allowed)[memory:].sum() / allowed[memory:].sum()))
        step = steps[level % len(steps)]
        reached = (step.astype(np.float32) @ reached.astype(np.float32)) > 0
    return shares


def _touched(masks: list[NDArray[np.bool_]], block: int) -> float:
    shares = []
    for mask in masks:
        rows, columns = (-(-size // block) for size in mask.shape)
        padded = np.zeros((rows * block, columns * block), dtype=bool)
        padded[: mask.shape[0], : mask.shape[1]] = mask
        tiles = padded.reshape(rows, block, columns, block).any(axis=(1, 3))
        shares.append(float(tiles.mean()))
    return sum(shares) / len(shares)
