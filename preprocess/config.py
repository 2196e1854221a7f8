"""The root config of preprocessing: one YAML file = one shard set. Sections sit beside the code they configure.

    config = load_config(PreprocessConfig, ["configs/preprocess/hdvila.yaml"], ["output=data/shards/hdvila"])

Two hashes follow from it. `content_hash` covers what decides the bytes of a shard; a folder belongs to one content hash
and another one in the same folder is an error. Paths, worker counts and the task index are free to change.
"""

import hashlib
import json
from pathlib import Path

from pydantic import Field

from pipeline.config import Section
from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.caption import PLACEMENT, CaptionerConfig
from preprocess.clips import ClipsConfig
from preprocess.limits import LimitsConfig
from preprocess.metadata import MetadataConfig
from preprocess.plan import ShardsConfig
from preprocess.texts import TextsConfig
from preprocess.videos import VideosConfig


class TasksConfig(Section):
    """Which part of the shards this process does: task `index` of `count`, as in a SLURM array."""

    index: int = Field(default=0, ge=0)
    """Number of this task, from 0."""
    count: int = Field(default=1, ge=1)
    """How many tasks share the shards. Shard k belongs to task k modulo count."""


def check_task(tasks: TasksConfig) -> None:
    """Raise an `InputError` for a task that is none of its array."""
    if tasks.index >= tasks.count:
        raise InputError(f"tasks.index={tasks.index} must be below tasks.count={tasks.count}")


class RetryConfig(Section):
    """What `python -m preprocess.retry` tries again."""

    reasons: tuple[Reason, ...] = (
        Reason.VIDEO_MISSING,
        Reason.VIDEO_UNREADABLE,
        Reason.TIME_LIMIT,
        Reason.MEMORY_LIMIT,
        Reason.CAPTION_FAILED,
        Reason.NO_TEXT,
    )
    """Reasons of the failures to take up."""
    only_plan: bool = False
    """Open the round and build nothing of it: its shards are for array tasks."""


class PreprocessConfig(Section):
    """Raw videos + metadata + texts -> a folder of tar shards."""

    output: Path
    """Folder of the shard set."""
    seed: int = 42
    """Decides which videos share a shard, and the sampling of generated captions."""
    workers: int = Field(default=0, ge=0)
    """Worker processes, each on one shard at a time; 0: one per CPU core."""
    metadata: MetadataConfig
    videos: VideosConfig
    texts: TextsConfig = TextsConfig()
    captioner: CaptionerConfig = CaptionerConfig()
    clips: ClipsConfig = ClipsConfig()
    shards: ShardsConfig = ShardsConfig()
    limits: LimitsConfig = LimitsConfig()
    tasks: TasksConfig = TasksConfig()
    retry: RetryConfig = RetryConfig()


RENDERING = 4
"""Raised with every change of the code that gives other bytes for the same config, so that no set mixes the two.

2: colours by ffmpeg's `colorspace` filter, no longer by swscale.
3: pixels that are not square, sizes that change on the way, texts of the metadata as one line, the place of audio in
its clip, H.264 without x264's macroblock tree.
4: mirrored sources, sources in RGB, which of several video streams, no frame after the end of the video.
"""


def content_hash(config: PreprocessConfig, ffmpeg_version: str) -> str:
    """16 hex digits over what decides the bytes of a shard."""
    relevant = config.model_dump(
        mode="json",
        include={"seed": True, "texts": {"require"}, "clips": True, "shards": True, "limits": True, "captioner": True},
    )
    for name in PLACEMENT:
        del relevant["captioner"][name]
    relevant |= {"ffmpeg": ffmpeg_version, "rendering": RENDERING}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]
