"""Which videos go to which shard: a list of videos, cut into shards every `clips_per_shard` clips.

    OUTPUT/plan/videos.jsonl     one video a line, in the order of the shards
    OUTPUT/plan/shards.npy       where each shard starts
    OUTPUT/plan/plan.json        facts: hash, counts, what it was made from

    plan = Plan.open(output / "plan")
    for video in plan.shard(12).videos: ...

A shard's part of it is read alone, so a shard can be rebuilt alone. How the list is made: preprocess/planning.py.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field

from pipeline.config import Section
from pipeline.errors import InputError
from preprocess.faults import refuse_trouble
from preprocess.records import Clip, Video


class DamagedPlan(InputError):
    """A file of a plan is not what was written: empty, cut short, garbage."""


class ShardsConfig(Section):
    """Size of the shards."""

    clips_per_shard: int = Field(default=1000, ge=1, le=100_000)
    """A shard is closed as soon as it holds this many clips; a video is never split."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The videos of one shard, in the order in which they are delivered."""

    name: str
    """Path below the set without suffix: shards/000012."""
    videos: tuple[Video, ...]

    @property
    def num_clips(self) -> int:
        return sum(len(video.clips) for video in self.videos)


@dataclass(frozen=True)
class Plan:
    """A plan on disk: `videos.jsonl` in shard order, `shards.npy` with [offset, clips] per shard."""

    folder: Path
    facts: dict[str, Any]
    shards: np.ndarray
    """int64 [num_shards + 1, 2]: byte offset of the shard in videos.jsonl, number of clips before it."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The plan in `folder`: `OUTPUT/plan`, or `OUTPUT/plan/retry_001` of a retry. Its files fit together, or it
        raises `DamagedPlan`; without a plan, `InputError`."""
        try:
            facts = _read_facts(folder / "plan.json")
            return cls(folder, facts, _read_bounds(folder, facts))
        except FileNotFoundError as error:
            if not folder.exists() and (folder.parent / "manifest.parquet").exists():
                raise InputError(
                    f"{folder.parent} has no plan: it is an index of foreign tars, which python -m preprocess.index "
                    "renews; this works on sets of preprocess.run only"
                ) from None
            raise InputError(
                f"{folder} holds no whole plan (there is no {error.filename}); run python -m preprocess.run first"
            ) from None

    @property
    def num_shards(self) -> int:
        return len(self.shards) - 1

    def num_clips(self, number: int) -> int:
        return int(self.shards[number + 1, 1] - self.shards[number, 1])

    def name(self, number: int) -> str:
        """Path of a shard below the set, without suffix."""
        return f"shards/{self.facts['prefix']}{number:06d}"

    def clip_counts(self) -> dict[str, int]:
        """Planned clips by shard name."""
        return {self.name(number): self.num_clips(number) for number in range(self.num_shards)}

    def shard(self, number: int, *, verify: bool = True) -> ShardPlan:
        """The videos of shard `number`. Raises `DamagedPlan` where its lines are not those that were written; without
        `verify`, where they cannot be read."""
        start, end = int(self.shards[number, 0]), int(self.shards[number + 1, 0])
        path = self.folder / "videos.jsonl"
        with open(path, "rb") as stream:
            stream.seek(start)
            data = stream.read(end - start)
        checks = self.facts.get("shard_crc32")  # plans of before have none
        try:
            if verify and checks is not None and zlib.crc32(data) != checks[number]:
                raise ValueError("its checksum is another one")
            videos = tuple(video_of(json.loads(line)) for line in data.split(b"\n")[:-1])
            if verify and sum(len(video.clips) for video in videos) != self.num_clips(number):
                raise ValueError("clips are missing")
        except (ValueError, TypeError, IndexError) as error:
            raise _damaged(path, f"in the lines of {self.name(number)}: {error}") from None
        return ShardPlan(self.name(number), videos)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
        if not isinstance(facts, dict) or not {"prefix", "plan_hash", "num_shards", "num_clips"} <= set(facts):
            raise ValueError("it holds other facts")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        refuse_trouble(error, path)
        raise _damaged(path, str(error)) from None
    return facts


def _read_bounds(folder: Path, facts: dict[str, Any]) -> np.ndarray:
    """`shards.npy`, where it agrees with the facts and with the length of `videos.jsonl`."""
    path, videos = folder / "shards.npy", folder / "videos.jsonl"
    try:
        shards: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if shards.dtype != np.int64 or shards.shape != (facts["num_shards"] + 1, 2):
            raise ValueError(f"it is {shards.dtype} {shards.shape}")
        if shards[0].any() or (np.diff(shards, axis=0) <= 0).any():
            raise ValueError("its bounds are in disorder")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        refuse_trouble(error, path)
        raise _damaged(path, str(error)) from None
    size = videos.stat().st_size
    if size != shards[-1, 0]:
        raise _damaged(videos, f"it has {size} bytes instead of {shards[-1, 0]}")
    return shards


def _damaged(path: Path, problem: str) -> DamagedPlan:
    name = path.parent.name
    remedy = (
        f"take it from a backup, or remove {path.parent} if no shards/{name}_* is written"
        if name.startswith("retry_")
        else f"remove {path.parent / 'plan.json'} and run python -m preprocess.run, which makes the plan anew from the "
        "metadata"
    )
    return DamagedPlan(f"{path} is damaged ({problem}); {remedy}")


def write_plan(folder: Path, videos: Iterable[tuple[int, Video]], clips_per_shard: int, prefix: str) -> dict[str, Any]:
    """Write `videos` (hash, video) as a plan, in their order; returns its facts, which `plan.json` will hold."""
    digest = hashlib.sha256()
    bounds = [(0, 0)]
    checks = [0]
    offset = num_clips = num_videos = 0
    with open(folder / "videos.jsonl", "wb") as stream:
        for number, video in videos:
            if video.clips:
                line = line_of(number, video)
                stream.write(line)
                digest.update(line)
                checks[-1] = zlib.crc32(line, checks[-1])
                offset, num_clips, num_videos = offset + len(line), num_clips + len(video.clips), num_videos + 1
                if num_clips - bounds[-1][1] >= clips_per_shard:
                    bounds.append((offset, num_clips))
                    checks.append(0)
    if bounds[-1][0] != offset:
        bounds.append((offset, num_clips))
    np.save(folder / "shards.npy", np.array(bounds, dtype=np.int64))
    digest.update(str(clips_per_shard).encode())
    return {
        "prefix": prefix,
        "plan_hash": digest.hexdigest()[:16],
        "num_shards": len(bounds) - 1,
        "num_clips": num_clips,
        "num_videos": num_videos,
        "shard_crc32": checks[: len(bounds) - 1],
    }


def hash64(text: str) -> int:
    """64 well-mixed bits of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def line_of(number: int, video: Video) -> bytes:
    """The line of a video in the plan; `number` is its hash, which decides its place."""
    clips = [
        [clip.clip_id, clip.start_s, clip.end_s]
        + ([clip.subtitle, clip.caption] if clip.subtitle is not None or clip.caption is not None else [])
        for clip in video.clips
    ]
    return json.dumps([number, video.video_id, clips], separators=(",", ":")).encode() + b"\n"


def video_of(content: list[Any]) -> Video:
    """The video of one line of the plan."""
    return Video(content[1], tuple([Clip(*clip) for clip in content[2]]))
