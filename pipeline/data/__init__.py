"""Shards to batches: order, reading, frames, texts, the stream."""
