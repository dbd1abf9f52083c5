"""The keys of a pattern file, one pass each, in the order of PASSES."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from operator import or_

from patterncc.errors import PatternValueError, suggest
from patterncc.language.draft import (
    Draft,
    edge_set,
    fields_of,
    integer,
    items_of,
    named_entries,
    parsed_text,
)
from patterncc.language.expectation import parse_expect
from patterncc.language.expression import evaluate, evaluate_edges
from patterncc.language.source import Broken, Entries, Node, Scalar, plain
from patterncc.language.syntax import Parsed, parse
from patterncc.language.values import BAD, MAX_TERMS, Bad, Named
from patterncc.pattern import Pattern, check_binding
from patterncc.stack import Heads, Layer

MAX_LAYERS = 10_000
MAX_HEADS = 1024
MAX_CYCLES = 20  # told of one file; each is sought anew

KEYS = (
    *("name", "summary", "source", "params", "edges", "layers", "kv_heads", "memory"),
    *("bindings", "expect"),
)
_LAYER_KEYS = ("repeat", "edges", "heads", "kv_from")
_HEAD_KEYS = ("count", "edges")


def _params(draft: Draft) -> None:
    """Parameters in the order of the file: each may use those above it."""
    entries = named_entries(draft, "params")
    for name, node in entries:
        parsed = parsed_text(draft, node, f"the parameter '{name}'")
        if name in draft.overrides:
            parsed = _override(draft, name, draft.overrides[name])
        found = evaluate(parsed, draft.scope, draft.problems) if parsed else Named(BAD)
        if isinstance(found.value, Pattern):
            assert parsed is not None
            what = f"the parameter '{name}' is an edge set"
            draft.note(what, parsed.span(parsed.tree), "move it under 'edges'")
            found = Named(BAD)
        draft.names[name] = found
        if not isinstance(found.value, Bad):
            draft.params[name] = found.value
    for name in draft.overrides:
        if name not in draft.names:
            near = suggest(name, (n for n, _ in entries))
            draft.note(f"{draft.file}: no parameter '{name}' to override", None, near)


def _override(draft: Draft, name: str, value: object) -> Parsed | None:
    """An override as an expression of its own: what a person typed, or a value written out."""
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(str(v) for v in value) + "]"
    else:
        text = str(value)
    return parse(plain(text, f"<{name}>"), draft.problems)


def _edges(draft: Draft) -> None:
    """Edge sets in an order in which each stands behind those that it refers to."""
    parsed: dict[str, Parsed] = {}
    needs: dict[str, list[str]] = {}
    entries = named_entries(draft, "edges")
    for name, node in entries:
        if name in draft.names:
            draft.note(f"'{name}' is a parameter as well", node.span, "give one another name")
            continue
        draft.names[name] = Named(BAD)
        found = parsed_text(draft, node, f"the edge set '{name}'")
        if found:
            parsed[name] = found
            needs[name] = []
    for name, tree in parsed.items():
        needs[name] = sorted(_mentions(tree) & parsed.keys())
    for name in _ordered(draft, parsed, needs):
        found_set = evaluate_edges(parsed[name], draft.scope, draft.problems)
        draft.names[name] = found_set
        if isinstance(found_set.value, Pattern):
            draft.edges[name] = found_set.value
    draft.edges = {name: draft.edges[name] for name, _ in entries if name in draft.edges}


def _ordered(draft: Draft, parsed: Mapping[str, Parsed], needs: dict[str, list[str]]) -> list[str]:
    """Names in order of evaluation; each cycle is reported once and its names are left out."""
    left = {name: list(wanted) for name, wanted in needs.items()}
    for _ in range(MAX_CYCLES):
        try:
            return list(TopologicalSorter(left).static_order())
        except CycleError as error:
            cycle = list(reversed(error.args[1]))
            start = min(range(len(cycle) - 1), key=lambda k: cycle[k])
            turn = cycle[start:-1] + cycle[: start + 1]
            shown = turn if len(turn) < 10 else [*turn[:8], f"({len(turn) - 9} more)", turn[0]]
            what = f"'{turn[0]}' is defined by itself: {' -> '.join(shown)}"
            tree = parsed[turn[0]]
            draft.note(what, tree.span(tree.tree), "write it from other edge sets and primitives")
            for name in cycle:
                left.pop(name, None)
            left = {n: [w for w in wanted if w in left] for n, wanted in left.items()}
    return []


def _layers(draft: Draft) -> None:
    """Layers in order; a file without any is one layer, the union of all its edges."""
    node = draft.nodes.get("layers")
    if node is None:
        if sum(draft.names[name].terms for name in draft.edges) > MAX_TERMS:
            what = f"the union of all edges has more than {MAX_TERMS} primitives and operators"
            draft.note(what, draft.root, "choose some of them under 'layers'")
        elif draft.edges:
            draft.layers = [reduce(or_, draft.edges.values())]
        elif "edges" not in draft.nodes and not draft.problems:
            draft.note("no edges: nobody reads anything", draft.root, "add the key 'edges'")
        return
    layer: Layer | None
    for item in items_of(draft, node, "layers", "- repeat: 12"):
        if isinstance(item, Scalar):  # short for a mapping with 'edges' alone
            layer, repeat, shared = edge_set(draft, item, "a layer"), 1, None
        else:
            fields = fields_of(draft, item, _LAYER_KEYS, "a layer")
            repeat = integer(draft, fields.get("repeat"), "repeat", 1, 1, MAX_LAYERS)
            layer, shared = _layer(draft, item, fields), fields.get("kv_from")
        if len(draft.kv_from) + repeat > MAX_LAYERS:
            draft.note(f"more than {MAX_LAYERS} layers", item.span, "layers repeat cyclically")
            return
        draft.kv_from += _sources(draft, shared, repeat)
        if layer is not None:
            draft.layers += [layer] * repeat


def _layer(draft: Draft, item: Node, fields: Mapping[str, Node]) -> Layer | None:
    """What one item of `layers` reads."""
    if "heads" in fields and "edges" in fields:
        draft.note("a layer has 'edges' or 'heads', not both", item.span, "keep one of them")
    elif "heads" in fields:
        return _heads(draft, fields["heads"])
    elif "edges" in fields:
        return edge_set(draft, fields["edges"], "a layer's edges")
    elif not isinstance(item, Broken):
        draft.note("a layer without edges", item.span, "add 'edges' or 'heads'")
    return None


def _sources(draft: Draft, node: Node | None, repeat: int) -> list[int]:
    """Whose keys and values the next layers read: their own, or all of them those of `kv_from`,
    which may be the first of them."""
    first = len(draft.kv_from)
    own = list(range(first, first + repeat))
    source = integer(draft, node, "kv_from", -1, 0, MAX_LAYERS)
    if node is None or source < 0:
        return own
    if source > first:
        what = f"layer {first} cannot read the keys and values of layer {source}, which comes later"
        draft.note(what, node.span, "name an earlier layer; layers are counted from 0")
    elif source < first and draft.kv_from[source] != source:
        theirs = draft.kv_from[source]
        what = f"layer {source} has no keys and values of its own: it reads those of layer {theirs}"
        draft.note(what, node.span, f"write kv_from: {theirs}")
    else:
        return [source] * repeat
    return own


def _heads(draft: Draft, node: Node) -> Heads | None:
    """A list of `count` and `edges`, as one pattern a head."""
    patterns: list[Pattern] = []
    well = True
    for item in items_of(draft, node, "heads", "- count: 8"):
        fields = fields_of(draft, item, _HEAD_KEYS, "a group of heads")
        count = integer(draft, fields.get("count"), "count", 1, 1, MAX_HEADS)
        found = None
        if "edges" in fields:
            found = edge_set(draft, fields["edges"], "the edges of heads")
        elif isinstance(item, Entries):
            draft.note("a group of heads without edges", item.span, "add 'edges'")
        if len(patterns) + count > MAX_HEADS:
            draft.note(f"more than {MAX_HEADS} heads", item.span)
            return None
        well = well and found is not None
        patterns += [] if found is None else [found] * count
    return Heads(tuple(patterns)) if well and patterns else None


def _kv_heads(draft: Draft) -> None:
    """How many key/value heads there are; heads that differ must divide among them."""
    node = draft.nodes.get("kv_heads")
    draft.kv_heads = integer(draft, node, "kv_heads", 0, 1, MAX_HEADS) or None
    counts = {len(layer.patterns) for layer in draft.layers if isinstance(layer, Heads)}
    for count in sorted(counts):
        if node is not None and draft.kv_heads and count % draft.kv_heads:
            what = f"{count} heads of a layer do not divide among {draft.kv_heads} key/value heads"
            draft.note(what, node.span, "write a divisor of the number of heads")


def _memory(draft: Draft) -> None:
    """How many positions stand before the first query."""
    draft.memory = integer(draft, draft.nodes.get("memory"), "memory", 0, 0, 2**40)


def _bindings(draft: Draft) -> None:
    """Data for bound names: a list of integers each."""
    for name, node in named_entries(draft, "bindings", taken=False):
        parsed = parsed_text(draft, node, f"the binding '{name}'")
        value = evaluate(parsed, draft.scope, draft.problems).value if parsed else BAD
        try:
            check_binding("bindings", name)
        except PatternValueError as error:
            draft.note(str(error), node.span)
            continue
        if isinstance(value, tuple):
            draft.bindings[name] = value
        elif not isinstance(value, Bad):
            what = f"the binding '{name}' is not a list of integers"
            draft.note(what, node.span, 'write one in quotes, as "[300, 200]"')


def _expects(draft: Draft) -> None:
    """What the file claims of itself."""
    node = draft.nodes.get("expect")
    for item in items_of(draft, node, "expect", "- density(n=4096) < 0.25") if node else ():
        if isinstance(item, Scalar):
            found = parse_expect(item, draft.scope, draft.problems)
            draft.expects += [found] if found else []
        elif not isinstance(item, Broken):
            draft.note("an expectation is one line of text", item.span)


def _texts(draft: Draft) -> None:
    """`name`, `summary` and `source` are text."""
    for key in ("name", "summary", "source"):
        node = draft.nodes.get(key)
        if node is not None and not isinstance(node, Scalar | Broken):
            draft.note(f"'{key}' is one piece of text", node.span)


def _mentions(parsed: Parsed) -> set[str]:
    return {node.id for node in ast.walk(parsed.tree) if isinstance(node, ast.Name)}


PASSES: tuple[Callable[[Draft], None], ...] = (
    *(_texts, _params, _edges, _layers, _kv_heads, _memory, _bindings, _expects),
)
