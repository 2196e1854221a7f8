"""What a table that cannot be read looks like: the nearest guess, for the error message.

guess = guess_table(path, wanted=("video_id", "start"))     # "it looks ;-separated: save it with commas"; empty: none
"""

import csv
import difflib
import json
import re
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.data.format import VIDEO_EXTENSIONS
from pipeline.errors import InputError
from preprocess.csv_rows import DELIMITERS, BadRow
from preprocess.lines import read_lines, read_rows, table_kind

_MAX_LINE_BYTES = 1 << 20
_NUMBER_OR_CLOCK = re.compile(r"-?[0-9]+([:.,][0-9]+)*")


def guess_table(path: Path, wanted: Collection[str], columns: Collection[str] = ()) -> str:
    """Why none of the `wanted` columns was found in a table whose columns were taken for `columns`, in a few words."""
    kind = _kind(path)
    if kind == "parquet":
        return _other_names(wanted, columns)
    first = _first_line(path)
    if kind == "json":
        return ""
    if kind == "jsonl":
        return _guess_json_lines(first) or _other_names(wanted, columns)
    delimiter = "\t" if kind == "tsv" else ","
    return _guess_csv(first, delimiter) or _other_names(wanted, columns) or _guess_headerless(first, delimiter)


def _kind(path: Path) -> str:
    """That of the name, and JSON lines for any other."""
    try:
        return table_kind(path)
    except InputError:
        return "jsonl"


def columns_of(path: Path, max_line_bytes: int) -> list[str]:
    """The columns of a table: of its header, its schema, or its first row that can be read."""
    kind = table_kind(path)
    if kind in ("csv", "tsv"):
        first, delimiter = _first_line(path), "\t" if kind == "tsv" else ","
        try:
            fields = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error:
            fields = first.split(delimiter)
        return [field.strip() for field in fields]
    return next((list(row) for row in read_rows(path, max_line_bytes) if not isinstance(row, BadRow)), [])


def shown(columns: Collection[str]) -> str:
    """Column names for a message, at most 20."""
    more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    return ", ".join(repr(str(name))[:60] for name in islice(columns, 20)) + more


def _first_line(path: Path) -> str:
    for line in read_lines(path, _MAX_LINE_BYTES):
        return (line.data or b"").decode("utf-8", "replace")
    return ""


def _guess_json_lines(first: str) -> str:
    if first.startswith("["):
        return "it looks like one JSON list: end its name in .json"
    if _is_object(first):
        return ""
    if first.startswith("{"):
        return "it looks like JSON over several lines: write one object a line"
    for delimiter, name in DELIMITERS.items():
        if delimiter in first:
            ending = {",": "in .csv", "\t": "in .tsv"}.get(delimiter, "in .csv, with commas between the fields")
            return f"it looks like fields between {name}: end its name {ending}"
    return ""


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _guess_csv(first: str, delimiter: str) -> str:
    if first.startswith(("{", "[")) and '"' in first:
        return f"it looks like JSON: end its name in {'.jsonl' if _is_object(first) else '.json'}"
    if first.lower().startswith("sep="):
        return f"its first line is {first[:8]!r}, a mark of spreadsheets: take it away"
    for other in DELIMITERS:
        if other != delimiter and first.count(other) > first.count(delimiter):
            ways = {",": "end its name in .csv", "\t": "end its name in .tsv, or save it with commas"}
            shown_as = {"\t": "tab"}.get(other, other)
            return f"it looks {shown_as}-separated: {ways.get(other, 'save it with commas')}"
    return ""


def _guess_headerless(first: str, delimiter: str) -> str:
    """A header names columns; a line with a number, a time or a file among its fields is a row."""
    fields = [field.strip(" \"'") for field in first.split(delimiter)]
    videos = tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)
    if any(_NUMBER_OR_CLOCK.fullmatch(field) or field.lower().endswith(videos) for field in fields):
        return "its first line looks like a row: put a header with the names of the columns above it"
    if "\ufffd" in first:
        return "its header holds bytes that are no UTF-8: save it as UTF-8"
    return ""


def _other_names(wanted: Collection[str], columns: Collection[str]) -> str:
    pairs = list(_nearest(wanted, columns))
    return "did you mean " + ", ".join(f"{found!r} for {name!r}" for name, found in pairs) + "?" if pairs else ""


def _nearest(wanted: Collection[str], columns: Collection[str]) -> Iterator[tuple[str, str]]:
    plain: dict[str, Any] = {_plain(str(column)): column for column in columns}
    for name in wanted:
        if name not in columns and (near := difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.75)):
            yield name, plain[near[0]]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
