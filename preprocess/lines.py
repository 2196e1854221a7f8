"""Streams of lines and tables from files as they come: plain, .gz, .zst; stray bytes; lines without end.

for line in read_lines(path, max_bytes=2**26):   # Line(number, data), data None where the line is too long
for row in read_rows(path, max_bytes=2**26):     # JSONL, a JSON list, CSV, TSV or Parquet as dicts
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq
import zstandard

from pipeline.errors import DISK_TROUBLE, InputError

TABLE_SUFFIXES = frozenset((".jsonl", ".json", ".csv", ".tsv", ".parquet"))
_CHUNK = 1 << 20
_PACKED_CHUNK = 1 << 12
"""4 kB of zstd unpack to 128 MB at the very most."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its end; `data` is None where it is longer than allowed."""

    number: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A place in a file that gives no row."""

    where: str
    problem: str


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """`path` as a binary stream, decompressed by its suffix, without a byte order mark.

    A missing, damaged or cut file is an `InputError`.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115 -- closed below, with what wraps it
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            raise
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    try:
        with raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield _after_mark(io.BufferedReader(unpacked, _CHUNK))
            elif path.suffix == ".zst":
                yield _after_mark(io.BufferedReader(_ZstdFrames(raw), _CHUNK))
            else:
                yield _after_mark(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}); download it again") from None


def _after_mark(stream: io.BufferedReader) -> BinaryIO:
    if stream.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    return cast(BinaryIO, stream)


class _ZstdFrames(io.RawIOBase):
    """What a row of zstd frames unpacks to. zstandard's own reader takes a frame that is cut short for its end."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready and (data := self._packed.read(_PACKED_CHUNK)):
            self._ready = self._unpack(data)
        if not self._ready and self._frame is not None:
            raise EOFError("the last zstd frame has no end")
        count = min(len(target), len(self._ready))
        target[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self, data: bytes) -> bytes:
        parts = []
        while data:
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            parts.append(self._frame.decompress(data))
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        return b"".join(parts)


def read_lines(path: Path, max_bytes: int) -> Iterator[Line]:
    """The non-empty lines of `path`; one that is over `max_bytes` is skipped without ever being held in memory."""
    number = 0
    with open_bytes(path) as stream:
        while True:
            data = stream.readline(max_bytes + 1)
            if not data:
                return
            number += 1
            if len(data) > max_bytes and not data.endswith(b"\n"):
                while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
                    pass
                yield Line(number, None)
            elif data.strip():
                yield Line(number, data.strip())


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object; bytes that are not UTF-8 become U+FFFD. Raises ValueError for anything else."""
    value = json.loads(data.decode("utf-8", "replace"))
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def table_kind(path: Path) -> str:
    """jsonl, json, csv, tsv or parquet, by the name without .gz and .zst."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1].removeprefix(".") if suffixes else ""
    if f".{kind}" not in TABLE_SUFFIXES:
        raise InputError(f"{path} is no .jsonl, .json, .csv, .tsv or .parquet file (plain, .gz or .zst)")
    return kind


def read_rows(path: Path, max_bytes: int) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a table of any kind, in file order, in bounded memory."""
    kind = table_kind(path)
    if kind == "parquet":
        yield from _parquet_rows(path)
    elif kind in ("csv", "tsv"):
        yield from _csv_rows(path, "\t" if kind == "tsv" else ",", max_bytes)
    elif kind == "json":
        yield from _json_list_rows(path, max_bytes)
    else:
        for line in read_lines(path, max_bytes):
            where = f"{path.name}:{line.number}"
            if line.data is None:
                yield BadRow(where, f"line is longer than {max_bytes} bytes")
                continue
            try:
                yield parse_object(line.data)
            except (ValueError, RecursionError) as error:
                yield BadRow(where, f"not a JSON object: {error}")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            raise
        raise InputError(f"cannot read {path} as Parquet: {error}") from None


def _csv_rows(path: Path, delimiter: str, max_bytes: int) -> Iterator[dict[str, Any] | BadRow]:
    csv.field_size_limit(max_bytes)
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        reader = csv.reader(text, delimiter=delimiter)
        names: list[str] = []
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(f"{path.name}:{reader.line_num}", str(error))
                continue
            if not fields:
                continue
            if not names:
                names = fields
            elif len(fields) == len(names):
                yield dict(zip(names, fields, strict=True))
            else:
                problem = f"{len(fields)} fields under a header of {len(names)}; a text with a comma needs quotes"
                yield BadRow(f"{path.name}:{reader.line_num}", problem)


_BETWEEN = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*")


def _json_list_rows(path: Path, max_bytes: int) -> Iterator[dict[str, Any]]:
    """The objects of one JSON array, read piece by piece: the published caption lists have tens of millions.

    There is no line to start again from: whatever else the list holds is an `InputError`.
    """
    decoder = json.JSONDecoder()
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace")
        buffer, place, number = "", 1, 0
        while not buffer and (more := text.read(_CHUNK)):
            buffer = more.lstrip()
        if not buffer.startswith("["):
            raise InputError(f"{path} is not a JSON list; use .jsonl for one object a line")
        while True:
            between = _BETWEEN.match(buffer, place)
            assert between is not None
            start = between.end()
            if buffer.startswith("]", start) and not between[1]:
                return
            if start < len(buffer) and (buffer[start] != "{" or (between[1] == ",") != (number > 0)):
                raise InputError(
                    f"{path}: element {number} is no object after a comma; the list must hold objects only"
                )
            try:
                value, end = decoder.raw_decode(buffer, start)
            except (ValueError, RecursionError) as error:
                value, end, problem = None, len(buffer), f"is damaged or does not end ({error})"
            if end - start > max_bytes:
                problem = f"does not end within {max_bytes} bytes"
            elif value is not None:
                number, place = number + 1, end
                yield value
                continue
            elif more := text.read(_CHUNK):
                buffer, place = buffer[place:] + more, 0
                continue
            raise InputError(f"{path}: element {number} {problem}; download the file again")
