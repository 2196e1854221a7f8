"""Makes the plan of a set out of its metadata, in bounded memory.

    metadata -> 256 buckets on disk by hash(seed, video id) -> each sorted -> `write_plan`

The number of tasks and the videos that happen to be here have no influence, nor has the order of the metadata, but for
one thing: of rows with the same clip id the first stays. What cannot be planned (broken lines, double clips, excluded
ids) becomes `failures/plan.parquet`.

    plan = make_plan(output, config.metadata, config.shards, config.seed, max_line_bytes)
"""

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.data.format import Reason
from pipeline.errors import DISK_TROUBLE, InputError
from preprocess.doubles import FirstOfDoubles, clip_key, key_stem
from preprocess.failures import FailureTable
from preprocess.faults import refuse_trouble
from preprocess.ids import KEEP_ALL_TEXTS, id_text
from preprocess.lines import TABLE_SUFFIXES, BadRow, read_lines, read_rows
from preprocess.metadata import MetadataConfig, find_files, read_metadata
from preprocess.plan import Plan, ShardsConfig, hash64, line_of, video_of, write_plan
from preprocess.publish import sole_writer, temporary_path
from preprocess.published import clips_of, published_shards
from preprocess.records import Clip, Failure, Video
from preprocess.table_guess import guess_table

NUM_BUCKETS = 256
_BUFFER_BYTES = 1 << 16
_SHARDS_COMPARED = 16
_CAME_BEFORE = f"the clip id came before, and the first row stays; {KEEP_ALL_TEXTS}"
_EXCLUDE_COLUMNS = ("clip_id", "video_id", "video", "vid_key", "key", "id")


def make_plan(output: Path, metadata: MetadataConfig, shards: ShardsConfig, seed: int, max_line_bytes: int) -> Plan:
    """The plan of the set in `output`: opened where it belongs to these inputs and is not damaged, else made.

    Raises `InputError` where shards were already made from another plan.
    """
    inputs = _fingerprint(metadata, shards, seed)
    file_order = [str(path) for path in find_files(metadata.files)]
    output.mkdir(parents=True, exist_ok=True)
    target = output / "plan"
    with sole_writer(output, target.name):
        plan = _open_sound(output)
        # Plans of before have no order: that of the names was the only one.
        if (
            plan is not None
            and plan.facts.get("inputs") == inputs
            and plan.facts.get("file_order", file_order) == file_order
        ):
            return plan
        fresh = temporary_path(target)
        fresh.mkdir()
        try:
            facts = _build(fresh, metadata, shards, seed, max_line_bytes)
            facts |= {"inputs": inputs, "file_order": file_order}
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
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(fresh)) from None  # reading names no file
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
    files = [*sorted(find_files(metadata.files)), *(Path(path) for path in metadata.exclude)]
    try:
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            raise
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
    excluded = read_excluded(metadata.exclude, max_line_bytes)
    with FailureTable(folder / "rejected.parquet", shard="plan") as rejected:
        _fill_buckets(folder, read_metadata(metadata, max_line_bytes), excluded, seed, rejected)
        facts = _merge_buckets(folder, shards.clips_per_shard, FirstOfDoubles.find(folder / "keys"), rejected)
        facts["num_rejected"] = rejected.num_rows
    return facts


def read_excluded(files: tuple[str, ...], max_line_bytes: int) -> frozenset[str]:
    """Video and clip ids, without `.mp4`: of a table from its id columns, of any other file a line each."""
    excluded: set[str] = set()
    for name in files:
        path = Path(name)
        ids = _listed(path, max_line_bytes) if TABLE_SUFFIXES.isdisjoint(path.suffixes) else _ids(path, max_line_bytes)
        excluded.update(_listed_as(text) for text in ids)
    return frozenset(excluded)


def _listed(path: Path, max_line_bytes: int) -> Iterator[str]:
    for line in read_lines(path, max_line_bytes):
        if line.data is None:
            raise _unread(f"{path.name}:{line.number}", f"a line is longer than {max_line_bytes} bytes")
        yield line.data.decode("utf-8", "replace")


