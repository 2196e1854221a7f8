"""Looks into every table before anything is written: one in which no row can be read is wrong input.

check_inputs(config)          # InputError: the table, the columns that are there, the nearest guess

As a rule it reads one row of each; a table without any is read to its end, once.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError
from preprocess.config import PreprocessConfig
from preprocess.lines import table_kind
from preprocess.metadata import MetadataConfig, find_files, read_file
from preprocess.planning import read_excluded
from preprocess.records import Failure
from preprocess.table_guess import columns_of, guess_table, shown
from preprocess.texts import check_text_sources
from preprocess.videos import check_index


def check_inputs(config: PreprocessConfig) -> None:
    """Raise an `InputError` for a table of the metadata, the texts or the videos of which no row can be read."""
    max_line_bytes = config.limits.max_line_mb * 2**20
    check_metadata(config.metadata, max_line_bytes)
    read_excluded(config.metadata.exclude, max_line_bytes)
    check_text_sources(config.texts, max_line_bytes)
    check_index(config.videos)


def check_metadata(config: MetadataConfig, max_line_bytes: int) -> None:
    """Raise an `InputError` where a file of the metadata holds rows and none of them a clip, or none holds any row."""
    empty = [path for path in find_files(config.files) if not _holds_a_clip(path, config, max_line_bytes)]
    if len(empty) == len(find_files(config.files)):
        raise InputError(f"metadata.files: {_listed(empty)} hold no row at all; download the metadata again")
    if empty:
        print(f"metadata.files: {_listed(empty)} hold no row", file=sys.stderr, flush=True)


def _holds_a_clip(path: Path, config: MetadataConfig, max_line_bytes: int) -> bool:
    """Whether the file holds a clip; False where it holds no row, an `InputError` where it holds rows only."""
    first: Failure | None = None
    num_rows = 0
    for item in read_file(path, config, max_line_bytes):
        if not isinstance(item, Failure):
            _check_text_columns(path, config, max_line_bytes)
            return True
        first = first or item
        num_rows += 1
    if first is None:
        return False
    columns = columns_of(path, max_line_bytes)
    there = f"; its columns are {shown(columns)}" if columns and "no column" not in first.detail else ""
    guess = _guess(path, config, columns)
    raise InputError(
        f"metadata.files: no row of {path} gives a clip ({num_rows:,} were read, the first: {first.reason}, "
        f"{' '.join(first.detail.split())[:200]}){there}; {guess or 'change metadata.columns or the file'}"
    )


def _guess(path: Path, config: MetadataConfig, columns: list[str]) -> str:
    if config.layout == "hdvila":
        is_table = len(columns) > 1 and "clip" not in columns
        return "set metadata.layout=table for it" if is_table else guess_table(path, ("video_id", "clip"), columns)
    if "clip" in columns and "url" in columns:
        return "it looks like HD-VILA's own files: set metadata.layout=hdvila"
    names = config.columns
    wanted = [name for name in (names.video_id, names.clip_id, names.start, names.end) if name]
    return "" if set(wanted) <= set(columns) else guess_table(path, wanted, columns)


def _check_text_columns(path: Path, config: MetadataConfig, max_line_bytes: int) -> None:
    """A row of JSON may lack a text; a column that the header lacks is a wrong name."""
    if config.layout != "table" or table_kind(path) not in ("csv", "tsv", "parquet"):
        return
    columns = columns_of(path, max_line_bytes)
    for option in ("subtitle", "caption"):
        name = getattr(config.columns, option)
        if name and name not in columns:
            guess = guess_table(path, [name], columns)
            raise InputError(
                f"metadata.columns.{option}: {path} has no column {name!r}, only {shown(columns)}"
                + (f"; {guess}" if guess else "; change the option")
            )


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(str(path) for path in paths)
