"""`patterncc bench gpu` on a device that is none: the CPU, so that all but the GPU has run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import patterncc as pc
from patterncc.bench import check, check_cases, exact, gpu, gpu_decode, gpu_device, gpu_peers, masks
from patterncc.bench.gpu_device import Device, Events, Timed, Wall
from patterncc.cli import main
from patterncc.kernels import reference

N = 192
GRID = [*masks.grid(N)]


def device(**changes: Any) -> Device:
    """A CPU that stands for a GPU; FlexAttention as it is, uncompiled."""
    plain = Device(
        "a stand-in", torch.device("cpu"), Wall(), 1 << 12, 1 << 28, lambda f: f, "auto", {}
    )
    return replace(plain, **changes)


@pytest.fixture(autouse=True)
def _uncompiled(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """FlexAttention warns where it is not compiled."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
        yield


def small(names: tuple[str, ...] = ("causal", "window 1025 + 64 globals")) -> list[gpu.Case]:
    """A few cases of the grid, short and with grouped heads."""
    return [
        gpu.Case(m, way, heads=4, kv_heads=2, head_dim=32)
        for m in GRID
        if m.name in names
        for way in ("forward", "backward")
    ]


def test_there_is_no_gpu_and_it_says_so() -> None:
    done = CliRunner().invoke(main, ["bench", "gpu", "--json"])
    assert done.exit_code == 2
    told = json.loads(done.stdout)["error"]
    assert told["kind"] == "BackendError"
    assert "bench plan" in told["message"] and "NVIDIA" in told["message"]


def test_check_says_so_in_its_own_name() -> None:
    done = CliRunner().invoke(main, ["bench", "check", "--json"])
    said = json.loads(done.stdout)["error"]["message"]
    assert done.exit_code == 2 and said.startswith("bench check: ") and "TRITON_INTERPRET" in said


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.SimpleNamespace(name="V100", major=7, minor=0, total_memory=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: old)
    with pytest.raises(pc.BackendError, match=r"V100 has compute capability 7\.0"):
        gpu_device.this_gpu()
    new = types.SimpleNamespace(
        name="H100", major=9, minor=0, total_memory=3 << 30, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: new)
    found = gpu_device.this_gpu()
    assert (found.name, found.memory, found.cache, found.backend) == (
        "H100",
        1 << 30,
        50 << 20,
        "triton",
    )
    assert found.facts["processors"] == 132 and json.dumps(found.facts)


