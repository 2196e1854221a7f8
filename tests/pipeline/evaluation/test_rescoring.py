"""DSL and QB-Norm against plain numpy on whole matrices, the golden DSL metrics, and free of the block size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.evaluation import rescoring
from pipeline.evaluation.bootstrap import bootstrap_intervals
from pipeline.evaluation.metrics import recall_metrics
from pipeline.evaluation.ranking import rank_positives
from pipeline.evaluation.rescoring import dual_softmax, querybank, top_items

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "metrics.json"


def unit(num: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis, keepdims=True))


def diagonal_ranks(scores: np.ndarray) -> list[float]:
    return (1.0 + (scores > np.diag(scores)[:, None]).sum(1)).tolist()


def test_golden_dsl() -> None:
    rng = np.random.default_rng(0)
    for case in json.loads(GOLDEN.read_text()):
        n = case["n"]
        scores = torch.from_numpy(0.1 * rng.standard_normal((n, n)) + 0.2 * np.eye(n))
        numbers = torch.arange(n)
        t2v, _ = dual_softmax(scores, torch.eye(n), official=True)
        ranks = rank_positives(scores, torch.eye(n), numbers, numbers, block_size=100, rescore=t2v)
        found = recall_metrics(ranks.by_rule("average"), "t2v")
        del found["t2v_gm"]
        assert list(found.values()) == pytest.approx(case["t2v_dsl"], rel=1e-12)


@pytest.mark.parametrize("official", [True, False])
def test_dsl_equals_numpy_in_both_directions(official: bool) -> None:
    videos = unit(60, 16, 0)
    texts = normalize(videos + 1.2 * unit(60, 16, 1), dim=-1)
    numbers = torch.arange(60)
    scores = (texts.double() @ videos.double().T).numpy()
    over_texts, over_videos = softmax(100 * scores, 0), softmax(100 * scores, 1)
    expected_v2t = (scores * (over_texts if official else over_videos)).T
    t2v, v2t = dual_softmax(texts, videos, official=official)
    found_t2v = rank_positives(texts, videos, numbers, numbers, block_size=17, rescore=t2v)
    found_v2t = rank_positives(videos, texts, numbers, numbers, block_size=17, rescore=v2t)
    assert found_t2v.by_rule("average").tolist() == diagonal_ranks(scores * over_texts)
    assert found_v2t.by_rule("average").tolist() == diagonal_ranks(expected_v2t)


def test_querybank_equals_numpy() -> None:
    videos, bank = unit(40, 8, 0), unit(90, 8, 1)
    texts = normalize(videos + unit(40, 8, 2), dim=-1)
    scores = (texts.double() @ videos.double().T).numpy()
    bank_scores = (bank.double() @ videos.double().T).numpy()
    attracting = np.unique(bank_scores.argmax(1))
    active = np.isin(scores.argmax(1), attracting)
    normalised = np.exp(20 * scores) / np.exp(20 * bank_scores).sum(0)
    expected = diagonal_ranks(np.where(active[:, None], normalised, scores))
    numbers = torch.arange(40)
    found = rank_positives(texts, videos, numbers, numbers, block_size=9, rescore=querybank(bank, texts, videos))
    assert 0 < active.sum() < 40, "the case must hold both kinds of queries"
    assert found.by_rule("average").tolist() == expected


def test_equal_items_tie_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = unit(33, 8, 0).repeat(3, 1)
    texts = unit(50, 8, 1)
    owners, numbers = torch.arange(50), torch.arange(50)
    results = []
    for block_size in (5, 64, 1000):
        monkeypatch.setattr(rescoring, "BLOCK_SIZE", block_size)
        t2v, _ = dual_softmax(texts, videos, official=False)
        ranks = rank_positives(texts, videos, owners, numbers, block_size=block_size, rescore=t2v)
        results.append((ranks.greater.tolist(), ranks.tied.tolist()))
    assert results[0] == results[1] == results[2]
    assert results[0][1] == [2] * 50


def test_top_items_equal_a_sort_and_prefer_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "BLOCK_SIZE", 7)
    videos = unit(20, 8, 0).repeat(2, 1)
    texts = unit(9, 8, 1)
    scores = (texts.double() @ videos.double().T).numpy()
    expected = np.argsort(-np.round(scores, 9), axis=1, kind="stable")[:, :6]
    assert top_items(texts, videos, 6).tolist() == expected.tolist()


def test_bootstrap_covers_the_binomial_spread_and_keeps_groups_together() -> None:
    rng = np.random.default_rng(1)
    ranks = np.where(rng.random(1000) < 0.5, 1.0, 20.0)
    low, high = bootstrap_intervals(ranks, np.arange(1000), "t2v")["t2v_r1"]
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 1000) ** 0.5, rel=0.15)
    assert low < np.mean(ranks <= 1) < high
    low20, high20 = bootstrap_intervals(np.repeat(ranks, 20), np.repeat(np.arange(1000), 20), "t2v")["t2v_r1"]
    assert high20 - low20 == pytest.approx(high - low, rel=0.15)
