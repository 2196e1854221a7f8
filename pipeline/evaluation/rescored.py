"""Re-scored metrics of a set that was retrieved before: which methods, with which bank.

metrics = rescored_metrics(found, "qb_norm", bank_BD)         # {"t2v_r1": ..., ...}; collective
"""

import torch
from torch import Tensor

from pipeline.evaluation.directions import rank_rescored
from pipeline.evaluation.metrics import recall_metrics
from pipeline.evaluation.ranking import Rescore
from pipeline.evaluation.rescoring import RescoreMethod, dual_softmax, querybank
from pipeline.evaluation.retrieval import Retrieval


def rescored_metrics(
    found: Retrieval, method: RescoreMethod, bank_BD: Tensor | None, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Metrics of one method; QB-Norm has text to video only, because its bank holds texts. Collective."""
    queries_QD, gallery_GD = found.queries_QD.to(device), found.gallery_GD.to(device)
    to_videos: Rescore
    to_texts: Rescore | None = None
    if method == "qb_norm":
        assert bank_BD is not None, "the config asks for a query bank"
        to_videos = querybank(bank_BD.to(device), queries_QD, gallery_GD)
    else:
        to_videos, to_texts = dual_softmax(queries_QD, gallery_GD, official=method == "dsl_official")
    metrics: dict[str, float] = {}
    for direction, rescore in (("t2v", to_videos), ("v2t", to_texts)):
        if rescore is not None:
            ranks = rank_rescored(
                found.texts_ND,
                found.videos_VD,
                found.questions,
                rescore,
                to_texts=direction == "v2t",
                block_size=found.config.block_size,
                device=device,
            )
            metrics |= recall_metrics(ranks.by_rule(found.config.ties), direction)
    return metrics
