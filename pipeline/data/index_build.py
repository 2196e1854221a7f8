"""Building an index: by one process per file system, while the others wait for the folder.

    build_once(folder, root, manifest_hash)       # root/{manifest_hash}/{shards,samples}.arrow is there when it returns

    manifest.parquet -> runs of sidecars -> worker processes: columns of 28 bytes a sample -> Arrow, under another name
    -> renamed when whole

The builder holds a lease: a file that only one process can create, on any file system, and whose age tells that its
holder is alive. A lease that nobody renews is taken over. So waiting has no limit of its own, a killed build leaves
nothing that counts, and a process that was only slow does no harm: every build has a folder of its own, all would be
equal, and the first one that is whole stays.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.cache import open_folder
from pipeline.data.format import (
    DEFAULT_CAPTION_FROM,
    DEFAULT_SUBTITLE_FROM,
    FORMAT_VERSION,
    METADATA_KEY,
    name_hash,
)
from pipeline.data.manifest_file import manifest_facts, read_manifest, sidecar_columns
from pipeline.data.pool import WorkerDied, run_workers
from pipeline.data.storage import Folder
from pipeline.errors import InputError, PipelineError, RunError
from pipeline.log import logger

CHUNK_BITS = 20  # rows per Arrow record batch: a row's chunk is a shift, not a search
SAMPLES = pa.schema(
    [("offset", pa.int64()), ("size", pa.uint32()), ("key_hash", pa.uint64()), ("video_hash", pa.uint64())]
)
_SHARDS = pa.schema([("shard", pa.string()), ("num_samples", pa.int64())])
_RUN = 32  # sidecars that a worker reads at once: a far file system answers slowly, but many at a time
_MAX_WORKERS = 16
_LEASE_RENEWED_S = 10.0
_LEASE_DEAD_S = 120.0
_REPORT_S = 60.0
_POLL_S = 1.0

Columns = dict[str, NDArray[Any]]


def build_once(folder: str, root: Path, manifest_hash: str) -> None:
    """Have the index of `folder`'s manifest below `root`: build it, or wait until another process has."""
    target = root / manifest_hash
    lease = root / f".builder_{manifest_hash}"
    said = time.monotonic()
    while not target.is_dir():
        if _take(lease):
            with _renewed(lease):
                if not target.is_dir():  # it may have come between the question above and the lease
                    _build(folder, root, manifest_hash)
            continue
        if time.monotonic() - said > _REPORT_S:
            said = time.monotonic()
            logger.info(f"waits for the index of {folder}, which {_holder(lease)} builds")
        time.sleep(_POLL_S)


def set_aside(root: Path, manifest_hash: str) -> None:
    """Take a damaged index out of the way, for one of many processes that find it so: the others find it gone."""
    damaged = root / f".damaged_{manifest_hash}_{secrets.token_hex(8)}"
    with suppress(FileNotFoundError):
        (root / manifest_hash).rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)


def write_index(
    target: Path,
    shards: Iterable[tuple[str, int]],
    samples: Iterator[Columns],
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
    with pa.OSFile(str(target / "samples.arrow"), "wb") as file, pa.ipc.new_file(file, SAMPLES) as writer:
        for chunk in _rechunk(samples, 1 << CHUNK_BITS):
            arrays = [pa.array(chunk[field.name], field.type) for field in SAMPLES]
            writer.write_batch(pa.record_batch(arrays, schema=SAMPLES))


def _rechunk(pieces: Iterator[Columns], size: int) -> Iterator[Columns]:
    held: list[Columns] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece["offset"])
        while num_held >= size:
            joined = {name: np.concatenate([one[name] for one in held]) for name in SAMPLES.names}
            yield {name: column[:size] for name, column in joined.items()}
            held = [{name: column[size:] for name, column in joined.items()}]
            num_held -= size
    if num_held:
        yield {name: np.concatenate([one[name] for one in held]) for name in SAMPLES.names}


def _build(folder: str, root: Path, manifest_hash: str) -> None:
    """Build under a name of our own, once what killed builds left is swept away."""
    for left in root.glob(".building_*"):
        owner = left.name.split("_")[1]
        if owner == manifest_hash or not (lease := root / f".builder_{owner}").exists() or _is_dead(lease):
            shutil.rmtree(left, ignore_errors=True)
    building = root / f".building_{manifest_hash}_{secrets.token_hex(8)}"
    facts, rows = manifest_facts(folder), read_manifest(folder)
    if facts["manifest_hash"] != manifest_hash:
        raise InputError(
            f"{folder} has changed: this run is pinned to manifest {manifest_hash}, whose index is not in {root}; "
            "restore the index, or start a new run"
        )
    if not sum(row["num_samples"] for row in rows):
        raise InputError(f"{folder} has no samples; see its failures folder and stats.json")
    try:
        write_index(
            building,
            [(row["shard"], row["num_samples"]) for row in rows],
            _samples_of(folder, rows),
            subtitle_from=facts["subtitle_from"],
            caption_from=facts["caption_from"],
        )
        building.rename(root / manifest_hash)
    except OSError as error:
        # Where this process stood still for long, another took the lease over, and this folder away.
        if not (root / manifest_hash).is_dir() and building.is_dir():
            raise InputError(f"cannot write the index {building}: {error.strerror}; set data.index_folder") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _samples_of(folder: str, rows: list[dict[str, Any]]) -> Iterator[Columns]:
    """The columns of run after run of sidecars; many runs are shared out among processes."""
    runs = [rows[start : start + _RUN] for start in range(0, len(rows), _RUN)]
    num_workers = min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
    num_workers = num_workers if num_workers > 1 and len(runs) > 4 * num_workers else 0
    said, num_shards = time.monotonic(), 0
    load = _Sidecars(folder)
    found = run_workers(load, runs, num_workers=num_workers, prefetch=2)
    try:
        for run, columns in zip(runs, found, strict=True):
            if isinstance(columns, PipelineError):
                raise columns
            yield columns
            num_shards += len(run)
            if time.monotonic() - said > _REPORT_S:
                said = time.monotonic()
                logger.info(f"builds the index of {folder}: {num_shards:,} of {len(rows):,} shards")
    except WorkerDied:
        raise RunError(
            f"a process that builds the index of {folder} was killed, most often for memory; run the command again"
        ) from None
    finally:
        found.close()


