"""Makes the plan of a set out of its metadata, in bounded memory.

    metadata -> 256 buckets on disk by hash(seed, video id) -> each sorted -> `write_plan`

The order of the metadata files, the number of tasks and the videos that happen to be here have no influence. What
cannot be planned (broken lines, double clips, excluded ids) becomes `failures/plan.parquet`.

    plan = make_plan(output, config.metadata, config.shards, config.seed, max_line_bytes)
"""

import array
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.failures import FailureTable
from preprocess.faults import refuse_trouble
from preprocess.lines import TABLE_SUFFIXES, BadRow, read_lines, read_rows
from preprocess.metadata import MetadataConfig, find_files, read_metadata
from preprocess.plan import Plan, ShardsConfig, hash64, line_of, video_of, write_plan
from preprocess.publish import sole_writer, temporary_path
from preprocess.published import clips_of, published_shards
from preprocess.records import Clip, Failure, Video

NUM_BUCKETS = 256
_BUFFER_BYTES = 1 << 16
_SHARDS_COMPARED = 16
_EXCLUDE_COLUMNS = ("clip_id", "video_id", "video", "vid_key", "key", "id")


def make_plan(output: Path, metadata: MetadataConfig, shards: ShardsConfig, seed: int, max_line_bytes: int) -> Plan:
    """The plan of the set in `output`: opened where it belongs to these inputs and is not damaged, else made.

    Raises `InputError` where shards were already made from another plan.
    """
    inputs = _fingerprint(metadata, shards, seed)
    output.mkdir(parents=True, exist_ok=True)
    target = output / "plan"
    with sole_writer(output, target.name):
        plan = _open_sound(output)
        if plan is not None and plan.facts.get("inputs") == inputs:
            return plan
        fresh = temporary_path(target)
        fresh.mkdir()
        try:
            facts = _build(fresh, metadata, shards, seed, max_line_bytes) | {"inputs": inputs}
            (fresh / "plan.json").write_text(json.dumps(facts))
            _refuse_other_plan(output, Plan.open(fresh), plan)
            (output / "failures").mkdir(exist_ok=True)
            (fresh / "rejected.parquet").replace(output / "failures" / "plan.parquet")
            target.mkdir(exist_ok=True)
            for name in ("videos.jsonl", "shards.npy", "plan.json"):
                (fresh / name).replace(target / name)
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            where = error.filename2 or error.filename
            raise InputError(f"cannot write {where}: {error.strerror}; remove what lies there") from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Plan.open(output / "plan")


def _open_sound(output: Path) -> Plan | None:
    """The plan that is there; None where there is none, or a damaged one, which stderr is told."""
    if not (output / "plan" / "plan.json").exists():
        return None
    try:
        plan = Plan.open(output / "plan")
    except InputError as error:
        print(f"{error}; it is made anew", file=sys.stderr, flush=True)
        return None
    rejected = output / "failures" / "plan.parquet"
    try:
        is_sound = pq.read_metadata(rejected).num_rows == plan.facts["num_rejected"]
    except (OSError, ValueError) as error:
        refuse_trouble(error, rejected)
        is_sound = False
    if not is_sound:
        print(f"{rejected} is damaged or gone; it is made anew with the plan", file=sys.stderr, flush=True)
        return Plan(plan.folder, {**plan.facts, "inputs": None}, plan.shards)
    return plan


