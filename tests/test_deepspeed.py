"""DeepSpeed: configs read as DeepSpeed's own code lays them out, layouts given back to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc.errors import LayoutError, PatternError, PatternValueError, SizeError
from patterncc.integrations.deepspeed import from_deepspeed, to_deepspeed

Section = dict[str, Any]


# ---- what DeepSpeed's classes do, said block by block; random blocks apart


def laid_out(s: Section, blocks: int, head: int) -> np.ndarray:
    """bool [blocks, blocks] of one head, from the documented rules and the oddities of the code."""
    on = {
        "dense": lambda r, c: True,
        "fixed": lambda r, c: fixed(s, blocks, head, r, c),
        "variable": lambda r, c: variable(s, r, c),
        "bigbird": lambda r, c: near_or_hub(s, range(s.get("num_global_blocks", 1)), r, c),
        "bslongformer": lambda r, c: near_or_hub(s, hubs(s), r, c),
        "local_sliding_window": lambda r, c: local(s, r, c),
    }[s["mode"]]
    return np.array([[on(r, c) for c in range(blocks)] for r in range(blocks)])


def fixed(s: Section, blocks: int, head: int, r: int, c: int) -> bool:
    local, wide = s.get("num_local_blocks", 4), s.get("num_global_blocks", 1)
    past = s.get("attention") == "unidirectional"
    near = r // local == c // local and not (past and c > r)
    first = local - (1 + head % s.get("num_different_global_patterns", 1)) * wide
    starts = [w + first for w in range(0, blocks - local + 1, local)]
    if short := blocks % local:  # the last window holds its global blocks, moved to its end
        starts.append(min(blocks - short + first, blocks - wide))
    chosen = [set(range(blocks)[x : x + wide]) for x in starts]
    column = any(c in g and not (past and r < min(g)) for g in chosen)
    row = s.get("horizontal_global_attention", False) and any(r in g for g in chosen)
    return near or column or row


def variable(s: Section, r: int, c: int) -> bool:
    past = s.get("attention") == "unidirectional"
    sizes, at = s.get("local_window_blocks", [4]), 0
    near = False
    for k in range(r + c + 1):
        size = sizes[min(k, len(sizes) - 1)]
        near = near or (at <= r < at + size and at <= c < at + size)
        at += size
    near = near and not (past and c > r)
    if s.get("horizontal_global_attention", False) and r in hubs(s):
        return True
    starts = s.get("global_block_indices", [0])
    ends = s.get("global_block_end_indices") or [x + 1 for x in starts]
    pairs = zip(starts, ends, strict=True)
    return near or any(a <= c < b and not (past and r < a) for a, b in pairs)


def hubs(s: Section) -> set[int]:
    starts = s.get("global_block_indices", [0])
    ends = s.get("global_block_end_indices") or [x + 1 for x in starts]
    return {x for a, b in zip(starts, ends, strict=True) for x in range(a, b)}


def near_or_hub(s: Section, hub: Any, r: int, c: int) -> bool:
    past = s.get("attention") == "unidirectional"
    side = s.get("num_sliding_window_blocks", 3) // 2
    return (abs(r - c) <= side or r in hub or c in hub) and not (past and c > r)


def local(s: Section, r: int, c: int) -> bool:
    side = s.get("num_sliding_window_blocks", 3) // 2
    right = side if s.get("attention") == "bidirectional" else 0
    return -side <= c - r <= right


# ---- the property: every section, every length, every head


@st.composite
def sections(draw: st.DrawFn) -> Section:
    mode = draw(st.sampled_from(sorted(MODES)))
    section: Section = {"mode": mode}
    for key in MODES[mode]:
        if draw(st.booleans()):
            section[key] = draw(VALUES[key])
    if section.get("attention") == "unidirectional":
        section.pop("horizontal_global_attention", None)
    wide = section.get("num_global_blocks", 1)
    if mode == "fixed":
        section["num_local_blocks"] = wide * draw(st.integers(1, 4))
        kinds = draw(st.integers(1, section["num_local_blocks"] // wide))
        section["num_different_global_patterns"] = kinds
        section["different_layout_per_head"] = kinds > 1 or draw(st.booleans())
    if draw(st.booleans()) and "global_block_indices" in MODES[mode]:
        starts = section.setdefault("global_block_indices", [0])
        section["global_block_end_indices"] = [x + draw(st.integers(1, 4)) for x in starts]
    return section


MODES = {
    "dense": (),
    "fixed": ("num_global_blocks", "attention", "horizontal_global_attention"),
    "variable": (
        *("local_window_blocks", "global_block_indices", "attention"),
        "horizontal_global_attention",
    ),
    "bigbird": ("num_sliding_window_blocks", "num_global_blocks", "attention"),
    "bslongformer": ("num_sliding_window_blocks", "global_block_indices", "attention"),
    "local_sliding_window": ("num_sliding_window_blocks", "attention"),
}
small = st.integers(1, 4)
VALUES = {
    "num_global_blocks": small,
    "num_sliding_window_blocks": st.integers(1, 8),
    "attention": st.sampled_from(["unidirectional", "bidirectional"]),
    "horizontal_global_attention": st.booleans(),
    "local_window_blocks": st.lists(small, min_size=1, max_size=4),
    "global_block_indices": st.lists(st.integers(0, 14), max_size=4),
}


@settings(max_examples=150)
@given(sections(), st.integers(1, 16), st.integers(0, 15), st.integers(1, 5))
def test_a_config_reads_what_deepspeed_lays_out(
    section: Section, blocks: int, cut: int, heads: int
) -> None:
    """At the length of the layout, and at the shorter ones that are cut out of it."""
    block, shown = 8, max(1, blocks - cut)
    p = from_deepspeed(section | {"block": block}, heads=heads, max_seq_length=blocks * block)
    patterns = p.patterns if isinstance(p, pc.Stack | type(pc.heads([pc.full()]))) else (p,) * heads
    for head, each in enumerate(patterns):
        mask = pc.lower(each, shown * block, head=head).dense()
        whole = laid_out(section, blocks, head)[:shown, :shown]
        assert (mask == np.kron(whole, np.ones((block, block), dtype=bool))).all()


@pytest.mark.parametrize("mode", ["variable", "bigbird"])
@pytest.mark.parametrize("attention", ["unidirectional", "bidirectional"])
def test_random_blocks_are_as_many_as_deepspeed_draws(mode: str, attention: str) -> None:
    section = {"mode": mode, "block": 4, "attention": attention, "num_random_blocks": 3}
    drawn = pc.lower(from_deepspeed(section), 160).dense()[::4, ::4]
    sure = laid_out(section, 40, 0)
    assert drawn[sure].all()
    more = (drawn & ~sure).sum(axis=1)
    assert more.max() == 3 and more.sum() > 60
    future = np.triu(drawn & ~sure, 1).any()
    assert future == (mode == "variable" or attention == "bidirectional")


def test_random_blocks_of_heads_differ_where_layouts_do() -> None:
    section = {"mode": "bigbird", "num_random_blocks": 2, "different_layout_per_head": True}
    layer = from_deepspeed(section, heads=3)
    masks = pc.compile(layer, 512, block=16).dense()
    assert masks.shape == (3, 512, 512)
    assert not (masks[0] == masks[1]).all()
    again = pc.compile(from_deepspeed(section, heads=3), 512, block=16).dense()
    assert (masks == again).all()
    other = pc.compile(from_deepspeed(section, heads=3, seed=1), 512, block=16).dense()
    assert not (masks == other).all()


def test_heads_are_only_needed_where_they_differ() -> None:
    same = {"mode": "fixed", "different_layout_per_head": True}
    assert isinstance(from_deepspeed(same), pc.Pattern)
    with pytest.raises(PatternValueError, match="give heads="):
        from_deepspeed(same | {"num_different_global_patterns": 4})


# ---- where a config comes from


def test_the_example_of_its_tutorial_is_read_from_a_file(tmp_path: Path) -> None:
    section = {
        **{"mode": "fixed", "block": 16, "different_layout_per_head": True},
        **{"num_local_blocks": 4, "num_global_blocks": 1, "attention": "bidirectional"},
        **{"horizontal_global_attention": False, "num_different_global_patterns": 4},
        **{"num_random_blocks": 0, "local_window_blocks": [4], "global_block_indices": [0]},
        **{"global_block_end_indices": None, "num_sliding_window_blocks": 3},
    }
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 8, "sparse_attention": section}))
    layer = from_deepspeed(path, heads=16)
    made = to_deepspeed(pc.compile(layer, 512, block=16))
    assert made.shape == (16, 32, 32) and made.dtype == np.int64
    for head in range(16):
        assert (made[head] == laid_out(section, 32, head)).all()


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "ds.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a DeepSpeed config"),
        (b"\xff\xfe{", "not a DeepSpeed config"),
        ("[]", "a JSON object is needed"),
        ('{"train_batch_size": 8}', 'no "sparse_attention"'),
        ('{"sparse_attention": 3}', "is an object, not 3"),
        ('{"mode": "fixed", "mode": "dense"}', "'mode' stands in it twice"),
        ("[" * 100_000, "not a DeepSpeed config"),
        ('{"mode": "' + "x" * 5_000_000 + '"}', "larger than 4194304 bytes"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(PatternError, match=said):
        from_deepspeed(written(tmp_path, text))


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(PatternError, match="cannot read"):
        from_deepspeed(tmp_path / "none.json")
    with pytest.raises(PatternError, match="cannot read"):
        from_deepspeed("nul\0byte")
    with pytest.raises(PatternError, match="a int is no config"):
        from_deepspeed(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"mode": "bigbrid"}, "did you mean 'bigbird'"),
        ({"mode": 3}, "known: bigbird, bslongformer, dense"),
        ({"mode": "x" * 10_000}, "mode is 'xxx"),
        ({"mode": "fixed", "num_local_block": 4}, "did you mean 'num_local_blocks'"),
        ({"block": "16"}, "block holds '16'; an integer"),
        ({"block": 0}, "block must be at least 1"),
        ({"block": 24}, "max_seq_length 2048 with block 24"),
        ({"attention": "unidirectonal"}, "did you mean 'unidirectional'"),
        ({"attention": ["unidirectional"]}, "attention is"),
        ({"different_layout_per_head": 1, "mode": "fixed"}, "true or false"),
        ({"num_local_blocks": 5, "num_global_blocks": 2}, "no multiple of num_global_blocks 2"),
        ({"num_different_global_patterns": 5}, "at most num_local_blocks"),
        ({"num_different_global_patterns": 2}, '"different_layout_per_head": true'),
        (
            {"attention": "unidirectional", "horizontal_global_attention": True},
            "for bidirectional attention only",
        ),
        ({"mode": "variable", "local_window_blocks": []}, "is empty"),
        ({"mode": "variable", "local_window_blocks": 4}, "a list of at most"),
        ({"mode": "variable", "local_window_blocks": [4, 0]}, "at least 1"),
        ({"mode": "variable", "local_window_blocks": [True, "a"]}, "an integer"),
        ({"mode": "variable", "global_block_indices": [-1]}, "at least 0"),
        ({"mode": "variable", "global_block_indices": [0] * 70_000}, "a list of at most"),
        ({"mode": "bslongformer", "global_block_end_indices": [1, 2]}, "one end for each"),
        (
            {"mode": "bslongformer", "global_block_indices": [3], "global_block_end_indices": [3]},
            "one end for each index, and after it",
        ),
        ({"mode": "bigbird", "num_random_blocks": -1}, "at least 0"),
    ],
)
def test_what_deepspeed_does_not_have_is_named(section: Section, said: str) -> None:
    with pytest.raises(PatternValueError, match=said) as caught:
        from_deepspeed(section)
    assert len(str(caught.value)) < 500


def test_endless_windows_are_refused_before_they_are_listed() -> None:
    section = {"mode": "variable", "block": 1, "local_window_blocks": [2, 1]}
    with pytest.raises(SizeError, match="local windows"):
        from_deepspeed(section, max_seq_length=2**24)


# ---- layouts out


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from([16, 32, 64]),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_whole_blocks_come_back(seed: int, block: int, blocks: int, heads: int) -> None:
    draw = np.random.default_rng(seed)
    wanted = draw.random((heads, blocks, blocks)) < 0.5
    tokens = np.kron(wanted, np.ones((block, block), dtype=bool))
    layer = pc.heads([pc.edges(each) for each in tokens])
    made = to_deepspeed(pc.compile(layer, blocks * block, block=block, order="token"))
    assert (made == wanted).all()


def test_tiles_with_masks_are_refused_or_covered() -> None:
    layout = pc.compile(pc.causal(), 64, block=16)
    with pytest.raises(PatternValueError, match="4 tiles have masks inside"):
        to_deepspeed(layout)
    covered = to_deepspeed(layout, partial="cover", heads=2)
    assert (covered == np.tril(np.ones((2, 4, 4), dtype=np.int64))).all()
    with pytest.raises(PatternValueError, match="did you mean 'cover'"):
        to_deepspeed(layout, partial="covers")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("p", "n", "block", "said"),
    [
        (pc.full(), 60, 16, "compile with block=16, 32 or 64"),
        (pc.full(), 64, (16, 32), "tiles of 16 x 32"),
    ],
)
def test_lengths_and_blocks_that_deepspeed_has_not_are_named(
    p: pc.Pattern, n: int, block: Any, said: str
) -> None:
    with pytest.raises(PatternValueError, match=said):
        to_deepspeed(pc.compile(p, n, block=block))


def test_sizes_and_heads_of_the_array_are_checked() -> None:
    two = pc.compile(pc.heads([pc.full(), pc.chunked(16)]), 64, block=16)
    with pytest.raises(PatternValueError, match="heads=3, the layout is for 2"):
        to_deepspeed(two, heads=3)
    with pytest.raises(SizeError, match="256 bytes, more than max_bytes=255"):
        to_deepspeed(two, max_bytes=255)
    reordered = pc.compile(pc.full(), 64, block=16, order=np.arange(64)[::-1])
    with pytest.raises(LayoutError, match='order="token"'):
        to_deepspeed(reordered)