class _Sidecars:
    """Map a run of manifest rows to their samples' columns, or to the error that they have."""

    def __init__(self, folder: str) -> None:
        self._where = folder
        self._folder: Folder = open_folder(folder)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Columns | PipelineError:
        try:
            with ThreadPoolExecutor(len(rows)) as readers:
                contents = readers.map(self._folder.read_file, [f"{row['shard']}.parquet" for row in rows])
                pieces = [self._columns(row, content) for row, content in zip(rows, contents, strict=True)]
        except PipelineError as error:
            return error
        except FileNotFoundError as error:
            return InputError(f"{error.filename or error} is missing; write the manifest of {self._where} again")
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in SAMPLES.names}

    def _columns(self, row: dict[str, Any], content: bytes) -> Columns:
        name = f"{self._where}/{row['shard']}.parquet"
        if hashlib.sha256(content).hexdigest() != row["sidecar_sha256"]:
            raise InputError(f"{name} is not the file that the manifest names; write the manifest again")
        table = sidecar_columns(content, name, ["key", "video_id", "offset", "size"])
        sizes = table.column("size").to_numpy()
        if len(sizes) and not 0 < sizes.min() <= sizes.max() < 2**32:
            raise InputError(
                f"{name} states samples of {sizes.min()} to {sizes.max()} bytes; 1 to 2^32 - 1 have a place"
            )
        if table.num_rows != row["num_samples"]:
            raise InputError(
                f"{name} has {table.num_rows} rows, the manifest says {row['num_samples']}; write the manifest again"
            )
        videos = table.column("video_id").combine_chunks().dictionary_encode()
        hashes = np.array([name_hash(video or "") for video in videos.dictionary.to_pylist()], dtype=np.uint64)
        numbers = videos.indices.fill_null(len(hashes)).to_numpy(zero_copy_only=False)
        return {
            "offset": table.column("offset").to_numpy(),
            "size": table.column("size").to_numpy().astype(np.uint32),
            "key_hash": np.array([name_hash(key) for key in table.column("key").to_pylist()], dtype=np.uint64),
            "video_hash": np.append(hashes, np.uint64(name_hash("")))[numbers],
        }


def _take(lease: Path) -> bool:
    """Take the lease if it is free, or if its holder shows no sign of life."""
    try:
        lease.parent.mkdir(parents=True, exist_ok=True)
        if _is_dead(lease):
            # Of all that find it dead, one can rename it.
            gone = lease.with_name(f"{lease.name}.{secrets.token_hex(8)}")
            with suppress(FileNotFoundError):
                lease.rename(gone)
            gone.unlink(missing_ok=True)
        with suppress(FileExistsError), open(lease, "x") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            return True
    except OSError as error:
        raise InputError(
            f"cannot write the index folder {lease.parent}: {error.strerror}; set data.index_folder"
        ) from None
    return False


@contextlib.contextmanager
def _renewed(lease: Path) -> Iterator[None]:
    """Inside, the lease is renewed; then it is given back."""
    stopped = threading.Event()

    def renew() -> None:
        while not stopped.wait(_LEASE_RENEWED_S):
            with suppress(OSError):
                os.utime(lease)

    thread = threading.Thread(target=renew, daemon=True, name="index lease")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        lease.unlink(missing_ok=True)


def _is_dead(lease: Path) -> bool:
    """Whether nobody has renewed it for long, or its holder was on this machine and is no more."""
    words = _holder(lease).split()
    if len(words) == 4 and words[3] == socket.gethostname():
        return not psutil.pid_exists(int(words[1]))
    with suppress(FileNotFoundError):
        if abs(time.time() - lease.stat().st_mtime) < _LEASE_DEAD_S / 2:
            return False  # all who wait ask this: no files are made for the answer as long as it is plain
    # The age by the file system's own clock, which every node shares.
    clock = lease.with_name(f"{lease.name}.{secrets.token_hex(8)}")
    try:
        clock.touch()
        return clock.stat().st_mtime - lease.stat().st_mtime > _LEASE_DEAD_S
    except FileNotFoundError:
        return False
    finally:
        clock.unlink(missing_ok=True)


def _holder(lease: Path) -> str:
    try:
        return lease.read_text()
    except FileNotFoundError:
        return "another process"
