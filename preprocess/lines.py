"""Streams of lines and tables from files as they come: plain, .gz, .zst; stray bytes; lines without end.

for line in read_lines(path, max_bytes=2**26):   # Line(number, data), data None where the line is too long
for row in read_rows(path, max_bytes=2**26):     # JSONL, a JSON list, CSV, TSV or Parquet as dicts

A table is what its name says, in UTF-8; where its first bytes say otherwise, the error names what it is. Bytes that are
no UTF-8 inside an otherwise sound file become U+FFFD, and one line on stderr says in how many lines.
"""

import codecs
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.errors import DISK_TROUBLE, InputError
from pipeline.text_files import HEAD_BYTES, not_utf8_text
from preprocess.csv_rows import BadRow, csv_rows

__all__ = ["TABLE_SUFFIXES", "BadRow", "Line", "open_bytes", "parse_object", "read_lines", "read_rows", "table_kind"]

TABLE_SUFFIXES = frozenset((".jsonl", ".json", ".csv", ".tsv", ".parquet"))
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
_CHUNK = 1 << 20
_PACKED_CHUNK = 1 << 12
"""4 kB of zstd unpack to 128 MB at the very most."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its end; `data` is None where it is longer than allowed."""

    number: int
    data: bytes | None


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """`path` as a binary stream, decompressed by its suffix, without a byte order mark; a file of \\r alone has \\n.

    A missing, damaged or cut file, and one that is no UTF-8 text, is an `InputError`.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115 -- closed below, with what wraps it
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            raise
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    try:
        with raw:
            head = raw.peek(HEAD_BYTES)
            packing = path.suffix.lower()
            if (magic := _MAGIC.get(packing)) and head and not head.startswith(magic):
                what = not_utf8_text(head) or "is not compressed, whatever its name says"
                raise InputError(f"{path} {what}; give it the name of what it is")
            if packing == ".gz":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield _text_stream(io.BufferedReader(unpacked, _CHUNK), path)
            elif packing == ".zst":
                yield _text_stream(io.BufferedReader(_ZstdFrames(raw), _CHUNK), path)
            else:
                yield _text_stream(raw, path)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}); download it again") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None  # reading names no file


def _text_stream(stream: io.BufferedReader, path: Path) -> BinaryIO:
    head = stream.peek(HEAD_BYTES)
    if complaint := not_utf8_text(head):
        raise InputError(f"{path} {complaint}")
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    if b"\r" in head and b"\n" not in head and b"\r\n" not in stream.peek(_CHUNK):
        return cast(BinaryIO, io.BufferedReader(_Newlines(cast(BinaryIO, stream)), _CHUNK))
    return cast(BinaryIO, stream)


class _Newlines(io.RawIOBase):
    """A stream whose lines end in \\r alone, with \\n in its place."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self._stream.read(len(target)).replace(b"\r", b"\n")
        target[: len(data)] = data
        return len(data)


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
        while data := stream.readline(max_bytes + 1):
            number += 1
            if _is_cut(data, max_bytes):
                _skip_rest(stream)
                yield Line(number, None)
            elif data := data.strip():
                yield Line(number, data)


def _is_cut(data: bytes, max_bytes: int) -> bool:
    return len(data) > max_bytes and not data.endswith(b"\n")


def _skip_rest(stream: BinaryIO) -> None:
    while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
        pass


class _Decoder:
    """Lines of bytes to text; counts the lines with bytes that are no UTF-8, which become U+FFFD."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_lines = self._first = 0

    def lines(self, stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, str | None]]:
        """(line number from 1, line with its end); None for a line over `max_bytes`."""
        number = 0
        while data := stream.readline(max_bytes + 1):
            number += 1
            if _is_cut(data, max_bytes):
                _skip_rest(stream)
                yield number, None
                continue
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                text = self.replaced(number, data)
            yield number, text

    def replaced(self, number: int, data: bytes) -> str:
        """A line with bytes that are no UTF-8, which it counts."""
        self._num_lines += 1
        self._first = self._first or number
        return data.decode("utf-8", "replace")

    def report(self) -> None:
        """One line on stderr, where there is anything to say."""
        if self._num_lines:
            print(
                f"{self._path}: {self._num_lines:,} lines hold bytes that are no UTF-8, read as U+FFFD, first line "
                f"{self._first:,}; where they are in another encoding, save the file as UTF-8",
                file=sys.stderr,
                flush=True,
            )


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object. Raises ValueError for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        if not text.startswith("\ufeff"):
            raise
        value = json.loads(text[1:])  # files that were joined keep their marks
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def table_kind(path: Path) -> str:
    """jsonl, json, csv, tsv or parquet, by the name without .gz and .zst."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _MAGIC]
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
        decoder = _Decoder(path)
        with open_bytes(path) as stream:
            lines = decoder.lines(stream, max_bytes)
            for row in csv_rows(lines, path, "\t" if kind == "tsv" else ",", max_bytes):
                yield row if isinstance(row, BadRow) else row[1]
        decoder.report()
    elif kind == "json":
        yield from _json_list_rows(path, max_bytes)
    else:
        yield from _json_line_rows(path, max_bytes)


