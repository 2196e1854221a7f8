"""`Manifest`: a shard set as a memory-mapped index of where its samples lie.

    manifest.parquet + sidecars  --built once-->  index/{manifest_hash}/{shards,samples}.arrow  --mapped-->  Manifest

The index is uncompressed Arrow, 28 bytes a sample (100 M samples: 2.8 GB on disk), shared by all processes of a node
through the page cache, and next to nothing in private memory. It is named after the manifest's hash and never changes:
a run that pinned a hash keeps it when retries add shards to the set.

It is built where it is first opened; a large set's better before a job starts: `python -m pipeline.data.index SHARDS`.

    manifest = Manifest.open("data/shards/sample_train")
    manifest.places(np.array([0, 17]))          # -> shard, offset, size and key hash of each row
"""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import Section, load_config, render_help
from pipeline.data.format import METADATA_KEY, name_hash, sample_key
from pipeline.data.index_build import CHUNK_BITS, SAMPLES, build_once, set_aside
from pipeline.data.manifest_file import manifest_facts
from pipeline.errors import InputError, RunError, run_command
from pipeline.log import logger

Int64s = NDArray[np.int64]
PROGRAM = "python -m pipeline.data.index SHARDS"
MAX_SAMPLE_BYTES = 2**32 - 1
"""What a row of the index can state of a sample's size."""


@dataclass(frozen=True)
class Place:
    """Where one sample lies: `size` bytes of `shard` (a tar's path below the set) from `offset`."""

    row: int
    shard: str
    offset: int
    size: int
    key_hash: int
    text: str | None = None
    """The subtitle of this sample where a source's text table gives it."""
    text_number: int = 0
    """Which of the clip's texts that is."""


class IndexConfig(Section):
    """What to index, and where."""

    shards: str
    """Folder of a shard set, or its fsspec URL."""
    index_folder: Path | None = None
    """As data.index_folder of the training config; null: beside the shards, or in the user's cache."""


def main(argv: list[str]) -> int:
    """Build a set's index, unless it is there: a job that starts then finds it."""
    if not argv or argv[0] in ("-h", "--help"):
        print(render_help(IndexConfig, program=PROGRAM, about="Build the index of a shard set before a job needs it."))
        return 0 if argv else 2
    if "=" in argv[0] or argv[0].startswith("-"):
        raise InputError(f"the first argument must be a shard set, got {argv[0]!r}; usage: {PROGRAM} [key=value ...]")
    config = load_config(IndexConfig, [], [f"shards={argv[0]}", *argv[1:]])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    manifest = Manifest.open(config.shards, index_folder=config.index_folder)
    print(f"{manifest.folder}: {manifest.num_samples:,} samples in {manifest.num_shards:,} shards; {manifest.index}")
    return 0


