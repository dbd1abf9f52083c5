"""Native CPU kernels against float64 dense attention, whose mask comes from the pattern alone."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import patterncc as pc
from patterncc.errors import PatternValueError
from patterncc.kernels import cpu, reference, runtime
from patterncc.kernels.native import build, emit
from patterncc.kernels.native import run as native
from patterncc.kernels.native.plan import NativePlan
from patterncc.kernels.runtime import cpu_kernels, native_compiler
from patterncc.kernels.score import Score
from patterncc.kernels.spec import Spec

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """Sizes of one call; `layer` is a pattern, or one a head, or (batch of) what a layout takes."""

    layer: tuple[pc.Pattern, ...]
    n: int = 150
    n_k: int = 150
    q_offset: int = 0
    block: tuple[int, int] = (64, 64)
    B: int = 1
    Hkv: int = 2
    G: int = 1
    D: int = 16
    Dv: int = 16
    dtype: torch.dtype = torch.float32
    scale: float = 0.3

    def layout(self) -> pc.Layout:
        layer = self.layer[0] if len(self.layer) == 1 else pc.heads(list(self.layer))
        return pc.compile(layer, self.n, self.n_k, self.q_offset, block=self.block)

    def mask(self) -> Tensor:
        """[H or 1, n, n_k]"""
        sets = [
            pc.lower(p, self.n, self.n_k, self.q_offset, head=h) for h, p in enumerate(self.layer)
        ]
        return torch.from_numpy(np.stack([z.dense() for z in sets]))

    def inputs(self, seed: int = 0) -> list[Tensor]:
        """q, k and v, of which two are not contiguous."""
        make = torch.Generator().manual_seed(seed)
        H = self.Hkv * self.G
        q = torch.randn(self.B, self.n, H, self.D, generator=make).transpose(1, 2)
        k = torch.randn(self.B, self.Hkv, self.n_k, self.D, generator=make)
        v = torch.randn(self.B, self.n_k, self.Hkv, self.Dv, generator=make).transpose(1, 2)
        return [x.to(self.dtype) for x in (q, k, v)]


def arguments(layout: pc.Layout) -> tuple[list[Tensor], Spec]:
    arrays = [torch.from_numpy(np.array(a)) for a in layout.arrays.values()]
    return arrays, Spec.of(layout, "cpu")


def run(case: Case, inputs: list[Tensor], score: Score) -> tuple[Tensor, Tensor]:
    """By the native kernel, into outputs that held NaN."""
    found = native.forward(*inputs, *arguments(case.layout()), score)
    assert found is not None
    out, lse = found
    assert (out.dtype, lse.dtype) == (case.dtype, torch.float32)
    assert not out.isnan().any() and not lse.isnan().any()
    return out, lse


def check(case: Case, score: Score | None = None, mean: bool = False) -> None:
    """Errors at most twice those of dense attention in the same precision, plus one rounding.

    mean: the mean error is held within 1.1 of dense attention's too.
    """
    score = score or Score(case.scale)
    inputs, mask = case.inputs(), case.mask()
    ours = run(case, inputs, score)
    far = torch.arange(case.n_k) - torch.arange(case.n)[:, None] - case.q_offset
    if score.query_at is not None and score.key_at is not None:
        far = score.key_at.long() - score.query_at.long()[:, None] - case.q_offset
    exact, near = (
        reference.attention(*inputs, mask, dtype=dtype, score=score, distance=far)
        for dtype in (torch.float64, case.dtype)
    )
    nothing = exact[1] == -torch.inf
    assert torch.equal(ours[1] == -torch.inf, nothing) and (ours[0][nothing] == 0).all()
    read = exact[1][~nothing]
    # A probability is 2^(score - LSE), and both are kept in fp32.
    spent = read.abs().max() * torch.finfo(torch.float32).eps if len(read) else 0.0
    step = torch.finfo(case.dtype).eps + 2 * spent
    for mine, peer, true in zip(ours, near, exact, strict=True):
        mine, peer, true = (x.double()[~nothing] for x in (mine, peer, true))
        if len(true):
            off, peer_off = (mine - true).abs(), (peer - true).abs()
            assert off.max() <= 2 * peer_off.max() + step * true.abs().max()
            assert not mean or off.mean() <= 1.1 * peer_off.mean()


BLOCKED = pc.window(1, 1, block=16) | pc.global_tokens(range(16)) | pc.random_blocks(2, block=16)
SCATTERED = pc.random_edges(5, seed=3)
LEAVES = st.one_of(
    st.builds(pc.window, st.integers(0, 60), st.integers(0, 60)),
    st.builds(pc.dilated, st.integers(0, 60), st.integers(0, 20), st.integers(1, 5)),
    st.builds(pc.chunked, st.integers(1, 70)),
    st.builds(pc.global_tokens, st.lists(st.integers(0, 150), min_size=1, max_size=3)),
    st.builds(lambda r, s: pc.random_edges(r, seed=s), st.integers(0, 4), st.integers(0, 9)),
    st.sampled_from([pc.full(), pc.causal(), pc.strided(7), pc.summary(16, 2), BLOCKED]),
)
PATTERNS = st.recursive(
    LEAVES,
    lambda p: st.one_of(
        st.builds(lambda a, b: a | b, p, p),
        st.builds(lambda a, b: a & b, p, p),
        st.builds(lambda a, b: a - b, p, p),
    ),
    max_leaves=4,
)
BLOCKS = [(16, 16), (32, 64), (64, 32), (64, 64), (128, 128), (256, 256), (128, 16), (16, 256)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    Hkv, G = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    n = draw(st.integers(1, 200))
    offset = draw(st.sampled_from([0, 0, 37]))
    n_k = n + offset if draw(st.booleans()) else draw(st.integers(1, 200))
    layer = tuple(draw(PATTERNS) for _ in range(draw(st.sampled_from([1, Hkv * G]))))
    block, B = draw(st.sampled_from(BLOCKS)), draw(st.integers(1, 2))
    dtype = draw(st.sampled_from([torch.float32, *HALVES]))
    return Case(layer, n, n_k, offset, block, B, Hkv, G, dtype=dtype)


@settings(max_examples=40)
@given(cases())
def test_composed_patterns(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("dims", [(33, 17), (40, 80)])
@pytest.mark.parametrize("layer", [pc.window(30, 9) | pc.sink(2), SCATTERED])
def test_head_dims(dims: tuple[int, int], dtype: torch.dtype, layer: pc.Pattern) -> None:
    check(Case((layer,), G=2, D=dims[0], Dv=dims[1], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_mean_error(dtype: torch.dtype) -> None:
    for layer in (pc.window(100, 100) | pc.global_tokens(range(8)), SCATTERED):
        check(
            Case((layer,), n=1024, n_k=1024, block=(128, 128), dtype=dtype, scale=0.25), mean=True
        )


@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_vectors(lanes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if lanes > build.lanes():
        return  # this machine's vectors are narrower still
    monkeypatch.setattr(native, "lanes", lambda: lanes)
    for layer in (pc.window(30, 9), SCATTERED, pc.causal() | pc.global_tokens([70])):
        check(Case((layer,), block=(32, 64), D=17, Dv=19, dtype=dtype))


def options() -> dict[str, Score]:
    make = torch.Generator().manual_seed(5)
    slopes, sinks = torch.rand(4, generator=make) * 0.05, torch.randn(4, generator=make)
    bias = torch.randn(4, 2 * 9 + 1, generator=make)
    keys = torch.rand(2, 150, generator=make) < 0.8
    keys[1, 100:] = False
    places = torch.randperm(150, generator=make, dtype=torch.int32)
    whole = Score(0.3, 3.0, slopes, bias, sinks, keys, places, places.flip(0))
    return {
        "softcap": Score(0.3, softcap=2.0),
        "slopes": Score(0.3, slopes=slopes),
        "bias": Score(0.3, bias=bias),
        "sinks": Score(0.3, sinks=sinks),
        "keys": Score(0.3, keys=keys),
        "all": whole,
    }


@pytest.mark.parametrize("name", list(options()))
def test_options_of_a_score(name: str) -> None:
    score = options()[name]
    for layer in (pc.full(), pc.window(30, 9) & ~pc.prefix(20), SCATTERED):
        check(Case((layer,), B=2, G=2), score)
    if name == "all":
        check(Case((pc.window(60),), B=2, G=2, q_offset=3, dtype=torch.bfloat16), score)


def test_a_softcap_of_small_and_large_scores() -> None:
    for scale in (1e-3, 0.3, 40.0):
        check(Case((pc.causal(),)), Score(scale, softcap=2.0))


@pytest.mark.parametrize("sink", [-200.0, 0.0, 200.0, -torch.inf])
def test_sinks_far_from_the_scores(sink: float) -> None:
    case = Case((pc.window(3) & ~pc.prefix(30),))
    score = Score(0.3, sinks=torch.tensor([sink, 1.0]))
    out, lse = run(case, case.inputs(), score)
    exact, exact_lse = reference.attention(*case.inputs(), case.mask(), score=score)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
    assert (lse[:, 0, :28] == sink).all()


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-4, 30.0])
def test_any_scale(scale: float) -> None:
    check(Case((pc.causal(),), scale=scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [30.0, 1e5])
def test_scores_of_any_size(size: float, dtype: torch.dtype) -> None:
    """The key of the largest score takes all, however coarse its neighbours in fp32 are."""
    case = Case((pc.causal(),), 40, 40, block=(16, 16), dtype=dtype)
    q, k, v = case.inputs()
    found, lse = run(case, [q * size, k * size, v], Score(1.0))
    exact, true_lse = reference.attention(
        q * size, k * size, v, case.mask(), dtype=torch.float64, score=Score(1.0)
    )
    torch.testing.assert_close(found.double(), exact, atol=torch.finfo(dtype).eps, rtol=0.01)
    torch.testing.assert_close(lse.double(), true_lse, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("low", [-1e12, torch.finfo(torch.float32).min])
def test_a_bias_that_is_nearly_minus_infinity_everywhere(low: float) -> None:
    """Scores that fp32 cannot tell apart share a row evenly; the row is not one without keys."""
    case = Case((pc.causal(),), 40, 40, block=(16, 16))
    inputs = case.inputs()
    out, lse = run(case, inputs, Score(0.3, bias=torch.full((2, 7), low)))
    count = torch.arange(1, 41)[:, None]
    torch.testing.assert_close(out, inputs[2].cumsum(2) / count, atol=1e-5, rtol=0)
    assert (lse == low).all()


def test_a_scale_below_all_numbers_of_fp32_is_zero() -> None:
    case = Case((pc.causal(),), 40, 40, block=(16, 16))
    found = (run(case, case.inputs(), Score(scale)) for scale in (1e-46, 0.0))
    for tiny, zero in zip(*found, strict=True):
        assert torch.equal(tiny, zero)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(
    "layer",
    [
        pc.window(5) & ~pc.global_tokens([3, 77, 149]),
        pc.full() & ~pc.global_tokens([0, 20, 21, 90]),
        pc.window(20) & ~(pc.window(0) | pc.global_tokens(range(130, 150))),
    ],
)
def test_keys_that_nobody_reads_may_hold_anything(layer: pc.Pattern, dtype: torch.dtype) -> None:
    case = Case((layer,), dtype=dtype)
    q, k, v = case.inputs()
    unread = ~case.mask().any(1)[0]
    assert unread.any()
    expected = run(case, [q, k, v], Score(0.3))
    k[:, :, unread], v[:, :, unread] = torch.nan, torch.inf
    for a, b in zip(run(case, [q, k, v], Score(0.3)), expected, strict=True):
        assert torch.equal(a, b)


def test_keys_that_are_padded_may_hold_anything() -> None:
    case, keys = Case((pc.causal(),), B=2), torch.ones(2, 150, dtype=torch.bool)
    keys[0, 90:] = keys[1, 10:30] = False
    q, k, v = case.inputs()
    expected = run(case, [q, k, v], Score(0.3, keys=keys))
    for x in (k, v):
        x.masked_fill_(~keys[:, None, :, None], torch.nan)
    for a, b in zip(run(case, [q, k, v], Score(0.3, keys=keys)), expected, strict=True):
        assert torch.equal(a, b)


def test_not_a_number_in_what_is_read_is_not_hidden() -> None:
    case = Case((pc.causal(),))
    for which in range(3):
        inputs = case.inputs()
        inputs[which][:, 1, 100] = torch.nan
        found = native.forward(*inputs, *arguments(case.layout()), Score(0.3))
        assert found is not None
        assert found[0][:, 1, 100].isnan().all() and not found[0][:, 0].isnan().any()


def test_sequences_with_masks_of_their_own() -> None:
    lengths = torch.tensor([[60, 90], [149, 1]])
    ids = (torch.arange(150) >= lengths[:, :1]).long()
    layout = pc.compile(pc.causal(), 150, block=64, doc_ids=ids)
    q, k, v = Case((pc.causal(),), B=2, G=2).inputs()
    found = native.forward(q, k, v, *arguments(layout), Score(0.3))
    assert found is not None
    for b, (first, _) in enumerate(lengths.tolist()):
        label = torch.arange(150) < first
        mask = (label[:, None] == label) & torch.ones(150, 150).tril().bool()
        some = reference.attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], mask, 0.3)
        for mine, true in zip(found, some, strict=True):
            torch.testing.assert_close(mine[b].double(), true[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(0, 8, 8), (1, 0, 8), (1, 8, 0), (2, 1, 1)])
def test_sizes_of_zero_and_one(sizes: tuple[int, int, int]) -> None:
    B, n, n_k = sizes
    case = Case((pc.window(1, 8),), n, n_k, B=B)
    out, lse = run(case, case.inputs(), Score(1.0))
    assert (out.shape, lse.shape) == ((B, 2, n, 16), (B, 2, n))
    assert n_k > 0 or ((out == 0).all() and (lse == -torch.inf).all())


def test_heavy_lines_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pc.window(3) | pc.global_tokens([0]) & ~pc.prefix(3)
    one = native.cut(np.array([[9, 100, 9, 9], [9, 9, 9, 100]]), 128)
    assert one == (1, 2) and native.cut(np.full((1, 50), 100), 128) == (0, 1)
    monkeypatch.setattr(native, "HEAVY", 32)
    for block, expected in (((16, 16), 2), ((128, 16), 1)):
        layout = Case((hub,), n=600, n_k=600, block=block).layout()
        tiles = native.tiles_of(layout.rows.ptr, layout.rows.run, layout.lines)
        heavy, cuts = native.cut(tiles, block[1])
        assert heavy >= 1 and cuts > expected
        for layer in ((hub,), (hub, pc.window(3))):
            check(Case(layer, n=600, n_k=600, block=block, B=2), Score(0.3))
        sinks = Score(0.3, sinks=torch.tensor([0.5, -1.0]))
        check(Case((hub,), n=600, n_k=600, block=block, dtype=torch.bfloat16), sinks)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("team", ["torch's", "own"])
def test_any_number_of_threads_gives_the_same_bits(
    team: str, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "ITEM_WORK", 1)
    if team == "own":
        monkeypatch.setattr(native, "team", lambda: None)
    monkeypatch.setattr(native, "HEAVY", 256)
    case = Case((pc.window(40, 40) | pc.global_tokens([0]),), n=600, n_k=600, Hkv=4)
    found = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        found.append(run(case, case.inputs(), Score(0.3)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# --- plans, sources and the cache

PLAN = NativePlan("forward", "float32", 8, 8, 4)


def test_a_source_names_its_plan_and_leaves_out_what_it_does_not_use() -> None:
    text = emit.emit(PLAN)
    assert text.startswith("// patterncc forward: kind forward, dtype float32, head_dim 8")
    assert text == emit.emit(replace(PLAN)) and max(map(len, text.splitlines())) <= 110
    for name in ("softened", "distance", "bias_at", "sinks[", "vdpbf16ps", "keys["):
        assert name not in text, name
    everything = dict.fromkeys(("softcap", "slopes", "bias", "sinks", "keys", "placed"), True)
    assert "softened" in emit.emit(replace(PLAN, **everything))


@pytest.mark.parametrize(
    "wrong",
    [{"head_dim": 0}, {"value_dim": 513}, {"lanes": 5}, {"dtype": "int8"}, {"dot": True},
     {"softcap": 1}, {"head_dim": "8; evil()"}, {"kind": "decode"}],
)  # fmt: skip
def test_plans_hold_typed_numbers_only(wrong: dict[str, object]) -> None:
    with pytest.raises(PatternValueError):
        replace(PLAN, **wrong)  # type: ignore[arg-type]


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("forward-*.so"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PATTERNCC_CACHE", str(tmp_path))
    build.kernel.cache_clear()
    yield tmp_path
    build.kernel.cache_clear()


def test_a_library_is_made_once_and_its_bytes_are_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    compiled = build._compiled
    monkeypatch.setattr(build, "_compiled", lambda *a: made.append(a) or compiled(*a))
    with caplog.at_level(logging.INFO, logger="patterncc"):
        for _ in range(2):
            build.kernel.cache_clear()
            assert build.kernel(PLAN) is not None
    assert len(made) == 1 and len(libraries(folder)) == 1
    assert caplog.text.count("compiling the CPU kernel forward of float32, head dim 8, by") == 1
    assert not list(folder.glob(".writing-*"))
    (path,) = libraries(folder)
    good = path.read_bytes()
    path.unlink()  # a new file: the old one is mapped
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    build.kernel.cache_clear()
    with caplog.at_level(logging.WARNING, logger="patterncc"):
        assert build.kernel(PLAN) is not None
    assert len(made) == 2 and path.read_bytes() == good
    assert "does not match its sha256" in caplog.text


def test_a_library_that_cannot_be_loaded_is_made_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sha256 is right, so only loading it tells; later processes find the new one."""
    assert build.kernel(PLAN) is not None
    (path,) = libraries(folder)
    garbage = b"no library"
    digest = hashlib.sha256(garbage).hexdigest()
    name = path.stem.rpartition("-")[0]
    (folder / f"{name}-{digest[:12]}.so").write_bytes(garbage)
    (folder / f"{name}.sha256").write_text(digest)
    for said in ("cannot be loaded", ""):
        build.kernel.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="patterncc"):
            assert build.kernel(PLAN) is not None
        assert said in caplog.text and bool(said) == bool(caplog.text)


