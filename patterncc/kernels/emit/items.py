"""How a program finds its work: its item of a work list, its head, the walk over its runs.

`work` says what an item is.  `items`, `run` and `item` are names of the kernel's source.
"""

from __future__ import annotations

from patterncc.kernels.emit.pieces import join, sizes
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.plan import Plan

# `$times` and `$over`: where several programs share an item, each takes a part of its rows.
WHICH_ITEM = """
    # One program: one item of the work list, for one of `units` heads.  The items that lead run for
    # all heads first.  Then heads stand in sections whose keys and values fit in the cache; in each
    # come the other items, longest first, heads inner.
    pid = tl.program_id(0)
    lead = tl.load(items + 6)$times
    first_unit = 0
    beside = units
    if pid >= lead * units:
        others = item_count$times - lead
        pid -= lead * units
        first_unit = pid // (others * section) * section
        beside = tl.minimum(section, units - first_unit)
        pid += lead * beside - first_unit * others
    unit = first_unit + pid % beside
    item = items + pid // beside$over * 8
"""

WHICH_PART = "part = pid // beside % $programs"

OWNER_ANY = """
    batch = (unit // $each).to(tl.int64)
    head = (unit % $each$times).to(tl.int64)
"""

OWNER_HEAD = """
    batch = unit.to(tl.int64)
    head = tl.load(item + 1).to(tl.int64)
"""

OWNER_SEQUENCE = """
    owner = tl.load(item + 1)
    batch = (owner // listed).to(tl.int64)
    head = (owner % listed + unit$times).to(tl.int64)
"""

# A run is first tile, tile count, mask word, tiles before it; two sentinels end the table, so that
# reading one run ahead is always within it.
OPEN_ITEM = """
    # The item's runs, from inside the first one if a part before this one ended there.
    at = tl.load(item + 2)
    skip = tl.load(item + 3)
    steps = tl.load(item + 4)$times
    $here = (tl.load(run + 4 * at) + skip) * $tile
    left = (tl.load(run + 4 * at + 1) - skip)$times
    word = tl.load(run + 4 * at + 2)
    # The next run is held in registers, one run ahead: no load of the loop waits for an index.
    next_tile = tl.load(run + 4 * at + 4)
    next_count = tl.load(run + 4 * at + 5)
    next_word = tl.load(run + 4 * at + 6)
    at += 2
"""

STEP_ON = """
    # One step on; at the end of a run, over to the next one.
    $here += $step
    left -= 1
    switch = left == 0
"""

SWITCH = """
    $here = tl.where(switch, next_tile * $tile, $here)
    left = tl.where(switch, next_count$times, left)
    word = tl.where(switch, next_word, word)
    next_tile = tl.load(run + 4 * at, mask=switch, other=next_tile)
    next_count = tl.load(run + 4 * at + 1, mask=switch, other=next_count)
    next_word = tl.load(run + 4 * at + 2, mask=switch, other=next_word)
    at += switch.to(tl.int32)
"""


def which_item(plan: Plan, programs: int) -> str:
    """The program's item, and which of the `programs` that share it this one is."""
    shared = programs > 1
    times, over = (f" * {programs}", f" // {programs}") if shared else ("", "")
    found = piece(WHICH_ITEM, times=times, over=over)
    return join(found, piece(WHICH_PART, programs=programs)) if shared else found


def owner(plan: Plan, members: bool = False) -> str:
    """`batch` and `head` of an item; with `members`, the first of so many heads."""
    text = OWNER_SEQUENCE if plan.per_sequence else OWNER_HEAD if plan.per_head else OWNER_ANY
    each = "(heads // members)" if members else "heads"
    return piece(text, each=each, times=" * members" if members else "")


def walk(plan: Plan, here: str, body: str) -> str:
    """Open an item's runs of keys and walk them; `here` is the first key of a step."""
    s = sizes(plan)
    ratio = s.tile_k // s.step_k
    named = {"here": here, "tile": s.tile_k, "step": s.step_k}
    named |= {"times": f" * {ratio}" if ratio > 1 else ""}
    text = join(
        piece(OPEN_ITEM, **named),
        "for _ in range(0, steps):",
        indented(join(body, piece(STEP_ON, **named), piece(SWITCH, **named))),
    )
    return text if plan.masked else without_words(text)


def without_words(text: str) -> str:
    """Without mask words, where no tile has a mask."""
    lines = text.splitlines()
    return "\n".join(x for x in lines if not x.strip().startswith(("word =", "next_word =")))