def test_every_way_runs_and_what_is_right_is_timed(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "gpu.json"
    chosen = [*small(), gpu_decode.DecodeCase(384, 63, 2, 4, 2, 32)]
    result = gpu.run(repeats=2, device=device(), chosen=chosen, output=path, progress=said.append)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert [c["case"] for c in result["cases"]] == [c.name for c in chosen]
    causal, backward, hubs, _, decode = result["cases"]
    assert set(causal["seconds"]) == {"ours", "flex", "sdpa flash"}
    assert {"ours", "ours, single pass", "sdpa flash"} <= set(backward["seconds"])
    assert not hubs["same_mask"]["sdpa flash"] and causal["same_mask"]["sdpa flash"]
    assert set(decode["seconds"]) == {"ours", "flex", "sdpa flash"}
    assert decode["active_bytes"] == 2 * 2 * 2 * 64 * 32 * 2
    for case in result["cases"]:
        assert not case["failed"] and case["seconds"]["ours"]["runs"] == 2
        assert all(e["holds"] for e in case["errors"]["ours"].values())
    assert causal["not_run"]["flash-attn 3"].startswith("not installed")
    assert backward["errors"]["ours"].keys() == {"grad_q", "grad_k", "grad_v"}
    edges = N * (N + 1) // 2 * 4
    assert causal["flop"] == 4 * edges * 32 and backward["flop"] == 10 * edges * 32
    assert "does not support backward on CPU" in backward["not_run"]["flex"]
    shown = gpu.text(result)
    assert "a stand-in" in shown and "5 cases" in shown and "(dense)" in shown
    assert any(s.startswith("5 of 5") for s in said)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    one, two = small(("causal",))
    gpu.run(repeats=1, device=device(), chosen=[one], output=path, ways="sdpa")
    held = json.loads(path.read_text(encoding="utf-8"))
    held["cases"][0]["mark"] = True
    path.write_text(json.dumps(held), encoding="utf-8")
    again = gpu.run(
        repeats=1, device=device(), chosen=[one, two], output=path, resume=True, ways="sdpa"
    )
    assert [c.get("mark") for c in again["cases"]] == [True, None]
    other = device(name="another")
    fresh = gpu.run(repeats=1, device=other, chosen=[one], output=path, resume=True, ways="x")
    assert "mark" not in fresh["cases"][0]
    assert [p.name for p in tmp_path.iterdir()] == ["gpu.json"]


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_peers.attention

    def off(q: Any, k: Any, v: Any, layout: Any, **more: Any) -> Any:
        return right(q, k, v, layout, **more) * 1.05

    monkeypatch.setattr(gpu_peers, "attention", off)
    (case,) = gpu.run(repeats=1, device=device(), chosen=small(("causal",))[:1], ways="sdpa flash")[
        "cases"
    ]
    assert case["failed"] and case["not_run"]["ours"].startswith("wrong: out is off by")
    assert "ours" not in case["seconds"] and case["ratio"] == {}
    assert gpu.text({**gpu._header(device()), "cases": [case]})


def test_the_grid_is_the_one_that_was_asked_for() -> None:
    names = [c.name for c in gpu.cases(2048, 4096)]
    assert len(set(names)) == len(names)
    for mask in ("causal", "window 1024", "window 1025 + 64 globals", "BigBird", "8 documents"):
        for way in ("forward", "backward"):
            assert f"{mask}, 2048, dim 128, {way}" in names
    for block in (64, 128):
        for density in ("0.05", "0.125", "0.25", "0.5"):
            assert f"{block}-blocks, {density}, 2048, dim 128, forward" in names
    assert any("half irregular" in n for n in names)
    assert any("GQA 32:4" in n for n in names) and any("dim 64" in n for n in names)
    lengths = {c.n for c in gpu_decode.decode_cases()}
    assert min(lengths) == 4096 and max(lengths) == 524288
    assert len([*gpu_decode.decode_cases(True)]) < len([*gpu_decode.decode_cases()])
    assert {n for c in gpu.cases(2048, 4096, quick=True) for n in [c.mask.name]} == set(gpu.QUICK)


class FakeEvent:
    """A CUDA event that tells the time of this process, in milliseconds."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        import time

        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1e3


def test_events_wait_until_the_calls_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", waits.append)
    clock, order = Events(), []

    def call(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    assert clock.seconds([call("a"), call("b")]) > 0
    given = Timed(lambda x: order.append(x), before=lambda: order.append("before") or "x")
    assert clock.apart(given) > 0
    assert order == ["a", "b", "before", "x"] and len(waits) == 2
    assert waits[0] == int(gpu_device.HERTZ * (1.5e-3 + gpu_device.SPARE)) > waits[1] > 0
    result = gpu.run(
        repeats=1, device=device(clock=clock), chosen=small(("causal",)), ways="sdpa flash"
    )
    assert not any(c["failed"] for c in result["cases"])


def test_inputs_pass_the_cache_and_stay_within_memory() -> None:
    (case, _) = small(("causal",))
    size = 2 * N * 32 * (4 + 2 + 2 + 4)
    assert len(gpu.inputs(case, device(cache=4 * size))) == 8
    assert len(gpu.inputs(case, device(cache=2 * size))) == 5
    assert len(gpu.inputs(case, device(cache=1))) == 2
    assert len(gpu.inputs(case, device(memory=size))) == 1
    sets = gpu._placed(gpu.inputs(case, device()), True, True)
    assert all(x.transpose(1, 2).is_contiguous() for s in sets for x in s)
    assert [x.requires_grad for x in sets[0]] == [True, True, True, False]


@pytest.mark.parametrize("package", ["flash_attn", "flash_attn_interface"])
def test_packages_that_stand_in_for_flash_attn(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we hand over, and what we take back: by a library that is made of torch."""

    def call(q: Any, k: Any, v: Any, *, causal: bool, window_size: tuple[int, int]) -> Any:
        assert q.is_contiguous() and k.is_contiguous()
        i, j = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])
        left, right = window_size
        seen = (i - j <= left) if left >= 0 else torch.ones_like(i == j)
        seen &= (j <= i) if causal or right == 0 else torch.ones_like(seen)
        turned = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = reference.attention(*turned, seen, dtype=torch.float32)
        out = out.to(q.dtype).transpose(1, 2)
        return (out, lse) if package == "flash_attn_interface" else out

    def cached(q: Any, k: Any, v: Any, cache_seqlens: Any, causal: bool, window_size: Any) -> Any:
        assert causal and (cache_seqlens == k.shape[1]).all()
        reach = k.shape[1] if window_size[0] < 0 else window_size[0] + 1
        seen = torch.arange(k.shape[1]) >= k.shape[1] - reach
        turned = (x.transpose(1, 2) for x in (q, k, v))
        out, _ = reference.attention(*turned, seen[None], dtype=torch.float32)
        return out.to(q.dtype).transpose(1, 2)

    library = types.ModuleType(package)
    library.flash_attn_func = call  # type: ignore[attr-defined]
    library.flash_attn_with_kvcache = cached  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, library)
    name = "flash-attn 2" if package == "flash_attn" else "flash-attn 3"
    steps = [gpu_decode.DecodeCase(300, reach, 2, 4, 2, 32) for reach in (-1, 63)]
    chosen = [*small(("full", "window 1024")), *steps]
    found = gpu.run(repeats=1, device=device(), chosen=chosen, ways=name)["cases"]
    for case in found:
        assert set(case["seconds"]) - {"ours, single pass"} == {"ours", name}, (
            case["case"],
            case["not_run"],
        )