def test_a_cache_that_nothing_can_be_loaded_from_is_done_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = build.ctypes.CDLL

    def load_elsewhere(path: str) -> object:
        if path.startswith(str(folder)):
            raise OSError("failed to map segment")
        return load(path)

    monkeypatch.setattr(build.ctypes, "CDLL", load_elsewhere)
    with caplog.at_level(logging.WARNING, logger="patterncc"):
        assert build.kernel(PLAN) is not None
    assert "cannot be loaded (failed to map segment)" in caplog.text
    assert "compile" not in caplog.text


def test_a_user_without_a_home_keeps_kernels_where_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PATTERNCC_CACHE", raising=False)
    monkeypatch.setattr(runtime.Path, "home", homeless)
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    found = runtime.cache_dir()
    assert found == tmp_path / f"patterncc-{os.getuid()}" == runtime.cache_dir()
    assert found.stat().st_mode & 0o777 == 0o700
    found.chmod(0o777)  # others may have put anything there
    alone = runtime.cache_dir()
    assert alone != found and alone == runtime.cache_dir()
    assert alone.stat().st_mode & 0o777 == 0o700
    found.rmdir()
    found.symlink_to(tmp_path)
    assert runtime.cache_dir() == alone
    monkeypatch.setattr(runtime.os, "getuid", lambda: -1)  # a folder of somebody else
    (tmp_path / "patterncc--1").mkdir(mode=0o700)
    assert runtime.cache_dir() == alone


