"""`patterncc bench plan`: what kernels do with a mask, counted, beside FlexAttention's schedule.

No GPU is needed and none is guessed at: products, bytes and tiles are exact counts of the work that
the generated kernels and FlexAttention's templates would do, and the balance is a simulation of
which processor is free when, tile by tile.  How fast a tile goes is not told by any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from patterncc.bench import plan_flex
from patterncc.bench.masks import Mask, gallery_masks, grid, laid_out
from patterncc.bench.plan_counts import Pass, Shape, batch_of, lines_of, measure, weights
from patterncc.bench.protocol import machine, table
from patterncc.errors import PatternError, SizeError
from patterncc.kernels.choose import choose
from patterncc.kernels.launch.call import section
from patterncc.kernels.spec import Spec
from patterncc.kernels.tables import kernel_tables, level
from patterncc.kernels.work import FEWEST, LEAST, LEVELS, makespan, work_list

if TYPE_CHECKING:
    from patterncc.kernels.plan import DType, Kind, Target
    from patterncc.layout.layout import Layout, Runs

TARGET: Target = "sm_90"
DTYPE: DType = "bfloat16"
GOAL = 1.05  # time over the ideal
Say = Callable[[str], None]


def run(
    *,
    n: int = 65536,
    heads: int = 16,
    head_dim: int = 128,
    processors: int = 132,
    only: str = "",
    progress: Say | None = None,
) -> dict[str, Any]:
    """Counts for every gallery pattern and the grid of common shapes.

    only: keeps the masks whose names hold it.
    """
    say = progress or (lambda _: None)
    shape = Shape(heads, heads, head_dim)
    grouped = Shape(heads, max(1, heads // 8), head_dim)
    listed = [("gallery", m, shape) for m in gallery_masks(n)]
    common = list(grid(n))
    listed += [("grid", m, shape) for m in common]
    listed += [
        ("grid", replace(m, name=f"{m.name}, GQA 8:1"), grouped)
        for m in common
        if m.name in ("causal", "window 1024", "window 1025 + 64 globals")
    ]
    cases = []
    for group, mask, each in listed:
        if only in mask.name:
            say(mask.name)
            cases.append({"group": group, **case(mask, each, processors)})
    return {
        "bench": "plan",
        "versions": machine()["versions"],
        "n": n,
        "heads": heads,
        "head_dim": head_dim,
        "target": TARGET,
        "dtype": DTYPE,
        "processors": processors,
        "goal": GOAL,
        "measured_on_a_gpu": False,
        "cases": cases,
    }


def case(mask: Mask, shape: Shape, processors: int) -> dict[str, Any]:
    """Ours and FlexAttention's counts of one mask."""
    layout = laid_out(mask)
    batch = batch_of(layout, shape.heads)
    ours = _ours(layout, shape, processors)
    row: dict[str, Any] = {
        "case": mask.name,
        "n": layout.n,
        "n_k": layout.n_k,
        "shape": asdict(shape) | {"heads": len(layout.head_pattern) * batch},
        "edges": sum(t.head_edges for t in layout.terms) * batch,
        "density": layout.density,
        "ours": ours,
    }
    try:
        blocks = flex_blocks(mask, layout, batch)
    except PatternError as error:
        return row | {"flex": None, "flex_refused": str(error)}
    flex = plan_flex.counts(blocks, shape, processors)
    return row | {"flex": flex, "ratio": _ratios(ours, flex)}


def flex_blocks(mask: Mask, layout: Layout, batch: int) -> plan_flex.Blocks:
    """The mask as FlexAttention sees it: from a layout, else from counts of its own.

    Raises SizeError where it has neither.
    """
    try:
        return plan_flex.from_layout(laid_out(mask, plan_flex.BLOCK, "token"), batch)
    except SizeError:
        if mask.pairs is None:
            raise
    patterns = layout.head_pattern.astype(np.int64)
    return plan_flex.from_pairs(mask.pairs(), mask.n, patterns, batch)


