"""What `patterncc compile` leaves in a folder: layouts, readable kernel sources and a manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from patterncc._version import __version__
from patterncc.errors import BackendError, PatternError

if TYPE_CHECKING:
    from patterncc.kernels.plan import DType, Kind, Plan, Target
    from patterncc.language import PatternFile
    from patterncc.layout import Layout

SCHEMA = "patterncc.compile/1"
KINDS: tuple[Kind, ...] = ("forward", "delta", "dq", "dkdv", "decode")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

_OURS = re.compile(rf"layout(-\d+)?\.safetensors|({'|'.join(KINDS)})-[0-9a-f]{{16}}\.py")

Files = dict[str, "bytes | str | Layout"]


def compiled(
    file: PatternFile,
    n: int,
    block: tuple[int, int] | None,
    target: str,
    dtype: str,
    head_dim: int,
    say: Callable[[str], None],
) -> tuple[Files, dict[str, Any]]:
    """The files by name, and the manifest: distinct layouts, and the kernels that run them.

    Layouts that use the same mask classes share their kernels: a source is named by its plan.
    """
    from patterncc.layout import compile

    more: dict[str, Any] = dict(file.bindings)
    say("layout")
    layouts = compile(file.stack, n, block=block, **more)
    distinct = list(dict.fromkeys(layouts))
    files: Files = {}
    kernels: dict[str, dict[str, Any]] = {}
    rows = []
    for k, layout in enumerate(distinct):
        name = "layout.safetensors" if len(distinct) == 1 else f"layout-{k}.safetensors"
        files[name] = layout
        plans = _plans(layout, target, dtype, head_dim)
        for plan in plans:
            source = f"{plan.kind}-{plan.digest}.py"
            if source not in kernels:
                say(f"{plan.kind} kernel")
                files[source], kernels[source] = _kernel(plan)
        rows.append(
            {
                "file": name,
                "layers": [l for l, used in enumerate(layouts) if used is layout],
                "kernels": {p.kind: f"{p.kind}-{p.digest}.py" for p in plans},
                **_described(layout),
            }
        )
    manifest = {
        "schema": SCHEMA,
        "patterncc": __version__,
        "pattern": {"name": file.name, "file": file.path, "params": _plain(file.params)},
        "n": n,
        "target": target,
        "dtype": DTYPES[dtype],
        "head_dim": head_dim,
        "layouts": rows,
        "kernels": kernels,
    }
    files["manifest.json"] = json.dumps(manifest, indent=2) + "\n"
    return files, manifest


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values; what JSON does not have is written as text."""
    return {
        k: v if isinstance(v, int | str | None) else list(v) if isinstance(v, tuple) else str(v)
        for k, v in params.items()
    }


def _plans(layout: Layout, target: str, dtype: str, head_dim: int) -> list[Plan]:
    from patterncc.kernels.choose import choose
    from patterncc.kernels.plan import Spec

    spec = Spec.of(layout, "triton")
    goal, number = cast("Target", target), cast("DType", DTYPES[dtype])
    return [choose(kind, spec, goal, number, head_dim, head_dim) for kind in KINDS]


def _kernel(plan: Plan) -> tuple[str, dict[str, Any]]:
    """A kernel's source, and its plan and resource use, or why it could not be compiled here."""
    from patterncc.kernels.emit import emit

    source = emit(plan)
    row: dict[str, Any] = {"kind": plan.kind, "plan": json.loads(plan.text())}
    try:
        from patterncc.kernels.offline import compile_offline

        row["resources"] = compile_offline(source, plan).to_dict()
    except (BackendError, ImportError) as error:
        row |= {"resources": None, "not_compiled": str(error)}
    return source, row


def _described(layout: Layout) -> dict[str, Any]:
    return {
        "hash": layout.hash,
        "pattern": layout.pattern,
        "n": layout.n,
        "n_k": layout.n_k,
        "q_offset": layout.q_offset,
        "block": list(layout.block),
        "edges": list(layout.edges),
        "density": layout.density,
        "tile_density": layout.tile_density,
        "full_tiles": layout.full_tiles,
        "partial_tiles": layout.partial_tiles,
        "bytes": layout.nbytes,
    }


def write(folder: Path, files: Files) -> None:
    """Write everything beside the folder first, so that a failure leaves it as it was."""
    part = None
    try:
        part = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        for name, content in files.items():
            _write_one(part / name, content)
        part.chmod(0o755)
        if folder.exists():
            _check_targets(folder, files)
            for name in files:
                os.replace(part / name, folder / name)
            for old in folder.iterdir():  # of an earlier compilation, which the manifest replaced
                if _OURS.fullmatch(old.name) and old.name not in files:
                    old.unlink()
        else:
            os.replace(part, folder)
    except OSError as error:
        raise PatternError(f"compile: cannot write {str(folder)!r}: {error.strerror}") from None
    finally:
        if part is not None and part.exists():
            shutil.rmtree(part)


def _check_targets(folder: Path, files: Files) -> None:
    """Refuse before the first file is replaced."""
    for name in files:
        if (folder / name).is_dir():
            raise PatternError(
                f"compile: {str(folder / name)!r} is a folder, and a file of that name is to be "
                "written; name another folder"
            )


def _write_one(path: Path, content: bytes | str | Layout) -> None:
    match content:
        case bytes():
            path.write_bytes(content)
        case str():
            path.write_text(content, encoding="utf-8")
        case _:
            content.save(path)


def text(folder: Path, manifest: dict[str, Any]) -> str:
    """What was written, with each kernel's use of the GPU."""
    built = f"{manifest['target']}, {manifest['dtype']}, head dim {manifest['head_dim']}"
    lines = [f"wrote {folder}: {built}"]
    for row in manifest["layouts"]:
        shown = f"{row['full_tiles']:,} full and {row['partial_tiles']:,} partial tiles"
        block = "x".join(map(str, row["block"]))
        lines.append(f"  {row['file']}: block {block}, {shown}, {row['bytes'] / 1024:,.0f} KiB")
    for name, row in manifest["kernels"].items():
        used = row["resources"]
        if used is None:
            lines.append(f"  {name}: not compiled here: {row['not_compiled']}")
            continue
        spills = used["spill_stores"] + used["spill_loads"]
        cores = next(iter(used["tensor_cores"]), "no tensor cores")
        lines.append(
            f"  {name}: {used['registers']} registers, {used['shared'] / 1024:.0f} KiB shared, "
            f"{spills} spills, {cores}"
        )
    return "\n".join(lines)
