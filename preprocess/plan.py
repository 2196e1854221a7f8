"""Which videos go to which shard: a pure function of the metadata and the seed, in bounded memory.

    metadata -> 256 buckets on disk by hash(seed, video id) -> each sorted -> cut every `clips_per_shard` clips

The order of the metadata files, the number of tasks and the videos that happen to be here have no influence, so a shard
can be rebuilt alone. What cannot be planned (broken lines, double clips, excluded ids) becomes `failures/plan.parquet`.

    plan = make_plan(config)              # builds `plan/`, or opens it where it is up to date
    for video in plan.shard(12).videos: ...
"""

import array
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field

from pipeline.config import Section
from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.failures import FailureTable
from preprocess.lines import BadRow, read_lines, read_rows, table_kind
from preprocess.metadata import MetadataConfig, find_files, read_metadata
from preprocess.publish import folder_lock
from preprocess.records import Clip, Failure, Video

NUM_BUCKETS = 256
_BUFFER_BYTES = 1 << 16


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
        """The plan in `folder`: `OUTPUT/plan`, or `OUTPUT/plan/retry_001` of a retry."""
        try:
            facts = json.loads((folder / "plan.json").read_text())
            return cls(folder, facts, np.load(folder / "shards.npy", mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no plan ({error}); run python -m preprocess.run first") from None

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

    def shard(self, number: int) -> ShardPlan:
        """The videos of shard `number`."""
        start, end = int(self.shards[number, 0]), int(self.shards[number + 1, 0])
        with open(self.folder / "videos.jsonl", "rb") as stream:
            stream.seek(start)
            lines = stream.read(end - start).splitlines()
        return ShardPlan(self.name(number), tuple(video_of(json.loads(line)) for line in lines))


def make_plan(output: Path, metadata: MetadataConfig, shards: ShardsConfig, seed: int, max_line_bytes: int) -> Plan:
    """The plan of the set in `output`: opened where it belongs to these inputs, else made.

    Raises `InputError` where shards were already made from another plan.
    """
    inputs = _fingerprint(metadata, shards, seed)
    output.mkdir(parents=True, exist_ok=True)
    with folder_lock(output / ".plan.lock"):
        target = output / "plan"
        if (target / "plan.json").exists():
            plan = Plan.open(output / "plan")
            if plan.facts["inputs"] == inputs:
                return plan
        fresh = output / ".plan.tmp"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            facts = _build(fresh, metadata, shards, seed, max_line_bytes) | {"inputs": inputs}
            _refuse_other_plan(output, facts)
            (fresh / "plan.json").write_text(json.dumps(facts, indent=1))
            (output / "failures").mkdir(exist_ok=True)
            (fresh / "rejected.parquet").replace(output / "failures" / "plan.parquet")
            target.mkdir(exist_ok=True)
            for name in ("videos.jsonl", "shards.npy", "plan.json"):
                (fresh / name).replace(target / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Plan.open(output / "plan")


def _refuse_other_plan(output: Path, facts: dict[str, Any]) -> None:
    if not (output / "plan" / "plan.json").exists() or not any((output / "shards").glob("*.parquet")):
        return
    before = Plan.open(output / "plan").facts
    if before["plan_hash"] != facts["plan_hash"]:
        raise InputError(
            f"{output} holds shards of other metadata ({before['num_clips']} clips, now {facts['num_clips']}); "
            "give another output, or remove the folder to start over"
        )


def _fingerprint(metadata: MetadataConfig, shards: ShardsConfig, seed: int) -> dict[str, Any]:
    """What a plan depends on, without reading the files: names, sizes and times."""
    files = [*find_files(metadata.files), *(Path(path) for path in metadata.exclude)]
    try:
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        raise InputError(f"metadata.exclude: cannot read {error.filename}: {error.strerror}") from None
    return {
        "files": [list(stat) for stat in stats],
        "seed": seed,
        "clips_per_shard": shards.clips_per_shard,
        "layout": metadata.layout,
        "columns": metadata.columns.model_dump(),
    }


def _build(
    folder: Path, metadata: MetadataConfig, shards: ShardsConfig, seed: int, max_line_bytes: int
) -> dict[str, Any]:
    excluded = _read_excluded(metadata.exclude, max_line_bytes)
    with FailureTable(folder / "rejected.parquet", shard="plan") as rejected:
        doubles = _fill_buckets(folder, read_metadata(metadata, max_line_bytes), excluded, seed, rejected)
        facts = _merge_buckets(folder, shards.clips_per_shard, doubles, rejected)
        facts["num_rejected"] = rejected.num_rows
    return facts


def _read_excluded(files: tuple[str, ...], max_line_bytes: int) -> frozenset[str]:
    excluded: set[str] = set()
    for name in files:
        path = Path(name)
        if path.suffix == ".jsonl" or (path.suffix in (".csv", ".parquet") and table_kind(path)):
            for row in read_rows(path, max_line_bytes):
                if not isinstance(row, BadRow):
                    excluded |= {str(row[key]) for key in ("clip_id", "video_id", "video") if row.get(key)}
        else:
            lines = (line.data for line in read_lines(path, max_line_bytes))
            excluded |= {line.decode("utf-8", "replace") for line in lines if line is not None}
    return frozenset(excluded)


def _fill_buckets(
    folder: Path, items: Iterable[Video | Failure], excluded: frozenset[str], seed: int, rejected: FailureTable
) -> frozenset[int]:
    """Spread the videos over bucket files; returns the hashes of the clip keys that occur more than once."""
    buffers: list[bytearray] = [bytearray() for _ in range(NUM_BUCKETS)]
    keys = array.array("Q")
    for item in items:
        if isinstance(item, Failure):
            rejected.add(item)
            continue
        kept = []
        for clip in item.clips:
            if item.video_id in excluded or clip.clip_id in excluded:
                rejected.add(Failure(clip.clip_id, item.video_id, Reason.EXCLUDED, "on a list of metadata.exclude"))
            else:
                kept.append(clip)
                keys.append(_hash64(_key_stem(clip.clip_id)))
        if kept:
            number = _hash64(f"{seed}:{item.video_id}")
            buffer = buffers[number >> 56]
            buffer += _line_of(number, Video(item.video_id, tuple(kept)))
            if len(buffer) > _BUFFER_BYTES:
                _flush(folder, number >> 56, buffer)
    for bucket, buffer in enumerate(buffers):
        _flush(folder, bucket, buffer)
    return _doubles(keys)


def _flush(folder: Path, bucket: int, buffer: bytearray) -> None:
    if buffer:
        with open(folder / f"bucket_{bucket:03d}", "ab") as stream:
            stream.write(buffer)
        buffer.clear()


def _doubles(keys: "array.array[int]") -> frozenset[int]:
    if not keys:
        return frozenset()
    hashes = np.frombuffer(keys, dtype=np.uint64)
    hashes.sort()  # in place: 100 M clips are 800 MB here, once
    return frozenset(int(value) for value in np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))


def _merge_buckets(
    folder: Path, clips_per_shard: int, doubles: frozenset[int], rejected: FailureTable
) -> dict[str, Any]:
    seen: set[str] = set()

    def videos() -> Iterator[tuple[int, Video]]:
        for bucket in range(NUM_BUCKETS):
            for number, video in _sorted_bucket(folder / f"bucket_{bucket:03d}"):
                yield number, _without_doubles(video, doubles, seen, rejected)

    return write_plan(folder, videos(), clips_per_shard, prefix="")


def write_plan(folder: Path, videos: Iterable[tuple[int, Video]], clips_per_shard: int, prefix: str) -> dict[str, Any]:
    """Write `videos` (hash, video) as a plan, in their order; returns its facts, which `plan.json` will hold."""
    digest = hashlib.sha256()
    bounds = [(0, 0)]
    offset = num_clips = num_videos = 0
    with open(folder / "videos.jsonl", "wb") as stream:
        for number, video in videos:
            if video.clips:
                line = _line_of(number, video)
                stream.write(line)
                digest.update(line)
                offset, num_clips, num_videos = offset + len(line), num_clips + len(video.clips), num_videos + 1
                if num_clips - bounds[-1][1] >= clips_per_shard:
                    bounds.append((offset, num_clips))
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
    }


def _sorted_bucket(path: Path) -> Iterator[tuple[int, Video]]:
    """The videos of one bucket in order of their hash, each once, its clips in order of time."""
    if not path.exists():
        return
    grouped: dict[tuple[int, str], list[Clip]] = {}
    with open(path, "rb") as stream:
        for line in stream:
            content = json.loads(line)
            video = video_of(content)
            grouped.setdefault((content[0], video.video_id), []).extend(video.clips)
    path.unlink()
    for number, video_id in sorted(grouped):
        yield number, Video(video_id, tuple(sorted(grouped[number, video_id], key=_clip_order)))


def _clip_order(clip: Clip) -> tuple[float, float, str, str, str]:
    end_s = float("inf") if clip.end_s is None else clip.end_s
    return clip.start_s, end_s, clip.clip_id, clip.subtitle or "", clip.caption or ""


def _without_doubles(video: Video, doubles: frozenset[int], seen: set[str], rejected: FailureTable) -> Video:
    if not doubles:
        return video
    kept = []
    for clip in video.clips:
        stem = _key_stem(clip.clip_id)
        if _hash64(stem) in doubles:
            if stem in seen:
                rejected.add(Failure(clip.clip_id, video.video_id, Reason.DUPLICATE_CLIP, "a clip id that came before"))
                continue
            seen.add(stem)
        kept.append(clip)
    return Video(video.video_id, tuple(kept))


def _key_stem(clip_id: str) -> str:
    """What two clip ids must not share: the part that decides the key in the tar."""
    return clip_id.removesuffix(".mp4")


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _line_of(number: int, video: Video) -> bytes:
    clips = [
        [clip.clip_id, clip.start_s, clip.end_s]
        + ([clip.subtitle, clip.caption] if clip.subtitle is not None or clip.caption is not None else [])
        for clip in video.clips
    ]
    return json.dumps([number, video.video_id, clips], separators=(",", ":")).encode() + b"\n"


def video_of(content: list[Any]) -> Video:
    """The video of one line of the plan."""
    return Video(content[1], tuple([Clip(*clip) for clip in content[2]]))
