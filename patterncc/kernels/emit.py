"""Plan -> Triton source: a pure function of typed numbers and names.

Imports neither torch nor triton.  The text looks hand-written because people read it: `patterncc
compile` leaves it beside the layout, and the cache keeps it under its own hash.  A mask class that
the plan lacks leaves no trace.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import assert_never

from patterncc.kernels import templates as t
from patterncc.kernels.plan import VERSION, Plan
from patterncc.kernels.templates import indented, piece


def emit(plan: Plan) -> str:
    """The module of one kernel: header, constants, mask tests, and the kernel named `entry(plan)`.

    >>> from patterncc.kernels.plan import Plan
    >>> source = emit(Plan("forward", "sm_90", "float16", 64, 64, (128, 128), 128, 64, 8, 3))
    >>> "in_zones" in source, source.count("@triton.jit")
    (False, 1)
    """
    match plan.kind:
        case "forward":
            kernel = _forward(plan)
        case "delta":
            kernel = _delta(plan)
        case "dq":
            kernel = _dq(plan)
        case "dkdv":
            kernel = _dkdv(plan)
        case "decode":
            kernel = _decode(plan)
        case _:
            assert_never(plan.kind)
    tests = [] if plan.kind == "delta" else _mask_tests(plan)
    return "\n\n\n".join([_header(plan), *tests, kernel]) + "\n"


def entry(plan: Plan) -> str:
    """The name of the kernel in the emitted module."""
    return f"{plan.kind}_kernel"


@dataclass(frozen=True)
class _Sizes:
    """Names filled into the pieces."""

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


def _sizes(plan: Plan) -> _Sizes:
    dims = padded(plan.head_dim), padded(plan.value_dim)
    return _Sizes(plan.bm, plan.bn, plan.block[0], plan.block[1], *dims)


# --- module level


def _header(plan: Plan) -> str:
    classes = [
        *(["full"] if plan.full else []),
        *([f"zones (up to {plan.zones} a mask)"] if plan.zones else []),
        *(["bits"] if plan.bits else []),
    ]
    what = {
        "forward": "out and lse of one row of tiles",
        "delta": "row sums that both gradients need",
        "dq": "the gradient of Q, one row of tiles a program",
        "dkdv": "the gradients of K and V, one column of tiles a program",
        "decode": "out and lse of single query rows",
    }[plan.kind]
    dims = (
        f"{plan.head_dim}"
        if plan.head_dim == plan.value_dim
        else f"{plan.head_dim} / {plan.value_dim}"
    )
    lines = [
        f"# patterncc {plan.kind}: {what}.  Generated; plan {plan.digest}, emitter {VERSION}.",
        f"# {plan.target}, {plan.dtype}, head dim {dims}, tiles {plan.block[0]} x {plan.block[1]}, "
        f"steps {plan.bm} x {plan.bn}, {plan.warps} warps, {plan.stages} stages.",
        f"# Mask classes: {', '.join(classes)}.",
        "# Lengths, windows and documents are data: they come in through the run and mask tables.",
        f"# {plan.text()}",
        "",
        "import triton",
        "import triton.language as tl",
        "",
    ]
    lines += ['INF = tl.constexpr(float("inf"))'] if plan.kind != "dkdv" or plan.masked else []
    lines += ["LOG2E = tl.constexpr(1.4426950408889634)"]
    lines += (
        ["LN2 = tl.constexpr(0.6931471805599453)"] if plan.kind in ("forward", "decode") else []
    )
    return "\n".join(lines)


def _mask_tests(plan: Plan) -> list[str]:
    """The jitted helpers of the mask classes in use."""
    tests = []
    if plan.zones:
        tests.append(piece(t.IN_ZONE_BY_KEY if plan.kind == "dkdv" else t.IN_ZONE))
        more = [piece(t.IN_ZONES_MORE, offset=8 * k) for k in range(1, plan.zones)]
        head = piece(t.IN_ZONES_HEAD, stride=8 * plan.zones)
        tests.append("\n".join([head, *(indented(m) for m in more), "    return keep"]))
    if plan.bits:
        row_words = -(-plan.block[1] // 32)
        tests.append(piece(t.IN_BITS, tile_words=row_words * plan.block[0], row_words=row_words))
    return tests


# --- pieces that depend on the plan


def _arguments(plan: Plan, pointers: list[str], strided: str, scalars: list[str]) -> str:
    """The decorator and the signature; names that must not specialise a kernel are listed."""
    tables = ["head_pattern"] if plan.per_head else []
    tables += ["ptr", "run"]
    tables += ["zone"] if plan.zones else []
    tables += ["bits"] if plan.bits else []
    scalars = scalars + (["zone_count"] if plan.bits and plan.kind != "delta" else [])
    strides = [f"{x}_{axis}" for x in strided for axis in ("batch", "head", "row")]
    if plan.kind == "delta":
        tables = []
    return _signature(entry(plan), pointers + tables, strides, scalars)


def _signature(name: str, pointers: list[str], strides: list[str], scalars: list[str]) -> str:
    fixed = [f'"{s}"' for s in scalars if s != "scale"]
    lines = ["@triton.jit("]
    lines += ["    do_not_specialize=["]
    lines += [f"        {line}" for line in textwrap.wrap(", ".join(fixed) + ",", 88)]
    lines += ["    ]", ")", f"def {name}("]
    for group in (pointers, strides, scalars):
        wrapped = textwrap.wrap(", ".join(group) + ",", 92)
        lines += [f"    {line}" for line in wrapped]
    return "\n".join([*lines, "):"])


def _masking(*conditions: str) -> str:
    """The mask of a load: nothing without a condition."""
    kept = [c for c in conditions if c]
    return f", mask={' & '.join(kept)}, other=0.0" if kept else ""


def _dims(plan: Plan) -> str:
    s = _sizes(plan)
    lines = [f"dims = tl.arange(0, {s.dim})"]
    lines += [f"vdims = tl.arange(0, {s.vdim})"]
    return "\n".join(lines)


def _dim_test(dim: int, name: str) -> str:
    return "" if dim == padded(dim) else f"({name} < {dim})[None, :]"


def _load(plan: Plan, target: str, at: str, *conditions: str) -> str:
    """A tile, in fp32 where products are taken in fp32."""
    upcast = ".to(tl.float32)" if plan.upcast else ""
    return f"{target} = tl.load({at}{_masking(*conditions)}){upcast}"


def _dot(plan: Plan, a: str, b: str, acc: str = "") -> str:
    precise = (
        f', input_precision="{plan.precision}"' if plan.dtype == "float32" or plan.upcast else ""
    )
    return f"tl.dot({a}, {b}{', ' + acc if acc else ''}{precise})"


def _cast(plan: Plan, name: str) -> str:
    """`name` in the precision that products take."""
    return name if plan.upcast or plan.dtype == "float32" else f"{name}.to(tl.{plan.dtype})"


def _line(plan: Plan, own: str, lines: str, head: str) -> str:
    """`line`: where this program's runs stand in the table."""
    if plan.per_head:
        return f"line = tl.load(head_pattern + {head}) * {lines} + {own}"
    return f"line = {own}"


