"""Text files as people have them: what their bytes are, and their lines without a surprise.

    complaint = not_utf8_text(head)                  # "" or "is UTF-16: save it as UTF-8"
    for number, line in read_text_lines(path): ...   # str without its end, from 1; only \\n, \\r\\n and \\r end a line
    for place, row in read_json_rows(path): ...      # ("queries.jsonl:7", {...})

`str.splitlines` ends a line at U+2028, U+0085 and the control characters \\x0b, \\x0c, \\x1c to \\x1e, which texts
hold as they are: nothing that holds data is cut with it.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

HEAD_BYTES = 512
"""Enough for `not_utf8_text`."""

_FORMS = (
    (b"\x1f\x8b", "is gzip-compressed: end its name in .gz"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed: end its name in .zst"),
    (b"PAR1", "is Parquet: end its name in .parquet"),
    (b"ARROW1", "is an Arrow or Feather file: save it as Parquet or CSV"),
    (b"PK\x03\x04", "is a zip archive or an Excel workbook: unpack it, or save it as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook: save it as CSV in UTF-8"),
    (b"BZh", "is bzip2-compressed: unpack it"),
    (b"\xfd7zXZ\0", "is xz-compressed: unpack it"),
    (b"SQLite format 3\0", "is an SQLite database: export the table as CSV"),
    (b"version https://git-lfs.github.com/spec/", "is a Git LFS pointer and not the file itself: run git lfs pull"),
)
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_SNIFFED_BYTES = 16
"""Tables, lists and subtitle files begin with at least eight ASCII characters: a header, a bracket, a time."""


def text_encoding(head: bytes) -> str:
    """The codec of a text that begins with `head`: by its byte order mark, or by the NULs between its letters."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    sample = head[:_SNIFFED_BYTES]
    even, odd = sample[::2], sample[1::2]
    if len(sample) >= 4 and all(even) and not any(odd):
        return "utf-16-le"
    if len(sample) >= 4 and all(odd) and not any(even):
        return "utf-16-be"
    return "utf-8"


def not_utf8_text(head: bytes) -> str:
    """What a file that begins with `head` is, if it is no UTF-8 text, and what to do; empty where it may be one."""
    for magic, complaint in _FORMS:
        if head.startswith(magic):
            return complaint
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page and not the file that was asked for: download it again"
    encoding = text_encoding(head)
    if not encoding.startswith("utf-8"):
        first_line = re.split(r"[\r\n]", head.decode(encoding, "ignore"), maxsplit=1)[0]
        return f"is {encoding[:6].upper()}: save it as UTF-8 (its first line is {first_line[:200]!r})"
    return ""


def read_text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file, with or without a byte order mark; blank lines are
    passed over. What cannot be read is an `InputError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    if complaint := not_utf8_text(data[:HEAD_BYTES]):
        raise InputError(f"{path} {complaint}")
    for number, line in enumerate(lines_of(data.removeprefix(codecs.BOM_UTF8)), start=1):
        if line.strip():
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number} is no UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); save it as UTF-8"
                ) from None


def lines_of(data: bytes) -> list[bytes]:
    """The lines of `data` without their ends, which are \\n, \\r\\n or \\r."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def read_json_rows(path: Path, columns: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of a JSON-lines file; blank lines are passed over. Raises `InputError`, which names the
    `columns` that a row should have."""
    advice = f"; write a row {columns} per line" if columns else "; write one object per line"
    for number, line in read_text_lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line.removeprefix("\ufeff"))  # files that were joined keep their marks
        except (ValueError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{where} is {'no row and ' if columns else ''}not JSON: {problem}{advice}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object{advice}")
        yield where, row
