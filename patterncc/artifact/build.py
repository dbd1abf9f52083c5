"""From a stack to an artifact: its distinct layouts, the plans of their kernels, the manifest."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from patterncc._version import __version__
from patterncc.artifact.artifact import SCHEMA, Artifact
from patterncc.errors import BackendError, PatternValueError, suggest
from patterncc.kernels.choose import choose
from patterncc.kernels.emit import emit
from patterncc.kernels.plan import DType, Kind, Plan, Target
from patterncc.kernels.spec import Spec
from patterncc.layout import compile
from patterncc.stack import Stack

if TYPE_CHECKING:
    from patterncc.language import PatternFile
    from patterncc.layout import Layout
    from patterncc.stack import Layer

KINDS: tuple[Kind, ...] = ("forward", "combine", "delta", "dq", "dkdv", "gather", "decode")
"""What a model runs by default; other options of a call make other plans."""
DTYPES: dict[str, DType] = {
    **dict.fromkeys(("fp32", "float32"), "float32"),
    **dict.fromkeys(("fp16", "float16"), "float16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
}
TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "sm_100")


def build(
    what: PatternFile | Stack | Layer,
    n: int,
    *,
    target: str,
    dtype: object,
    head_dim: int,
    block: int | tuple[int, int] | None,
    order: object,
    resources: bool,
    progress: Callable[[str], None],
    bindings: dict[str, Any],
) -> Artifact:
    """As `Artifact.build`."""
    goal = _one_of("target", target, TARGETS)
    number = DTYPES[_one_of("dtype", str(dtype).removeprefix("torch."), DTYPES)]
    stack, origin, bound = _read(what)
    progress("layout")
    more = bound | bindings
    layouts = compile(stack, n, block=block, order=order, target=goal, **more)
    sources: dict[str, str] = {}
    kernels: dict[str, dict[str, Any]] = {}
    rows = []
    for name, layout in zip(names_of(layouts), dict.fromkeys(layouts), strict=True):
        used = []
        for plan in _plans(layout, cast(Target, goal), number, head_dim):
            source = f"{plan.kind}-{plan.digest}.py"
            used.append(source)
            if source not in kernels:
                progress(f"{plan.kind} kernel")
                sources[source] = emit(plan)
                kernels[source] = _kernel(plan, sources[source], resources)
        layers = [l for l, each in enumerate(layouts) if each is layout]
        rows.append({"file": name, "layers": layers, "kernels": used, **described(layout)})
    manifest = {
        "schema": SCHEMA,
        "versions": versions(),
        "pattern": origin,
        "n": layouts[0].n,
        "target": goal,
        "dtype": number,
        "head_dim": head_dim,
        "shapes": shapes(layouts[0], head_dim),
        "layouts": rows,
        "kernels": kernels,
    }
    return Artifact(layouts, sources, manifest)


def names_of(layouts: tuple[Layout, ...]) -> list[str]:
    """The file name of each distinct layout, in the order in which they first occur."""
    count = len(dict.fromkeys(layouts))
    return (
        ["layout.safetensors"] if count == 1 else [f"layout-{k}.safetensors" for k in range(count)]
    )


def versions() -> dict[str, str]:
    """What the artifact was made with."""
    found = {"patterncc": __version__, "python": platform.python_version()}
    for package in ("triton", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _one_of(name: str, value: str, known: Any) -> str:
    if value not in known:
        raise PatternValueError(f"compile: no {name} {value!r}; {suggest(str(value), known)}")
    return value


def _read(what: Any) -> tuple[Stack, dict[str, Any], dict[str, Any]]:
    """The stack, what the manifest says of its origin, and what it brings for its names."""
    if isinstance(what, Stack):
        return what, {"name": "", "file": "", "params": {}}, {}
    if hasattr(what, "stack"):
        params = {k: _plain(v) for k, v in what.params.items()}
        origin = {"name": what.name, "file": PurePath(what.path).name, "params": params}
        return what.stack, origin, dict(what.bindings)
    return Stack(what), {"name": "", "file": "", "params": {}}, {}


def _plain(value: object) -> object:
    """A parameter as a JSON value; what JSON does not have is written as text."""
    if isinstance(value, int | str | None):
        return value
    return list(value) if isinstance(value, tuple) else str(value)


def _plans(layout: Layout, target: Target, dtype: DType, head_dim: int) -> list[Plan]:
    """The plans of all kernels of all terms, each once."""
    plans = []
    for term in layout.terms:
        spec = Spec.of(term, "triton")
        for kind in KINDS:
            rows = 16 if kind == "decode" else 1
            plans.append(choose(kind, spec, target, dtype, head_dim, head_dim, heads=rows))
    return list(dict.fromkeys(plans))


def _kernel(plan: Plan, source: str, resources: bool) -> dict[str, Any]:
    """A kernel's plan, the hash of its source, and its resource use or why it is not known."""
    digest = hashlib.sha256(source.encode()).hexdigest()
    row: dict[str, Any] = {"kind": plan.kind, "sha256": digest, "plan": json.loads(plan.text())}
    if not resources:
        return row | {"resources": None, "not_compiled": "not asked for"}
    try:
        from patterncc.kernels.offline import compile_offline

        row["resources"] = compile_offline(source, plan).to_dict()
    except (BackendError, ImportError) as error:
        row |= {"resources": None, "not_compiled": str(error)}
    return row


def shapes(layout: Layout, head_dim: int) -> dict[str, list[str | int]]:
    """The shapes that `attention` takes and gives; names stand for what any number may be."""
    heads: str | int = layout.heads or "heads"
    queries: list[str | int] = ["batch", heads, layout.n, head_dim]
    keys: list[str | int] = ["batch", "kv_heads", layout.n_k, head_dim]
    return {"q": queries, "k": keys, "v": keys, "out": queries, "lse": queries[:3]}


def described(layout: Layout) -> dict[str, Any]:
    """What the manifest says of a layout; all of it follows from the layout."""
    return {
        "hash": layout.hash,
        "pattern": layout.pattern,
        "n": layout.n,
        "n_k": layout.n_k,
        "q_offset": layout.q_offset,
        "orders": [t.order.name if t.order else "token" for t in layout.terms],
        "block": list(layout.block),
        "edges": [list(t.edges) for t in layout.terms] if layout.rest else list(layout.edges),
        "density": layout.density,
        "tile_density": layout.tile_density,
        "full_tiles": layout.full_tiles,
        "partial_tiles": layout.partial_tiles,
        "bytes": layout.nbytes,
    }
