"""Whether a manifest says of its layouts what they are: each figure is computed again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from patterncc.artifact.build import DTYPES, TARGETS, described, shapes

if TYPE_CHECKING:
    from patterncc.kernels.plan import Plan
    from patterncc.layout import Layout

KEYS = frozenset(
    ("schema", "versions", "pattern", "n", "target", "dtype", "head_dim", "shapes", "layouts")
) | {"kernels"}


def strict_json(data: bytes) -> Any:
    """JSON without NaN, Infinity and keys that stand twice.

    Raises ValueError for those and for what is no JSON.
    """
    return json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)


def header_complaints(manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the fields that stand beside the layouts and kernels."""
    if set(manifest) != KEYS:
        first = min(set(manifest) ^ KEYS)
        yield f"{first!r} is missing" if first in KEYS else f"{first!r} is no field of it"
        return
    if manifest["target"] not in list(TARGETS):
        yield f"its target is {manifest['target']!r}, not one of {', '.join(TARGETS)}"
    known = list(dict.fromkeys(DTYPES.values()))
    if manifest["dtype"] not in known:
        yield f"its dtype is {manifest['dtype']!r}, not one of {', '.join(known)}"
    for name in ("n", "head_dim"):
        if type(manifest[name]) is not int:
            yield f"its {name} is {manifest[name]!r}, not an integer"
    versions = manifest["versions"]
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        yield "versions is an object of texts"
    match manifest["pattern"]:
        case {"name": str(), "file": str(), "params": dict()}:
            pass
        case _:
            yield "pattern is an object of name, file and params"


def layout_complaints(
    manifest: dict[str, Any], row: dict[str, Any], layout: Layout
) -> Iterator[str]:
    """Figures of one layout that are not the layout's."""
    facts = described(layout)
    for name, fact in facts.items():
        if name not in row:
            yield f"{row['file']} has no {name!r}"
        elif not _same(row[name], fact):
            yield f"{row['file']} has {name} {_short(fact)}, not {_short(row[name])}"
    extra = set(row) - set(facts) - {"file", "layers", "kernels"}
    if extra:
        yield f"{min(extra)!r} of {row['file']} is no field of a layout"
    if manifest["n"] != layout.n:
        yield f"{row['file']} has n {layout.n}, not {manifest['n']}"
    if 0 in row["layers"] and not _same(manifest["shapes"], shapes(layout, manifest["head_dim"])):
        yield f"shapes are not those of {row['file']}"


def kernel_complaints(manifest: dict[str, Any], name: str, plan: Plan) -> Iterator[str]:
    """What a kernel's row says otherwise than its plan and the manifest."""
    row = manifest["kernels"][name]
    if row.get("kind") != plan.kind:
        yield f"the kind of {name} is {plan.kind}, not {row.get('kind')!r}"
    for key in ("target", "dtype", "head_dim"):
        if getattr(plan, key) != manifest[key]:
            yield f"{name} is made for {key} {getattr(plan, key)}, not {manifest[key]}"
    match row:
        case {"resources": dict()} | {"resources": None, "not_compiled": str()}:
            pass
        case _:
            yield f"{name} needs its resources, or null and not_compiled"


def _same(given: object, fact: object) -> bool:
    """Equal to the last digit and in type: 1, 1.0 and true are three values."""
    return json.dumps(given, sort_keys=True) == json.dumps(fact, sort_keys=True)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, count = Counter(name for name, _ in pairs).most_common(1)[0]
        assert count > 1
        raise ValueError(f"the key {_short(twice)} stands twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
