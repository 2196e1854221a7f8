"""Ranks text to video and video to text, over all ranks: each ranks its share, every rank gets the whole.

    t2v, v2t = rank_both_ways(texts_ND, videos_VD, questions, block_size=None)

Plain scores are the same in both directions, so one pass over the blocks counts both; a rank takes a share of the
texts, and what it counts for the videos is summed over the ranks. Rescored ones differ by direction: two passes.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.dist import gather_values, share_of
from pipeline.evaluation.counting import pair_scores
from pipeline.evaluation.encoding import rows_of_ranks
from pipeline.evaluation.protocol import Questions
from pipeline.evaluation.ranking import Ranks, Rescore, best_positives, count_blocks, rank_positives


def rank_both_ways(
    texts_ND: Tensor,
    videos_VD: Tensor,
    questions: Questions,
    *,
    block_size: int | None,
    device: torch.device | str = "cpu",
) -> tuple[Ranks, Ranks]:
    """Ranks text to video [Q] and video to text [G]. Collective."""
    texts_QD, gallery_GD, video_of_text_Q = _on_device(texts_ND, videos_VD, questions, device)
    return rank_at_once(texts_QD, gallery_GD, video_of_text_Q, block_size)


def rank_rescored(
    texts_ND: Tensor,
    videos_VD: Tensor,
    questions: Questions,
    rescore: Rescore,
    *,
    to_texts: bool,
    block_size: int | None,
    device: torch.device | str = "cpu",
) -> Ranks:
    """Ranks of one direction by new scores: text to video [Q], or (`to_texts`) video to text [G]. Collective."""
    texts_QD, gallery_GD, video_of_text_Q = _on_device(texts_ND, videos_VD, questions, device)
    numbers_Q = torch.arange(len(texts_QD), device=device)
    if to_texts:
        return _rank_share(gallery_GD, texts_QD, video_of_text_Q, numbers_Q, block_size, rescore)
    return _rank_share(texts_QD, gallery_GD, numbers_Q, video_of_text_Q, block_size, rescore)


@torch.no_grad()
def rank_at_once(
    texts_QD: Tensor, gallery_GD: Tensor, video_of_text_Q: Tensor, block_size: int | None = None
) -> tuple[Ranks, Ranks]:
    """Both directions in one pass. Every text has one video, every video at least one text. Collective."""
    mine = share_of(range(len(texts_QD)))
    rows = slice(mine[0], mine[-1] + 1) if len(mine) else slice(0, 0)
    numbers_Q = torch.arange(len(texts_QD), device=texts_QD.device)
    my_scores = pair_scores(texts_QD, gallery_GD, numbers_Q[rows], video_of_text_Q[rows])
    scores_Q = torch.from_numpy(rows_of_ranks([my_scores.cpu().numpy()])[0]).to(texts_QD.device)
    best_G, shared_G = best_positives(scores_Q, video_of_text_Q, len(gallery_GD))
    of_texts, of_videos = count_blocks(texts_QD[rows], gallery_GD, scores_Q[rows], best_G, block_size=block_size)
    greater_Q, equal_Q = rows_of_ranks([counts.cpu().numpy() for counts in of_texts])
    greater_G, equal_G = (sum(gather_values(counts.cpu().numpy())) for counts in of_videos)
    t2v = Ranks(greater=greater_Q, tied=equal_Q - 1, best=np.ones_like(equal_Q))
    best = shared_G.cpu().numpy()
    return t2v, Ranks(greater=np.asarray(greater_G), tied=np.asarray(equal_G - best), best=best)


def query_features(texts_ND: Tensor, questions: Questions) -> Tensor:
    """Features of the queries [Q, D]; no copy where the texts are the queries, each once (2 GB for a million)."""
    numbers = questions.text_of_query
    if np.array_equal(numbers, np.arange(len(texts_ND))):
        return texts_ND
    return texts_ND[torch.from_numpy(numbers)]


def _on_device(
    texts_ND: Tensor, videos_VD: Tensor, questions: Questions, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the queries [Q, D] and of the gallery [G, D], and each query's video [Q]."""
    texts_QD = query_features(texts_ND, questions)
    video_of_text_Q = torch.from_numpy(questions.video_of_query)
    return texts_QD.to(device), videos_VD[: questions.num_gallery].to(device), video_of_text_Q.to(device)


def _rank_share(
    queries: Tensor,
    gallery: Tensor,
    pair_queries: Tensor,
    pair_items: Tensor,
    block_size: int | None,
    rescore: Rescore,
) -> Ranks:
    """Rank this rank's share of the queries and gather all ranks' counts."""
    mine = share_of(range(len(queries)))
    counts = [np.zeros(0, dtype=np.int64)] * 3
    if len(mine):
        first, last = mine[0], mine[-1]
        in_share = (pair_queries >= first) & (pair_queries <= last)
        ranks = rank_positives(
            queries[first : last + 1],
            gallery,
            pair_queries[in_share] - first,
            pair_items[in_share],
            block_size=block_size,
            rescore=_shifted(rescore, first),
        )
        counts = [ranks.greater, ranks.tied, ranks.best]
    greater, tied, best = rows_of_ranks(counts)
    return Ranks(greater=greater, tied=tied, best=best)


def _shifted(rescore: Rescore, first: int) -> Rescore:
    return lambda scores, rows, columns: rescore(scores, rows + first, columns)
