"""Text-video retrieval: protocol, ranking, re-scoring."""