def test_a_library_that_stands_in_for_flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefill(q: Any, k: Any, v: Any, causal: bool, window_left: int) -> Any:
        assert q.is_contiguous() and q.dim() == 3
        i, j = torch.arange(len(q))[:, None], torch.arange(len(k))
        seen = ((j <= i) | (not causal)) & ((i - j <= window_left) | (window_left < 0))
        return _by_heads(q, k, v, seen)

    class Wrapper:
        def __init__(self, work: torch.Tensor) -> None: ...

        def plan(self, indptr: Any, indices: Any, **plan: Any) -> None:
            assert plan["num_qo_heads"] == 4 and plan["num_kv_heads"] == 2
            rows, columns = plan["R"], plan["C"]
            self.seen = torch.zeros(plan["M"], plan["N"], dtype=torch.bool)
            for r in range(len(indptr) - 1):
                for c in indices[indptr[r] : indptr[r + 1]]:
                    at = slice(r * rows, (r + 1) * rows), slice(c * columns, (c + 1) * columns)
                    self.seen[at] = True

        def run(self, q: Any, k: Any, v: Any) -> Any:
            return _by_heads(q, k, v, self.seen)

    def decode(q: Any, k: Any, v: Any, kv_layout: str, window_left: int) -> Any:
        reach = len(k) if window_left < 0 else window_left + 1
        seen = torch.arange(len(k)) >= len(k) - reach
        return _by_heads(q[None], k, v, seen[None])[0]

    library = types.ModuleType("flashinfer")
    library.single_prefill_with_kv_cache = prefill  # type: ignore[attr-defined]
    library.BlockSparseAttentionWrapper = Wrapper  # type: ignore[attr-defined]
    library.single_decode_with_kv_cache = decode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    forward = [c for c in small(("causal", "64-blocks, 0.25")) if c.way == "forward"]
    chosen = [*forward, gpu_decode.DecodeCase(300, 63, 1, 4, 2, 32)]
    found = gpu.run(repeats=1, device=device(), chosen=chosen, ways="flashinfer")["cases"]
    for case in found:
        assert "flashinfer" in case["seconds"], (case["case"], case["not_run"])


