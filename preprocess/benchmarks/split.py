"""`Split`: one part of a retrieval set, as its annotation files have it. What every converter produces.

splits = read_msrvtt(folder)  ->  [Split("train_9k", "train", entries, ...), Split("test_1ka", "test", ...)]
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError

Role = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Entry:
    """One video with its texts."""

    clip_id: str
    file: str
    """The video file without its suffix: a path below the video folder, or its name alone."""
    texts: tuple[str, ...]
    end_s: float | None = None
    """Use the video up to here only."""


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
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; put the published file there") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}; download it again") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without blank ones. A byte that is not UTF-8 makes its line Windows-1252."""
    try:
        raw = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; put the published file there") from None
    return [text for line in raw if (text := _decode(line).strip("\r\n\ufeff")).strip()]


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header that holds `columns`."""
    reader: csv.DictReader[str] = csv.DictReader(
        f"{line}\n" for line in read_lines(path)
    )  # a quoted field may span lines
    lacking = [name for name in columns if name not in (reader.fieldnames or ())]
    if lacking:
        raise InputError(
            f"{path}: the header has no {', '.join(lacking)}; it is {reader.fieldnames}; is it the published file?"
        )
    for number, row in enumerate(reader, start=2):
        if any(row[name] is None for name in columns):
            raise InputError(f"{path}:{number} has fewer fields than the header; download it again")
        if None in row:  # a comma of the text would cut it there
            raise InputError(f"{path}:{number} has more fields than the header; put texts with commas into quotes")
        yield row


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


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")
