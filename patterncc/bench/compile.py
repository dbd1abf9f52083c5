"""`patterncc bench compile`: from a pattern to a layout, beside torch's create_block_mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from patterncc.bench.protocol import in_turn, machine, peak_bytes, spread, table
from patterncc.layout import compile
from patterncc.pattern import Pattern
from patterncc.primitives import causal, global_tokens, random_blocks, window

N = 1 << 20


def cases() -> list[tuple[str, Pattern, int]]:
    """(name, pattern, block) of what is compiled at 1,048,576 tokens."""
    hubs = global_tokens(range(64))
    return [
        ("window 512 + 64 global tokens, causal", causal() & (window(511) | hubs), 128),
        ("BigBird: block window 3, 64 global tokens, 3 random blocks", _bigbird(), 64),
    ]


def _bigbird() -> Pattern:
    return window(1, 1, block=64) | global_tokens(range(64)) | random_blocks(3, block=64)


def run(
    *,
    repeats: int = 7,
    peer: bool = True,
    peer_n: int = 65536,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Median seconds and peak memory, forward and transposed, lowering included."""
    say = progress or (lambda _: None)
    found = []
    for name, pattern, block in cases():
        say(name)
        way = partial(compile, pattern, N, block=block)
        layout = way()
        found.append(
            {
                "case": name,
                "n": N,
                "block": block,
                "tile_density": layout.tile_density,
                "seconds": in_turn({"ours": way}, repeats)["ours"],
                "peak_bytes": peak_bytes(way),
            }
        )
    result = {"bench": "compile", "machine": machine(), "cases": found}
    if peer:
        say(f"create_block_mask, compiled, at {peer_n} tokens")
        result["peer"] = _peer(peer_n, repeats)
    return result


def _peer(n: int, repeats: int) -> dict[str, Any]:
    """The first case by torch's compiled create_block_mask, at a length that it does in seconds."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    name, pattern, block = cases()[0]

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i) & ((i - j <= 511) | (i < 64) | (j < 64))

    make = torch.compile(create_block_mask)

    def theirs() -> Any:
        return make(mask_mod, None, None, n, n, device="cpu", BLOCK_SIZE=block)

    def ours() -> Any:
        return compile(pattern, n, block=block)

    times = in_turn({"ours": ours, "create_block_mask": theirs}, max(2, repeats // 2))
    layout, mask = ours(), theirs()
    tiles = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    return {
        "case": name,
        "n": n,
        "equal_tiles": tiles == layout.full_tiles + layout.partial_tiles,
        "seconds": times,
        "ratio": times["create_block_mask"]["median"] / times["ours"]["median"],
    }


def text(result: dict[str, Any]) -> str:
    """The result as a table for the terminal."""
    rows = [
        [
            c["case"],
            f"{c['n']:,}",
            str(c["block"]),
            spread(c["seconds"]),
            _megabytes(c["peak_bytes"]),
        ]
        for c in result["cases"]
    ]
    columns = ["case", "tokens", "block", "time", "peak"]
    if "peer" not in result:
        return table(columns, rows)
    peer = result["peer"]
    block = str(result["cases"][0]["block"])
    for name, seconds in peer["seconds"].items():
        rows.append([f"{name}: {peer['case']}", f"{peer['n']:,}", block, spread(seconds), ""])
    shown = table(columns, rows)
    return (
        f"{shown}\ncreate_block_mask, compiled, takes {peer['ratio']:.0f} times as long; "
        f"as many tiles: {peer['equal_tiles']}"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