def _json_line_rows(path: Path, max_bytes: int) -> Iterator[dict[str, Any] | BadRow]:
    decoder = _Decoder(path)
    for line in read_lines(path, max_bytes):
        if line.data is None:
            yield BadRow(f"{path.name}:{line.number}", f"line is longer than {max_bytes} bytes")
            continue
        try:
            text = line.data.decode("utf-8")
        except UnicodeDecodeError:
            text = decoder.replaced(line.number, line.data)
        try:
            yield parse_object(text)
        except (ValueError, RecursionError) as error:
            yield BadRow(f"{path.name}:{line.number}", f"not a JSON object: {error}")
    decoder.report()


def _parquet_rows(path: Path) -> Iterator[dict[str, Any] | BadRow]:
    number = 0
    try:
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
        if not head.startswith(b"PAR1"):
            raise InputError(f"{path} {not_utf8_text(head) or 'is not Parquet, whatever its name says'}")
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=4096):
                yield from _parquet_batch(batch, path, number)
                number += batch.num_rows
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            raise
        problem = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InputError(f"cannot read {path} as Parquet: {problem}; download it again") from None


def _parquet_batch(batch: pa.RecordBatch, path: Path, before: int) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch. Binary columns, as some writers store text, are read as UTF-8; of times a microsecond is
    the finest part, and a row that Python cannot hold (a time of year 10,000) is a bad one."""
    columns = [_plain_column(batch.column(index)) for index in range(batch.num_columns)]
    plain = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    try:
        yield from plain.to_pylist()
    except (ValueError, OverflowError):
        for index in range(plain.num_rows):
            try:
                yield plain.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield BadRow(f"{path.name}: row {before + index + 1}", str(error))


def _plain_column(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain_column(column.dictionary_decode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        texts = [None if value is None else value.decode("utf-8", "replace") for value in column.to_pylist()]
        return pa.array(texts, type=pa.large_string())
    if getattr(kind, "unit", "") == "ns":  # Python's times have microseconds
        coarse = {"time64": pa.time64("us"), "duration": pa.duration("us")}
        name = str(kind).partition("[")[0]
        return column.cast(coarse.get(name, pa.timestamp("us", getattr(kind, "tz", None))), safe=False)
    return column


class _Text:
    """Text of a file, chunk by chunk; counts the bytes that are no UTF-8, which become U+FFFD."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape")
        self._path = path
        self._num_bytes = 0

    def read(self) -> str:
        chunk = self._text.read(_CHUNK)
        if chunk.isascii():
            return chunk
        chunk, count = _STRAY.subn("\ufffd", chunk)
        self._num_bytes += count
        return chunk

    def report(self) -> None:
        """One line on stderr, where there is anything to say."""
        if self._num_bytes:
            print(
                f"{self._path}: {self._num_bytes:,} bytes are no UTF-8 and were read as U+FFFD; where they are in "
                "another encoding, save the file as UTF-8",
                file=sys.stderr,
                flush=True,
            )


_STRAY = re.compile(r"[\udc80-\udcff]")
"""A byte that is no UTF-8, as `surrogateescape` hands it out."""
_BETWEEN = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*")


def _json_list_rows(path: Path, max_bytes: int) -> Iterator[dict[str, Any]]:
    """The objects of one JSON array, read piece by piece: the published caption lists have tens of millions.

    There is no line to start again from: whatever else the list holds is an `InputError`.
    """
    decoder = json.JSONDecoder()
    with open_bytes(path) as stream:
        text = _Text(stream, path)
        buffer, place, number = "", 1, 0
        while not buffer and (more := text.read()):
            buffer = more.lstrip()
        if not buffer.startswith("["):
            raise InputError(f"{path} is not a JSON list; use .jsonl for one object a line")
        while True:
            between = _BETWEEN.match(buffer, place)
            assert between is not None
            start = between.end()
            if buffer.startswith("]", start) and not between[1]:
                text.report()
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
            elif more := text.read():
                buffer, place = buffer[place:] + more, 0
                continue
            raise InputError(f"{path}: element {number} {problem}; download the file again")
