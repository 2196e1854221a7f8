"""Re-scoring that uses more than the pair at hand: dual softmax (DSL) and querybank normalisation (QB-Norm).

Each gives one `Rescore` per direction for `rank_positives`; `sees_test_queries` says what it looks at. Results are
reported apart from plain retrieval: a method that sees all test queries at once answers an easier question.

    s_ij = score of text i and video j; p_ij = softmax of temperature * s
    dsl_official   s * p over texts i, per video j; video to text reuses that same factor (what the paper's "+ DSL" is)
    dsl            s * p over the *queries* of each direction: texts for t2v, videos for v2t
    qb_norm        exp(beta s_ij) / sum over training captions b of exp(beta s_bj), only for queries whose best video is
                   the best one of some training caption; t2v only

    t2v, v2t = dual_softmax(texts_QD, gallery_GD, official=True)
"""

from typing import Literal

import torch
from torch import Tensor

from pipeline.evaluation.counting import on_grid
from pipeline.evaluation.ranking import Rescore

RescoreMethod = Literal["dsl_official", "dsl", "qb_norm"]

SEES_TEST_QUERIES: dict[RescoreMethod, bool] = {"dsl_official": True, "dsl": True, "qb_norm": False}
DSL_TEMPERATURE = 100.0
"""As the official evaluation has it."""
QB_NORM_BETA = 20.0
"""As the authors of QB-Norm have it for all their data sets."""

BLOCK_SIZE = 4096
LOG_GRID = 2.0**30
DROPPED_BITS = 12


def dual_softmax(
    texts_QD: Tensor, gallery_GD: Tensor, *, official: bool, temperature: float = DSL_TEMPERATURE
) -> tuple[Rescore, Rescore]:
    """Rescore functions for t2v (rows texts, columns videos) and v2t (rows videos, columns texts)."""
    over_texts_G = log_normaliser(texts_QD, gallery_GD, temperature)

    def t2v(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return _times_softmax(scores, over_texts_G[columns], temperature)

    def v2t_official(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return _times_softmax(scores, over_texts_G[rows], temperature)

    if official:
        return t2v, v2t_official
    over_videos_Q = log_normaliser(gallery_GD, texts_QD, temperature)

    def v2t(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return _times_softmax(scores, over_videos_Q[columns], temperature)

    return t2v, v2t


def querybank(bank_BD: Tensor, queries_QD: Tensor, gallery_GD: Tensor, *, beta: float = QB_NORM_BETA) -> Rescore:
    """Dynamic inverted softmax with a bank of queries that are not in the test."""
    normaliser_G = log_normaliser(bank_BD, gallery_GD, beta)
    attracts_G = torch.zeros(len(gallery_GD), dtype=torch.bool, device=gallery_GD.device)
    attracts_G[top_items(bank_BD, gallery_GD)] = True
    active_Q = attracts_G[top_items(queries_QD, gallery_GD)]

    def t2v(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return torch.where(active_Q[rows], _rounded(torch.exp(beta * scores - normaliser_G[columns])), scores)

    return t2v


@torch.no_grad()
def log_normaliser(bank_BD: Tensor, items_GD: Tensor, temperature: float) -> Tensor:
    """log of sum over the bank of exp(temperature * score), for each item [G], in blocks.

    Rounded to 2**-30: the last bits depend on the order of summation, and must not break ties of equal items.
    """
    columns = []
    for items in torch.split(items_GD, BLOCK_SIZE):
        running = torch.full((len(items),), -torch.inf, dtype=torch.float64, device=items.device)
        for bank in torch.split(bank_BD, BLOCK_SIZE):
            logits = temperature * (on_grid(bank) @ on_grid(items).T)
            running = torch.logaddexp(running, torch.logsumexp(logits, dim=0))
        columns.append(running)
    return torch.round(torch.cat(columns) * LOG_GRID) / LOG_GRID


@torch.no_grad()
def top_items(queries_QD: Tensor, gallery_GD: Tensor, count: int = 1, rescore: Rescore | None = None) -> Tensor:
    """Numbers of the best `count` gallery items of each query, best first, equal ones by number: [Q], or [Q, count]."""
    count = min(count, len(gallery_GD))
    found = []
    for rows in torch.split(torch.arange(len(queries_QD), device=queries_QD.device), BLOCK_SIZE):
        best = torch.empty(len(rows), 0, dtype=torch.float64, device=queries_QD.device)
        numbers = torch.empty(len(rows), 0, dtype=torch.int64, device=queries_QD.device)
        block = on_grid(queries_QD[rows])
        for columns in torch.split(torch.arange(len(gallery_GD), device=queries_QD.device), BLOCK_SIZE):
            scores = block @ on_grid(gallery_GD[columns]).T
            if rescore is not None:
                scores = rescore(scores, rows[:, None], columns[None, :])
            best = torch.cat([best, scores], dim=1)
            numbers = torch.cat([numbers, columns.expand_as(scores)], dim=1)
            # Stable, so that the earlier of two equal items stays in front.
            best, order = (part[:, :count] for part in torch.sort(best, dim=1, descending=True, stable=True))
            numbers = numbers.gather(1, order)
        found.append(numbers)
    top = torch.cat(found)
    return top[:, 0] if count == 1 else top


def _times_softmax(scores: Tensor, log_normaliser: Tensor, temperature: float) -> Tensor:
    return _rounded(scores * torch.exp(temperature * scores - log_normaliser))


def _rounded(scores: Tensor) -> Tensor:
    """Drop the last bits of float64 values: exp may differ in them between the body and the tail of a block."""
    bits = scores.contiguous().view(torch.int64)
    return ((bits + (1 << (DROPPED_BITS - 1))) >> DROPPED_BITS << DROPPED_BITS).view(torch.float64)
