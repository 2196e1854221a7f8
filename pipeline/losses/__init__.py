"""The eight contrastive losses of CLIP-ViP, over ranks and in blocks of the logit matrix."""

from pipeline.losses.contrastive import contrastive_loss
from pipeline.losses.terms import TERMS, LossConfig, LossName, Term

__all__ = ["TERMS", "LossConfig", "LossName", "Term", "contrastive_loss"]
