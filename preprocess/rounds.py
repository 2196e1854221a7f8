"""Rounds of retry, and which failures still stand after them.

The first run is round 0. A retry writes a plan of its own (`plan/retry_001`) and supplementary shards
(`shards/retry_001_000000`); no file of an earlier round changes. A failure stands until a later round has published the
shard that tried its clip again: then the clip is in that shard, or in that shard's failures.

    for row in standing_failures(output, published): ...      # rows of FAILURE_COLUMNS
"""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.errors import RunError
from preprocess.faults import refuse_trouble
from preprocess.plan import Plan, hash64


def open_rounds(output: Path) -> list[Plan]:
    """The plans of all retries, in order."""
    return [Plan.open(path.parent) for path in sorted((output / "plan").glob("retry_*/plan.json"))]


def standing_failures(output: Path, published: Collection[str]) -> Iterator[dict[str, str]]:
    """The failures that no later round has taken up, latest round first."""
    for shards, retried in _latest_first(output, published):
        for shard in shards:
            yield from _rows(output / "failures" / f"{Path(shard).name}.parquet", retried)
    yield from _rows(output / "failures" / "plan.parquet", np.zeros(0, dtype=np.uint64))


def count_doubles(output: Path, published: Collection[str]) -> int:
    """Delivered clips that a later round has tried all the same. At 8 bytes a clip that any retry has tried."""
    count = 0
    for shards, retried in _latest_first(output, published):
        for shard in shards if len(retried) else ():
            clip_ids = pq.read_table(output / f"{shard}.parquet", columns=["clip_id"])["clip_id"]
            count += sum(_contains(retried, hash64(clip_id)) for clip_id in clip_ids.to_pylist())
    return count


def _latest_first(output: Path, published: Collection[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """The published shards of each round, and the sorted hashes of the clips that later rounds have tried."""
    retried = np.zeros(0, dtype=np.uint64)
    for plan in [*reversed(open_rounds(output)), Plan.open(output / "plan")]:
        numbers = [number for number in range(plan.num_shards) if plan.name(number) in published]
        yield [plan.name(number) for number in numbers], retried
        if plan.facts["prefix"]:
            clips = (clip for number in numbers for video in plan.shard(number).videos for clip in video.clips)
            tried = np.fromiter((hash64(clip.clip_id) for clip in clips), dtype=np.uint64)
            retried = np.union1d(retried, tried)


def count_reasons(output: Path, published: Collection[str]) -> Counter[str]:
    """Standing failures by reason."""
    return Counter(row["reason"] for row in standing_failures(output, published))


def _rows(path: Path, retried: np.ndarray) -> Iterator[dict[str, str]]:
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    if not len(retried) or not _contains(retried, hash64(row["clip_id"])):
                        yield row
    except (OSError, ValueError, KeyError) as error:
        refuse_trouble(error, path)
        said = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} cannot be read ({said}); python -m preprocess.run with the set's config mends what the rest of "
            "the set determines, and names what it does not"
        ) from None


def _contains(ordered: np.ndarray, number: int) -> bool:
    position = int(np.searchsorted(ordered, np.uint64(number)))
    return position < len(ordered) and int(ordered[position]) == number
