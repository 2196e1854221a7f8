"""Retrieval examples for people: some queries, the videos that came first, a frame of each.

columns, rows = retrieval_examples(retrieval, image_size_px=224)
    # rows: query, wanted clip, then frame, clip and score of each of the first videos
"""

from typing import Any

import torch

from pipeline.data.clips import ClipReader
from pipeline.evaluation.retrieval import Retrieval

NUM_QUERIES, NUM_VIDEOS = 8, 3


def retrieval_examples(retrieval: Retrieval, image_size_px: int) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows; frames are uint8 arrays [H, W, 3]. Queries are spread evenly over the set."""
    questions = retrieval.questions
    total = len(questions.query_ids)
    chosen = [total * number // NUM_QUERIES for number in range(min(NUM_QUERIES, total))]
    scores_QG = retrieval.queries_QD[chosen] @ retrieval.gallery_GD.T
    best = scores_QG.topk(min(NUM_VIDEOS, scores_QG.shape[1]), dim=1)
    frames = _frames(retrieval, sorted({questions.clip_ids[video] for video in best.indices.flatten()}), image_size_px)
    columns = ["query", "wanted"]
    for place in range(best.indices.shape[1]):
        columns += [f"video {place + 1}", f"clip {place + 1}", f"score {place + 1}"]
    rows = []
    for row, query in enumerate(chosen):
        text, video = int(questions.text_of_query[query]), int(questions.video_of_query[query])
        cells: list[Any] = [questions.texts[text], questions.clip_ids[video]]
        for score, found in zip(best.values[row].tolist(), best.indices[row].tolist(), strict=True):
            clip_id = questions.clip_ids[found]
            cells += [frames.get(clip_id, ""), clip_id, score]
        rows.append(cells)
    return columns, rows


def _frames(retrieval: Retrieval, clip_ids: list[str], image_size_px: int) -> dict[str, Any]:
    reader = ClipReader(retrieval.config.shards, num_frames=3, image_size_px=image_size_px, clip_ids=clip_ids)
    frames = {}
    for names, video_BTCHW, ok_B in reader.batches(0, len(reader.clip_ids), batch_size=8, num_workers=0):
        for name, video_TCHW, ok in zip(names, torch.as_tensor(video_BTCHW), ok_B, strict=True):
            if ok:
                frames[name] = video_TCHW[1].permute(1, 2, 0).numpy()
    return frames
