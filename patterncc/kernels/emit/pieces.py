"""The stretches of a kernel that depend on its plan: arguments, loads, masks, the loop's state.

Between `templates`, which holds plain text, and `emit`, which puts whole kernels together.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from patterncc.kernels.emit import score
from patterncc.kernels.emit import templates as t
from patterncc.kernels.emit.templates import indented, piece
from patterncc.kernels.plan import Plan

_BY_COLUMN = ("q", "k", "v", "grad", "lse2", "delta")
_LISTED = ("item_count", "section", "units", "slots")  # of programs that take items of a work list
POINTERS = {
    "forward": ("q", "k", "v", "out", "lse", "part_out", "part_lse"),
    "combine": ("out", "lse", "part_out", "part_lse", "parts"),
    "delta": ("out", "grad", "lse", "delta", "lse2"),
    "dq": ("q", "k", "v", "grad", "lse2", "delta", "grad_q", "part_grad_q"),
    "dkdv": (*_BY_COLUMN, "grad_k", "grad_v", "part_grad_k", "part_grad_v"),
    "single": (*_BY_COLUMN, "grad_k", "grad_v", "part_grad_k", "part_grad_v", "sum_q"),
    "gather": ("x", "whole", "parts"),
    "slopes": (*_BY_COLUMN, "partial"),
    "bias": (*_BY_COLUMN, "partial"),
    "decode": (
        *("q", "k", "v", "out", "lse", "position", "key_lengths"),
        *("part_out", "part_m", "part_l", "tickets"),
    ),
}
SCALARS = {
    "forward": ("scale", "n", "n_k", "heads", "group", *_LISTED),
    "combine": ("n", "heads", "slots"),
    "delta": ("n", "heads"),
    "dq": ("scale", "n", "n_k", "heads", "group", *_LISTED),
    "dkdv": ("scale", "n", "n_k", "heads", "group", "members", *_LISTED),
    "single": ("scale", "n", "n_k", "heads", "group", "members", *_LISTED),
    "gather": ("length", "heads", "members", "slots"),
    "slopes": ("scale", "n", "n_k", "heads", "group", "lines", "programs", "partly"),
    "bias": ("scale", "n", "n_k", "heads", "group", "lines", "programs"),
    "decode": (
        *("scale", "n", "n_k", "heads", "group", "lines", "count", "q_offset", "pack", "units"),
        *("chunks", "laps", "splits", "least", "has_lengths"),
    ),
}
TILED = (  # [batch, heads, length, dim]
    *("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v"),
    "whole",
)
BY_ITEM = ("forward", "dq", "dkdv", "single")  # kinds whose programs take items of a work list
BY_KEY = ("dkdv", "single")  # kinds whose tiles lie on their side, keys down, queries across
AXES = ("batch", "head", "row")  # whose strides are arguments; the last axis is contiguous

_NOTE = "# Tile-local; the offset is left to run time, so no mask is held across the loop."


@dataclass(frozen=True)
class Sizes:
    """Numbers filled into the pieces: queries and keys of a step and of a tile, padded dims."""

    step_q: int
    step_k: int
    tile_q: int
    tile_k: int
    dim: int
    vdim: int


def padded(dim: int) -> int:
    """The power of two that a head dim is padded to.

    >>> padded(80), padded(64)
    (128, 64)
    """
    return max(16, 1 << (dim - 1).bit_length())


def sizes(plan: Plan) -> Sizes:
    """The numbers of a plan."""
    dims = padded(plan.head_dim), padded(plan.value_dim)
    return Sizes(plan.bm, plan.bn, plan.block[0], plan.block[1], *dims)


# --- arguments


def parameters(plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The kernel's arguments in order: tensors and tables, strides, numbers.

    >>> plan = Plan("delta", "sm_90", "float16", 64, 64, (64, 64), 64, 64, 4, 1)
    >>> parameters(plan)[0]
    ('out', 'grad', 'lse', 'delta', 'lse2')
    """
    pointers, scalars = POINTERS[plan.kind], SCALARS[plan.kind]
    tiled = [x for x in pointers if x in TILED and x not in plan.streamed]
    strides = tuple(f"{x}_{axis}" for x in tiled for axis in AXES)
    listed = ("listed",) if plan.per_sequence else ()
    if plan.kind == "delta":
        return pointers, strides, scalars
    if plan.kind in ("gather", "combine"):
        return pointers + score.pointers(plan), strides, scalars + listed
    by_items = plan.kind in BY_ITEM
    tables = (
        *(("head_pattern",) if (plan.per_head or plan.per_sequence) and not by_items else ()),
        *(("items", "run") if by_items else ("ptr", "run")),
        *(("zone",) if plan.zones else ()),
        *(("bits",) if plan.bits else ()),
        *(("block_table",) if plan.page else ()),
    )
    paged = ("pages", "table_width") if plan.page else ()
    more = (*(("zone_count",) if plan.bits else ()), *listed, *paged)
    pointers += tables + score.pointers(plan)
    return pointers, strides, scalars + more + score.scalars(plan)


