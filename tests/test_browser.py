"""The report in a real browser; collected where chromium is installed (see conftest.py)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import patterncc as pc


def test_html_draws_in_a_browser(tmp_path: Path) -> None:
    report = pc.analyze(pc.Stack([pc.causal() & pc.window(15)] * 4), 128)
    page, picture = report.save(tmp_path / "r.html"), tmp_path / "r.png"
    subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--screenshot={picture}",
            f"--user-data-dir={tmp_path / 'profile'}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert picture.stat().st_size > 10_000