def _refuse_other_plan(output: Path, fresh: Plan, before: Plan | None) -> None:
    """Raise an `InputError` where shards were written from another plan: by its hash, or where that is lost by the
    clips of some of the shards."""
    published = {shard for shard in published_shards(output) if not Path(shard).name.startswith("retry_")}
    if not published:
        return
    if before is not None:
        is_same = fresh.facts["plan_hash"] == before.facts["plan_hash"]
    else:
        looked_at = sorted(published)[:: max(1, len(published) // _SHARDS_COMPARED)]
        is_same = all(_holds_planned_clips(output, shard, fresh) for shard in looked_at)
    if not is_same:
        num_before = before.facts["num_clips"] if before else "an unknown number of"
        raise InputError(
            f"{output} holds shards of other metadata ({num_before} clips, now {fresh.facts['num_clips']}); give "
            "another output, or remove the folder to start over"
        )


def _holds_planned_clips(output: Path, shard: str, plan: Plan) -> bool:
    """Whether the clips of a published shard are those that `plan` has for it; one that cannot be read says nothing."""
    number = int(shard.rpartition("/")[2])
    if number >= plan.num_shards:
        return False
    clips = clips_of(output, shard)
    return clips is None or clips == {clip.clip_id for video in plan.shard(number).videos for clip in video.clips}


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
    """Video and clip ids, without `.mp4`: of a table from its id columns, of any other file a line each."""
    excluded: set[str] = set()
    for name in files:
        path = Path(name)
        ids = _listed(path, max_line_bytes) if TABLE_SUFFIXES.isdisjoint(path.suffixes) else _ids(path, max_line_bytes)
        excluded.update(_key_stem(text) for text in ids)
    return frozenset(excluded)


def _listed(path: Path, max_line_bytes: int) -> Iterator[str]:
    for line in read_lines(path, max_line_bytes):
        if line.data is None:
            raise _unread(f"{path.name}:{line.number}", f"a line is longer than {max_line_bytes} bytes")
        yield line.data.decode("utf-8-sig", "replace")


def _ids(path: Path, max_line_bytes: int) -> Iterator[str]:
    """The ids in the rows of a table."""
    for row in read_rows(path, max_line_bytes):
        if isinstance(row, BadRow):
            raise _unread(row.where, row.problem)
        columns = [name for name in _EXCLUDE_COLUMNS if name in row]
        if not columns:
            raise InputError(
                f"metadata.exclude: {path} has none of the columns {', '.join(_EXCLUDE_COLUMNS)}, only "
                f"{', '.join(list(row)[:20])}; rename one, or give a text file with one id a line"
            )
        yield from (str(row[name]) for name in columns if row[name])


def _unread(where: str, problem: str) -> InputError:
    """What such a row forbids would be delivered."""
    return InputError(f"metadata.exclude: {where} cannot be read ({problem}); repair the list")


def _fill_buckets(
    folder: Path, items: Iterable[Video | Failure], excluded: frozenset[str], seed: int, rejected: FailureTable
) -> np.ndarray:
    """Spread the videos over bucket files; returns the sorted hashes of the clip keys that occur more than once."""
    buffers: list[bytearray] = [bytearray() for _ in range(NUM_BUCKETS)]
    keys = array.array("Q")
    for item in items:
        if isinstance(item, Failure):
            rejected.add(item)
            continue
        kept = []
        for clip in item.clips:
            if excluded and not excluded.isdisjoint((_key_stem(item.video_id), _key_stem(clip.clip_id))):
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


def _doubles(keys: "array.array[int]") -> np.ndarray:
    if not keys:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.frombuffer(keys, dtype=np.uint64)
    hashes.sort()  # in place: 100 M clips are 800 MB here, once
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _merge_buckets(folder: Path, clips_per_shard: int, doubles: np.ndarray, rejected: FailureTable) -> dict[str, Any]:
    first = _FirstOfDoubles(doubles)

    def videos() -> Iterator[tuple[int, Video]]:
        for bucket in range(NUM_BUCKETS):
            for number, video in _sorted_bucket(folder / f"bucket_{bucket:03d}"):
                yield number, _without_doubles(video, first, rejected) if len(doubles) else video

    return write_plan(folder, videos(), clips_per_shard, prefix="")


class _FirstOfDoubles:
    """Tells the first clip of a key from later ones, at 16 bytes a key: every clip may be there twice."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = hashes
        self._seen = np.zeros(len(hashes), dtype=np.uint64)
        """Another hash of the key that came first; 0: none came yet."""

    def __call__(self, stem: str) -> bool:
        number = np.uint64(hash64(stem))
        place = int(np.searchsorted(self._hashes, number))
        if place == len(self._hashes) or self._hashes[place] != number:
            return True
        # Two keys with one hash of 64 bits are no doubles: among 100 M clips that happens once in 4,000 sets.
        check = np.uint64(hash64(f"check:{stem}") | 1)
        if self._seen[place] == 0:
            self._seen[place] = check
            return True
        return bool(self._seen[place] != check)


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


def _without_doubles(video: Video, first: _FirstOfDoubles, rejected: FailureTable) -> Video:
    kept = []
    for clip in video.clips:
        if first(_key_stem(clip.clip_id)):
            kept.append(clip)
        else:
            rejected.add(Failure(clip.clip_id, video.video_id, Reason.DUPLICATE_CLIP, "a clip id that came before"))
    return Video(video.video_id, tuple(kept))


def _key_stem(clip_id: str) -> str:
    """What two clip ids must not share: the part that decides the key in the tar."""
    return clip_id.removesuffix(".mp4")