def streamed_block(plan: Plan, name: str) -> tuple[int, int]:
    """Rows and columns of the tile that a descriptor argument brings."""
    dim = plan.head_dim if name in ("q", "k", "sum_q") else plan.value_dim
    return (plan.bm if plan.kind in BY_KEY else plan.bn), padded(dim)


def signature(plan: Plan, name: str) -> str:
    """The decorator and the head of the kernel; numbers that change must not specialise it."""
    pointers, strides, scalars = parameters(plan)
    fixed = ", ".join(f'"{s}"' for s in scalars if s != "scale") + ","
    lines = ["@triton.jit(", "    do_not_specialize=["]
    lines += [f"        {line}" for line in textwrap.wrap(fixed, 88)]
    lines += ["    ]", ")", f"def {name}("]
    for group in (pointers, strides, scalars):
        lines += [f"    {line}" for line in textwrap.wrap(", ".join(group) + ",", 92)]
    return "\n".join([*lines, "):"])


# --- masks


def mask_tests(plan: Plan) -> list[str]:
    """The jitted helpers of the mask classes in use."""
    tests = []
    if plan.zones:
        tests.append(piece(t.IN_ZONE_BY_KEY if plan.kind in BY_KEY else t.IN_ZONE))
        more = [piece(t.IN_ZONES_MORE, offset=8 * k) for k in range(1, plan.zones)]
        head = piece(t.IN_ZONES_HEAD, stride=8 * plan.zones)
        tests.append("\n".join([head, *(indented(m) for m in more), "    return keep"]))
    if plan.bits:
        tests.append(piece(t.IN_BITS, **_bit_sizes(plan)))
    return tests


