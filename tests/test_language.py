"""Pattern files and expressions: what they mean, what they refuse, and how they say so."""

from __future__ import annotations

import re
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import patterncc as pc
from patterncc import PatternError, PatternSyntaxError, PatternValueError
from patterncc.language import MEASURES, NEVER, Measure, load, loads, parse_expression
from patterncc.language.assembly import KEYS, MAX_HEADS, MAX_LAYERS
from patterncc.language.source import MAX_BYTES, MAX_DEPTH, MAX_NODES, Scalar, read_yaml
from patterncc.language.syntax import MAX_LENGTH, MAX_NESTING
from patterncc.language.values import MAX_ELEMENTS, MAX_LIST, MAX_TERMS, signature
from patterncc.pattern import Pattern
from patterncc.primitives import PRIMITIVES

REFERENCE = (Path(__file__).parent.parent / "docs" / "language.md").read_text(encoding="utf-8")
GOLDEN = Path(__file__).parent / "golden" / "language_errors.txt"
CASE = re.compile(
    r"===== (?P<name>.*)\n(?P<text>(?:.*\n)*?)-----\n(?P<message>(?:.*\n)*?)(?====== |\Z)"
)
CASES = [m.groups() for m in CASE.finditer(GOLDEN.read_text(encoding="utf-8"))]
# PyYAML's parser in Python, where its wheel has no libyaml, words what it cannot read differently
WORDED = [c for c in CASES if yaml.__with_libyaml__ or "not readable as YAML" not in c[2]]

BIGBIRD = """\
name: bigbird
summary: Sliding window, global tokens
  and random blocks.
source: arXiv 2007.14062
params:
  w: 1
  hubs: 64 * w
  r: 3
edges:
  all: near | hub | jumps
  near: window(w, w, block=64)
  hub: global_tokens(range(hubs))
  jumps: random_blocks(r, block=64, seed=0)
layers:
  - repeat: 12
    edges: all
expect:
  - depth_to_full(n=4096) == 2
  - 0.1 < density(n=64 * 64) < 1/4
"""


# What a file means


def test_a_file_with_every_part() -> None:
    file = loads(BIGBIRD, "bigbird.yaml")
    p = pc.window(1, 1, 64) | pc.global_tokens(range(64)) | pc.random_blocks(3)
    assert (file.name, file.source, file.path) == ("bigbird", "arXiv 2007.14062", "bigbird.yaml")
    assert file.summary == "Sliding window, global tokens and random blocks."
    assert file.params == {"w": 1, "hubs": 64, "r": 3}
    assert list(file.edges) == ["all", "near", "hub", "jumps"]
    assert file.edges["all"] == p
    assert file.stack == pc.Stack([p] * 12)
    assert [e.text for e in file.expects] == [
        "depth_to_full(n=4096) == 2",
        "0.1 < density(n=64 * 64) < 1/4",
    ]
    assert file.expects[1].terms[1] == Measure("density", (("n", 4096),))
    assert str(file.expects[1].span) == "bigbird.yaml:19:5"
    assert file.text == BIGBIRD


def test_overrides() -> None:
    assert loads(BIGBIRD, w=2).params == {"w": 2, "hubs": 128, "r": 3}
    assert loads(BIGBIRD, r="w + 1", w="2 * 2").params == {"w": 4, "hubs": 256, "r": 5}
    text = "params:\n  docs: '[3, 4]'\nedges:\n  a: documents(docs)\n"
    assert loads(text, docs=[5, 6]).edges["a"] == pc.documents((5, 6))


def test_override_errors_say_where() -> None:
    with pytest.raises(PatternSyntaxError) as caught:
        loads(BIGBIRD, "bigbird.yaml", hub=3, w="1 +")
    assert str(caught.value).splitlines() == [
        "bigbird.yaml: no parameter 'hub' to override",
        "    did you mean 'hubs'?",
        "<w>:1:3: nothing stands after '+'",
        "    1 +",
        "      ^",
        "    leave it out",
    ]


