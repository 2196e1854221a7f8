"""Text-video retrieval: what is asked (protocol), features, exact ranks, re-scoring, and the report.

metrics = evaluate_retrieval(model, model.tokenizer, model.image_size_px, config)      # all ranks take part
"""

from pipeline.evaluation.protocol import RetrievalSetConfig
from pipeline.evaluation.retrieval import evaluate_retrieval

__all__ = ["RetrievalSetConfig", "evaluate_retrieval"]