class Manifest:
    """An opened index. Rows are samples in manifest order: shards sorted by name, samples in tar order."""

    def __init__(self, folder: str, index: Path) -> None:
        self.folder = folder
        self.hash = index.name
        self.index = index
        try:
            self._map_files()
        except Exception as error:  # whatever damaged bytes make Arrow and JSON raise
            raise RunError(
                f"the index {index} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]}); remove "
                "it, and it is built again from the sidecars"
            ) from None

    def _map_files(self) -> None:
        """Map both files, once their shape is what it should be: every row has a shard, every column its type."""
        shards = pa.ipc.open_file(pa.memory_map(str(self.index / "shards.arrow")))
        facts = json.loads(shards.schema.metadata[METADATA_KEY])
        self.subtitle_from: str = facts["subtitle_from"]
        self.caption_from: str = facts["caption_from"]
        table = shards.read_all()
        self._shards = table.column("shard")
        self.shard_sizes: Int64s = table.column("num_samples").to_numpy()
        self.num_shards = len(self.shard_sizes)
        self._ends = np.cumsum(self.shard_sizes)
        self.first_rows: Int64s = self._ends - self.shard_sizes
        self.num_samples = int(self._ends[-1]) if self.num_shards else 0
        samples = pa.ipc.open_file(pa.memory_map(str(self.index / "samples.arrow")))
        batches = [samples.get_batch(number) for number in range(samples.num_record_batches)]
        if samples.schema != SAMPLES or sum(map(len, batches)) != self.num_samples or (self.shard_sizes < 0).any():
            raise ValueError(f"{sum(map(len, batches))} rows in samples.arrow, {self.num_samples} in shards.arrow")
        self._shards.to_pylist()  # text that is no text shows here
        self._chunks = [
            {name: batch.column(name).to_numpy(zero_copy_only=True) for name in SAMPLES.names} for batch in batches
        ]

    @classmethod
    def open(cls, folder: str | Path, *, pinned: str | None = None, index_folder: Path | None = None) -> Self:
        """Map the index of `folder`'s manifest (or of the `pinned` hash).

        It is built first where it is missing, and once more where it is damaged and the manifest is still the same.
        """
        where = str(folder)
        root = index_folder / name_of_set(where) if index_folder else _index_root(where)
        wanted = pinned or manifest_facts(where)["manifest_hash"]
        if not (root / wanted).is_dir():
            build_once(where, root, wanted)
        try:
            return cls(where, root / wanted)
        except RunError as error:
            if manifest_facts(where)["manifest_hash"] != wanted:
                raise
            logger.warning(f"{error}; builds it again")
            set_aside(root, wanted)
            build_once(where, root, wanted)
            return cls(where, root / wanted)

    def shard_name(self, number: int) -> str:
        """The path of shard `number` below the set, without suffix."""
        return str(self._shards[number].as_py())

    def shard_of(self, rows: Int64s) -> Int64s:
        """The shard number of each row."""
        return np.searchsorted(self._ends, rows, side="right")

    def places(self, rows: Int64s) -> list[Place]:
        """Where each row's sample lies."""
        return [
            Place(
                int(row),
                self.shard_name(int(shard)),
                offset=int(self._cell("offset", int(row))),
                size=int(self._cell("size", int(row))),
                key_hash=int(self._cell("key_hash", int(row))),
            )
            for row, shard in zip(rows, self.shard_of(rows), strict=True)
        ]

    def video_hashes(self, rows: Int64s) -> NDArray[np.uint64]:
        """A 64-bit hash of the video that each row was cut from."""
        return np.array([self._cell("video_hash", int(row)) for row in rows], dtype=np.uint64)

    def rows_named(self, names: Iterable[str]) -> Int64s:
        """The rows whose key, clip id or video id is among `names`, sorted; one pass over two mapped columns."""
        hashes = {hashed for name in names for hashed in (name_hash(name), name_hash(sample_key(name)))}
        if not hashes:
            return np.empty(0, dtype=np.int64)
        wanted = np.array(sorted(hashes), dtype=np.uint64)
        found = [
            np.flatnonzero(np.isin(chunk["key_hash"], wanted) | np.isin(chunk["video_hash"], wanted))
            + (start << CHUNK_BITS)
            for start, chunk in enumerate(self._chunks)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _cell(self, name: str, row: int) -> Any:
        return self._chunks[row >> CHUNK_BITS][name][row & ((1 << CHUNK_BITS) - 1)]

    def __len__(self) -> int:
        return self.num_samples


def name_of_set(folder: str) -> str:
    """A folder name for what belongs to a shard set but lies elsewhere (index, cache)."""
    return f"{folder.rstrip('/').rsplit('/', 1)[-1]}_{name_hash(folder):016x}"


def _index_root(folder: str) -> Path:
    """Beside the shards where that can be written (one index for all nodes), else in the user's cache."""
    if "://" not in folder and os.access(folder, os.W_OK):
        return Path(folder) / "index"
    if "://" not in folder and (Path(folder) / "index").is_dir():
        return Path(folder) / "index"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "clip_vip" / "index" / name_of_set(folder)


if __name__ == "__main__":
    run_command(main)