def test_a_cache_that_cannot_be_written_is_done_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("PATTERNCC_CACHE", str(folder / "file" / "below"))
    assert build.kernel(PLAN) is not None
    assert [x.name for x in folder.iterdir()] == ["file"]


@pytest.mark.parametrize("how", ["no compiler", "a compiler that fails", "switched off"])
def test_without_a_compiler_torch_computes(
    how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    match how:
        case "no compiler":
            monkeypatch.setenv("PATH", str(folder))
            monkeypatch.delenv("CXX", raising=False)
        case "a compiler that fails":
            broken = folder / "broken"
            broken.write_text("#!/bin/sh\necho cannot do it >&2\nexit 1\n")
            broken.chmod(0o755)
            monkeypatch.setenv("CXX", str(broken))
        case _:
            monkeypatch.setenv("PATTERNCC_NATIVE", "0")
    build._without_compiler.cache_clear()
    case = Case((pc.window(9),))
    inputs, args = case.inputs(), arguments(case.layout())
    with caplog.at_level(logging.INFO, logger="patterncc"):
        for _ in range(2):
            assert native.forward(*inputs, *args, Score(0.3)) is None
    out, _ = cpu.forward(*inputs, *args, Score(0.3))
    exact, _ = reference.attention(*inputs, case.mask(), 0.3)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
    said = "cannot do it" if how == "a compiler that fails" else "no C++ compiler"
    assert caplog.text.count(said) == 1
    assert not libraries(folder)


def test_what_torch_keeps() -> None:
    q = torch.zeros(1, 1, 4, 8)
    assert native.plan_of("forward", q.double(), q.double(), Score(1.0)) is None
    assert native.plan_of("forward", q, torch.zeros(1, 1, 4, 600), Score(1.0)) is None
    assert native.plan_of("forward", q, q, Score(1.0)) is not None
    assert native_compiler() is not None


def test_tiles_of_amx_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "features", lambda: frozenset({"amx_tile"}))
    q = torch.zeros(1, 1, 4, 8)
    assert native.plan_of("forward", q.bfloat16(), q.bfloat16(), Score(1.0)) is None
    assert native.plan_of("forward", q, q, Score(1.0)) is not None


def test_what_runs_on_the_cpu_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_kernels() == f"native kernels by {native_compiler()}"
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    assert cpu_kernels() == "torch's kernels: no C++ compiler (c++, g++, clang++ or $CXX)"
    monkeypatch.setenv("PATTERNCC_NATIVE", "0")
    assert cpu_kernels() == "torch's kernels: PATTERNCC_NATIVE=0"