def test_layers_and_heads() -> None:
    file = loads(
        """
edges:
  near: causal() & window(w - 1)
  far: causal()
params:
  w: 4
layers:
  - near
  - repeat: w // 2
    heads:
      - count: 3
        edges: near | sink(1)
      - edges: far
  - edges: far
memory: 2 * w
"""
    )
    near = pc.causal() & pc.window(3)
    mixed = pc.heads([near | pc.sink(1)] * 3 + [pc.causal()])
    assert file.stack == pc.Stack([near, mixed, mixed, pc.causal()], memory=8)


def test_without_layers_the_union_of_all_edges_is_one() -> None:
    file = loads("edges:\n  a: causal()\n  b: sink(2) & causal()\n", "dir/some.yaml")
    assert file.stack == pc.Stack(pc.causal() | pc.sink(2) & pc.causal())
    assert file.name == "some"


def test_bindings_and_long_lists() -> None:
    text = "edges:\n  a: clusters('c')\nbindings:\n  c: '[0] * 3 + [1, 2]'\n"
    assert loads(text).bindings == {"c": (0, 0, 0, 1, 2)}


def test_load_takes_a_path_and_finds_graphs_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "graph.npz").write_bytes(b"")
    path = tmp_path / "my.yaml"
    path.write_text('edges:\n  a: edges("graph.npz")\n', encoding="utf-8-sig")
    for given_path in (path, str(path)):
        file = load(given_path)
        assert file.edges["a"] == pc.edges((tmp_path / "graph.npz").as_posix())
        assert (file.name, file.path) == ("my", str(path))


def test_never_is_larger_than_every_depth() -> None:
    file = loads("edges:\n  a: causal()\nexpect:\n  - depth_to_full(n=8) != never\n")
    assert file.expects[0].terms[1] == NEVER > 10**9


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("causal() & (window(511) | sink(4))", pc.causal() & (pc.window(511) | pc.sink(4))),
        ("~full().T - causal()", ~pc.full().T - pc.causal()),
        ("full() - causal() - sink(1)", pc.full() - pc.causal() - pc.sink(1)),
        ("window(2**10 - 1, -1 + 2, block=7 // 2 % 2)", pc.window(1023, 1, 1)),
        ("window(max(1, 2, 3), min(4, 5))", pc.window(3, 4)),
        ("global_tokens(range(10**9))", pc.global_tokens(range(10**9))),
        ("global_tokens([3, 1, 3])", pc.global_tokens((1, 3))),
        ("longnet((16, 32), [1, 2])", pc.longnet((16, 32), (1, 2))),
        ("butterfly(level=None) | butterfly(64, 2)", pc.butterfly() | pc.butterfly(64, 2)),
        ("random_blocks(3, past=True)", pc.random_blocks(3, past=True)),
        ('grid([4, 4], 1, edges="shift")', pc.grid((4, 4), (1, 1), "shift")),
        ("documents('docs')", pc.documents("docs")),
        ("  window(+1)\n  | sink(1)  ", pc.window(1) | pc.sink(1)),
        ("(-1) ** 10**9 and 1", None),
    ],
)
def test_expressions(text: str, pattern: Pattern | None) -> None:
    if pattern is None:
        with pytest.raises(PatternSyntaxError):
            parse_expression(text)
    else:
        assert parse_expression(text) == pattern


def test_expressions_with_names() -> None:
    names: dict[str, Pattern | int] = {"w": 4, "near": pc.window(3)}
    assert parse_expression("near | sink(w)", names=names) == pc.window(3) | pc.sink(4)


# The reference in docs


