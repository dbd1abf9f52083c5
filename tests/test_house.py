"""The house rules that a machine can hold: rooms and imports, light start, ranges, file sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "patterncc"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
UNROOMED = {"__init__", "__main__", "_version"}  # names and entry points, not rooms
LONGEST_FILE = 550  # lines; the aim is 400
TORCH_FREE = ("plan", "spec", "work", "emit", "choose", "__init__")  # in kernels: sources are text
TORCH = {"kernels", "attend", "routers", "integrations", "bench", "fidelity", "demo", "doctor"}
GRAPHS = {"zones", "analysis", "layout", "integrations", "bench"}
EARLY = {"errors", "config", "pattern", "primitives", "stack", "language", "gallery", "cli"}


@cache
def modules() -> dict[Path, ast.Module]:
    return {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything imported anywhere in a module, inside functions too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="patterncc", names=names):
                yield from (f"patterncc.{alias.name}" for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.ImportFrom():
                raise AssertionError("relative import; write the whole name")


def users_of(package: str) -> set[str]:
    """Modules that import a package, as 'room' or 'room/file'."""
    return {
        "/".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path, tree in modules().items()
        if any(name.split(".")[0] == package for name in imported(tree))
    }


def rooms_in_docs() -> dict[str, set[str]]:
    """The table of docs/architecture.md: each room and the rooms it may import."""
    table = ARCHITECTURE.partition("## Rooms")[2].partition("## Who")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", table, re.M)
    rooms: dict[str, set[str]] = {}
    for room, names in rows:
        above = set(rooms) if "everything above" in names else set(re.findall(r"`(\w+)`", names))
        rooms[room] = above
    return rooms


def test_rooms_in_docs_are_the_rooms_in_the_tree() -> None:
    there = {p.stem for p in PACKAGE.glob("*.py")} - UNROOMED
    there |= {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(rooms_in_docs()) == there


def test_rooms_stand_in_the_order_of_processing() -> None:
    seen: set[str] = set()
    for room, names in rooms_in_docs().items():
        assert names <= seen, f"{room} imports {names - seen}, which stand below it"
        seen.add(room)


def test_imports_follow_the_table() -> None:
    allowed, wrong = rooms_in_docs(), []
    for path, tree in modules().items():
        room = room_of(path)
        if room in UNROOMED:
            continue
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] != "patterncc" or len(parts) == 1:
                continue
            if parts[1] not in allowed[room] | {room, "_version"}:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_rooms_loaded_by_name_follow_the_table_but_for_one_that_the_page_names() -> None:
    allowed, wrong = rooms_in_docs(), []
    for path, tree in modules().items():
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Name(id="import_module"), args=[ast.Constant(value=str(name))]
                ):
                    room = room_of(path)
                    if name.split(".")[1] not in allowed.get(room, {room}) | {room}:
                        wrong.append((room, name))
    assert wrong == [("layout", "patterncc.kernels.dynamic")]
    assert "`compile` hands ids that live on a GPU to `kernels/dynamic`" in ARCHITECTURE


def test_analysis_and_layout_never_meet() -> None:
    rooms = rooms_in_docs()
    assert "layout" not in rooms["analysis"]
    assert "analysis" not in rooms["layout"]


def test_torch_starts_at_kernels() -> None:
    for user in users_of("torch"):
        room, _, module = user.partition("/")
        assert room in TORCH, f"{user} imports torch"
        assert not (room == "kernels" and module.split("/")[0] in TORCH_FREE), (
            f"{user} imports torch"
        )


def test_triton_is_imported_where_kernels_run() -> None:
    allowed = {"kernels/offline", "kernels/runtime", "kernels/launch/call", "doctor"}
    assert users_of("triton") <= allowed


def test_optional_packages_stay_in_their_places() -> None:
    users = users_of("transformers") - {"fidelity/model", "fidelity/pretrained", "bench/swap"}
    assert {"/".join(u.split("/")[:2]) for u in users} <= {"integrations/hf"}
    assert users_of("matplotlib") <= {"show/figure"}
    assert {u.split("/")[0] for u in users_of("glassllm")} <= {"fidelity"}


def test_numpy_and_scipy_come_late() -> None:
    assert not {u.split("/")[0] for u in users_of("numpy")} & EARLY
    for package in ("scipy", "networkx"):
        assert {u.split("/")[0] for u in users_of(package)} <= GRAPHS


def test_the_command_line_is_the_only_user_of_click_and_rich() -> None:
    assert {u.split("/")[0] for u in users_of("click") | users_of("rich")} == {"cli"}


def test_the_environment_is_read_in_few_places() -> None:
    allowed = {"kernels/runtime", "doctor"}
    for path, tree in modules().items():
        where = "/".join(path.relative_to(PACKAGE).with_suffix("").parts)
        reads = any(
            isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv") for n in ast.walk(tree)
        )
        assert not reads or where in allowed or where.startswith(("cli/", "bench/")), where


def test_no_pickle_and_no_eval() -> None:
    for path, tree in modules().items():
        assert "pickle" not in set(imported(tree)), path
        for node in ast.walk(tree):
            called = (
                node.func.id
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                else ""
            )
            assert called != "eval", path
            # generated kernels are the one thing that is executed, after their hash was checked
            assert called != "exec" or path.name == "runtime.py", path


def test_files_stay_readable() -> None:
    long = {
        str(p.relative_to(ROOT)): lines
        for p in modules()
        if (lines := len(p.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long


def test_no_utils_and_no_notes_to_self() -> None:
    for path in modules():
        assert path.stem not in ("utils", "helpers", "misc", "common")
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("argument", ["import", "--help", "-m patterncc --help"])
def test_starting_is_light(argument: str) -> None:
    """Modules, not seconds: a clock in a test fails on a busy machine."""
    start = {
        "import": "import patterncc",
        "--help": "from click.testing import CliRunner as R; from patterncc.cli import main; "
        "assert R().invoke(main, ['--help']).exit_code == 0",
        "-m patterncc --help": "import patterncc.__main__",
    }[argument]
    heavy = "('numpy', 'scipy', 'networkx', 'torch', 'triton', 'yaml', 'rich', 'matplotlib')"
    code = f"{start}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[str]:
    p = project()
    listed = list(p["dependencies"])  # type: ignore[call-overload]
    for extra in p["optional-dependencies"].values():  # type: ignore[attr-defined]
        listed += extra
    return listed


def test_dependencies_have_ranges_and_no_exact_pins() -> None:
    for requirement in requirements():
        assert not re.search(r"===?|~=", requirement.partition(";")[0]), requirement


def test_constraints_hold_the_tested_version_of_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    pinned = set(re.findall(r"^([\w.-]+)==[^+\s]+$", lines, re.M)) | {"triton"}
    names = {re.match(r"[\w.-]+", r)[0].lower() for r in requirements()}  # type: ignore[index]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert names | set(re.findall(r"--no-deps ([\w-]+)$", makefile, re.M)) == pinned


def test_python_versions_agree() -> None:
    assert project()["requires-python"] == ">=3.11"


def test_top_level_is_tidy() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    known = {".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"}
    known |= {"README.md", "constraints.txt", "docs", "examples", "patterncc", "patterns"}
    known |= {"pyproject.toml", "tests"}
    assert {name.split("/")[0] for name in listed} <= known


def test_no_module_hides_a_public_name() -> None:
    """`import patterncc.x` sets pc.x to the module, so a public name x needs another file."""
    import patterncc

    files = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert not set(patterncc.__all__) & (files - {"__init__"})
