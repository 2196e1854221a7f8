"""Streams of lines and tables from files as they come: plain, .gz, .zst; stray bytes; lines without end.

for line in read_lines(path, max_bytes=2**26):   # Line(number, data), data None where the line is too long
for row in read_rows(path, max_bytes=2**26):     # JSONL, a JSON list, CSV, TSV or Parquet as dicts

A table is what its name says, in UTF-8; where its first bytes say otherwise, the error names what it is. Bytes that are
no UTF-8 inside an otherwise sound file become U+FFFD, and one line on stderr says in how many lines.
"""

import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import InputError
from preprocess.csv_rows import BadRow, csv_rows
from preprocess.parquet_rows import parquet_rows
from preprocess.text_streams import MAGIC, open_bytes

__all__ = ["TABLE_SUFFIXES", "BadRow", "Line", "open_bytes", "parse_object", "read_lines", "read_rows", "table_kind"]

TABLE_SUFFIXES = frozenset((".jsonl", ".json", ".csv", ".tsv", ".parquet"))
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its end; `data` is None where it is longer than allowed."""

    number: int
    data: bytes | None


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
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in MAGIC]
    kind = suffixes[-1].removeprefix(".") if suffixes else ""
    if f".{kind}" not in TABLE_SUFFIXES:
        raise InputError(f"{path} is no .jsonl, .json, .csv, .tsv or .parquet file (plain, .gz or .zst)")
    return kind


def read_rows(path: Path, max_bytes: int) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a table of any kind, in file order, in bounded memory."""
    kind = table_kind(path)
    if kind == "parquet":
        yield from parquet_rows(path)
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
