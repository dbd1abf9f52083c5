"""Every code block of README and docs runs, and shows what it says it shows."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    info: str
    body: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m["info"].strip(), m["body"])
        for m in FENCE.finditer(text)
    ]


def having(info: str) -> list[Path]:
    return [p for p in PAGES if any(b.info == info for b in blocks(p))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", having("python"), ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    space: dict[str, object] = {"__name__": "__main__", "tmp": tmp_path}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for block in (b for b in blocks(page) if b.info == "python"):
        if ">>>" in block.body:
            case = doctest.DocTestParser().get_doctest(
                block.body, space, block.where, str(page), block.line
            )
            runner.run(case, clear_globs=False)
            space.update(case.globs)
            assert not runner.failures, f"{block.where}: see the output above"
        else:
            exec(compile(block.body, block.where, "exec"), space)


@pytest.mark.parametrize("page", having("yaml"), ids=name)
def test_whole_pattern_files_load(page: Path) -> None:
    from patterncc.language import loads

    for block in blocks(page):
        if block.info == "yaml" and re.search(r"^layers:", block.body, re.M):
            loads(block.body, block.where)


@pytest.mark.parametrize("program", sorted(ROOT.glob("examples/*.py")), ids=name)
def test_examples_run_without_a_warning(program: Path, tmp_path: Path) -> None:
    quick = ["--quick"] if '"--quick"' in program.read_text(encoding="utf-8") else []
    command = [sys.executable, "-W", "error", str(program), *quick]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def commands(body: str) -> list[tuple[str, str]]:
    """(command, expected output) for every line that starts with '$ '."""
    parts = re.split(r"^\$ (.*)\n", body, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_console_blocks_show_what_they_print() -> None:
    env = {**os.environ, "COLUMNS": "100", "LINES": "40", "NO_COLOR": "1"}
    for block in (b for page in PAGES for b in blocks(page) if b.info == "console check"):
        for command, expected in commands(block.body):
            words = shlex.split(command)
            assert words[0] == "patterncc", f"{block.where}: only patterncc is run here"
            done = subprocess.run(
                [sys.executable, "-m", "patterncc", *words[1:]],
                cwd=ROOT,
                env=env,
                capture_output=True,
                text=True,
            )
            shown = done.stdout + done.stderr
            same = doctest.OutputChecker().check_output(
                expected.rstrip() + "\n", _trimmed(shown), doctest.ELLIPSIS
            )
            assert same, f"{block.where}: $ {command}\n{shown}"


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n")) + "\n"


def test_links_between_pages_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name(page)}: no {target}"
