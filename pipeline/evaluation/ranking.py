"""Exact ranks of positives among a gallery, in blocks, without the full similarity matrix.

Q queries, G gallery items, D feature size, P (query, positive) pairs.

Features are rounded to multiples of 2**-26, below the resolution of float32. Every product is then a multiple of 2**-52
and every partial sum of a dot product of unit vectors stays below 2, so float64 holds all of them exactly: a score has
the same bits whatever the block size, the number of threads or ranks, or the device, and equal items tie exactly.

    on_grid(texts_QD), on_grid(videos_GD)  ->  rank_positives(...)  ->  Ranks  ->  ranks.by_rule("average") [Q]

A query with several positives is ranked by its best one; its other positives do not count against it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.protocol import TieRule

Rescore = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(scores, query numbers, gallery numbers), broadcast against each other -> new scores."""

GRID = 2.0**26
PAIRS_PER_CHUNK = 65_536


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


def on_grid(features: Tensor) -> Tensor:
    """Unit-norm features as float64 multiples of 2**-26, whose dot products are exact."""
    return torch.round(features.double() * GRID) / GRID


@torch.no_grad()
def rank_positives(
    queries_QD: Tensor,
    gallery_GD: Tensor,
    pair_queries_P: Tensor,
    pair_items_P: Tensor,
    *,
    block_size: int = 4096,
    rescore: Rescore | None = None,
) -> Ranks:
    """Rank, for each query, its best positive among the gallery. Every query needs a pair; features of any dtype."""
    num_queries, device = len(queries_QD), queries_QD.device
    scores_P = pair_scores(queries_QD, gallery_GD, pair_queries_P, pair_items_P, rescore=rescore)
    best_Q = torch.full((num_queries,), -torch.inf, dtype=torch.float64, device=device)
    best_Q.scatter_reduce_(0, pair_queries_P, scores_P, reduce="amax")
    shared_Q = torch.zeros(num_queries, dtype=torch.int64, device=device)
    shared_Q.index_add_(0, pair_queries_P, (scores_P == best_Q[pair_queries_P]).long())
    assert bool((shared_Q > 0).all()), "every query has a positive, and no score is NaN"

    greater_Q = torch.zeros(num_queries, dtype=torch.int64, device=device)
    equal_Q = torch.zeros(num_queries, dtype=torch.int64, device=device)
    for columns in torch.split(torch.arange(len(gallery_GD), device=device), block_size):
        block_DG = on_grid(gallery_GD[columns[0] : columns[-1] + 1]).T
        for rows in torch.split(torch.arange(num_queries, device=device), block_size):
            scores_QG = on_grid(queries_QD[rows[0] : rows[-1] + 1]) @ block_DG
            if rescore is not None:
                scores_QG = rescore(scores_QG, rows[:, None], columns[None, :])
            threshold_Q1 = best_Q[rows, None]
            greater_Q[rows] += (scores_QG > threshold_Q1).sum(1)
            equal_Q[rows] += (scores_QG == threshold_Q1).sum(1)
    return Ranks(greater=_numpy(greater_Q), tied=_numpy(equal_Q - shared_Q), best=_numpy(shared_Q))


@torch.no_grad()
def pair_scores(
    queries_QD: Tensor,
    gallery_GD: Tensor,
    pair_queries_P: Tensor,
    pair_items_P: Tensor,
    *,
    rescore: Rescore | None = None,
) -> Tensor:
    """The exact scores [P] of single (query, item) pairs: the bits that a block would give."""
    scores = []
    for rows, columns in zip(
        torch.split(pair_queries_P, PAIRS_PER_CHUNK), torch.split(pair_items_P, PAIRS_PER_CHUNK), strict=True
    ):
        chunk = (on_grid(queries_QD[rows]) * on_grid(gallery_GD[columns])).sum(1)
        scores.append(chunk if rescore is None else rescore(chunk, rows, columns))
    return torch.cat(scores)


def _numpy(counts: Tensor) -> NDArray[np.int64]:
    return np.asarray(counts.cpu().numpy(), dtype=np.int64)