def test_the_reference_shows_files_that_hold() -> None:
    from patterncc.expect import prove

    blocks = re.findall(r"```yaml\n(.*?)```", REFERENCE, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert all(outcome.holds for outcome in prove(loads(block)))


def test_the_reference_has_every_primitive_key_and_measure() -> None:
    told = set(re.findall(r"`(\w+\([^`]*\))`", REFERENCE))
    assert {signature(name) for name in PRIMITIVES} <= told
    assert all(f"`{key}`" in REFERENCE for key in KEYS)
    assert all(f"`{name}(n=" in REFERENCE for name in MEASURES)


def test_the_reference_shows_a_true_message() -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", REFERENCE, flags=re.DOTALL)
    with pytest.raises(PatternSyntaxError) as caught:
        loads("edges:\n  near: causal() & windw(3)\n", "a.yaml")
    assert f"{caught.value}\n" == shown


def test_the_reference_states_the_bounds() -> None:
    stated = [MAX_DEPTH, MAX_NODES, MAX_LENGTH, MAX_NESTING, MAX_TERMS, MAX_LIST, MAX_ELEMENTS]
    for bound in (*stated, MAX_LAYERS, MAX_HEADS):
        assert f"{bound:,}" in REFERENCE


# What a file refuses


@pytest.mark.parametrize(("name", "text", "message"), WORDED, ids=[c[0] for c in WORDED])
def test_messages(name: str, text: str, message: str) -> None:
    with pytest.raises(PatternSyntaxError) as caught:
        loads(text, "a.yaml")
    assert f"{caught.value}\n" == message


@pytest.mark.parametrize(("name", "text", "message"), CASES, ids=[c[0] for c in CASES])
def test_the_loader_without_c_says_the_same(
    name: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patterncc.language.source._Loader", yaml.Loader)
    with pytest.raises(PatternSyntaxError) as caught:
        loads(text, "a.yaml")
    if "not readable as YAML" not in message:
        assert f"{caught.value}\n" == message


def test_the_golden_messages_are_all_read() -> None:
    assert len(CASES) == GOLDEN.read_text(encoding="utf-8").count("===== ") > 45


def test_a_file_of_noise_reports_the_first_twenty() -> None:
    for count, more in ((21, 1), (99, 79), (9_000, "many")):
        lines = "".join(f"  a{k}: nothing{k}()\n" for k in range(count))
        with pytest.raises(PatternSyntaxError) as caught:
            loads("edges:\n" + lines)
        assert len(caught.value.diagnostics) == 20
        assert str(caught.value).endswith(f"... and {more} more mistakes in this file")


def test_of_a_long_line_the_stretch_around_the_mistake_is_shown() -> None:
    with pytest.raises(PatternSyntaxError) as caught:
        parse_expression("full() | " * 200 + "windw(3)" + " | full()" * 200)
    _, line, carets, _ = str(caught.value).splitlines()
    assert len(line) < 200 and line.strip().startswith("...") and line.endswith("...")
    assert line[carets.index("^") :].startswith("windw(3)") and carets.strip() == "^" * 5


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PatternError, match=r"cannot read the pattern file '.*none\.yaml': No such"):
        load(tmp_path / "none.yaml")
    with pytest.raises(PatternError, match="cannot read the pattern file"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: x\nsummary: größe\n".encode("latin-1"))
    with pytest.raises(PatternError, match=r"latin\.yaml:2: not UTF-8"):
        load(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(PatternError, match=r"large\.yaml is larger than 1048576 bytes"):
        load(tmp_path / "large.yaml")
    (tmp_path / "most.yaml").write_bytes(b"edges:\n  a: full()\n".ljust(MAX_BYTES, b"#"))
    assert load(tmp_path / "most.yaml").edges == {"a": pc.full()}
    with pytest.raises(PatternError, match="larger than"):
        loads("#" * (MAX_BYTES + 1))


DEEP = 10**5
HOSTILE = {
    "round brackets": "(" * DEEP,
    "square brackets": "[" * DEEP,
    "closed brackets": "(" * 101 + "full()" + ")" * 101,
    "calls": "min(" * 20_000,
    "complements": "~" * (DEEP - 6) + "full()",
    "minus signs": "-" * (DEEP - 1) + "1",
    "nots": "not " * 20_000 + "1",
    "transposes": "full()" + ".T" * 40_000,
    "differences": "full()" + "-full()" * 10_000,
    "unions": "full()" + "|full()" * 10_000,
    "powers": "2**" * 30_000 + "2",
    "lambdas": "lambda:" * 10_000 + "1",
    "conditions": "1 if 1 else " * 8_000 + "1",
    "comparisons": "1" + "<1" * 40_000,
    "too long": "1" * (DEEP + 1),
    "digits": "1" * 50_000,
    "hexadecimal digits": "0x" + "f" * 50_000,
    "huge power": "window(10**10**10)",
    "power of powers": "window(9**9**9**9)",
    "negative power": "window(2**-1)",
    "huge shift": "window(1 << 10**9)",
    "huge text": "documents('a' * 10**9)",
    "huge list": "clusters([0] * 10**9)",
    "a list twice over": "clusters([0] * 10**6 + [0] * 10**6)",
    "dunder": "full().__class__.__mro__",
    "builtins": "__import__('os').system('true')",
    "private": "window(1).left",
    "method": "'{}'.format(1)",
    "index": "(1, 2)[0]",
    "walrus": "(x := full())",
    "star": "window(*[1, 2])",
    "generator": "window(x for x in [1])",
    "f-string": "f'{1}'",
    "bytes": "b'x'",
    "complex": "1j",
    "ellipsis": "...",
    "infinity": "1e999",
    "almost nothing": "1e-999999999",
    "null": "full()\0",
    "statement": "full(); full()",
    "assignment": "a = full()",
    "import": "import os",
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_expressions_are_refused_at_no_cost(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PatternSyntaxError) as caught:
            parse_expression(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.diagnostics[0].span is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- " * DEEP, "more than 16 levels of YAML"),
        ("[" * DEEP, "more than 16 levels of YAML"),
        ("{a: " * DEEP, "more than 16 levels of YAML"),
        ("\n".join(" " * k + f"a{k}:" for k in range(40)), "more than 16 levels of YAML"),
        ("- a\n" * 50_000, "more than 20000 entries of YAML"),
    ],
    ids=["lists", "flow lists", "flow mappings", "mappings", "entries"],
)
def test_yaml_past_its_bounds_stops_the_reader(text: str, message: str) -> None:
    with pytest.raises(PatternSyntaxError, match=message):
        loads(text)


def test_names_that_grow_without_end() -> None:
    doubling = "edges:\n  a0: full() | causal()\n" + "".join(
        f"  a{k + 1}: (a{k} - causal()) | a{k}.T\n" for k in range(60)
    )
    with pytest.raises(PatternSyntaxError, match="more than 10000 primitives and operators"):
        loads(doubling)
    chain = "edges:\n  a0: full()\n" + "".join(
        f"  a{k + 1}: causal() - a{k}\n" for k in range(3000)
    )
    with pytest.raises(PatternSyntaxError, match="makes this nest more than 100 deep"):
        loads(chain)
    flat = "edges:\n  a0: full()\n" + "".join(f"  a{k + 1}: a{k}\n" for k in range(3000))
    assert loads(flat).edges["a3000"] == pc.full()
    cycle = "edges:\n" + "".join(f"  a{k}: a{(k + 1) % 3000}\n" for k in range(3000))
    with pytest.raises(PatternSyntaxError, match="'a0' is defined by itself"):
        loads(cycle)


def test_small_expressions_do_not_add_up_without_end() -> None:
    lists = "".join(f"  a{k}: clusters([0] * 10**6)\n" for k in range(9))
    with pytest.raises(PatternSyntaxError, match="more than 10000000 elements in the lists"):
        loads("edges:\n" + lists)
    terms = "edges:\n  a: " + " | ".join(["full()"] * 800) + "\n"
    unions = "".join(f"  a{k}: a | full()\n" for k in range(150))
    with pytest.raises(PatternSyntaxError, match="the union of all edges has more than 10000"):
        loads(terms + unions)
    twice = terms.replace("a:", "b0:") + "  a: b0 | b0 | b0 | b0 | b0\n"
    with pytest.raises(PatternSyntaxError, match="more than 1000000 primitives and operators in"):
        loads(twice + unions)


def test_a_range_of_a_billion_costs_nothing() -> None:
    tracemalloc.start()
    start = time.perf_counter()
    p = parse_expression("global_tokens(range(0, 10**12, 7))")
    spent, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert p == pc.global_tokens(range(0, 10**12, 7))
    assert peak < 2**20 and spent < 10  # nothing like 10**11 steps


# Properties

sizes = st.integers(0, 2**40)
few = st.lists(st.integers(0, 99), max_size=4)
ranges = st.builds(range, st.integers(0, 99), st.integers(0, 2**40), st.integers(1, 9))
positive = st.integers(1, 2**20)
leaves = st.one_of(
    st.just(pc.full()),
    st.just(pc.causal()),
    st.just(pc.logsparse()),
    st.just(pc.recurrent()),
    st.builds(pc.window, st.integers(-1, 2**40), st.integers(-1, 9), positive),
    st.builds(pc.dilated, sizes, sizes, positive),
    st.builds(pc.strided, positive),
    st.builds(lambda s, w: pc.summary(s + w, w), positive, positive),
    st.builds(pc.chunked, positive),
    st.builds(pc.global_tokens, few | ranges),
    st.builds(pc.sink, sizes),
    st.builds(pc.prefix, sizes),
    st.builds(pc.random_blocks, st.integers(0, 9), positive, st.integers(0, 9), st.booleans()),
    st.builds(pc.random_edges, st.integers(0, 9), st.integers(0, 9), st.booleans()),
    st.builds(pc.documents, few | st.sampled_from(["docs", "größe"])),
    st.builds(pc.clusters, st.lists(st.integers(-1, 9), max_size=4) | st.just("labels")),
    st.builds(pc.routing, positive),
    st.builds(pc.butterfly, positive, st.none() | st.integers(0, 40)),
    st.builds(
        lambda s: pc.longnet(tuple(s), tuple(1 + x % 3 for x in s)), st.lists(positive, min_size=1)
    ),
    st.builds(pc.expander, st.integers(1, 9), positive, st.integers(0, 9)),
    st.builds(pc.grid, st.just([4, 5]), st.just([1, 2]), st.sampled_from(["cut", "shift"])),
    st.builds(pc.axial, st.lists(st.integers(1, 9), min_size=1, max_size=4)),
    st.builds(pc.tree, st.just([-1, 0, 0, 2])),
    st.builds(pc.edges, st.just("folder/graph.npz")),
    st.builds(pc.convolution, positive),
)
patterns = st.recursive(
    leaves,
    lambda p: st.one_of(
        st.builds(lambda a, b: a | b, p, p),
        st.builds(lambda a, b: a & b, p, p),
        st.builds(lambda a, b: a - b, p, p),
        st.builds(lambda a: ~a, p),
        st.builds(lambda a: a.T, p),
    ),
    max_leaves=12,
)


@given(patterns)
def test_a_pattern_reads_back_from_its_own_text(p: Pattern) -> None:
    again = parse_expression(str(p))
    assert again == p
    assert str(again) == str(p)


@given(st.text(alphabet="ab1()[]{}|&-~.T,*'\"#\\ \n:=<é∪", max_size=30))
@settings(max_examples=300)
def test_any_text_is_a_pattern_or_a_located_mistake(text: str) -> None:
    try:
        assert isinstance(parse_expression(text), Pattern)
    except PatternSyntaxError as error:
        assert all(d.span is not None for d in error.diagnostics)


@given(st.text(alphabet="ab1()[]{}|&-~?!*%@'\"#\\ \n:>\t\ré", max_size=60))
@settings(max_examples=300)
def test_any_text_is_a_file_or_a_mistake(text: str) -> None:
    try:
        loads("edges:\n  a: " + text)
    except PatternSyntaxError as error:
        assert all(d.span is None or d.span.caret() for d in error.diagnostics)


words = st.text(alphabet="ab'\"\\ |\tü", min_size=1, max_size=12)


@given(st.lists(words, min_size=1, max_size=4), st.sampled_from(["", "'", '"', "|", ">"]))
@settings(max_examples=300)
def test_every_character_of_a_scalar_has_its_place(lines: list[str], style: str) -> None:
    text = yaml.dump({"k": "\n".join(lines)}, default_style=style, allow_unicode=True, width=20)
    problems: list[pc.PatternError] = []
    root = read_yaml(text, "a.yaml", problems)  # type: ignore[arg-type]
    assert not problems and root is not None
    node = root.entries[0][1]  # type: ignore[union-attr]
    assert isinstance(node, Scalar)
    for at, char in enumerate(node.text):
        if char not in " \n\t\\'\"":
            span = node.part(at, at + 1)
            assert span.text[span.column - 1] == char or span.text[span.column - 1] == "\\"


def test_a_value_error_is_a_value_error() -> None:
    assert issubclass(PatternSyntaxError, ValueError) and issubclass(PatternValueError, ValueError)
