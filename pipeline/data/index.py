"""`Manifest`: a shard set as a memory-mapped index of where its samples lie.

    manifest.parquet + sidecars  --built once-->  index/{manifest_hash}/{shards,samples}.arrow  --mapped-->  Manifest

The index is uncompressed Arrow, 28 bytes a sample (100 M samples: 2.8 GB on disk), shared by all processes of a node
through the page cache, and next to nothing in private memory. It is named after the manifest's hash and never changes:
a run that pinned a hash keeps it when retries add shards to the set.

    manifest = Manifest.open("data/shards/sample_train")
    manifest.places(np.array([0, 17]))          # -> shard, offset, size and key hash of each row
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.cache import open_folder
from pipeline.data.format import DEFAULT_CAPTION_FROM, DEFAULT_SUBTITLE_FROM, FORMAT_VERSION, METADATA_KEY, sample_key
from pipeline.data.storage import Folder
from pipeline.errors import InputError, RunError

Int64s = NDArray[np.int64]

_CHUNK_BITS = 20  # rows per Arrow record batch: a row's chunk is a shift, not a search
_READERS = 16
_SAMPLES = pa.schema(
    [("offset", pa.int64()), ("size", pa.uint32()), ("key_hash", pa.uint64()), ("video_hash", pa.uint64())]
)
_SHARDS = pa.schema([("shard", pa.string()), ("num_samples", pa.int64())])


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


def name_hash(name: str) -> int:
    """64 bits of a key or a video id, as the index stores them."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Manifest:
    """An opened index. Rows are samples in manifest order: shards sorted by name, samples in tar order."""

    def __init__(self, folder: str, index: Path) -> None:
        self.folder = folder
        self.hash = index.name
        self._index = index
        shards = _map(index / "shards.arrow")
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
        samples = _map(index / "samples.arrow")
        batches = [samples.get_batch(number) for number in range(samples.num_record_batches)]
        self._chunks = [
            {name: batch.column(name).to_numpy(zero_copy_only=True) for name in _SAMPLES.names} for batch in batches
        ]

    @classmethod
    def open(cls, folder: str | Path, *, pinned: str | None = None, index_folder: Path | None = None) -> Self:
        """Map the index of `folder`'s manifest (or of the `pinned` hash), building it first where it is missing."""
        where = str(folder)
        root = index_folder / name_of_set(where) if index_folder else _index_root(where)
        wanted = pinned or manifest_facts(where)["manifest_hash"]
        if not (root / wanted).is_dir():
            if pinned and manifest_facts(where)["manifest_hash"] != pinned:
                raise InputError(
                    f"{where} has changed: this run is pinned to manifest {pinned}, whose index is not in {root}; "
                    "restore the index, or start a new run"
                )
            _build_once(where, root, wanted)
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
            + (start << _CHUNK_BITS)
            for start, chunk in enumerate(self._chunks)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _cell(self, name: str, row: int) -> Any:
        return self._chunks[row >> _CHUNK_BITS][name][row & ((1 << _CHUNK_BITS) - 1)]

    def __len__(self) -> int:
        return self.num_samples


def _read_ahead(folder: Folder, names: Sequence[str]) -> Iterator[bytes]:
    """The files' contents in order, some read at once: a far file system answers slowly, but many at a time."""
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(names), 8 * _READERS):
            yield from pool.map(folder.read_file, names[start : start + 8 * _READERS])


def manifest_facts(folder: str) -> dict[str, Any]:
    """The facts in manifest.parquet's schema metadata: manifest_hash, num_samples, subtitle_from, caption_from."""
    return _facts(_read_manifest_table(folder).schema, f"{folder}/manifest.parquet")


def read_manifest(folder: str) -> list[dict[str, Any]]:
    """The rows of manifest.parquet, sorted by shard."""
    return _read_manifest_table(folder).sort_by("shard").to_pylist()  # type: ignore[no-any-return]


def _read_manifest_table(folder: str) -> pa.Table:
    content = _read_input(folder, "manifest.parquet")
    try:
        return read_table(content)
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}/manifest.parquet is damaged ({reason}); merge the set again") from None


