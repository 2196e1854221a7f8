"""Raw videos to clips, texts, tar shards and a manifest."""