def _ours(layout: Layout, shape: Shape, processors: int) -> dict[str, Any]:
    """Passes, tables and balance of a layout, its terms added up."""
    found = [_term(replace(t, rest=(), recipe=None), shape, processors) for t in layout.terms]
    named = ("forward", "repeatable", "single")
    passes = {name: _sum([term[name] for term in found]).to_dict() for name in named}
    orders = [t.order.name if t.order else "token" for t in layout.terms]
    moved = sum(_moved(t, shape) for t in layout.terms)
    balances = {}
    for name in ("forward_balance", "repeatable_balance", "single_balance"):
        time, ideal, tiles = (sum(term[name][k] for term in found) for k in range(3))
        balances[name] = _balance(time, ideal, tiles)
    return {
        "orders": orders,
        "blocks": [list(t.block) for t in layout.terms],
        "forward": passes["forward"],
        "backward": {"repeatable": passes["repeatable"], "single_pass": passes["single"]},
        "table_bytes": sum(term["table_bytes"] for term in found),
        "layout_bytes": layout.nbytes,
        "order_bytes": moved,
        **balances,
    }


def _sum(passes: Iterable[Pass]) -> Pass:
    first, *rest = passes
    for each in rest:
        first += each
    return first


def _moved(term: Layout, shape: Shape) -> int:
    """Bytes that a term's order moves at least: Q, K and V gathered, the output put back."""
    if term.order is None:
        return 0
    rows = shape.heads * term.n * 2 + shape.kv_heads * term.n_k * 2
    return 2 * rows * shape.head_dim * shape.width


def _term(term: Layout, shape: Shape, processors: int) -> dict[str, Any]:
    """The kernels of one term: what each counts, and how long its launch takes."""
    spec = Spec.of(term, "triton")
    weight = weights(term, shape.heads)
    rows, cols = lines_of(term.rows, weight), lines_of(term.cols, weight)
    frame = (term.n, term.n_k)
    held = {}
    kinds: tuple[Kind, ...] = ("forward", "dq", "dkdv", "single")
    for kind in kinds:
        plan = choose(kind, spec, TARGET, DTYPE, shape.head_dim, shape.head_dim)
        by_rows = kind in ("forward", "dq")
        runs = term.rows if by_rows else term.cols
        programs = term.block[0] // plan.bm if by_rows else term.block[1] // plan.bn
        members = 1 if by_rows else shape.group
        units = batch_of(term, shape.heads) // members
        slots, times = _launch(term, runs, units, processors, shape, programs, members)
        counted = measure(
            kind,
            rows if by_rows else cols,
            term.block,
            shape,
            frame=frame,
            repeats=programs,
            parts=slots * units,
        )
        held[kind] = (counted, times)
    dq, dkdv = held["dq"][1], held["dkdv"][1]
    share = plan_flex.DQ / plan_flex.FORWARD, plan_flex.DKDV / plan_flex.FORWARD
    return {
        "forward": held["forward"][0],
        "repeatable": held["dq"][0] + held["dkdv"][0],
        "single": held["single"][0],
        "forward_balance": held["forward"][1],
        "repeatable_balance": [share[0] * a + share[1] * b for a, b in zip(dq, dkdv)],
        "single_balance": held["single"][1],
        "table_bytes": _table_bytes(term, spec),
    }


def _table_bytes(term: Layout, spec: Spec) -> int:
    """Bytes of the op's tensors; one that is listed twice is there once."""
    tensors = kernel_tables(term, spec, torch.device("cpu"))
    return sum({t.data_ptr(): t.nbytes for t in tensors if t.nbytes}.values())


def _launch(
    term: Layout,
    runs: Runs,
    units: int,
    processors: int,
    shape: Shape,
    programs: int,
    members: int = 1,
) -> tuple[int, tuple[float, float, float]]:
    """Slots of a work list, and (time, ideal, tiles a processor) of its launch.

    members: query heads that one program goes through, one after another.
    """
    heads = len(term.head_pattern)
    width = term.block[1] if runs is term.rows else term.block[0]
    asked = LEVELS[level(units)]
    work = work_list(runs, term.head_pattern, runs.lines, asked, processors, width)
    if members > 1:
        items = work.items.copy()
        items[:, 4] *= members
        work = replace(work, items=items)
    length = term.n_k if runs is term.rows else term.n
    streamed = torch.empty(
        (units, heads, length, shape.head_dim), dtype=torch.bfloat16, device="meta"
    )
    together = section(units, streamed, streamed)
    time, ideal = makespan(work, units, processors, together, programs)
    tiles = float(work.items[:, 4].sum(dtype=np.int64)) * units * programs / processors
    return len(work.parts), (time, ideal, tiles)


def _balance(time: float, ideal: float, tiles: float) -> dict[str, Any]:
    """Time over the ideal, and why where it is missed."""
    over = time / ideal if ideal else 1.0
    found: dict[str, Any] = {
        "time": time,
        "ideal": ideal,
        "over_ideal": over,
        "tiles_a_processor": tiles,
    }
    if over > GOAL:
        found["why"] = (
            f"too little work to fill the processors: {tiles:.1f} tiles each, and lines are not "
            f"cut into parts of less than {max(FEWEST, LEAST // plan_flex.BLOCK)}"
        )
    return found


