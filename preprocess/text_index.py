"""An index over texts by clip id that is built once, in bounded memory, and read by any number of processes.

    rows (clip id, text) -> texts.bin  (id NUL text, one after the other)
                         -> hashes.npy [n] hash of the id, sorted; places.npy [n, 2] offset and length: memory-mapped

    build_index(rows, folder)
    index = TextIndex(folder);  index.get("QMi8x8o55Ns.1.mp4")     # str | None

100 M subtitles take 20 bytes each in the index plus their own length on disk, and next to nothing in private memory.
"""

import errno
import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from preprocess.publish import sole_writer, temporary_path

ENTRY = np.dtype([("hash", "<u8"), ("offset", "<u8"), ("length", "<u4")])
_NUM_BUCKETS = 64
_ROWS_PER_FLUSH = 1 << 16


def build_index(rows: Iterable[tuple[str, str]], folder: Path) -> int:
    """Write the index of `rows` below `folder`, atomically; the first text of an id wins. Returns how many rows repeat
    an id."""
    fresh = temporary_path(folder)
    fresh.mkdir(parents=True)
    try:
        count = _write_texts(rows, fresh)
        num_repeated = _concatenate(fresh, count)
        try:
            fresh.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else another node, whose locks are not ours, has made the same
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return num_repeated


def index_folder(path: Path, output: Path, kind: str) -> Path:
    """Where the index of a table lies in the set `output`; another content gets another folder."""
    facts = path.stat()
    text = f"{path.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"
    return output / "plan" / kind / f"{path.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def build_index_once(rows: Iterable[tuple[str, str]], folder: Path) -> int:
    """Build the index in `folder` where there is none; other tasks wait, ten gigabytes of texts are indexed once.

    Returns how many rows repeat an id, 0 where the index was there."""
    if folder.exists():
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder.parent, folder.name):
        return 0 if folder.exists() else build_index(rows, folder)


def _write_texts(rows: Iterable[tuple[str, str]], folder: Path) -> int:
    buckets: list[list[tuple[int, int, int]]] = [[] for _ in range(_NUM_BUCKETS)]
    count = 0
    with open(folder / "texts.bin", "wb") as stream:
        offset = stream.write(b"\0")  # an empty file cannot be memory-mapped
        for clip_id, text in rows:
            data = clip_id.encode("utf-8", "replace") + b"\0" + text.encode("utf-8", "replace")
            stream.write(data)
            number = id_hash(clip_id)
            bucket = buckets[number >> 58]
            bucket.append((number, offset, len(data)))
            offset += len(data)
            count += 1
            if len(bucket) >= _ROWS_PER_FLUSH:
                _spill(folder, number >> 58, bucket)
    for number, bucket in enumerate(buckets):
        if bucket:
            _spill(folder, number, bucket)
    return count


def _spill(folder: Path, number: int, bucket: list[tuple[int, int, int]]) -> None:
    with open(folder / f"bucket_{number:02d}", "ab") as stream:
        stream.write(np.array(bucket, dtype=ENTRY).tobytes())
    bucket.clear()


def _concatenate(folder: Path, count: int) -> int:
    """Sort the buckets into one index; returns how many of its hashes repeat the one before."""
    # An empty array cannot be memory-mapped: one row that no hash leads to.
    hashes = np.lib.format.open_memmap(folder / "hashes.npy", mode="w+", dtype="<u8", shape=(max(1, count),))
    places = np.lib.format.open_memmap(folder / "places.npy", mode="w+", dtype="<u8", shape=(max(1, count), 2))
    position = num_repeated = 0
    for number in range(_NUM_BUCKETS):
        path = folder / f"bucket_{number:02d}"
        if not path.exists():
            continue
        entries = np.fromfile(path, dtype=ENTRY)
        entries.sort(order=["hash", "offset"])
        end = position + len(entries)
        hashes[position:end] = entries["hash"]
        places[position:end, 0], places[position:end, 1] = entries["offset"], entries["length"]
        position = end
        num_repeated += int(np.count_nonzero(entries["hash"][1:] == entries["hash"][:-1]))
        path.unlink()
    hashes.flush()
    places.flush()
    return num_repeated


def id_hash(clip_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(clip_id.encode("utf-8", "replace"), digest_size=8).digest(), "big")


class TextIndex:
    """Reads texts by clip id."""

    def __init__(self, folder: Path) -> None:
        self._hashes = np.load(folder / "hashes.npy", mmap_mode="r", allow_pickle=False)
        self._places = np.load(folder / "places.npy", mmap_mode="r", allow_pickle=False)
        self._texts = np.memmap(folder / "texts.bin", dtype=np.uint8, mode="r")

    def spread(self, count: int) -> list[tuple[str, str]]:
        """At most `count` of the (id, text), from all over the index."""
        numbers = np.unique(np.linspace(0, len(self._hashes) - 1, count).round().astype(np.int64))
        entries = [self._entry(int(number)) for number in numbers if self._places[number, 1]]
        return [(found.decode("utf-8", "replace"), text.decode("utf-8", "replace")) for found, text in entries]

    def _entry(self, position: int) -> tuple[bytes, bytes]:
        offset, length = (int(value) for value in self._places[position])
        found, _, text = self._texts[offset : offset + length].tobytes().partition(b"\0")
        return found, text

    def get(self, clip_id: str) -> str | None:
        """The text of `clip_id`, or None."""
        number = np.uint64(id_hash(clip_id))
        position = int(np.searchsorted(self._hashes, number))
        wanted = clip_id.encode("utf-8", "replace")
        while position < len(self._hashes) and self._hashes[position] == number:
            found, text = self._entry(position)
            if found == wanted:
                return text.decode("utf-8", "replace")
            position += 1
        return None
