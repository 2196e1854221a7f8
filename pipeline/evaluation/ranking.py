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
PAIRS_PER_CHUNK = 16_384
CPU_BLOCK_SIZE, GPU_BLOCK_SIZE = 1024, 16_384
"""On a CPU a block of 1,024 x 256 scores stays in the cache: counting it then costs little beside the product."""
FILTER_MAX_DIM = 1024
FILTER_MARGIN = 2.0**-13
"""Twice the error of a dot product of 1,024 float32 numbers, for what casting the inputs and the score adds."""
FILTER_MAX_SHARE = 0.01


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
    block_size: int | None = None,
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
    num_columns = block_size or (CPU_BLOCK_SIZE if device.type == "cpu" else GPU_BLOCK_SIZE)
    for columns in torch.split(torch.arange(len(gallery_GD), device=device), num_columns):
        for rows in torch.split(torch.arange(num_queries, device=device), max(1, num_columns // 4)):
            block = queries_QD[rows[0] : rows[-1] + 1], gallery_GD[columns[0] : columns[-1] + 1]
            if rescore is None:
                counts = _count_by_filter(*block, best_Q[rows])
            else:
                scores_QG = rescore(_exact_scores(*block), rows[:, None], columns[None, :])
                counts = _count(scores_QG, best_Q[rows])
            greater_Q[rows] += counts[0]
            equal_Q[rows] += counts[1]
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


def _exact_scores(queries_QD: Tensor, gallery_GD: Tensor) -> Tensor:
    return on_grid(queries_QD) @ on_grid(gallery_GD).T


def _count(scores_QG: Tensor, best_Q: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores of each row are above its best positive's, and how many equal it."""
    return (scores_QG > best_Q[:, None]).sum(1), (scores_QG == best_Q[:, None]).sum(1)


def _count_by_filter(queries_QD: Tensor, gallery_GD: Tensor, best_Q: Tensor) -> tuple[Tensor, Tensor]:
    """`_count` of the exact scores, for the price of a float32 product.

    float32 decides every score that is further from the best positive's than its rounding error can be; the few close
    ones are computed exactly. Where they are not few (a collapsed model), the whole block is.
    """
    lengths = queries_QD.norm(dim=1).max() * gallery_GD.norm(dim=1).max()
    # A float32 dot product is off by at most D * 2**-24 of the product of the lengths, in whatever order it is summed.
    margin = FILTER_MARGIN * float(lengths)
    if queries_QD.shape[1] > FILTER_MAX_DIM or torch.backends.cuda.matmul.allow_tf32:
        return _count(_exact_scores(queries_QD, gallery_GD), best_Q)
    gap_QG = (queries_QD.float() @ gallery_GD.float().T).sub_(best_Q.float()[:, None])
    greater_Q = (gap_QG > margin).sum(1)
    rows, columns = (gap_QG.abs_() <= margin).nonzero(as_tuple=True)
    if len(rows) > FILTER_MAX_SHARE * gap_QG.numel():
        return _count(_exact_scores(queries_QD, gallery_GD), best_Q)
    if not len(rows):
        return greater_Q, torch.zeros_like(greater_Q)
    scores_P, best_P = pair_scores(queries_QD, gallery_GD, rows, columns), best_Q[rows]
    equal_Q = torch.zeros_like(greater_Q).index_add_(0, rows, (scores_P == best_P).long())
    return greater_Q.index_add_(0, rows, (scores_P > best_P).long()), equal_Q


def _numpy(counts: Tensor) -> NDArray[np.int64]:
    return np.asarray(counts.cpu().numpy(), dtype=np.int64)
