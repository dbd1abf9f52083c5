"""docs/report.schema.json against real reports, by a checker of the keywords that it uses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import patterncc as pc
from patterncc.analysis import compare
from patterncc.cli import main

DOCS = Path(__file__).parent.parent / "docs"
SCHEMA = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))
REPORT = SCHEMA["$defs"]["report"]
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
CHECKED = {"type", "const", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems"}
CHECKED |= {"$ref", "anyOf", "properties", "required", "items", "additionalProperties"}


def wrong(value: Any, schema: dict[str, Any], at: str = "$") -> Iterator[str]:
    """Where a value leaves the schema; fields that the schema does not name are wrong here."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        tries = [list(wrong(value, option, at)) for option in schema["anyOf"]]
        yield from [] if [] in tries else max(tries, key=len)
        return
    kinds = schema.get("type", [])
    wanted = [TYPES[k] for k in ([kinds] if isinstance(kinds, str) else kinds)]
    if wanted and not any(
        isinstance(value, k) and (k is bool or not isinstance(value, bool)) for k in wanted
    ):
        yield f"{at}: {value!r} is no {kinds}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    match value:
        case str() if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{at}: {value!r} does not match {schema['pattern']}"
        case bool():
            pass
        case int() | float():
            low, high = schema.get("minimum", value), schema.get("maximum", value)
            if not low <= value <= high + 1e-9 * abs(high):  # rounding
                yield f"{at}: {value} is outside [{low}, {high}]"
        case list():
            if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
                yield f"{at}: {len(value)} items"
            for k, item in enumerate(value):
                yield from wrong(item, schema["items"], f"{at}[{k}]")
        case dict():
            known, rest = schema.get("properties", {}), schema.get("additionalProperties")
            yield from (f"{at}: no {k}" for k in schema.get("required", []) if k not in value)
            for k, item in value.items():
                if k in known or rest:
                    yield from wrong(item, known.get(k, rest), f"{at}.{k}")
                else:
                    yield f"{at}: {k} is not in the schema"


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema."""
    match schema:
        case dict():
            yield schema
            for key in ("items", "additionalProperties"):
                yield from walk(schema.get(key))
            for key in ("properties", "$defs"):
                for part in schema.get(key, {}).values():
                    yield from walk(part)
            for part in schema.get("anyOf", []):
                yield from walk(part)


def test_the_schema_says_nothing_that_is_not_checked() -> None:
    for part in walk(SCHEMA):
        assert set(part) <= CHECKED | {"description", "title", "$schema", "$defs"}
        assert set(part.get("required", [])) <= set(part.get("properties", {}))
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/$defs/") in SCHEMA["$defs"]


NEAR = pc.causal() & pc.window(15)
REPORTS = {
    "windows": lambda: pc.analyze(pc.Stack([NEAR] * 2), 128),
    "no tokens": lambda: pc.analyze(NEAR, 0),
    "no layers followed": lambda: pc.analyze(NEAR, 16, 0),
    "both ways": lambda: pc.analyze(pc.window(4, 4) | pc.global_tokens([0]), 96, 2),
    "never, by document": lambda: pc.analyze(pc.documents([30, 34]) & NEAR, 64),
    "heads": lambda: pc.analyze(pc.heads([NEAR, pc.causal() & pc.strided(8)]), 96),
    "no edges": lambda: pc.analyze(pc.causal() & ~pc.causal(), 32),
    "state": lambda: pc.analyze(pc.Stack([pc.recurrent(), NEAR, pc.convolution(4)]), 64),
    "shared keys": lambda: pc.analyze(pc.Stack([NEAR] * 3, kv_from=[0, 1, 1]), 64),
    "memory": lambda: pc.analyze(pc.Stack([NEAR], memory=8), 64),
    "bounds": lambda: pc.analyze(pc.window(66), 4096, 3, engine="tiles"),
    "by content": lambda: pc.analyze(pc.Stack([pc.causal() & pc.topk(4) | NEAR]), 64),
    "traced": lambda: pc.analyze(pc.causal() & pc.routing(4), 4, routing=[0, 0, 1, 1]),
    "trillion": lambda: pc.analyze(NEAR, 2**40, 4),
}


@pytest.mark.parametrize("name", list(REPORTS))
def test_reports_keep_to_the_schema(name: str) -> None:
    told = json.loads(json.dumps(REPORTS[name]().to_json(), allow_nan=False))
    assert list(wrong(told, REPORT)) == []
    assert list(wrong(told, SCHEMA)) == []


def test_reasons_go_by_the_names_of_fields() -> None:
    told = REPORTS["state"]().to_json()
    assert "hub_load" in told["why_not"]
    assert all(not told[name] for name in told["why_not"])


def test_comparisons_keep_to_the_schema() -> None:
    found = compare({"near": NEAR, "state": pc.recurrent(), "all": pc.full()}, 64)
    assert list(wrong(json.loads(json.dumps(found.to_json())), SCHEMA)) == []


def test_the_command_adds_the_file_and_the_name() -> None:
    told = json.loads(
        CliRunner().invoke(main, ["analyze", "gpt-oss", "--n", "64", "--json"]).stdout
    )
    assert list(wrong(told, REPORT)) == []
    assert told["file"] == told["name"] == "gpt-oss"


@pytest.mark.parametrize(
    "change, told",
    [
        ({"n": -1}, "outside"),
        ({"n": None}, "no integer"),
        ({"schema": "patterncc.report/2"}, "not 'patterncc.report/1'"),
        ({"surprise": 1}, "surprise is not in the schema"),
        ({"mean_hops": True}, "True is no"),
        ({"reach": [{}]}, "no lo"),
    ],
)
def test_the_checker_finds_what_is_wrong(change: dict[str, Any], told: str) -> None:
    value = {**REPORTS["windows"]().to_json(), **change}
    assert any(told in line for line in wrong(value, REPORT))


def test_the_page_describes_every_field() -> None:
    page = (DOCS / "report.md").read_text(encoding="utf-8")
    names = {k for part in walk(SCHEMA) for k in part.get("properties", {})}
    assert {k for k in names if not re.search(rf"`{k}(\[[^`]*\])?`", page)} == set()
