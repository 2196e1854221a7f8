"""Rows of CSV text, where nothing is lost in silence: a quote that never closes is an error that names its line.

for row in csv_rows(numbered_lines, path, ",", max_bytes): ...       # (line number, dict) | BadRow

Python's csv module takes all that follows an opening quote for one field, up to the next quote or the end of the file:
one stray quote swallows the rows behind it.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_AFTER_RETURN = re.compile(r"(?<=\r)(?!\n)")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A place in a file that gives no row."""

    where: str
    problem: str
    num_fields_is: Literal["", "more", "fewer"] = ""
    """Than the header has, in CSV."""


def csv_rows(
    lines: Iterable[tuple[int, str | None]],
    path: Path,
    delimiter: str,
    max_bytes: int,
    check_header: Callable[[list[str]], None] = lambda names: None,
) -> Iterator[tuple[int, dict[str, str]] | BadRow]:
    """(line number, row) under the names of the first row; blank rows are passed over.

    `lines` are (number from 1, line with its end), None for one that is too long. Raises `InputError` for a quote that
    swallows lines and for a header that names a column twice; `check_header` may raise one of its own.
    """
    csv.field_size_limit(max_bytes)
    feed = _Feed()
    reader = csv.reader(feed.pieces(lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        feed.first = 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if feed.last > feed.first or "unexpected end of data" in str(error):
                raise _swallowing(path, feed, str(error)) from None
            yield BadRow(f"{path.name}:{feed.first}", str(error))
            continue
        if feed.is_cut:
            feed.is_cut = False
            yield BadRow(f"{path.name}:{feed.first}", f"line is longer than {max_bytes} bytes")
        elif names and len(fields) == len(names) and (fields[0].strip() or _says_anything(fields)):
            yield feed.first, dict(zip(names, fields, strict=True))
        elif not _says_anything(fields):
            continue
        elif not names:
            names = _header(fields, path)
            check_header(names)
        elif feed.last > feed.first:
            raise _swallowing(path, feed, f"{len(fields)} fields under a header of {len(names)}")
        else:
            problem = f"{len(fields)} fields under a header of {len(names)}; a text with a comma needs quotes"
            yield BadRow(f"{path.name}:{feed.first}", problem, "more" if len(fields) > len(names) else "fewer")


class _Feed:
    """Hands lines to csv.reader, and knows on which ones the present row lies."""

    def __init__(self) -> None:
        self.first = self.last = 0
        """Numbers of its lines; `first` is to be set to 0 before a row."""
        self.is_cut = False
        """One of them was too long."""

    def pieces(self, lines: Iterable[tuple[int, str | None]]) -> Iterator[str]:
        """A carriage return alone ends a line too, as in files of old spreadsheets."""
        for number, line in lines:
            self.last = number
            if not self.first:
                self.first = number
            if line is None:
                self.is_cut = True
                yield "\n"
            elif "\r" not in line or line.count("\r") == line.endswith("\r\n"):
                yield line
            else:
                for piece in _AFTER_RETURN.split(line):
                    self.first = self.first or number
                    yield piece


def _says_anything(fields: list[str]) -> bool:
    return any(field.strip() for field in fields)


def _header(fields: list[str], path: Path) -> list[str]:
    names = [field.strip().strip("\ufeff") for field in fields]
    twice = next((name for name in names if name and names.count(name) > 1), "")
    if twice:
        raise InputError(f"{path}: the header names {twice!r} twice; rename one of them")
    return names


def _swallowing(path: Path, feed: _Feed, problem: str) -> InputError:
    return InputError(
        f"{path}:{feed.first}: a quote opens in this line and takes the lines up to {feed.last} into its row "
        f'({problem}); close it, or write a quote that belongs to a text as "" inside quotes'
    )
