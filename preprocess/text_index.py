"""An index over texts by clip id that is built once, in bounded memory, and read by any number of processes.

    rows (clip id, text) -> texts.bin  (id NUL text, one after the other)
                         -> hashes.npy [n] hash of the id, sorted; places.npy [n, 2] offset and length: memory-mapped

    build_index(rows, folder)
    index = TextIndex(folder);  index.get("QMi8x8o55Ns.1.mp4")     # str | None

100 M subtitles take 20 bytes each in the index plus their own length on disk, and next to nothing in private memory.
"""

import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from preprocess.publish import sole_writer, temporary_path

ENTRY = np.dtype([("hash", "<u8"), ("offset", "<u8"), ("length", "<u4")])
_NUM_BUCKETS = 64
_ROWS_PER_FLUSH = 1 << 16
_ENTRIES_CHECKED = 64
_SIZES = "sizes.json"


def build_index(rows: Iterable[tuple[str, str]], folder: Path) -> int:
    """Write the index of `rows` below `folder`, atomically; the first text of an id wins. Returns how many rows repeat
    an id."""
    fresh = temporary_path(folder)
    fresh.mkdir(parents=True)
    try:
        count = _write_texts(rows, fresh)
        num_repeated = _concatenate(fresh, count)
        sizes = {path.name: path.stat().st_size for path in sorted(fresh.iterdir())}
        (fresh / _SIZES).write_text(json.dumps(sizes))
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
    """Build the index in `folder` where there is none, or a damaged one; other tasks wait, ten gigabytes of texts are
    indexed once.

    Returns how many rows repeat an id, 0 where the index was there."""
    if is_sound(folder):
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder.parent, folder.name):
        if is_sound(folder):
            return 0
        if folder.exists():
            print(f"{folder} is damaged; it is made anew", file=sys.stderr, flush=True)
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        return build_index(rows, folder)


def is_sound(folder: Path) -> bool:
    """Whether the files of an index fit together, and some of its entries lie where their hashes say."""
    try:
        return TextIndex(folder).is_sound()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, EOFError):
        return False


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
    return _hash(clip_id.encode("utf-8", "replace"))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class TextIndex:
    """Reads texts by clip id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashes = np.load(folder / "hashes.npy", mmap_mode="r", allow_pickle=False)
        self._places = np.load(folder / "places.npy", mmap_mode="r", allow_pickle=False)
        self._texts = np.memmap(folder / "texts.bin", dtype=np.uint8, mode="r")

    def spread(self, count: int) -> list[tuple[str, str]]:
        """At most `count` of the (id, text), from all over the index."""
        numbers = np.unique(np.linspace(0, len(self._hashes) - 1, count).round().astype(np.int64))
        entries = [self._entry(int(number)) for number in numbers if self._places[number, 1]]
        return [(found.decode("utf-8", "replace"), text.decode("utf-8", "replace")) for found, text in entries]

    def is_sound(self) -> bool:
        """Whether the three files fit together; entries are looked at here and there."""
        count = len(self._hashes)
        if self._hashes.dtype != "<u8" or self._places.dtype != "<u8" or self._places.shape != (count, 2) or not count:
            return False
        if (self._folder / _SIZES).exists():  # an index of before has none
            sizes = json.loads((self._folder / _SIZES).read_bytes())
            if any((self._folder / name).stat().st_size != size for name, size in sizes.items()):
                return False
        numbers = np.unique(np.linspace(0, count - 1, _ENTRIES_CHECKED).round().astype(np.int64))
        return all(self._is_entry(int(number)) for number in numbers)

    def _is_entry(self, position: int) -> bool:
        offset, length = (int(value) for value in self._places[position])
        if length == 0:
            return len(self._hashes) == 1  # the one row of an index without texts
        return offset + length <= len(self._texts) and _hash(self._entry(position)[0]) == self._hashes[position]

    def differences(self, other: "TextIndex") -> Iterator[tuple[str, str, str | None]]:
        """(id, text here, text there or None) of the ids of this index that `other` does not give the same text."""
        if np.array_equal(self._texts, other._texts[: len(self._texts)]):
            return  # rows were added behind the others, which stay the first of their ids
        for position in range(len(self._hashes)):
            if self._places[position, 1]:
                found, text = (part.decode("utf-8", "replace") for part in self._entry(position))
                if self.get(found) == text and (there := other.get(found)) != text:
                    yield found, text, there

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
