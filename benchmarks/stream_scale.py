"""The stream over a simulated manifest of 100 million samples: opening, first batches, memory, exactly-once.

    python -m benchmarks.stream_scale [num_samples] [--check-epoch]

100,000 shards of 1,000 samples; every row of the index points into one real shard, so that a batch is really read and
decoded. The index is written once to a temporary folder (2.8 GB) and removed. `--check-epoch` walks a whole epoch as
1,024 ranks see it and counts how often each row comes.
"""

import hashlib
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.data.format import name_hash
from pipeline.data.index import Manifest
from pipeline.data.index_build import write_index
from pipeline.data.order import EpochOrder, mix
from pipeline.data.pool import run_workers
from pipeline.data.schedule import Schedule
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream

SHARD_SIZE = 1000
NUM_CLIPS = 50
SEED = 42
BATCH = 32
NUM_RANKS = 1024
GLOBAL_BATCH = 16 * NUM_RANKS


def tokenize(texts: list[str]) -> torch.Tensor:
    """A stand-in: this benchmark is not about tokenizers."""
    return torch.ones(len(texts), 70, dtype=torch.int64)


def encode_clip(number: int, num_frames: int = 40, size_px: int = 224) -> bytes:
    """Motion JPEG of moving noise."""
    rng = np.random.default_rng(number)
    scene = rng.integers(0, 256, (size_px // 8, size_px // 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=3)
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuvj420p"
        stream.options = {"qmin": "4", "qmax": "4"}
        for frame in range(num_frames):
            pixels = np.ascontiguousarray(scene[:, 4 * frame : 4 * frame + size_px])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def write_set(folder: Path, num_samples: int) -> None:
    """One real shard, and an index in which every sample is one of its clips."""
    places = []
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/000000.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(NUM_CLIPS):
            media, start = encode_clip(number), archive.offset
            facts = {"subtitle": "said", "caption": "seen", "sha256": hashlib.sha256(media).hexdigest()}
            for ext, content in (("mp4", media), ("json", json.dumps(facts).encode())):
                info = tarfile.TarInfo(f"clip{number}.{ext}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            places.append((start, archive.offset - start, name_hash(f"clip{number}")))
    facts = {"format_version": 1, "manifest_hash": "simulated", "subtitle_from": "json:subtitle", "caption_from": ""}
    schema = pa.schema([("shard", pa.string())]).with_metadata({b"clip_vip": json.dumps(facts).encode()})
    pq.write_table(pa.table({"shard": pa.array([], pa.string())}, schema=schema), folder / "manifest.parquet")
    shards = [("shards/000000", min(SHARD_SIZE, num_samples - at)) for at in range(0, num_samples, SHARD_SIZE)]
    write_index(folder / "index/simulated", shards, _rows(places, num_samples), caption_from="")


def _rows(places: list[tuple[int, int, int]], num_samples: int) -> Iterator[dict[str, Any]]:
    kinds = (np.int64, np.uint32, np.uint64)
    offsets, sizes, keys = (
        np.array(column, kind) for column, kind in zip(zip(*places, strict=True), kinds, strict=True)
    )
    for start in range(0, num_samples, 1 << 20):
        rows = np.arange(start, min(start + (1 << 20), num_samples))
        clips = rows % NUM_CLIPS
        yield {
            "offset": offsets[clips],
            "size": sizes[clips],
            "key_hash": keys[clips],
            "video_hash": (rows // 30).astype(np.uint64),
        }


def stream_at(folder: Path, slot: int, num_workers: int = 0) -> Stream:
    """A stream whose next batch begins at this sample of the epoch."""
    config = DataConfig(sources=[SourceConfig(shards=str(folder))], num_workers=num_workers)
    stream = Stream(config, global_batch_size=BATCH, image_size_px=224, tokenize=tokenize, seed=SEED)
    state = stream.state_dict()
    stream.load_state_dict({**state, "cursor": {**state["cursor"], "slot": slot}})
    return stream


def first_batch_s(folder: Path, slot: int) -> float:
    """Opening, loading the state, and the first batch, in this process."""
    started = time.perf_counter()
    batch = next(iter(stream_at(folder, slot)))
    assert batch.valid_B.all()
    return time.perf_counter() - started


class PrivateMemory:
    """Loads a batch, and tells the worker's private (written by it alone) and resident bytes.

    Pages of mapped files are not counted as private: the page cache shares them among all processes of the node.
    """

    def __init__(self, load: Any) -> None:
        self.load = load

    def __call__(self, composition: Any) -> tuple[int, int]:
        self.load(composition)
        private = resident = 0
        is_file = False
        for words in (line.split() for line in Path("/proc/self/smaps").read_text().splitlines()):
            if not words[0].endswith(":"):
                is_file = len(words) > 5 and words[5].startswith("/") and not words[5].startswith("/memfd:")
            elif words[0].startswith("Private_") and not is_file:
                private += 1024 * int(words[1])
            elif words[0] == "Rss:":
                resident += 1024 * int(words[1])
        return private, resident


def worker_memory(folder: Path) -> tuple[int, int]:
    """Private and resident bytes of a worker after eight batches from all over the set."""
    from pipeline.data.loader import RankLoader

    stream = stream_at(folder, 0)
    schedule, recipe = stream._schedule, stream._recipe()
    step = schedule.num_slots // 9
    cursor = schedule.start()
    compositions = []
    for number in range(8):
        moved = type(cursor)(slot=number * step, starts=cursor.starts)
        compositions.append(schedule.compose(moved, BATCH)[0])
    task = PrivateMemory(RankLoader(recipe))
    return max(run_workers(task, compositions, num_workers=1, prefetch=1))


def check_epoch(manifest: Manifest) -> tuple[int, float]:
    """Walk an epoch as 1,024 ranks see it; returns how many samples came, each exactly once, and the seconds."""
    started = time.perf_counter()
    schedule = Schedule([len(manifest)], [1.0], "drop")
    order = EpochOrder(manifest.shard_sizes, seed=mix(SEED, 0), epoch=0)
    seen = np.zeros(len(manifest), dtype=np.uint8)
    cursor, num_batches = schedule.start(), schedule.batches_in(1, GLOBAL_BATCH)
    for _ in range(num_batches):
        composition, cursor = schedule.compose(cursor, GLOBAL_BATCH)
        parts = [composition.part(rank, NUM_RANKS).positions_G for rank in range(NUM_RANKS)]
        np.add.at(seen, order.rows(np.concatenate(parts)), 1)
    count = num_batches * GLOBAL_BATCH
    assert seen.max() == 1 and int(seen.sum()) == count
    return count, time.perf_counter() - started


def main(argv: list[str]) -> None:
    """Print one line per figure."""
    num_samples = next((int(word) for word in argv if word.isdigit()), 100_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        write_set(folder, num_samples)
        size_gb = sum(path.stat().st_size for path in (folder / "index/simulated").iterdir()) / 1e9
        print(f"index of {num_samples:,} samples: {size_gb:.2f} GB, written in {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        manifest = Manifest.open(folder)
        print(f"open: {time.perf_counter() - started:.3f} s")
        first_batch_s(folder, 0)
        times = [(first_batch_s(folder, 0), first_batch_s(folder, num_samples // 2)) for _ in range(15)]
        at_start, in_middle = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"first batch at sample 0: {at_start:.3f} s, at sample {num_samples // 2:,}: {in_middle:.3f} s")
        print(f"ratio, median of pairs: {statistics.median(later / first for first, later in times):.3f}")
        private, resident = worker_memory(folder)
        print(f"worker: {private / 1e6:.0f} MB private, {resident / 1e6:.0f} MB resident")
        if "--check-epoch" in argv:
            count, seconds = check_epoch(manifest)
            print(f"epoch as {NUM_RANKS} ranks see it: {count:,} samples, each exactly once, in {seconds:.0f} s")


if __name__ == "__main__":
    # Workers unpickle by module name, and `__main__` is another module there.
    from benchmarks import stream_scale

    stream_scale.main(sys.argv[1:])
