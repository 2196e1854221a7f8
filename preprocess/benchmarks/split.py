"""`Split`: one part of a retrieval set, as its annotation files have it. What every converter produces.

splits = read_msrvtt(folder)  ->  [Split("train_9k", "train", entries, ...), Split("test_1ka", "test", ...)]
"""

import codecs
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.text_files import HEAD_BYTES, lines_of, not_utf8_text
from preprocess.csv_rows import BadRow, csv_rows
from preprocess.table_guess import guess_table, shown

Role = Literal["train", "val", "test"]
_MAX_FIELD_CHARS = 1 << 24


@dataclass(frozen=True)
class Entry:
    """One video with its texts."""

    clip_id: str
    file: str
    """The video file without its suffix: a path below the video folder, or its name alone."""
    texts: tuple[str, ...]
    end_s: float | None = None
    """Use the video up to here only."""
    suffix: str = dataclass_field(default="", compare=False)
    """The suffix that the list names, where there is one; a file with it comes first."""


@dataclass(frozen=True)
class Published:
    """A count that the data set's publications state."""

    counts: tuple[int, ...]
    """Any of these is right: sources differ."""
    tolerance: int = 0
    """For counts that are published rounded."""

    def allows(self, count: int) -> bool:
        """Whether `count` is a published one."""
        return any(abs(count - stated) <= self.tolerance for stated in self.counts)

    def __str__(self) -> str:
        stated = " or ".join(f"{count:,}" for count in self.counts)
        return f"about {stated}" if self.tolerance else stated


@dataclass(frozen=True)
class Split:
    """One part of a set and what is published about it."""

    name: str
    role: Role
    entries: tuple[Entry, ...]
    videos: Published | None = None
    texts: Published | None = None
    distinct_texts: Published | None = None
    notes: tuple[str, ...] = ()
    """What the reader left out or changed, for the report."""


def read_json(path: Path) -> Any:
    """A whole JSON file; `InputError` where it is missing or broken."""
    try:
        return json.loads(_read_text_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not valid JSON: {error}; download it again") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of a text file, blank ones included. A byte that is not UTF-8 makes its line
    Windows-1252."""
    for number, line in enumerate(lines_of(_read_text_bytes(path)), start=1):
        yield number, _decode(line).strip("\ufeff")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without blank ones."""
    return [text for _, text in numbered_lines(path) if text.strip()]


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header that holds `columns`."""
    return (row for _, row in numbered_csv(path, columns))


def numbered_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV or TSV file with a header that holds `columns`."""

    def check_header(names: list[str]) -> None:
        if lacking := [name for name in columns if name not in names]:
            guess = guess_table(path, columns, names) or "is it the published file?"
            raise InputError(f"{path}: the header has no {', '.join(lacking)}; it is {shown(names)}; {guess}")

    lines = ((number, f"{line}\n") for number, line in numbered_lines(path))  # a quoted field may span lines
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    num_rows = 0
    for row in csv_rows(lines, path, delimiter, _MAX_FIELD_CHARS, check_header):
        if isinstance(row, BadRow):
            problem = {  # a comma of the text would cut it there
                "more": " has more fields than the header; put texts with commas into quotes",
                "fewer": " has fewer fields than the header; download it again",
            }.get(row.num_fields_is, f": {row.problem}")
            raise InputError(f"{path.parent / row.where}{problem}")
        num_rows += 1
        yield row
    if not num_rows:
        raise InputError(f"{path} holds no row below a header; is it the published file?")


def same_name(name: str) -> str:
    """The form of a name that is the same in all lists: macOS hands out file names decomposed, others composed."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def field(row: Any, name: str, kind: type, where: str) -> Any:
    """`row[name]` of type `kind`, or an `InputError` that says where."""
    if not isinstance(row, dict) or name not in row:
        raise InputError(f"{where}: no {name!r}; is this the published file?")
    if not isinstance(row[name], kind):
        raise InputError(f"{where}: {name} must be a {kind.__name__}, but is {row[name]!r}")
    return row[name]


def clean(text: str) -> str:
    """A caption with single spaces and no blank ends."""
    return " ".join(text.split())


def paragraph(sentences: list[str]) -> str:
    """Sentences joined by a space, as the paragraph protocols say."""
    return " ".join(filter(None, map(clean, sentences)))


def _read_text_bytes(path: Path) -> bytes:
    """The bytes of a text file, without a byte order mark; `InputError` where it is missing or no text in UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; put the published file there") from None
    if complaint := not_utf8_text(data[:HEAD_BYTES]):
        raise InputError(f"{path} {complaint}")
    return data.removeprefix(codecs.BOM_UTF8)


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")
