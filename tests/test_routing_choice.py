"""What routers choose, held to plain loops: balanced clusters, groups, best blocks, averages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patterncc.errors import PatternValueError
from patterncc.routers import NearestKeys, SphericalKMeans, TopBlocks
from patterncc.routers import best as best_file
from patterncc.routers.assign import arriving, balanced, groups_of, members_of
from patterncc.routers.best import best
from patterncc.routers.centroids import moved, seen
from patterncc.routers.choose import choose
from patterncc.routers.chosen import Blocks, Clusters


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@st.composite
def scores(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores [2, n, clusters] with ties, some of them missing, and which tokens are real."""
    n, clusters = draw(st.integers(1, 24)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    made = torch.randint(0, levels, (2, n, clusters), generator=generator).float()
    made[torch.rand(2, n, clusters, generator=generator) < 0.05] = torch.nan
    valid = torch.rand(2, n, generator=generator) < draw(st.sampled_from([0.5, 1.1]))
    return made, valid


def slow_balanced(rows: list[list[float]], valid: list[bool], rounds: int) -> list[int]:
    """By the definition: rounds of asking and taking, then free places in order."""
    clusters, labels = len(rows[0]), [-1] * len(rows)
    room = [-(-sum(valid) // clusters)] * clusters
    left = [i for i, real in enumerate(valid) if real]
    rows = [[-math.inf if math.isnan(x) else x for x in row] for row in rows]
    for _ in range(min(rounds, clusters)):
        asked: dict[int, list[tuple[float, int]]] = {}
        for i in left:
            found = [x if free else -math.inf for x, free in zip(rows[i], room, strict=True)]
            best_of = max(range(clusters), key=lambda c: (found[c], -c))
            asked.setdefault(best_of, []).append((-found[best_of], i))
        for c, askers in asked.items():
            for _, i in sorted(askers)[: room[c]]:
                labels[i] = c
            room[c] -= min(room[c], len(askers))
        left = [i for i in left if labels[i] < 0]
    for i in left:
        labels[i] = next(c for c in range(clusters) if room[c])
        room[labels[i]] -= 1
    return labels


@settings(max_examples=150)
@given(scores(), st.sampled_from([1, 2, 8]))
def test_balanced_clusters(given_: tuple[Tensor, Tensor], rounds: int) -> None:
    near, valid = given_
    labels = balanced(near, valid, rounds)
    for row, real, found in zip(near, valid, labels.tolist(), strict=True):
        assert found == slow_balanced(row.tolist(), real.tolist(), rounds)
        assert [c >= 0 for c in found] == real.tolist()  # every token once, padding in none
        most = -(-int(real.sum()) // near.shape[2])
        assert max((found.count(c) for c in range(near.shape[2])), default=0) <= most
    whole = balanced(near, rounds=rounds)
    if near.shape[1] % near.shape[2] == 0:  # exactly n / clusters each
        sizes = torch.nn.functional.one_hot(whole, near.shape[2]).sum(1)
        assert (sizes == near.shape[1] // near.shape[2]).all()
    assert (balanced(near.flip(0), valid.flip(0), rounds) == labels.flip(0)).all()


@settings(max_examples=100)
@given(scores(), st.integers(1, 5), st.integers(0, 24))
def test_groups_fill_in_order_and_look_at_no_later_token(
    given_: tuple[Tensor, Tensor], width: int, first: int
) -> None:
    near, valid = given_
    n, clusters = near.shape[1:]
    groups, nearest, rank = arriving(near, width, valid)
    assert int(groups.max()) < groups_of(n, clusters, width)
    for b in range(2):
        filled: dict[int, list[int]] = {}
        for i in range(n):
            if not valid[b, i]:
                assert groups[b, i] == nearest[b, i] == -1
                continue
            c = int(near[b, i].nan_to_num(nan=-torch.inf).argmax())
            assert nearest[b, i] == c and rank[b, i] == len(filled.setdefault(c, []))
            page = filled[c][len(filled[c]) // width * width :]
            assert all(groups[b, j] == groups[b, i] for j in page)
            others = set(range(i)) - set(page) - {j for j in range(i) if not valid[b, j]}
            assert all(groups[b, j] != groups[b, i] for j in others)
            filled[c].append(i)
    changed = near.clone()
    changed[:, first:] = -changed[:, first:]
    again = arriving(changed, width, valid)[0][:, :first]
    same = groups[:, :first, None] == groups[:, None, :first]
    assert (same == (again[:, :, None] == again[:, None])).all()


@given(scores())
def test_members_are_the_tokens_of_each_label(given_: tuple[Tensor, Tensor]) -> None:
    near, valid = given_
    n, clusters = near.shape[1:]
    labels = balanced(near, valid)
    members = members_of(labels, clusters, -(-n // clusters))
    for row, found in zip(labels.tolist(), members.tolist(), strict=True):
        for c, listed in enumerate(found):
            expected = [i for i in range(n) if row[i] == c]
            assert listed == expected + [-1] * (len(listed) - len(expected))


@given(scores(), st.integers(0, 9))
def test_best_are_the_largest_and_of_equals_the_first(
    given_: tuple[Tensor, Tensor], count: int
) -> None:
    rows = given_[0].clone()
    rows[rows == 0] = -torch.inf
    for row, found in zip(
        rows.flatten(0, 1).tolist(), best(rows, count).flatten(0, 1), strict=True
    ):
        able = [i for i, x in enumerate(row) if x > -math.inf]  # NaN compares false
        expected = sorted(sorted(able, key=lambda i: (-row[i], i))[:count])
        assert found.tolist() == expected + [-1] * (min(count, len(row)) - len(expected))


def queries(heads: int, kv_heads: int, n: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    q, k = (torch.randn(2, h, n, dim, generator=generator) for h in (heads, kv_heads))
    return q, k


@pytest.mark.parametrize("causal", [True, False])
def test_nearest_keys_by_the_definition(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = queries(4, 2, 23)
    valid = torch.ones(2, 23, dtype=torch.bool)
    valid[1, 5:9] = False
    whole = choose(NearestKeys(4), q, k, causal=causal, valid=valid)
    monkeypatch.setattr(best_file, "PIECE", 400)  # two rows at once
    pieces = choose(NearestKeys(4), q, k, causal=causal, valid=valid)
    assert isinstance(whole, Blocks) and isinstance(pieces, Blocks)
    assert (whole.chosen == pieces.chosen).all() and (whole.block, whole.grain) == (1, 1)
    for b, h, i in [(0, 0, 0), (0, 1, 7), (1, 2, 12), (1, 3, 22), (1, 0, 7)]:
        able = [j for j in range(i + 1 if causal else 23) if valid[b, j]]
        product = {j: float(q[b, h, i] @ k[b, h // 2, j]) for j in able}
        expected = sorted(sorted(able, key=lambda j: -product[j])[:4])
        assert [j for j in whole.chosen[b, h, i].tolist() if j >= 0] == expected


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "router",
    [
        TopBlocks(1, block=8),
        TopBlocks(3, block=4),
        TopBlocks(3, block=4, grain=2),
        TopBlocks(2, block=8, shared=True),
        TopBlocks(99, block=4),
    ],
    ids=str,
)
def test_top_blocks_by_the_definition(router: TopBlocks, causal: bool) -> None:
    (q, k), n, size = queries(4, 2, 27), 27, router.block
    found = choose(router, q, k, causal=causal)
    assert isinstance(found, Blocks) and (found.block, found.grain) == (size, router.grain)
    blocks = -(-n // size)
    mean = torch.stack([k[:, :, m * size : (m + 1) * size].mean(2) for m in range(blocks)], 2)
    for b, h, group in [(0, 0, 0), (0, 3, 4), (1, 1, 9), (1, 2, 12)]:
        rows = q[b, :, group * router.grain : (group + 1) * router.grain].mean(1)
        choosing = range(h // 2 * 2, h // 2 * 2 + 2) if router.shared else [h]
        score = sum(mean[b, h // 2] @ rows[c] for c in choosing)
        own = group * router.grain // size
        others = [m for m in range(own if causal else blocks) if m != own]
        best_of = sorted(others, key=lambda m: -float(score[m]))[: router.count - 1]
        listed = [m for m in found.chosen[b, h, group].tolist() if m >= 0]
        assert listed == sorted([own, *best_of])


def test_equal_blocks_are_taken_in_order_and_keys_that_are_masked_count_for_nothing() -> None:
    q, k = torch.ones(1, 1, 12, 4), torch.ones(1, 1, 12, 4)
    found = choose(TopBlocks(2, block=2), q, k, causal=True)
    assert isinstance(found, Blocks) and found.chosen[0, 0, -1].tolist() == [0, 5]
    k[:, :, 2:4] = torch.nan
    valid = torch.ones(1, 12, dtype=torch.bool)
    valid[:, :4] = False
    found = choose(TopBlocks(2, block=2), q, k, causal=True, valid=valid)
    assert isinstance(found, Blocks) and found.chosen[0, 0, -1].tolist() == [2, 5]


def test_sequences_and_heads_do_not_touch_each_other() -> None:
    q, k = queries(4, 2, 32)
    centroids = torch.nn.functional.normalize(torch.randn(4, 4, 8), dim=-1)
    for router in (SphericalKMeans(4), SphericalKMeans(4, width=4), TopBlocks(2, block=4)):
        one = choose(router, q, k, causal=True, centroids=centroids)
        other = choose(router, q.flip(0), k.flip(0), causal=True, centroids=centroids)
        for name in ("labels", "members") if isinstance(one, Clusters) else ("chosen",):
            assert (getattr(one, name) == getattr(other, name).flip(0)).all()
        alone = choose(router, q[1:, 2:], k[1:, 1:], causal=True, centroids=centroids[2:])
        name = "labels" if isinstance(one, Clusters) else "chosen"
        assert (getattr(alone, name) == getattr(one, name)[1:, 2:]).all()


def test_centroids_move_as_a_plain_loop_moves_them() -> None:
    q, k = queries(4, 2, 19)
    valid = torch.rand(2, 19) < 0.7
    centroids = torch.nn.functional.normalize(torch.randn(4, 5, 8), dim=-1)
    centroids[:, 4] = (
        -centroids[:, :4].sum(1) * 1e-3
    )  # too short to be nearest: unseen, so it stays
    expected = centroids.clone()
    for h in range(4):
        near: dict[int, list[Tensor]] = {}
        for b in range(2):
            for x in (q[b, h], k[b, h // 2]):
                for i in range(19):
                    if valid[b, i]:
                        u = x[i] - x[i].mean()
                        u = u / u.norm()
                        near.setdefault(int((centroids[h] @ u).argmax()), []).append(u)
        for c, us in near.items():
            step = 0.9 * centroids[h, c] + 0.1 * torch.stack(us).mean(0)
            expected[h, c] = step / step.norm()
    k[~valid[:, None].expand(2, 2, 19)] = torch.nan
    found = moved(centroids, seen(q, k, centroids, valid), 0.9)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found != centroids).any()
    tied = moved(centroids, seen(q, q, centroids), 1.0)
    some = tied[:, :4]
    torch.testing.assert_close(some, torch.nn.functional.normalize(some, dim=-1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SphericalKMeans(0), "SphericalKMeans: clusters must be at least 1, not 0"),
        (lambda: SphericalKMeans(4, width=0), "SphericalKMeans: width must be at least 1"),
        (lambda: SphericalKMeans(4, decay=1.5), r"decay must be from 0 to 1, not 1\.5"),
        (lambda: SphericalKMeans(4, decay="slow"), "decay must be from 0 to 1, not 'slow'"),  # type: ignore[arg-type]
        (lambda: NearestKeys(0), "NearestKeys: count must be at least 1"),
        (lambda: TopBlocks(2, block=0), "TopBlocks: block must be at least 1"),
        (lambda: TopBlocks(2, block=8, grain=3), "block 8 is not a multiple of grain 3"),
    ],
)
def test_routers_that_cannot_be(make: object, message: str) -> None:
    with pytest.raises(PatternValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("causal", [True, False])
def test_no_value_is_read_on_the_host(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values: whoever asks for one, of a device that is not the CPU, fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    q, k = (x.to("meta") for x in queries(4, 2, 100))
    centroids, valid = torch.empty(4, 5, 8).to("meta"), torch.empty(2, 100, dtype=torch.bool)
    routers = (
        *(SphericalKMeans(5), SphericalKMeans(5, width=8), NearestKeys(4)),
        *(TopBlocks(3, block=8), TopBlocks(3, block=8, grain=4), TopBlocks(2, shared=True)),
    )
    for router in routers:
        for real in (None, valid.to("meta")):
            found = choose(router, q, k, causal=causal, valid=real, centroids=centroids)
            held = found.members if isinstance(found, Clusters) else found.chosen
            assert held.shape[:2] == (2, 4) and held.dtype == torch.int64
    assert moved(centroids, seen(q, k, centroids, valid.to("meta")), 0.9).shape == centroids.shape
