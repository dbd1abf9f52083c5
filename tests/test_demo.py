"""The demo's parts: patterns in a real model, the long run, the page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import torch

from patterncc.demo import longrun, run


def test_the_long_run_is_exact_and_the_whole_demo_leaves_a_page(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    said: list[str] = []
    files = (("streaming-llm", {"recent": 32}), ("gpt-oss", {"sliding_window": 16}))
    found = run.main(tmp_path, say=said.append, files=files, long=2048)
    assert all(t["difference"] < 0.1 for t in found["long"]["runs"])
    assert all(t["difference"] < 1e-5 for t in found["long"]["runs"] if t["dtype"] == "float32")
    assert [row["pattern"] for row in found["patterns"]] == ["streaming-llm", "gpt-oss"]
    assert all(0 < row["kl"] < 0.1 and 0.8 < row["top1"] < 1 for row in found["patterns"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gpt-oss.png",
        "index.html",
        "streaming-llm.png",
    ]
    text = (tmp_path / "index.html").read_text()
    HTMLParser().feed(text)
    assert "http" not in text and "streaming-llm.png" in text
    assert any("full at" in line for line in said)


def test_timing_ratio() -> None:
    assert longrun.Timing("float32", "forward", 0.5, 2.0, 0.0).ratio == 4.0
