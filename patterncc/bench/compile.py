"""`patterncc bench compile`: from a pattern to a layout, beside torch's create_block_mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from patterncc.bench import compile_cases as cases
from patterncc.bench import compile_irregular as irregular
from patterncc.bench.compile_cases import Case
from patterncc.bench.protocol import in_turn, machine, peak_bytes, spread, table
from patterncc.layout import Layout, compile

Say = Callable[[str], None]


def run(
    *,
    repeats: int = 7,
    peer: bool = True,
    peer_n: int = 1 << 17,
    million: int = 1 << 20,
    batch_n: int = 1 << 16,
    edges: int = 10 << 20,
    shuffled_n: int = 1 << 16,
    progress: Say | None = None,
) -> dict[str, Any]:
    """Median seconds and peak memory, both directions, lowering included.

    peer_n: tokens of the comparison with create_block_mask.  million, batch_n, shuffled_n: lengths,
    and edges: size of the explicit graphs; smaller ones are for tests.
    """
    say = progress or (lambda _: None)
    loading, folder = cases.artifact(million)
    with folder:
        listed = [
            *cases.structured(million),
            *cases.scattered(million),
            *cases.batch(batch_n, 200),
            loading,
        ]
        found = [_measured(case, repeats, say) for case in listed]
    found += [_measured(case, max(1, repeats // 3), say) for case in cases.reordered(million)]
    result = {"bench": "compile", "machine": machine(), "cases": found}
    result["graphs"] = irregular.graphs(million, edges, max(1, repeats // 3), say)
    result["shuffled"] = irregular.shuffled(shuffled_n, say)
    if peer:
        say(f"create_block_mask, compiled, at {peer_n:,} tokens")
        result["peer"] = _peer(peer_n, million, repeats)
    return result


def _measured(case: Case, repeats: int, say: Say) -> dict[str, Any]:
    say(f"{case.name}, {case.n:,} tokens")
    layout = case.make()
    return {
        "case": case.name,
        "n": case.n,
        "asked_seconds": case.asked,
        "seconds": in_turn({"ours": case.make}, repeats)["ours"],
        "peak_bytes": peak_bytes(case.make),
        "bytes": layout.nbytes,
        "full_tiles": layout.full_tiles,
        "partial_tiles": layout.partial_tiles,
        "orders": orders_of(layout),
    }


def orders_of(layout: Layout) -> list[str]:
    """The order of tokens that each term stands in."""
    return [term.order.name if term.order else "token" for term in layout.terms]


def _peer(n: int, million: int, repeats: int) -> dict[str, Any]:
    """The first case by torch's compiled create_block_mask, at a length that it does in seconds."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    pattern = cases.main_case()

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i) & ((i - j <= 511) | (i < 64) | (j < 64))

    make = torch.compile(create_block_mask)

    def theirs() -> Any:
        return make(mask_mod, None, None, n, n, device="cpu", BLOCK_SIZE=128)

    ours = partial(compile, pattern, n, block=128)
    times = in_turn({"ours": ours, "create_block_mask": theirs}, max(2, repeats // 2))
    layout, mask = ours(), theirs()
    tiles = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    held = _bytes(mask)
    tables = held * (million / n) ** 2  # its index tables are tiles x tiles
    return {
        "case": "window 512 + 64 global tokens, causal",
        "n": n,
        "equal_tiles": tiles == layout.full_tiles + layout.partial_tiles,
        "seconds": times,
        "ratio": times["create_block_mask"]["median"] / times["ours"]["median"],
        "bytes": {"ours": layout.nbytes, "create_block_mask": held},
        "bytes_at": {
            "n": million,
            "ours": compile(pattern, million, block=128).nbytes,
            "create_block_mask, scaled": int(tables),
        },
    }


def _bytes(mask: Any) -> int:
    """Bytes of all tensors of a BlockMask."""
    import torch

    tensors = [x for x in vars(mask).values() if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in tensors)


def text(result: dict[str, Any]) -> str:
    """The result as tables for the terminal."""
    rows = [
        [
            c["case"],
            f"{c['n']:,}",
            spread(c["seconds"]),
            "" if c["asked_seconds"] is None else f"{c['asked_seconds'] * 1e3:.0f} ms",
            _megabytes(c["peak_bytes"]),
            f"{c['full_tiles'] + c['partial_tiles']:,}",
            " + ".join(c["orders"]),
        ]
        for c in result["cases"]
    ]
    columns = ["case", "tokens", "time", "asked", "peak", "tiles", "order"]
    parts = [table(columns, rows), irregular.text(result["graphs"], result["shuffled"])]
    return "\n\n".join(parts + ([_peer_text(result["peer"])] if "peer" in result else []))


def _peer_text(peer: dict[str, Any]) -> str:
    rows = [[name, spread(seconds)] for name, seconds in peer["seconds"].items()]
    at = peer["bytes_at"]
    ratio = at["create_block_mask, scaled"] / at["ours"]
    shown = table([f"{peer['case']}, {peer['n']:,} tokens", "time"], rows)
    return (
        f"{shown}\ncreate_block_mask, compiled, takes {peer['ratio']:,.0f} times as long; "
        f"as many tiles: {peer['equal_tiles']}; at {at['n']:,} tokens its tables are "
        f"{ratio:,.0f} times as large ({_megabytes(at['create_block_mask, scaled'])}, scaled, "
        f"against {_megabytes(at['ours'])})"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
