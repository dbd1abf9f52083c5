"""The report in a real browser; collected where chromium is installed (see conftest.py)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import patterncc as pc

LOCAL = pc.causal() & pc.window(15)
UNREACHABLE = "127.0.0.1:9"  # every request that leaves the page goes here, and fails


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page: its document after loading, what it logged, and every address
    that it asked for."""

    document: str
    logged: str
    addresses: list[str]


def chromium(folder: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={folder / 'profile'}",
            *options,
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )


def visit(folder: Path, page: Path) -> Visit:
    """Load a page with its network log written down."""
    log = folder / "net.json"
    done = chromium(
        folder,
        page,
        "--enable-logging=stderr",
        "--dump-dom",
        f"--log-net-log={log}",
        f"--proxy-server={UNREACHABLE}",
    )
    return Visit(done.stdout, done.stderr, list(addresses(json.loads(log.read_text()))))


def addresses(log: dict[str, Any]) -> Iterator[str]:
    """Addresses of all requests that pages make; the browser asks for its own updates besides."""
    names = {number: name for name, number in log["constants"]["logEventTypes"].items()}
    for event in log["events"]:
        params = event.get("params", {})
        if names[event["type"]] == "URL_REQUEST_START_JOB" and params.get("initiator") not in (
            None,
            "not an origin",
        ):
            yield params["url"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stack = pc.Stack([LOCAL] * 5 + [pc.heads([LOCAL, pc.causal()])])
    return pc.analyze(stack, 256, depth=12).save(tmp_path_factory.mktemp("page") / "r.html")


def test_a_visit_sees_what_a_page_asks_for(tmp_path: Path) -> None:
    """The listener hears: a page that does ask, logs and throws is caught."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<img src="http://example.invalid/x.png"/><script>console.log("said");throw 1</script>'
    )
    seen = visit(tmp_path, page)
    assert "http://example.invalid/x.png" in seen.addresses
    assert "CONSOLE" in seen.logged and "Uncaught" in seen.logged


def test_the_report_asks_for_nothing_and_says_nothing(tmp_path: Path, saved: Path) -> None:
    seen = visit(tmp_path, saved)
    assert seen.addresses == []
    assert "CONSOLE" not in seen.logged and "Uncaught" not in seen.logged
    for section in ("reach", "hops", "influence", "load", "robustness", "cost", "masks"):
        drawn = seen.document.partition(f'id="{section}"')[2].partition("</section>")[0]
        assert "<svg" in drawn, section
    assert seen.document.rstrip().endswith("</html>")


@pytest.mark.parametrize("width", [360, 1400])
def test_the_report_fits_its_window(tmp_path: Path, saved: Path, width: int) -> None:
    """A probe that a copy of the page carries measures it: nothing is wider than the window."""
    probe = (
        '<script>onload = () => { document.title = "wide " + '
        'document.documentElement.scrollWidth + " of " + innerWidth }</script></body>'
    )
    copy = tmp_path / "probe.html"
    copy.write_text(saved.read_text().replace("</body>", probe))
    # a headless window has a least width, so the page is measured inside a frame
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{copy.name}" width="{width}" height="900" onload="'
        "document.title = frames[0].document.title; document.body.dataset.seen = "
        'frames[0].document.title"></iframe>'
    )
    done = chromium(tmp_path, frame, "--dump-dom", "--allow-file-access-from-files")
    wide, window = done.stdout.partition('data-seen="wide ')[2].partition('"')[0].split(" of ")
    assert int(window) == width
    assert int(wide) <= width


def test_the_report_is_drawn(tmp_path: Path, saved: Path) -> None:
    picture = tmp_path / "r.png"
    chromium(tmp_path, saved, f"--screenshot={picture}", "--window-size=1280,2400")
    assert picture.stat().st_size > 60_000
