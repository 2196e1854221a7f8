"""Re-scored metrics of a set that was retrieved before: which methods, with which bank.

metrics = rescored_metrics(found, "qb_norm", bank_BD)         # {"t2v_r1": ..., ...}; collective
"""

import torch
from torch import Tensor

from pipeline.evaluation.metrics import recall_metrics
from pipeline.evaluation.ranking import Rescore
from pipeline.evaluation.rescoring import RescoreMethod, dual_softmax, querybank
from pipeline.evaluation.retrieval import Retrieval, rank_both_ways


def rescored_metrics(
    found: Retrieval, method: RescoreMethod, bank_BD: Tensor | None, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Metrics of one method; QB-Norm has text to video only, because its bank holds texts. Collective."""
    queries_QD, gallery_GD = found.queries_QD.to(device), found.gallery_GD.to(device)
    rescore: tuple[Rescore, Rescore | None]
    if method == "qb_norm":
        assert bank_BD is not None, "the config asks for a query bank"
        rescore = querybank(bank_BD.to(device), queries_QD, gallery_GD), None
    else:
        rescore = dual_softmax(queries_QD, gallery_GD, official=method == "dsl_official")
    t2v, v2t = rank_both_ways(
        found.texts_ND,
        found.videos_VD,
        found.questions,
        block_size=found.config.block_size,
        device=device,
        rescore=rescore,
    )
    metrics = recall_metrics(t2v.by_rule(found.config.ties), "t2v")
    if method != "qb_norm":
        metrics |= recall_metrics(v2t.by_rule(found.config.ties), "v2t")
    return metrics