def _open(plan: Plan, here: str, tile: int, ratio: int) -> str:
    text = piece(
        t.OPEN_LINE,
        ptr="ptr",
        here=here,
        tile=tile,
        ratio=ratio,
        word_first="word = tl.load(run + 4 * at + 2)" if plan.masked else "@drop",
        word_next="next_word = tl.load(run + 4 * at + 6)" if plan.masked else "@drop",
    )
    return _clean(text)


def _advance(plan: Plan, here: str, tile: int, step: int) -> str:
    text = piece(
        t.ADVANCE,
        here=here,
        tile=tile,
        step=step,
        ratio=tile // step,
        word_switch="word = tl.where(switch, next_word, word)" if plan.masked else "@drop",
        word_load="next_word = tl.load(run + 4 * at + 2, mask=switch, other=next_word)"
        if plan.masked
        else "@drop",
    )
    return _clean(text)


def _clean(text: str) -> str:
    """Lines marked as dropped left out, and factors of one."""
    kept = [line for line in text.splitlines() if line.strip() != "@drop"]
    return "\n".join(line.removesuffix(" * 1").replace(" * 1, ", ", ") for line in kept)


def _mask(plan: Plan, i: str, j: str, note: str) -> str:
    """Scores outside the mask become -inf; nothing when every tile is full."""
    if not plan.masked:
        return ""
    if plan.zones and plan.bits:
        keep = piece(t.KEEP_BOTH)
    else:
        keep = t.KEEP_ZONES if plan.zones else t.KEEP_BITS
    body = "\n".join([note, f"i = {i}", f"j = {j}", keep, "s = tl.where(keep, s, -INF)"])
    return f"if word > 0:\n{indented(body)}" if plan.full else body


def _join(*parts: str) -> str:
    return "\n".join(p for p in parts if p)


# --- kernels


