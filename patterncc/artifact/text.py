"""An artifact in words: what was written, and what each kernel uses of the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def text(folder: Path, manifest: dict[str, Any]) -> str:
    """One line for each layout and each kernel."""
    built = f"{manifest['target']}, {manifest['dtype']}, head dim {manifest['head_dim']}"
    lines = [f"wrote {folder}: {built}"]
    for row in manifest["layouts"]:
        shown = f"{row['full_tiles']:,} full and {row['partial_tiles']:,} partial tiles"
        block = "x".join(map(str, row["block"]))
        order = "" if row["orders"] == ["token"] else f", order {' + '.join(row['orders'])}"
        size = f"{row['bytes'] / 1024:,.0f} KiB"
        lines.append(f"  {row['file']}: block {block}{order}, {shown}, {size}")
    return "\n".join(lines + [_kernel(name, row) for name, row in manifest["kernels"].items()])


def _kernel(name: str, row: dict[str, Any]) -> str:
    used = row["resources"]
    if used is None:
        return f"  {name}: not compiled here: {row['not_compiled']}"
    spills = used["spill_stores"] + used["spill_loads"]
    cores = ", ".join(f"{count} {what}" for what, count in used["tensor_cores"].items())
    return (
        f"  {name}: {used['registers']} registers, {used['shared'] / 1024:.0f} KiB shared, "
        f"{spills} spills, {cores or 'no tensor cores'}"
    )