def _ids(path: Path, max_line_bytes: int) -> Iterator[str]:
    """The ids in the rows of a table."""
    for row in read_rows(path, max_line_bytes):
        if isinstance(row, BadRow):
            raise _unread(row.where, row.problem)
        columns = [name for name in _EXCLUDE_COLUMNS if name in row]
        if not columns:
            guess = guess_table(path, _EXCLUDE_COLUMNS[:2], list(row))
            raise InputError(
                f"metadata.exclude: {path} has none of the columns {', '.join(_EXCLUDE_COLUMNS)}, only "
                f"{', '.join(list(row)[:20])}; {guess or 'rename one, or give a text file with one id a line'}"
            )
        yield from (str(id_text(row[name])) for name in columns if row[name] not in (None, ""))


def _unread(where: str, problem: str) -> InputError:
    """What such a row forbids would be delivered."""
    return InputError(f"metadata.exclude: {where} cannot be read ({problem}); repair the list")


def _fill_buckets(
    folder: Path, items: Iterable[Video | Failure], excluded: frozenset[str], seed: int, rejected: FailureTable
) -> None:
    """Spread the videos over bucket files, each line behind the number of its first clip in the order of the metadata,
    and write the keys of all clips in that order into the file `keys` (`KEY`)."""
    buffers: list[bytearray] = [bytearray() for _ in range(NUM_BUCKETS)]
    num_clips = 0
    with open(folder / "keys", "wb") as keys:
        for item in items:
            if isinstance(item, Failure):
                rejected.add(item)
                continue
            kept = []
            for clip in item.clips:
                if excluded and not excluded.isdisjoint((_listed_as(item.video_id), _listed_as(clip.clip_id))):
                    rejected.add(Failure(clip.clip_id, item.video_id, Reason.EXCLUDED, "on a list of metadata.exclude"))
                else:
                    kept.append(clip)
                    keys.write(clip_key(clip.clip_id))
            if kept:
                number = hash64(f"{seed}:{item.video_id}")
                buffer = buffers[number >> 56]
                buffer += b"%d " % num_clips + line_of(number, Video(item.video_id, tuple(kept)))
                num_clips += len(kept)
                if len(buffer) > _BUFFER_BYTES:
                    _flush(folder, number >> 56, buffer)
    for bucket, buffer in enumerate(buffers):
        _flush(folder, bucket, buffer)


def _flush(folder: Path, bucket: int, buffer: bytearray) -> None:
    if buffer:
        with open(folder / f"bucket_{bucket:03d}", "ab") as stream:
            stream.write(buffer)
        buffer.clear()


def _merge_buckets(folder: Path, clips_per_shard: int, first: FirstOfDoubles, rejected: FailureTable) -> dict[str, Any]:
    num_doubles = 0

    def videos() -> Iterator[tuple[int, Video]]:
        nonlocal num_doubles
        for bucket in range(NUM_BUCKETS):
            for number, video_id, clips, places in _sorted_bucket(folder / f"bucket_{bucket:03d}"):
                if first.is_needed:
                    kept, doubles = first.of(clips, places)
                    num_doubles += len(doubles)
                    for clip in doubles:
                        rejected.add(Failure(clip.clip_id, video_id, Reason.DUPLICATE_CLIP, _CAME_BEFORE))
                    clips = kept
                clips.sort(key=_clip_order)
                yield number, Video(video_id, tuple(clips))

    facts = write_plan(folder, videos(), clips_per_shard, prefix="")
    if num_doubles:
        print(
            f"metadata.files: {num_doubles:,} rows repeat a clip id, of each the first stays; {KEEP_ALL_TEXTS}",
            file=sys.stderr,
            flush=True,
        )
    return facts


def _sorted_bucket(path: Path) -> "Iterator[tuple[int, str, list[Clip], list[int]]]":
    """The videos of one bucket in order of their hash, each once: hash, id, and its clips as they come in the metadata
    with their places in it."""
    if not path.exists():
        return
    grouped: dict[tuple[int, str], tuple[list[Clip], list[int]]] = {}
    with open(path, "rb") as stream:
        for line in stream:
            first, _, text = line.partition(b" ")
            content = json.loads(text)
            video = video_of(content)
            clips, places = grouped.setdefault((content[0], video.video_id), ([], []))
            clips.extend(video.clips)
            places.extend(range(int(first), int(first) + len(video.clips)))
    path.unlink()
    for number, video_id in sorted(grouped):
        yield number, video_id, *grouped[number, video_id]


def _clip_order(clip: Clip) -> tuple[float, float, str]:
    return clip.start_s, float("inf") if clip.end_s is None else clip.end_s, clip.clip_id


def _listed_as(name: str) -> str:
    """An id as it is compared with the exclude lists."""
    stem = key_stem(name)
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)
