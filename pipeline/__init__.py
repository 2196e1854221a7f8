"""CLIP-ViP at scale: shards -> batches -> model -> losses -> trainer -> checkpoints -> evaluation."""
