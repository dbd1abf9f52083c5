"""check and show: does a pattern file say what is meant, and what does its mask look like."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patterncc.cli.answer import BAD_INPUT, FAILED, WELL, Answer, answering, working
from patterncc.cli.options import Size, n_option, pairs, pattern_options, read, sizes_of
from patterncc.errors import PatternError

if TYPE_CHECKING:
    from patterncc.analysis.lint.run import Finding
    from patterncc.expect import Outcome
    from patterncc.language import PatternFile
    from patterncc.show import Panel

MOST_CELLS = 4096  # across a drawing: 16 million of them
LINT_N = 4096  # tokens at which a file is linted that names no length itself


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a parameter of every file, as -p w=128.",
)
@n_option("Length at which to lint; default: the shortest that the file expects something of.")
@answering
def check(files: tuple[Path, ...], params: tuple[str, ...], n: int | None) -> Answer:
    """Validate FILES, lint them, and prove each of their expectations."""
    pairs(params, "-p")
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    status = WELL
    for file in files:
        with working(f"Checking {file}"):
            row, text, code = _check(file, params, n)
        rows.append(row)
        lines += text
        status = max(status, code)
    return Answer({"files": rows, "ok": status == WELL}, "\n".join(lines), status)


def _check(
    file: Path, params: tuple[str, ...], n: int | None
) -> tuple[dict[str, Any], list[str], int]:
    """One file's row, its lines and its status; a broken file does not stop the others."""
    from patterncc.expect import prove

    try:
        loaded = read(file, params, n=n)
        outcomes = prove(loaded)
        findings, length = _lint(loaded, n)
    except PatternError as error:
        row: dict[str, Any] = {"file": str(file), "status": "error", "message": str(error)}
        return row, [f"error   {file}", *_indented(str(error))], BAD_INPUT
    failed = any(o.holds is not True for o in outcomes) or any(
        f.severity == "error" for f in findings
    )
    row = {
        "file": str(file),
        "status": "failed" if failed else "ok",
        "name": loaded.name,
        "lint_n": length,
        "expect": [_outcome(o) for o in outcomes],
        "findings": [f.to_json() for f in findings],
    }
    held = sum(o.holds is True for o in outcomes)
    head = f"{'failed' if failed else 'ok':7} {file}  ({held} of {len(outcomes)} expectations hold)"
    lines = [head]
    for o in outcomes:
        if o.holds is not True:
            lines += _indented(f"{o.span}: {o}\n{o.span.caret()}")
    for f in findings:
        lines += _indented(str(f))
    return row, lines, FAILED if failed else WELL


def _outcome(o: Outcome) -> dict[str, Any]:
    return {
        "text": o.text,
        "line": o.span.line,
        "holds": o.holds,
        "actual": o.actual,
        "badge": o.badge,
    }


def _lint(file: PatternFile, n: int | None) -> tuple[tuple[Finding, ...], int]:
    from patterncc.analysis.content import possible
    from patterncc.analysis.lint.run import lint
    from patterncc.analysis.topology import topology

    length = n or next(iter(sizes_of(file)), LINT_N)
    stack = possible(file.stack, file.bindings)
    return lint(topology(stack, length, **file.bindings), file.stack), length


def _indented(text: str) -> list[str]:
    return ["    " + line for line in text.splitlines()]


@click.command()
@pattern_options
@n_option("Tokens; default: the first power of two at which the mask's shape shows.")
@click.option("--layer", type=click.IntRange(min=0), help="One layer, counted from 0.")
@click.option("--head", type=click.IntRange(min=0), help="One head, counted from 0.")
@click.option(
    "--cells", type=Size(1, MOST_CELLS), help="Cells across, where a large mask is drawn in cells."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PICTURE",
    help="Write a .png or .svg picture.",
)
@answering
def show(
    file: Path,
    params: tuple[str, ...],
    bind: tuple[str, ...],
    n: int | None,
    layer: int | None,
    head: int | None,
    cells: int | None,
    output: Path | None,
) -> Answer:
    """Draw the mask of FILE: query i down, key j across; every distinct layer and head once."""
    from patterncc import show as drawing

    if output is not None:
        drawing.check_picture(output)
    loaded = read(file, params, bind, n)
    bound: dict[str, Any] = dict(loaded.bindings)
    n = n or drawing.natural_size(loaded.stack, bound, sizes_of(loaded))
    wanted = drawing.masks(loaded.stack, n, layer, head, bound, loaded.edges)
    most = cells or (drawing.PICTURE_CELLS if output else _terminal_cells())
    panels = [drawing.panel(mask, most) for mask in wanted]
    data = {
        "file": str(file),
        "name": loaded.name,
        "n": n,
        "output": str(output) if output else None,
        "masks": [_mask_json(p) for p in panels],
    }
    if output is None:
        return Answer(data, "\n\n".join(drawing.text(p) for p in panels))
    with working(f"Drawing {output}"):
        drawing.picture(panels, f"{loaded.name}, {n:,} tokens", output)
    return Answer(data, f"wrote {output}")


def _mask_json(p: Panel) -> dict[str, Any]:
    f = p.frame
    return {"title": p.title, "n": f.n, "n_k": f.n_k, "edges": p.edges, "density": p.density}


def _terminal_cells() -> int:
    columns, lines = shutil.get_terminal_size((100, 40))
    return max(8, min(64, (columns - 10) // 2, 2 * (lines - 4)))
