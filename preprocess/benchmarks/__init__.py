"""Converters: published annotation files of a retrieval set and a folder of videos -> shards, texts, queries, report.

    python -m preprocess.benchmarks.msrvtt annotations=data/raw/msrvtt videos=data/raw/msrvtt/videos

Siblings: didemo, lsmdc, activitynet, and `plain` for any list of videos and texts. Each writes

    {output}/{split}/shards/          a shard set, one clip per video (the stream and the evaluation read it)
    {output}/{split}/texts.jsonl      training splits: a row {"clip_id", "text"} per (video, caption) pair
    {output}/{split}/queries.jsonl    other splits: a row {"query_id", "text", "clip_id"} per caption
    {output}/report.json, report.md   counts against the published ones, missing videos, duplicates, leakage
"""
