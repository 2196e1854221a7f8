"""Makes the plan of a set out of its metadata, in bounded memory.

    metadata -> 256 buckets on disk by hash(seed, video id) -> each sorted -> `write_plan`

The order of the metadata files, the number of tasks and the videos that happen to be here have no influence. What
cannot be planned (broken lines, double clips, excluded ids) becomes `failures/plan.parquet`.

    plan = make_plan(output, config.metadata, config.shards, config.seed, max_line_bytes)
"""

import array
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.failures import FailureTable
from preprocess.lines import BadRow, read_lines, read_rows, table_kind
from preprocess.metadata import MetadataConfig, find_files, read_metadata
from preprocess.plan import Plan, ShardsConfig, hash64, line_of, video_of, write_plan
from preprocess.publish import folder_lock
from preprocess.records import Clip, Failure, Video

NUM_BUCKETS = 256
_BUFFER_BYTES = 1 << 16


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
                keys.append(hash64(_key_stem(clip.clip_id)))
        if kept:
            number = hash64(f"{seed}:{item.video_id}")
            buffer = buffers[number >> 56]
            buffer += line_of(number, Video(item.video_id, tuple(kept)))
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
        if hash64(stem) in doubles:
            if stem in seen:
                rejected.add(Failure(clip.clip_id, video.video_id, Reason.DUPLICATE_CLIP, "a clip id that came before"))
                continue
            seen.add(stem)
        kept.append(clip)
    return Video(video.video_id, tuple(kept))


def _key_stem(clip_id: str) -> str:
    """What two clip ids must not share: the part that decides the key in the tar."""
    return clip_id.removesuffix(".mp4")
