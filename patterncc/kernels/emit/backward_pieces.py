"""The stretches that backward kernels share: which item, its runs, where results go."""

from __future__ import annotations

from typing import Literal

from patterncc.kernels.emit import backward_text as t
from patterncc.kernels.emit.items import OPEN_ITEM, SWITCH, owner, which_item, without_words
from patterncc.kernels.emit.pieces import dim_test, join, load, sizes, stream
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.plan import Plan

Side = Literal["rows", "columns"]
"""What a program keeps: queries, whose keys it walks, or keys, whose queries it walks."""

KEPT: dict[Side, str] = {"rows": "seen", "columns": "there"}
"""The vector that says which rows or columns of the program exist."""


def kept(plan: Plan, side: Side) -> str:
    """The program's item, batch and head, and the queries or keys that it keeps."""
    own = t.OWN_ROWS if side == "rows" else t.OWN_COLUMNS
    return join(
        which_item(plan, _programs(plan, side)),
        owner(plan, members=side == "columns"),
        piece(own, part=_part(plan, side), **vars(sizes(plan))),
    )


def walk_groups(plan: Plan, body: str) -> str:
    """Open an item's runs of queries and walk them, each step with every head of the group.

    Heads are inner: a step's place moves on when the last head has read it, so that nothing starts
    again between heads.
    """
    s = sizes(plan)
    ratio = s.tile_q // s.step_q
    named = {"here": "at_q", "tile": s.tile_q, "step": s.step_q}
    named |= {"times": f" * {ratio}" if ratio > 1 else ""}
    text = join(
        piece(OPEN_ITEM, **named),
        piece(t.LEADER) if plan.per_head or plan.per_sequence else "",
        "member = 0",
        "for _ in range(0, steps * members):",
        indented(join(body, piece(t.NEXT_MEMBER, **named), piece(SWITCH, **named))),
    )
    return text if plan.masked else without_words(text)


def local(plan: Plan, side: Side) -> str:
    """Tile-local indices of a program's own rows or columns."""
    return f"{'rows' if side == 'rows' else 'cols'}[:, None]{_part(plan, side)}"


def stream_member(plan: Plan, x: str) -> str:
    """One step's queries, or gradients, of the group's head whose turn it is."""
    if x in plan.streamed:
        return stream(plan, x, "reader", "at_q", "")
    wide, columns = (plan.head_dim, "dims") if x == "q" else (plan.value_dim, "vdims")
    at = f"{x}_base + (member.to(tl.int64) * {x}_head + at_q.to(tl.int64) * {x}_row)"
    return load(plan, x, at, "live[:, None]", dim_test(wide, columns))


def store_result(plan: Plan, side: Side, x: str, name: str) -> str:
    """Write what the program summed: to the tensor itself, or to the slot of a split line."""
    dim, columns = columns_of(plan, x)
    along, tile = ("rows", plan.block[0]) if side == "rows" else ("cols", plan.block[1])
    there = f"{KEPT[side]}[:, None]"
    seen = " & ".join(filter(None, (there, dim_test(dim, columns))))
    named = {
        "x": x,
        "name": name,
        "along": along,
        "columns": columns,
        "dim": dim,
        "seen": seen,
        "tile": tile,
        "head": "head" if side == "rows" else "summed",
        "part": _part(plan, side),
    }
    return piece(t.STORE, **named)


def columns_of(plan: Plan, x: str) -> tuple[int, str]:
    """Head dim and column indices of a tensor."""
    return (plan.value_dim, "vdims") if x == "grad_v" else (plan.head_dim, "dims")


def _programs(plan: Plan, side: Side) -> int:
    """Programs that share an item: steps of the kept side in a tile."""
    return plan.block[0] // plan.bm if side == "rows" else plan.block[1] // plan.bn


def _part(plan: Plan, side: Side) -> str:
    """The first of a program's rows or columns within its tile, as a summand."""
    step = plan.bm if side == "rows" else plan.bn
    return f" + part * {step}" if _programs(plan, side) > 1 else ""