def _forward(plan: Plan) -> str:
    s = _sizes(plan)
    head = _arguments(
        plan,
        ["q", "k", "v", "out", "lse"],
        "qkvo",
        ["scale", "n", "n_k", "heads", "group", "lines"],
    )
    rows_down = s.tile_q // s.step_q
    step = _join(
        _load_keys(plan, "k", "dims", plan.head_dim),
        f"s = {_dot(plan, 'q_tile', 'k_tile.T')}",
        _mask(plan, _local_row(rows_down, s), "cols[None, :] + col % " + str(s.tile_k), _NOTE),
        _softmax(plan),
        _load_keys(plan, "v", "vdims", plan.value_dim),
        f"acc = {_dot(plan, _cast(plan, 'p'), 'v_tile', 'acc')}",
        _advance(plan, "col", s.tile_k, s.step_k),
    )
    body = _join(
        piece(t.WHICH_ROW, **vars(s)),
        _dims(plan),
        "scale2 = scale * LOG2E",
        _load_rows(plan, "q", "q", "dims", plan.head_dim),
        _key_base("k", "dims"),
        _key_base("v", "vdims"),
        "",
        f"m = tl.full([{s.step_q}], -INF, tl.float32)",
        f"l = tl.zeros([{s.step_q}], tl.float32)",
        f"acc = tl.zeros([{s.step_q}, {s.vdim}], tl.float32)",
        _line(plan, _divided("row", rows_down), "lines", "head"),
        _open(plan, "col", s.tile_k, s.tile_k // s.step_k),
        "for _ in range(0, steps):\n" + indented(step),
        piece(t.FINISH),
        _store_rows(plan, "out", "o", "acc", "vdims", plan.value_dim),
        "tl.store(lse + unit.to(tl.int64) * n + first + rows, lse_tile, mask=seen)",
    )
    return head + "\n" + indented(body)


def _delta(plan: Plan) -> str:
    s = _sizes(plan)
    head = _arguments(plan, ["out", "grad", "lse", "delta", "lse2"], "og", ["n", "heads"])
    mask = _masking("seen[:, None]", _dim_test(plan.value_dim, "vdims"))
    return head + "\n" + indented(piece(t.DELTA_BODY, step_q=s.step_q, vdim=s.vdim, mask=mask))


def _dq(plan: Plan) -> str:
    s = _sizes(plan)
    head = _arguments(
        plan,
        ["q", "k", "v", "grad", "lse2", "delta", "grad_q"],
        "qkvgx",
        ["scale", "n", "n_k", "heads", "group", "lines"],
    )
    rows_down = s.tile_q // s.step_q
    step = _join(
        _load_keys(plan, "k", "dims", plan.head_dim),
        f"s = {_dot(plan, 'q_tile', 'k_tile.T')}",
        _mask(plan, _local_row(rows_down, s), "cols[None, :] + col % " + str(s.tile_k), _NOTE),
        "p = tl.math.exp2(s * scale2 - lse_tile[:, None])",
        _load_keys(plan, "v", "vdims", plan.value_dim),
        f"dp = {_dot(plan, 'g_tile', 'v_tile.T')}",
        "ds = p * (dp - delta_tile[:, None])",
        f"acc = {_dot(plan, _cast(plan, 'ds'), 'k_tile', 'acc')}",
        _advance(plan, "col", s.tile_k, s.step_k),
    )
    body = _join(
        piece(t.WHICH_ROW, **vars(s)),
        _dims(plan),
        "scale2 = scale * LOG2E",
        _load_rows(plan, "q", "q", "dims", plan.head_dim),
        _load_rows(plan, "g", "grad", "vdims", plan.value_dim),
        "at_row = unit.to(tl.int64) * n + first + rows",
        "lse_tile = tl.load(lse2 + at_row, mask=seen, other=INF)",
        "delta_tile = tl.load(delta + at_row, mask=seen, other=0.0)",
        _key_base("k", "dims"),
        _key_base("v", "vdims"),
        "",
        f"acc = tl.zeros([{s.step_q}, {s.dim}], tl.float32)",
        _line(plan, _divided("row", rows_down), "lines", "head"),
        _open(plan, "col", s.tile_k, s.tile_k // s.step_k),
        "for _ in range(0, steps):\n" + indented(step),
        "acc = acc * scale",
        _store_rows(plan, "grad_q", "x", "acc", "dims", plan.head_dim),
    )
    return head + "\n" + indented(body)


def _dkdv(plan: Plan) -> str:
    s = _sizes(plan)
    head = _arguments(
        plan,
        ["q", "k", "v", "grad", "lse2", "delta", "grad_k", "grad_v"],
        "qkvgxy",
        ["scale", "n", "n_k", "heads", "group", "lines"],
    )
    cols_across = s.tile_k // s.step_k
    column = "cols[:, None]" + (
        f" + column % {cols_across} * {s.step_k}" if cols_across > 1 else ""
    )
    step = _join(
        "live = at_q + rows < n",
        _load_queries(plan, "q", "dims", plan.head_dim),
        f"s = {_dot(plan, 'k_tile', 'q_tile.T')}",
        _mask(plan, "rows[None, :] + at_q % " + str(s.tile_q), column, _NOTE),
        "# Past the last query lse is +inf: p is 0 there, and so is every gradient.",
        "lse_tile = tl.load(lse2_base + at_q + rows, mask=live, other=float('inf'))".replace(
            "'", '"'
        ),
        "p = tl.math.exp2(s * scale2 - lse_tile[None, :])",
        _load_queries(plan, "g", "vdims", plan.value_dim),
        f"dv_acc = {_dot(plan, _cast(plan, 'p'), 'g_tile', 'dv_acc')}",
        f"dp = {_dot(plan, 'v_tile', 'g_tile.T')}",
        "delta_tile = tl.load(delta_base + at_q + rows, mask=live, other=0.0)",
        "ds = p * (dp - delta_tile[None, :])",
        f"dk_acc = {_dot(plan, _cast(plan, 'ds'), 'q_tile', 'dk_acc')}",
        _advance(plan, "at_q", s.tile_q, s.step_q),
    )
    per_head = _join(
        "head = kv_head * group + member",
        "q_base = q + batch * q_batch + head * q_head",
        "q_base += rows[:, None] * q_row + dims[None, :]",
        "g_base = grad + batch * g_batch + head * g_head",
        "g_base += rows[:, None] * g_row + vdims[None, :]",
        "lse2_base = lse2 + (batch * heads + head) * n",
        "delta_base = delta + (batch * heads + head) * n",
        _line(plan, _divided("column", cols_across), "lines", "head"),
        _open(plan, "at_q", s.tile_q, s.tile_q // s.step_q),
        "for _ in range(0, steps):\n" + indented(step),
    )
    body = _join(
        piece(t.WHICH_COLUMN, **vars(s)),
        _dims(plan),
        "scale2 = scale * LOG2E",
        _load_columns(plan, "k", "dims", plan.head_dim),
        _load_columns(plan, "v", "vdims", plan.value_dim),
        "",
        f"dk_acc = tl.zeros([{s.step_k}, {s.dim}], tl.float32)",
        f"dv_acc = tl.zeros([{s.step_k}, {s.vdim}], tl.float32)",
        "for member in range(0, group):\n" + indented(per_head),
        "dk_acc = dk_acc * scale",
        _store_columns(plan, "grad_k", "x", "dk_acc", "dims", plan.head_dim),
        _store_columns(plan, "grad_v", "y", "dv_acc", "vdims", plan.value_dim),
    )
    return head + "\n" + indented(body)


def _decode(plan: Plan) -> str:
    s = _sizes(plan)
    packed = plan.heads > 1
    rows = max(16, plan.heads)
    head = _arguments(
        plan,
        ["q", "k", "v", "out", "lse", "position"],
        "qkvo",
        ["scale", "n", "n_k", "heads", "group", "lines", "count", "q_offset"],
    )
    which = piece(
        t.WHICH_TOKEN,
        who="one key head and the query heads that read it" if packed else "one head",
        units="heads // group" if packed else "heads",
        kv_head="kv_head = unit.to(tl.int64)"
        if packed
        else "kv_head = (unit // group).to(tl.int64)",
        rows=rows,
        head="unit * group + members" if packed else "unit + members * 0",
        packed="group" if packed else "1",
        step_k=s.step_k,
    )
    query = "head[:, None].to(tl.int64)"
    mine_q = ["mine[:, None]", _dim_test(plan.head_dim, "dims")]
    mine_v = ["mine[:, None]", _dim_test(plan.value_dim, "vdims")]
    step = _join(
        _load_keys(plan, "k", "dims", plan.head_dim),
        f"s = {_dot(plan, 'q_tile', 'k_tile.T')}",
        _mask(
            plan,
            f"own % {s.tile_q} + cols[None, :] * 0",
            "cols[None, :] + col % " + str(s.tile_k),
            _NOTE,
        ),
        _softmax(plan),
        _load_keys(plan, "v", "vdims", plan.value_dim),
        f"acc = {_dot(plan, _cast(plan, 'p'), 'v_tile', 'acc')}",
        _advance(plan, "col", s.tile_k, s.step_k),
    )
    body = _join(
        which,
        _dims(plan),
        "scale2 = scale * LOG2E",
        "q_at = q + batch * q_batch + token.to(tl.int64) * q_row",
        _load(plan, "q_tile", f"q_at + ({query} * q_head + dims[None, :])", *mine_q),
        _key_base("k", "dims"),
        _key_base("v", "vdims"),
        "",
        f"m = tl.full([{rows}], -INF, tl.float32)",
        f"l = tl.zeros([{rows}], tl.float32)",
        f"acc = tl.zeros([{rows}, {s.vdim}], tl.float32)",
        _line(plan, f"own // {s.tile_q}", "lines", "unit * group" if packed else "unit"),
        _open(plan, "col", s.tile_k, s.tile_k // s.step_k),
        "steps = tl.where(inside, steps, 0)",
        "for _ in range(0, steps):\n" + indented(step),
        piece(t.FINISH),
        "out_at = out + batch * o_batch + token.to(tl.int64) * o_row",
        _store(plan, f"out_at + ({query} * o_head + vdims[None, :])", "acc", *mine_v),
        "tl.store(lse + (batch * heads + head) * count + token, lse_tile, mask=mine)",
    )
    return head + "\n" + indented(body)


_NOTE = (
    "# Tile-local pair; the offset is left to run time so that masks are not held across the loop."
)


def _divided(name: str, by: int) -> str:
    return name if by == 1 else f"{name} // {by}"


def _local_row(rows_down: int, s: _Sizes) -> str:
    return "rows[:, None]" + (f" + row % {rows_down} * {s.step_q}" if rows_down > 1 else "")


def _softmax(plan: Plan) -> str:
    text = piece(
        t.SOFTMAX,
        guard=t.GUARD if plan.masked else "@drop",
        shift="base" if plan.masked else "m_next",
    )
    return _clean(text)


def _tile_at(name: str, base: str, x: str, head: str, along: str, dims: str) -> tuple[str, str]:
    """A line that sets `name`_at, and the pointers of a [steps, dims] tile at `first` made from it.

    64-bit offsets up to the tile, 32-bit ones within it.
    """
    line = f"{name}_at = {base} + batch * {x}_batch + {head} * {x}_head + first * {x}_row"
    return line, f"{name}_at + ({along}[:, None] * {x}_row + {dims}[None, :])"


def _key_base(x: str, dims: str) -> str:
    return (
        f"{x}_base = {x} + batch * {x}_batch + kv_head * {x}_head"
        f" + (cols[:, None] * {x}_row + {dims}[None, :])"
    )


def _load_keys(plan: Plan, x: str, dims: str, dim: int) -> str:
    there = "(col + cols < n_k)[:, None]" if plan.masked else ""
    at = f"{x}_base + col.to(tl.int64) * {x}_row"
    return _load(plan, f"{x}_tile", at, there, _dim_test(dim, dims))


def _load_queries(plan: Plan, x: str, dims: str, dim: int) -> str:
    at = f"{x}_base + at_q.to(tl.int64) * {x}_row"
    return _load(plan, f"{x}_tile", at, "live[:, None]", _dim_test(dim, dims))


def _load_rows(plan: Plan, x: str, base: str, dims: str, dim: int) -> str:
    line, at = _tile_at(x, base, x, "head", "rows", dims)
    return _join(line, _load(plan, f"{x}_tile", at, "seen[:, None]", _dim_test(dim, dims)))


def _load_columns(plan: Plan, x: str, dims: str, dim: int) -> str:
    line, at = _tile_at(x, x, x, "kv_head", "cols", dims)
    return _join(line, _load(plan, f"{x}_tile", at, "there[:, None]", _dim_test(dim, dims)))


def _store_rows(plan: Plan, base: str, x: str, name: str, dims: str, dim: int) -> str:
    line, at = _tile_at(base, base, x, "head", "rows", dims)
    return _join(line, _store(plan, at, name, "seen[:, None]", _dim_test(dim, dims)))


def _store_columns(plan: Plan, base: str, x: str, name: str, dims: str, dim: int) -> str:
    line, at = _tile_at(base, base, x, "kv_head", "cols", dims)
    return _join(line, _store(plan, at, name, "there[:, None]", _dim_test(dim, dims)))


def _store(plan: Plan, at: str, name: str, *conditions: str) -> str:
    mask = _masking(*conditions).removesuffix(", other=0.0")
    value = name if plan.dtype == "float32" else f"{name}.to(tl.{plan.dtype})"
    return f"tl.store({at}, {value}{mask})"
