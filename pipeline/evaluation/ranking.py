"""Exact ranks of positives among a gallery, in blocks, without the full similarity matrix.

Q queries, G gallery items, D feature size, P (query, positive) pairs.

    rank_positives(texts_QD, videos_GD, numbers_P, owner_P)  ->  Ranks  ->  ranks.by_rule("average") [Q]

A query with several positives is ranked by its best one; its other positives do not count against it. Scores are exact
(`counting`), so ranks have the same bits for any block size, number of threads or ranks, and device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.counting import BlockCounter, Counts, count_exactly, exact_scores, pair_scores
from pipeline.evaluation.protocol import TieRule

Rescore = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(scores, query numbers, gallery numbers), broadcast against each other -> new scores."""

CPU_BLOCK_SIZE, GPU_BLOCK_SIZE = 1024, 16_384
"""On a CPU a block of 256 x 1,024 scores stays in the cache: counting it then costs little beside the product."""


@dataclass(frozen=True)
class Ranks:
    """Counts [Q] that decide each query's rank."""

    greater: NDArray[np.int64]
    """Negatives that score above the best positive."""
    tied: NDArray[np.int64]
    """Negatives that score exactly as the best positive."""
    best: NDArray[np.int64]
    """Positives that share the best score, at least 1."""

    def by_rule(self, rule: TieRule) -> NDArray[np.float64]:
        """Rank of the best positive, from 1. `average`: its expected rank when equal scores stand in random order."""
        first = np.asarray(1.0 + self.greater, dtype=np.float64)
        if rule == "optimistic":
            return first
        if rule == "pessimistic":
            return np.asarray(first + self.tied, dtype=np.float64)
        return np.asarray(first + self.tied / (self.best + 1.0), dtype=np.float64)


@torch.no_grad()
def rank_positives(
    queries_QD: Tensor,
    gallery_GD: Tensor,
    pair_queries_P: Tensor,
    pair_items_P: Tensor,
    *,
    block_size: int | None = None,
    rescore: Rescore | None = None,
) -> Ranks:
    """Rank, for each query, its best positive among the gallery. Every query needs a pair; features of any dtype."""
    scores_P = pair_scores(queries_QD, gallery_GD, pair_queries_P, pair_items_P)
    if rescore is not None:
        scores_P = rescore(scores_P, pair_queries_P, pair_items_P)
    best_Q, shared_Q = best_positives(scores_P, pair_queries_P, len(queries_QD))
    if rescore is None:
        greater_Q, equal_Q = count_blocks(queries_QD, gallery_GD, best_Q, block_size=block_size)[0]
    else:
        greater_Q, equal_Q = _count_rescored(queries_QD, gallery_GD, best_Q, rescore, block_size)
    return Ranks(greater=_numpy(greater_Q), tied=_numpy(equal_Q - shared_Q), best=_numpy(shared_Q))


def best_positives(scores_P: Tensor, pair_queries_P: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """Each query's highest score among its positives [Q], and how many of them share it [Q]."""
    best_Q = torch.full((num_queries,), -torch.inf, dtype=torch.float64, device=scores_P.device)
    best_Q.scatter_reduce_(0, pair_queries_P, scores_P, reduce="amax")
    shared_Q = torch.zeros(num_queries, dtype=torch.int64, device=scores_P.device)
    shared_Q.index_add_(0, pair_queries_P, (scores_P == best_Q[pair_queries_P]).long())
    assert bool((shared_Q > 0).all()), "every query has a positive, and no score is NaN"
    return best_Q, shared_Q


@torch.no_grad()
def count_blocks(
    queries_QD: Tensor,
    gallery_GD: Tensor,
    best_Q: Tensor,
    best_G: Tensor | None = None,
    *,
    block_size: int | None = None,
) -> tuple[Counts, Counts]:
    """(greater, equal) of each query [Q], and of each item [G] where `best_G` is given (else zeros)."""
    of_queries, of_items = _zeros(queries_QD), _zeros(gallery_GD)
    counter = BlockCounter(queries_QD, gallery_GD, best_Q, best_G)
    for rows, columns in _blocks(queries_QD, gallery_GD, block_size):
        of_rows, of_columns = counter.count(rows, columns)
        for total, part in zip(of_queries, of_rows, strict=True):
            total[rows] += part
        for total, part in zip(of_items, of_columns or (), strict=of_columns is not None):
            total[columns] += part
    return of_queries, of_items


def _count_rescored(
    queries_QD: Tensor, gallery_GD: Tensor, best_Q: Tensor, rescore: Rescore, block_size: int | None
) -> Counts:
    """(greater, equal) of each query [Q] among rescored scores: all of them are computed exactly."""
    greater_Q, equal_Q = _zeros(queries_QD)
    numbers_Q = torch.arange(len(queries_QD), device=queries_QD.device)
    numbers_G = torch.arange(len(gallery_GD), device=queries_QD.device)
    for rows, columns in _blocks(queries_QD, gallery_GD, block_size):
        scores_QG = exact_scores(queries_QD[rows], gallery_GD[columns])
        scores_QG = rescore(scores_QG, numbers_Q[rows, None], numbers_G[None, columns])
        greater, equal = count_exactly(scores_QG, best_Q[rows, None], dim=1)
        greater_Q[rows] += greater
        equal_Q[rows] += equal
    return greater_Q, equal_Q


def _blocks(queries_QD: Tensor, gallery_GD: Tensor, block_size: int | None) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of every block, four times as wide as high."""
    width = block_size or (CPU_BLOCK_SIZE if queries_QD.device.type == "cpu" else GPU_BLOCK_SIZE)
    height = max(1, width // 4)
    for left in range(0, len(gallery_GD), width):
        for top in range(0, len(queries_QD), height):
            yield slice(top, top + height), slice(left, left + width)


def _zeros(features: Tensor) -> Counts:
    greater = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    return greater, torch.zeros_like(greater)


def _numpy(counts: Tensor) -> NDArray[np.int64]:
    return np.asarray(counts.cpu().numpy(), dtype=np.int64)
