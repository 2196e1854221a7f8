"""Ranks: equal to a naive O(N^2) ranking, to the golden metrics, and free of the block size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.evaluation.counting import on_grid, pair_scores
from pipeline.evaluation.directions import rank_at_once
from pipeline.evaluation.metrics import chance_metrics, recall_metrics
from pipeline.evaluation.ranking import rank_positives

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "metrics.json"


def unit(num: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def exact_scores(queries: Tensor, gallery: Tensor) -> list[list[int]]:
    """All scores as Python integers (multiples of 2**-52): no rounding anywhere."""
    rows = [[round(x * 2**26) for x in row] for row in queries.double().tolist()]
    columns = [[round(x * 2**26) for x in row] for row in gallery.double().tolist()]
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in rows]


def naive_ranks(scores: list[list[int]], positives: list[set[int]]) -> tuple[list[int], list[int], list[int]]:
    greater, tied, best = [], [], []
    for row, right in zip(scores, positives, strict=True):
        top = max(row[item] for item in right)
        greater.append(sum(score > top for item, score in enumerate(row) if item not in right))
        tied.append(sum(score == top for item, score in enumerate(row) if item not in right))
        best.append(sum(row[item] == top for item in right))
    return greater, tied, best


def test_golden_metrics_without_ties() -> None:
    """A similarity matrix is ranked by taking its rows as queries and the identity as the gallery."""
    rng = np.random.default_rng(0)
    for case in json.loads(GOLDEN.read_text()):
        n = case["n"]
        scores = torch.from_numpy(0.1 * rng.standard_normal((n, n)) + 0.2 * np.eye(n))
        numbers = torch.arange(n)
        for direction, matrix in (("t2v", scores), ("v2t", scores.T)):
            ranks = rank_positives(matrix, torch.eye(n), numbers, numbers, block_size=64)
            found = recall_metrics(ranks.by_rule("average"), direction)
            del found[f"{direction}_gm"]
            assert list(found.values()) == pytest.approx(case[direction], rel=1e-12)
            assert ranks.tied.sum() == 0


@settings(max_examples=40, deadline=None)
@given(
    num_queries=st.integers(1, 20),
    num_items=st.integers(1, 20),
    copies=st.integers(1, 3),
    block_size=st.integers(1, 25),
    seed=st.integers(0, 10_000),
)
def test_equals_naive_ranking_with_ties_and_any_block(
    num_queries: int, num_items: int, copies: int, block_size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    queries = unit(num_queries, 8, seed)
    gallery = unit(num_items, 8, seed + 1).repeat(copies, 1)
    owner = rng.integers(0, num_queries, len(gallery))
    owner[:num_queries] = np.arange(num_queries)[: len(gallery)]
    asked = sorted(set(owner.tolist()))
    positives = [set(np.flatnonzero(owner == query).tolist()) for query in asked]
    ranks = rank_positives(
        queries[asked],
        gallery,
        torch.from_numpy(np.searchsorted(asked, owner)),
        torch.arange(len(gallery)),
        block_size=block_size,
    )
    greater, tied, best = naive_ranks(exact_scores(queries[asked], gallery), positives)
    assert ranks.greater.tolist() == greater
    assert ranks.tied.tolist() == tied
    assert ranks.best.tolist() == best


@settings(max_examples=40, deadline=None)
@given(
    num_videos=st.integers(1, 20),
    captions=st.integers(1, 4),
    copies=st.integers(1, 3),
    spread=st.sampled_from([1.0, 1e-3, 1e-5, 0.0]),
    block_size=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_one_pass_for_both_directions_equals_naive_ranking(
    num_videos: int, captions: int, copies: int, spread: float, block_size: int, seed: int
) -> None:
    """Several captions a video, equal videos and texts, spaces from spread out to collapsed."""
    centre, num_distinct = unit(1, 8, seed), -(-num_videos // copies)
    videos = normalize(centre + spread * unit(num_distinct, 8, seed + 1), dim=-1).repeat(copies, 1)[:num_videos]
    owner = torch.arange(num_videos).repeat_interleave(captions)
    texts = normalize(centre + spread * unit(len(owner), 8, seed + 2), dim=-1)
    texts[::3] = texts[0].clone()
    scores = exact_scores(texts, videos)
    expected_t2v = naive_ranks(scores, [{video} for video in owner.tolist()])
    columns = [list(column) for column in zip(*scores, strict=True)]
    expected_v2t = naive_ranks(columns, [set((owner == video).nonzero()[:, 0].tolist()) for video in range(num_videos)])
    t2v, v2t = rank_at_once(texts, videos, owner, block_size)
    assert (t2v.greater.tolist(), t2v.tied.tolist(), t2v.best.tolist()) == expected_t2v
    assert (v2t.greater.tolist(), v2t.tied.tolist(), v2t.best.tolist()) == expected_v2t


def test_scores_have_the_same_bits_in_every_block_and_thread_count() -> None:
    queries, gallery = unit(65, 512, 0), unit(33, 512, 1)
    whole = on_grid(queries) @ on_grid(gallery).T
    one_by_one = torch.stack([on_grid(queries) @ on_grid(item) for item in gallery], dim=1)
    rows, columns = (part.flatten() for part in torch.meshgrid(torch.arange(65), torch.arange(33), indexing="ij"))
    assert torch.equal(whole, one_by_one)
    assert torch.equal(whole.flatten(), pair_scores(queries, gallery, rows, columns))


def test_repeated_sentences_give_n_1000_and_stated_ties() -> None:
    """The 1kA case: one sentence three times and three twice among 1,000, every text on top of its video."""
    sentence = np.arange(1000)
    sentence[[1, 2]] = 0
    sentence[[4, 6, 8]] = [3, 5, 7]
    texts = unit(1000, 64, 0)[sentence]
    videos = texts + 1e-3 * unit(1000, 64, 1)
    numbers = torch.arange(1000)
    to_text = rank_positives(normalize(videos, dim=-1), texts, numbers, numbers, block_size=128)
    assert len(to_text.by_rule("average")) == 1000
    assert recall_metrics(to_text.by_rule("optimistic"), "v2t")["v2t_r1"] == 1.0
    assert recall_metrics(to_text.by_rule("average"), "v2t")["v2t_r1"] == 0.991
    assert to_text.by_rule("average")[:5].tolist() == [2.0, 2.0, 2.0, 1.5, 1.5]
    assert to_text.by_rule("pessimistic")[:5].tolist() == [3.0, 3.0, 3.0, 2.0, 2.0]


def test_average_rank_is_the_expected_rank_of_the_first_positive() -> None:
    """2 positives and 3 negatives with one score: the first positive of a random order stands at 1 + 3/3."""
    item = unit(1, 8, 0)
    ranks = rank_positives(item, item.repeat(5, 1), torch.tensor([0, 0]), torch.tensor([1, 3]))
    assert ranks.by_rule("average").tolist() == [2.0]


@pytest.mark.parametrize(("positives", "items"), [([1], 50), ([1, 1, 3], 20), ([20], 50)])
def test_chance_equals_simulation(positives: list[int], items: int) -> None:
    rng = np.random.default_rng(0)
    draws = [1.0 + rng.permutation(items)[:count].min() for _ in range(6000) for count in positives]
    simulated = recall_metrics(np.array(draws), "t2v")
    computed = chance_metrics(np.array(positives), items, "t2v")
    for name in ("t2v_r1", "t2v_r5", "t2v_r10"):
        assert computed[name] == pytest.approx(simulated[name], abs=0.02)
    assert computed["t2v_mnr"] == pytest.approx(simulated["t2v_mnr"], rel=0.05)
    assert computed["t2v_mdr"] == pytest.approx(simulated["t2v_mdr"], rel=0.15)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 0.0], ids=["spread", "close", "collapsed"])
def test_float32_filter_counts_as_exact_arithmetic(spread: float) -> None:
    """Far scores are decided in float32, close ones exactly, and a collapsed space as a whole."""
    centre = unit(1, 64, 0)
    queries = normalize(centre + spread * unit(80, 64, 1), dim=-1)
    gallery = normalize(centre + spread * unit(120, 64, 2), dim=-1)
    owner = torch.arange(80)
    found = rank_positives(queries, gallery, owner, owner, block_size=50)
    exact = rank_positives(queries, gallery, owner, owner, block_size=50, rescore=lambda scores, rows, columns: scores)
    greater, tied, _ = naive_ranks(exact_scores(queries, gallery), [{i} for i in range(80)])
    assert found.greater.tolist() == exact.greater.tolist() == greater
    assert found.tied.tolist() == exact.tied.tolist() == tied
