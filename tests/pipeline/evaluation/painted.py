"""A retrieval set that carries its own answer: clip i is painted with i, and the text "i" means it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.evaluation import RetrievalSetConfig
from pipeline.model.clip_vip import Features

NUM_CLIPS = 13
BOS, EOS = 98, 99
TABLE = normalize(torch.randn(256, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
"""A direction for each number: a video painted with i, and the text "i", point to row i."""


class PaintedReader:
    """The clips c0, c1, ...: every pixel of clip i has the value i. Clips named in `broken` cannot be read."""

    broken: frozenset[str] = frozenset()

    def __init__(self, shards: Path, *, num_frames: int, image_size_px: int, clip_ids: list[str] | None = None) -> None:
        self.clip_ids = [f"c{i}" for i in range(NUM_CLIPS)] if clip_ids is None else clip_ids
        self.shape = (num_frames, 3, image_size_px, image_size_px)

    def batches(self, start: int, stop: int, batch_size: int, num_workers: int = 0) -> Iterator[Any]:
        for first in range(start, stop, batch_size):
            ids = self.clip_ids[first : min(first + batch_size, stop)]
            video = torch.stack([torch.full(self.shape, int(name[1:]), dtype=torch.uint8) for name in ids])
            yield ids, video, torch.tensor([name not in self.broken for name in ids])


def encode(*, video: Tensor | None = None, caption: Tensor | None = None) -> Features:
    """A perfect encoder of painted clips; a text of several numbers points between them."""
    of_video = None if video is None else TABLE[video[:, 0, 0, 0, 0].long()]
    of_text = None
    if caption is not None:
        words = (caption > 0) & (caption < BOS)
        of_text = normalize((TABLE[caption] * words[..., None]).sum(1), dim=-1)
    return Features(of_video, None, None, of_text, torch.ones(()))


class Tokenizer:
    """Words are numbers from 1, their own ids. Cut as open_clip does: the end token is kept."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: list[str]) -> Tensor:
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            words = [BOS, *(int(word) for word in text.split()), EOS][: self.context_length]
            words[-1] = EOS
            row[: len(words)] = torch.tensor(words)
        return ids

    def whole(self, text: str) -> Tensor:
        return torch.tensor([BOS, *(int(word) for word in text.split()), EOS])


class PaintedModel:
    """`encode` with the surface of a loaded model."""

    image_size_px = 8

    def __call__(self, **inputs: Tensor) -> Features:
        return encode(**inputs)

    def to(self, device: Any) -> "PaintedModel":
        return self

    def eval(self) -> "PaintedModel":
        return self

    def tokenizer(self, context_length: int) -> Tokenizer:
        return Tokenizer(context_length)


def right_texts() -> dict[str, Any]:
    """Clip -> its text, for every clip but c0."""
    return {f"c{i}": str(i) for i in range(1, NUM_CLIPS)}


def write_queries(path: Path, texts: dict[str, Any]) -> Path:
    """A queries.jsonl of clip -> text or texts."""
    rows = [{"query_id": f"q{i}", "text": text, "clip_id": clip} for i, (clip, text) in enumerate(texts.items())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_set(folder: Path, texts: dict[str, Any], **options: Any) -> RetrievalSetConfig:
    """A config of the painted set with these texts."""
    path = write_queries(folder / "queries.jsonl", texts)
    defaults = {"name": "painted", "shards": folder, "queries": path, "num_frames": 4, "batch_size": 3}
    return RetrievalSetConfig(**{**defaults, **options})
