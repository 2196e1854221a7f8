"""What a retrieval set asks: which texts, which videos, who belongs to whom.

`queries.jsonl` has a row `{"query_id", "text", "clip_id"}` per query; `text` may be a list of captions, each of which
is a query of its own (never a random one of them). Minimal pairs have a row `{"clip_id", "text", "distractor"}` each.

    Q  queries              text_of_query [Q] -> texts, video_of_query [Q] -> clip_ids
    texts                   every distinct text once, so that equal texts get equal features and tie exactly
    clip_ids                every video once: first the gallery (videos that queries name), then those of pairs alone

    questions = read_questions(config)
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.config import Section
from pipeline.errors import InputError
from pipeline.text_files import read_json_rows

TieRule = Literal["average", "optimistic", "pessimistic"]


class RetrievalSetConfig(Section):
    """One retrieval set: its shards, its queries, and how both are read."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the set in tables and log keys."""
    shards: Path
    """Folder of the shard set that holds the videos."""
    queries: Path
    """JSON lines {"query_id", "text", "clip_id"}."""
    pairs: dict[str, Path] = {}
    """Minimal pairs by kind: JSON lines {"clip_id", "text", "distractor"}; reported as pairs_<kind>."""
    split: Literal["val", "test"] = "test"
    """Which split this is. Choosing a checkpoint on the test split needs an option of its own."""
    num_frames: int = Field(default=12, gt=0)
    """Frames of a clip, uniform over the video."""
    clips_per_video: int = Field(default=1, gt=0)
    """Cut a video into so many parts of `num_frames` frames each and average their features."""
    num_text_tokens: int = Field(default=70, ge=3)
    """Tokens of a text, with the start and end token."""
    long_texts: Literal["truncate", "window"] = "truncate"
    """A text over `num_text_tokens`: cut it (as official), or encode windows of it and average their features."""
    ties: TieRule = "average"
    """Rank of an item among equal scores. Where the rules differ, the report shows all three."""
    max_missing_fraction: float = Field(default=0.02, ge=0, le=1)
    """Most of the queried videos that may be missing or unreadable; they are listed, and N says "x of y"."""
    batch_size: int = Field(default=64, gt=0)
    """Videos, or texts, of one forward pass on a rank."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that read videos, per rank."""
    block_size: int | None = Field(default=None, gt=0)
    """Columns of a similarity block; null: 1024 on a CPU, 16384 on a GPU. Ranks do not depend on it."""


@dataclass(frozen=True)
class Pairs:
    """Minimal pairs: does the video prefer its text to the distractor? Three arrays [P] of numbers."""

    videos: NDArray[np.int64]
    texts: NDArray[np.int64]
    distractors: NDArray[np.int64]


@dataclass(frozen=True)
class Questions:
    """All of a retrieval set, with texts and videos by number."""

    texts: list[str]
    clip_ids: list[str]
    num_gallery: int
    """The first so many of `clip_ids` are the gallery."""
    query_ids: list[str]
    text_of_query: NDArray[np.int64]
    video_of_query: NDArray[np.int64]
    pairs: dict[str, Pairs]


@dataclass
class _Numbering:
    """Numbers for names, in order of first appearance."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))


def read_questions(config: RetrievalSetConfig) -> Questions:
    """Read the queries and pairs of a set. Raises `InputError` that names file and line."""
    texts, videos = _Numbering(), _Numbering()
    query_ids: list[str] = []
    text_of_query: list[int] = []
    video_of_query: list[int] = []
    for place, row in read_rows(config.queries):
        captions = row.get("text")
        several = isinstance(captions, list)
        for position, text in enumerate(captions if isinstance(captions, list) else [captions]):
            query_id = _id(row, "query_id", place)
            query_ids.append(f"{query_id}#{position}" if several else query_id)
            text_of_query.append(texts.number(_text(text, "text", place)))
            video_of_query.append(videos.number(_id(row, "clip_id", place)))
    if not query_ids:
        raise InputError(f"{config.queries} holds no query; write rows of query_id, text, clip_id")
    twice, times = Counter(query_ids).most_common(1)[0]
    if times > 1:
        raise InputError(f"{config.queries}: query_id {twice!r} appears twice; every query needs an id of its own")
    num_gallery = len(videos.numbers)
    pairs = {kind: _read_pairs(path, texts, videos) for kind, path in config.pairs.items()}
    return Questions(
        texts=list(texts.numbers),
        clip_ids=list(videos.numbers),
        num_gallery=num_gallery,
        query_ids=query_ids,
        text_of_query=np.array(text_of_query, dtype=np.int64),
        video_of_query=np.array(video_of_query, dtype=np.int64),
        pairs=pairs,
    )


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", row) of a JSON-lines file; blank lines are passed over."""
    return read_json_rows(path)


def without_videos(questions: Questions, lost: Collection[str]) -> Questions:
    """The questions that can still be asked when some videos are not there; texts keep their numbers."""
    kept = [number for number, clip_id in enumerate(questions.clip_ids) if clip_id not in lost]
    renumbered = np.full(len(questions.clip_ids), -1, dtype=np.int64)
    renumbered[kept] = np.arange(len(kept))
    queries = np.flatnonzero(renumbered[questions.video_of_query] >= 0)
    pairs = {}
    for kind, rows in questions.pairs.items():
        here = renumbered[rows.videos] >= 0
        pairs[kind] = Pairs(renumbered[rows.videos][here], rows.texts[here], rows.distractors[here])
    return Questions(
        texts=questions.texts,
        clip_ids=[questions.clip_ids[number] for number in kept],
        num_gallery=sum(number < questions.num_gallery for number in kept),
        query_ids=[questions.query_ids[number] for number in queries],
        text_of_query=questions.text_of_query[queries],
        video_of_query=renumbered[questions.video_of_query[queries]],
        pairs=pairs,
    )


def _read_pairs(path: Path, texts: _Numbering, videos: _Numbering) -> Pairs:
    rows = [
        (
            videos.number(_id(row, "clip_id", place)),
            texts.number(_string(row, "text", place)),
            texts.number(_string(row, "distractor", place)),
        )
        for place, row in read_rows(path)
    ]
    if not rows:
        raise InputError(f"{path} holds no pair; write rows of clip_id, text, distractor")
    columns = np.array(rows, dtype=np.int64).T
    return Pairs(videos=columns[0], texts=columns[1], distractors=columns[2])


def _string(row: dict[str, Any], name: str, place: str) -> str:
    if name not in row:
        raise InputError(f"{place}: the row has no {name!r}; it has {sorted(row)}")
    return _text(row[name], name, place)


def _id(row: dict[str, Any], name: str, place: str) -> str:
    """An id, where tables write it as a whole number too."""
    value = row.get(name)
    return str(value) if type(value) is int else _string(row, name, place)


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: {name} must be a text that is not empty, but is {value!r}")
    return value