def _bit_sizes(plan: Plan) -> dict[str, int]:
    """A row of words is a query's keys; where tiles lie on their side, a key's queries."""
    own, along = reversed(plan.block) if plan.kind in BY_KEY else plan.block
    rows, columns = {
        "dkdv": (plan.bn, plan.bm),
        "single": (plan.bn, plan.bm),
        "decode": (max(16, plan.heads), plan.bn),
    }.get(plan.kind, (plan.bm, plan.bn))
    row_words = 4 * -(-along // 128)
    return {
        "row_words": row_words,
        "tile_words": row_words * own,
        "rows": rows,
        "columns": columns,
        "eights": columns // 8,
    }


def mask(plan: Plan, own: str, along: str, start: str) -> str:
    """Scores outside the mask become -inf; nothing when every tile is full.

    own: tile-local indices of the tile's rows; along, start: those of its columns, and the first.
    """
    if not plan.masked:
        return ""
    both = t.KEEP_BOTH + t.MASK_KEPT if plan.target == "sm_80" else t.MASK_BOTH
    test = both if plan.zones and plan.bits else t.MASK_ZONES if plan.zones else t.MASK_BITS
    i, j = ("across", "own") if plan.kind in BY_KEY else ("own", "across")
    masked = piece(test, i=i, j=j, own="own", start=start)
    sides = [f"own = {own}", *([f"across = {along} + {start}"] if plan.zones else [])]
    body = "\n".join([_NOTE, *sides, masked])
    return f"if word > 0:\n{indented(body)}" if plan.full else body


# --- the loop


def line(plan: Plan, own: str, head: str) -> str:
    """`line`: where this program's runs stand in the table.

    The table of patterns lists all heads of a sequence, or one that stands for them all.
    """
    if plan.per_sequence:
        return join(
            f"pattern = tl.load(head_pattern + batch * listed + {head} % listed)",
            f"line = pattern * lines + {own}",
        )
    if plan.per_head:
        return f"line = tl.load(head_pattern + {head}) * lines + {own}"
    return f"line = {own}"


def divided(name: str, by: int) -> str:
    """`name // by`, plainly."""
    return name if by == 1 else f"{name} // {by}"


def local(along: str, name: str, parts: int, step: int) -> str:
    """Tile-local indices of a program's own rows or columns: part `name` of its tile."""
    return along if parts == 1 else f"{along} + {name} % {parts} * {step}"


def loop(plan: Plan, here: str, tile: int, step: int, body: str) -> str:
    """Open a line's runs and walk them; `here` is the first query or key of a step."""
    names = {"here": here, "tile": tile, "step": step, "ratio": tile // step}
    opened = piece(t.OPEN_LINE, **names)
    advance = piece(t.ADVANCE, **names)
    whole = join(opened, "for _ in range(0, steps):", indented(join(body, advance)))
    return _plain(whole, plan)


def _plain(text: str, plan: Plan) -> str:
    """Without factors of one, and without mask words where no tile has a mask."""
    lines = text.splitlines()
    if not plan.masked:
        lines = [x for x in lines if not x.strip().startswith(("word =", "next_word ="))]
    return "\n".join(x.removesuffix(" * 1").replace(" * 1, ", ", ") for x in lines)


def softmax(plan: Plan) -> str:
    """The running maximum and sum; guarded where a row may have read nothing yet."""
    shift, guard = ("base", t.GUARD) if plan.masked or plan.keys else ("m_next", "")
    names = {
        "guard": guard,
        "shift": shift,
        "largest": score.largest(plan, 1),
        "exponent": score.exponent(plan, f"{shift}[:, None]"),
    }
    return piece(t.SOFTMAX, **names).replace("\n\n", "\n")


# --- loads and stores


def dims(plan: Plan) -> str:
    """Columns of Q and K, and of V."""
    s = sizes(plan)
    return f"dims = tl.arange(0, {s.dim})\nvdims = tl.arange(0, {s.vdim})"


def dot(plan: Plan, a: str, b: str, acc: str = "") -> str:
    """A product in fp32; its precision is stated where the factors are fp32."""
    more = f", {acc}" if acc else ""
    if plan.dtype == "float32" or plan.upcast:
        more += f', input_precision="{plan.precision}"'
    return f"tl.dot({a}, {b}{more})"


def cast(plan: Plan, name: str) -> str:
    """`name` in the precision that products take."""
    return name if plan.upcast or plan.dtype == "float32" else f"{name}.to(tl.{plan.dtype})"


def load(plan: Plan, x: str, at: str, *conditions: str) -> str:
    """x_tile from pointers; zeros where a condition fails."""
    return _call(f"{x}_tile = tl.load", at, masking(*conditions)) + _upcast(plan)


def load_own(plan: Plan, x: str, head: str, along: str, there: str) -> str:
    """The tile that a program keeps: of `first` .. along its rows or columns."""
    dim, columns = _columns(plan, x)
    at = f"{x}_at + ({along}[:, None] * {x}_row + {columns}[None, :])"
    return join(
        f"{x}_at = {x} + batch * {x}_batch + {head} * {x}_head + first * {x}_row",
        load(plan, x, at, f"{there}[:, None]", dim_test(dim, columns)),
    )


def store_own(plan: Plan, x: str, name: str, head: str, along: str, there: str) -> str:
    """Write a program's tile; 64-bit offsets up to the tile, 32-bit ones within it."""
    dim, columns = _columns(plan, x)
    at = f"{x}_at + ({along}[:, None] * {x}_row + {columns}[None, :])"
    return join(
        f"{x}_at = {x} + batch * {x}_batch + {head} * {x}_head + first * {x}_row",
        store(plan, at, name, f"{there}[:, None]", dim_test(dim, columns)),
    )


def stream_base(plan: Plan, x: str, head: str, along: str) -> str:
    """Where the steps of a streamed tensor start; nothing for a descriptor."""
    if x in plan.streamed:
        return ""
    _, columns = _columns(plan, x)
    return join(
        f"{x}_base = {x} + batch * {x}_batch + {head} * {x}_head",
        f"{x}_base += {along}[:, None] * {x}_row + {columns}[None, :]",
    )


def stream(plan: Plan, x: str, head: str, here: str, there: str) -> str:
    """The tile of one step; a descriptor fills what is outside its tensor with zeros."""
    dim, columns = _columns(plan, x)
    if x in plan.streamed:
        rows, width = streamed_block(plan, x)
        where = f"[batch.to(tl.int32), {head}.to(tl.int32), {here}, 0]"
        return f"{x}_tile = {x}.load({where}).reshape({rows}, {width}){_upcast(plan)}"
    at = f"{x}_base + {here}.to(tl.int64) * {x}_row"
    return load(plan, x, at, there, dim_test(dim, columns))


def store(plan: Plan, at: str, name: str, *conditions: str) -> str:
    """Write `name` in the tensor's own dtype."""
    value = name if plan.dtype == "float32" else f"{name}.to(tl.{plan.dtype})"
    return _call("tl.store", at, f", {value}" + masking(*conditions).removesuffix(", other=0.0"))


def masking(*conditions: str) -> str:
    """The mask of a load: nothing without a condition."""
    kept = [c for c in conditions if c]
    return f", mask={' & '.join(kept)}, other=0.0" if kept else ""


def dim_test(dim: int, name: str) -> str:
    """A condition on the columns, where the head dim is padded."""
    return "" if dim == padded(dim) else f"({name} < {dim})[None, :]"


def join(*parts: str) -> str:
    """Parts on lines of their own; empty ones leave no line."""
    return "\n".join(p for p in parts if p)


def _call(name: str, at: str, rest: str) -> str:
    """A call on one line, or its address and its options on two."""
    whole = f"{name}({at}{rest})"
    if len(whole) <= 86:  # leaves room for indentation
        return whole
    return f"{name}(\n    {at},\n    {rest.removeprefix(', ')},\n)"


def _columns(plan: Plan, x: str) -> tuple[int, str]:
    """Head dim and column indices of a tensor."""
    wide = x in ("q", "k", "grad_q", "grad_k")
    return (plan.head_dim, "dims") if wide else (plan.value_dim, "vdims")


def _upcast(plan: Plan) -> str:
    return ".to(tl.float32)" if plan.upcast else ""