def _by_heads(q: Any, k: Any, v: Any, seen: torch.Tensor) -> Any:
    turned = (x.transpose(0, 1)[None] for x in (q, k, v))
    out, _ = reference.attention(*turned, seen, dtype=torch.float32)
    return out[0].transpose(0, 1).to(q.dtype)


@pytest.mark.parametrize("n", [1, 30])
def test_exact_attention_is_the_oracle(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in parts, grouped heads, rows that read nothing, against the dense reference."""
    monkeypatch.setattr(exact, "ENTRIES", 2000)
    make = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(2, h, n, 8, generator=make, dtype=torch.float64) for h in (4, 2, 2, 4)
    )
    mask = torch.rand(4, n, n, generator=make) < 0.3
    mask[:, n // 3] = False
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = reference.attention(*leaves, mask)
    grads = torch.autograd.grad(out, leaves, grad)
    found = exact.dense(q, k, v, lambda first, last: mask[:, first:last], grad)
    for name, true in zip(exact.NAMES, (out, lse, *grads), strict=True):
        torch.testing.assert_close(found[name], true.detach())


def test_the_rule_catches_what_is_wrong() -> None:
    true = {"out": torch.tensor([1.0, 2.0, -torch.inf], dtype=torch.float64)}
    rough = {"out": torch.tensor([1.001, 2.001, -torch.inf])}
    near = {"out": torch.tensor([1.002, 2.0, -torch.inf])}
    exact.demand(exact.errors(near, rough, true))
    for bad in ([1.003, 2.0, -torch.inf], [1.0, 2.0, 0.0], [torch.nan, 2.0, -torch.inf]):
        with pytest.raises(pc.BackendError, match="wrong: out is off by"):
            exact.demand(exact.errors({"out": torch.tensor(bad)}, rough, true))
    with pytest.raises(pc.BackendError):  # right by far at most, but not in the mean
        exact.demand(exact.errors({"out": torch.tensor([1.002, 2.002, -torch.inf])}, rough, true))


def test_checks_tell_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = check_cases.Place("a stand-in", torch.device("cpu"), "auto", 96)
    path = tmp_path / "check.json"
    result = check.run(place=place, only="option: s", output=path)
    assert result["passed"] == 2 and not result["failed"]
    assert json.loads(path.read_text(encoding="utf-8")) == result
    for name in ("decode: heads 6:2, pages", "packed", "ids", "nobody", "repeatable", "nothing"):
        found = check.run(place=place, only=name)
        assert found["passed"] and not found["failed"], check.text(found)

    def off(q: Any, *more: Any, **options: Any) -> Any:
        out, lse = pc.attention(q, *more, **options)
        return out * 1.1, lse

    monkeypatch.setattr(check_cases, "attention", off)
    wrong = check.run(place=place, only="mask: causal")
    assert wrong["failed"] == 1 and "out is off by" in wrong["cases"][0]["message"]
    assert check.text(wrong).startswith("FAIL  mask: causal")
    monkeypatch.setattr(check_cases, "attention", None)
    (broken,) = check.run(place=place, only="mask: causal")["cases"]
    assert broken["message"].startswith("TypeError") and "check_cases.py" in broken["message"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_names_of_checks_are_their_own() -> None:
    for where in ("cpu", "cuda"):
        place = check_cases.Place("none", torch.device(where), "triton", 64)
        names = [c.name for c in check_cases.checks(place)]
        assert len(set(names)) == len(names) > 50


def test_checks_run_the_generated_kernels(tmp_path: Path) -> None:
    """Interpreted, by the command itself."""
    there = {**os.environ, "TRITON_INTERPRET": "1", "PATTERNCC_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "patterncc", "bench", "check", "--only", "6:2, pages"]
    done = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS  decode: heads 6:2, pages, lengths" in done.stdout
    assert "interpreted on the CPU: 2 passed, 0 failed" in done.stdout
    assert list(tmp_path.glob("decode-*.py"))