def _ratios(ours: dict[str, Any], flex: dict[str, Any]) -> dict[str, float]:
    """FlexAttention's figure over ours: above 1 it does more."""
    ways = {
        "forward": (ours["forward"], ours["forward_balance"], flex["forward"], "forward"),
        "backward_repeatable": (
            ours["backward"]["repeatable"],
            ours["repeatable_balance"],
            flex["backward"],
            "backward",
        ),
        "backward_single_pass": (
            ours["backward"]["single_pass"],
            ours["single_balance"],
            flex["backward"],
            "backward",
        ),
    }
    found = {"tables": flex["table_bytes"] / ours["table_bytes"]}
    for name, (mine, even, theirs, way) in ways.items():
        found[f"{name}_products"] = _over(theirs["multiply_adds"], mine["multiply_adds"])
        found[f"{name}_masked_pairs"] = _over(theirs["masked_pairs"], mine["masked_pairs"])
        found[f"{name}_bytes"] = _over(theirs["bytes"], mine["bytes"])
        found[f"{name}_schedule"] = (
            found[f"{name}_products"] * flex[f"{way}_balance"]["over_ideal"] / even["over_ideal"]
        )
    return found


def _over(a: float, b: float) -> float | None:
    """A ratio; None where there is nothing to compare with."""
    return a / b if b else None


def text(result: dict[str, Any]) -> str:
    """The table that a person reads: one line a mask, FlexAttention's figures over ours."""
    columns = ["mask", "density", "order, block", "masked", "TFLOP", "products", "masked pairs"]
    columns += ["bytes", "tables", "forward", "Flex's", "backward", "Flex's"]
    columns += ["forward", "repeatable", "single"]
    lines = [
        f"{result['n']:,} tokens, {result['heads']} heads of {result['head_dim']}, "
        f"{result['dtype']}, {result['target']} with {result['processors']} processors.  Counted, "
        "not measured: no GPU was asked.",
        "products, masked pairs, bytes (forward), tables (bytes): FlexAttention's over ours.",
        "forward, backward, Flex's: time of the launch over that of even work.",
        "forward, repeatable, single: products (2 against 2, 7 against 7, 5 against 7) times "
        "balance, FlexAttention's over ours: what the schedules alone give, tiles being as fast.",
        "",
        table(columns, [_line(c) for c in result["cases"]]),
    ]
    late = [c for c in result["cases"] if "why" in c["ours"]["forward_balance"]]
    if late:
        lines += ["", f"Over {result['goal']} times even work:"]
    for c in late:
        even = c["ours"]["forward_balance"]
        lines.append(f"  {c['case']}: {even['over_ideal']:.2f}, {even['why']}")
    for c in result["cases"]:
        if c["ours"]["forward_balance"]["tiles_a_processor"] < 1:
            lines.append(f"  {c['case']}: less than a tile a processor; programs start and end")
        if c["flex"] is None:
            lines.append(f"  {c['case']}: no figures of FlexAttention: {c['flex_refused']}")
    return "\n".join(lines)


def _line(c: dict[str, Any]) -> list[str]:
    ours, ratio = c["ours"], c.get("ratio")
    forward = ours["forward"]
    block = "x".join(map(str, ours["blocks"][0]))
    shown = [
        c["case"],
        f"{c['density']:.3%}",
        f"{' + '.join(ours['orders'])}, {block}",
        f"{forward['masked_tiles'] / max(1, forward['tiles']):.0%}",
        f"{2 * forward['multiply_adds'] / 1e12:.3g}",
    ]
    mine = [ours[f"{name}_balance"]["over_ideal"] for name in ("forward", "repeatable")]
    if ratio is None:
        return [*shown, *[""] * 4, f"{mine[0]:.2f}", "", f"{mine[1]:.2f}", *[""] * 4]
    names = ["forward_products", "forward_masked_pairs", "forward_bytes", "tables"]
    shown += [_times(ratio[name]) for name in names]
    for name, own in zip(("forward", "backward"), mine):
        shown += [f"{own:.2f}", f"{c['flex'][f'{name}_balance']['over_ideal']:.2f}"]
    ways = ("forward", "backward_repeatable", "backward_single_pass")
    return shown + [_times(ratio[f"{way}_schedule"]) for way in ways]


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