def read_table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file that was read into memory.

    Not by Arrow's threads: one of them may still hold `content` when the interpreter ends, and a Python object that is
    let go of then, outside the main thread, aborts the process.
    """
    return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)


def name_of_set(folder: str) -> str:
    """A folder name for what belongs to a shard set but lies elsewhere (index, cache)."""
    return f"{folder.rstrip('/').rsplit('/', 1)[-1]}_{name_hash(folder):016x}"


def write_index(
    target: Path,
    shards: Iterable[tuple[str, int]],
    samples: Iterator[dict[str, NDArray[Any]]],
    *,
    subtitle_from: str = DEFAULT_SUBTITLE_FROM,
    caption_from: str = DEFAULT_CAPTION_FROM,
) -> None:
    """Write an index folder from (shard, num_samples) rows and pieces of the sample columns, in manifest order."""
    target.mkdir(parents=True)
    facts = {"format_version": FORMAT_VERSION, "subtitle_from": subtitle_from, "caption_from": caption_from}
    names, counts = zip(*shards, strict=True) if (shards := list(shards)) else ((), ())
    schema = _SHARDS.with_metadata({METADATA_KEY: json.dumps(facts).encode()})
    with pa.OSFile(str(target / "shards.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.table([pa.array(names, pa.string()), pa.array(counts, pa.int64())], schema=schema))
    with pa.OSFile(str(target / "samples.arrow"), "wb") as file, pa.ipc.new_file(file, _SAMPLES) as writer:
        for chunk in _rechunk(samples, 1 << _CHUNK_BITS):
            arrays = [pa.array(chunk[field.name], field.type) for field in _SAMPLES]
            writer.write_batch(pa.record_batch(arrays, schema=_SAMPLES))


def _rechunk(pieces: Iterator[dict[str, NDArray[Any]]], size: int) -> Iterator[dict[str, NDArray[Any]]]:
    held: list[dict[str, NDArray[Any]]] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece["offset"])
        while num_held >= size:
            joined = {name: np.concatenate([one[name] for one in held]) for name in _SAMPLES.names}
            yield {name: column[:size] for name, column in joined.items()}
            held = [{name: column[size:] for name, column in joined.items()}]
            num_held -= size
    if num_held:
        yield {name: np.concatenate([one[name] for one in held]) for name in _SAMPLES.names}


def _index_root(folder: str) -> Path:
    """Beside the shards where that can be written (one index for all nodes), else in the user's cache."""
    if "://" not in folder and os.access(folder, os.W_OK):
        return Path(folder) / "index"
    if "://" not in folder and (Path(folder) / "index").is_dir():
        return Path(folder) / "index"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "clip_vip" / "index" / name_of_set(folder)


def _build_once(folder: str, root: Path, wanted: str) -> None:
    """Build under a lock and a temporary name; a process killed in the middle leaves nothing that counts."""
    host = socket.gethostname()
    try:
        root.mkdir(parents=True, exist_ok=True)
        guard = open(root / f".lock_{host}", "w")  # noqa: SIM115 - held below, over the whole build
    except OSError as error:
        raise InputError(f"cannot write the index folder {root}: {error.strerror}; set data.index_folder") from None
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if (root / wanted).is_dir():
            return
        # Other nodes build under other names; of this node's, the lock says that all are left over from killed builds.
        for stale in root.glob(f".building_{host}_*"):
            shutil.rmtree(stale)
        building = root / f".building_{host}_{wanted}"
        facts, rows = manifest_facts(folder), read_manifest(folder)
        if not sum(row["num_samples"] for row in rows):
            raise InputError(f"{folder} has no samples; see its failures folder and stats.json")
        write_index(
            building,
            [(row["shard"], row["num_samples"]) for row in rows],
            _samples_of(folder, rows),
            subtitle_from=facts["subtitle_from"],
            caption_from=facts["caption_from"],
        )
        try:
            building.rename(root / wanted)
        except OSError:
            # Another node was first.
            shutil.rmtree(building)


def _samples_of(folder: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    video_hashes: dict[str, int] = {}
    names = [f"{row['shard']}.parquet" for row in rows]
    for row, name, content in zip(rows, names, _read_ahead(open_folder(folder), names), strict=True):
        if hashlib.sha256(content).hexdigest() != row["sidecar_sha256"]:
            raise InputError(f"{folder}/{name} is not the file that the manifest names; write the manifest again")
        table = read_table(content, ["key", "video_id", "offset", "size"])
        if table.num_rows != row["num_samples"]:
            raise InputError(
                f"{folder}/{name} has {table.num_rows} rows, the manifest says {row['num_samples']}; "
                "write the manifest again"
            )
        video_hashes.clear()
        videos = table.column("video_id").to_pylist()
        for video in videos:
            if video not in video_hashes:
                video_hashes[video] = name_hash(video or "")
        yield {
            "offset": table.column("offset").to_numpy(),
            "size": table.column("size").to_numpy().astype(np.uint32),
            "key_hash": np.array([name_hash(key) for key in table.column("key").to_pylist()], dtype=np.uint64),
            "video_hash": np.array([video_hashes[video] for video in videos], dtype=np.uint64),
        }


def _read_input(folder: str, name: str) -> bytes:
    try:
        return open_folder(folder).read_file(name)
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {name}; write the shards first: python -m preprocess.run CONFIG.yaml"
        ) from None


def _facts(schema: pa.Schema, where: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((schema.metadata or {})[METADATA_KEY])
    except (KeyError, ValueError):
        raise InputError(f"{where} holds no {METADATA_KEY.decode()} metadata; write it with preprocess") from None
    if facts["format_version"] != FORMAT_VERSION:
        raise InputError(f"{where} has format {facts['format_version']}, this code reads {FORMAT_VERSION}")
    return facts


def _map(path: Path) -> Any:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"the index {path} cannot be read ({error}); remove {path.parent} to build it again") from None
