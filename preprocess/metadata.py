"""Reads metadata files into `Video` records: HD-VILA's jsonl, or any JSONL, CSV or Parquet through a column mapping.

    for item in read_metadata(config, max_line_bytes):     # Video | Failure

A line of HD-VILA is one video; a row of a table is one clip, and the plan brings the clips of a video together. Every
clip comes out once: inside a `Video`, or as a `Failure` that says what is wrong with it.
"""

import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import Section
from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.csv_rows import BadRow
from preprocess.ids import KEEP_ALL_TEXTS, id_text
from preprocess.lines import read_rows
from preprocess.records import Clip, Failure, Video, clean_text
from preprocess.times import parse_time

MAX_ID_CHARS = 1024


class ColumnsConfig(Section):
    """Names of the columns of a table with one clip (or one whole video) a row; used with `layout: table`."""

    video_id: str = "video_id"
    """The video; together with `videos.templates` it gives the path."""
    clip_id: str = ""
    """The clip; empty: `{video_id}.{start in ms}.mp4`, or `{video_id}.mp4` for a whole video."""
    start: str = ""
    """Start of the span: seconds, MM:SS or HH:MM:SS.mmm; empty with `end` empty: the whole video is one clip."""
    end: str = ""
    """End of the span; a row without one goes to the end of the video."""
    subtitle: str = ""
    """A column that holds the subtitle itself, where there is one."""
    caption: str = ""
    """A column that holds the caption itself, where there is one."""


class MetadataConfig(Section):
    """Which clips exist."""

    files: tuple[str, ...] = Field(min_length=1)
    """Paths or glob patterns; plain, .gz or .zst. Parts that were not downloaded are simply not there. Of rows with the
    same clip id the first in this order stays."""
    layout: Literal["hdvila", "table"] = "hdvila"
    """hdvila: one video a line with its list of clips; table: one clip a row of JSONL, CSV or Parquet."""
    columns: ColumnsConfig = ColumnsConfig()
    exclude: tuple[str, ...] = ()
    """Files with video ids or clip ids that must not be delivered (evaluation sets, removed videos): one a line, or a
    table (.jsonl, .json, .csv, .tsv, .parquet) with a column clip_id, video_id, video, vid_key, key or id."""


def find_files(patterns: tuple[str, ...]) -> list[Path]:
    """The files of `patterns` in the order given, those of one pattern sorted, each once. A pattern without any file is
    an `InputError`."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        # Path.glob takes no absolute patterns.
        hits = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207
        if not hits:
            raise InputError(f"metadata.files: nothing matches {pattern}; download the metadata or change the pattern")
        for hit in hits:
            if not Path(hit).is_file():
                raise InputError(f"metadata.files: there is no file {hit}; download the metadata or change the path")
            found.setdefault(hit, Path(hit))
    return list(found.values())


def read_metadata(config: MetadataConfig, max_line_bytes: int) -> Iterator[Video | Failure]:
    """Every clip of every file, in file order."""
    for path in find_files(config.files):
        yield from read_file(path, config, max_line_bytes)


def read_file(path: Path, config: MetadataConfig, max_line_bytes: int) -> Iterator[Video | Failure]:
    """Every clip of one file."""
    texts = [name for name in (config.columns.subtitle, config.columns.caption) if name]
    num_lists = 0
    for row in read_rows(path, max_line_bytes):
        if isinstance(row, BadRow):
            yield Failure("", "", Reason.METADATA_INVALID, f"{row.where}: {row.problem}")
        elif config.layout == "hdvila":
            yield from _hdvila_row(row)
        else:
            num_lists += any(isinstance(row.get(name), list) and len(row[name]) > 1 for name in texts)
            yield from _table_row(row, config.columns)
    if num_lists:
        print(
            f"metadata.files: {num_lists:,} rows of {path} hold several texts, of each the first stays; "
            f"{KEEP_ALL_TEXTS}",
            file=sys.stderr,
            flush=True,
        )


def _hdvila_row(row: dict[str, Any]) -> Iterator[Video | Failure]:
    video_id, items = row.get("video_id"), row.get("clip")
    problem = _video_id_problem(video_id)
    if not isinstance(items, list):
        yield Failure("", _named(video_id), Reason.METADATA_INVALID, "the line holds no list of clips")
        return
    clips: list[Clip] = []
    for item in items:
        outcome = _clip(item, _named(video_id), problem)
        if isinstance(outcome, Failure):
            yield outcome
        else:
            clips.append(outcome)
    if clips:
        yield Video(str(video_id), tuple(clips))


def _clip(item: Any, video_id: str, problem: str) -> Clip | Failure:
    if not isinstance(item, dict):
        return Failure("", video_id, Reason.METADATA_INVALID, f"a clip must be an object, got {item!r}")
    clip_id, span = item.get("clip_id"), item.get("span")
    if problem:
        return Failure(_named(clip_id), video_id, Reason.METADATA_INVALID, problem)
    if clip_problem := _clip_id_problem(clip_id):
        return Failure(_named(clip_id), video_id, Reason.CLIP_ID_INVALID, clip_problem)
    if not isinstance(span, list) or len(span) != 2:
        return Failure(_named(clip_id), video_id, Reason.SPAN_INVALID, f"the span must be [start, end], got {span!r}")
    return _with_span(str(clip_id), video_id, span[0], span[1], None, None)


def _with_span(
    clip_id: str, video_id: str, start: Any, end: Any, subtitle: str | None, caption: str | None
) -> Clip | Failure:
    try:
        start_s = parse_time(start)
        end_s = None if end is None else parse_time(end)
    except (ValueError, OverflowError) as error:
        return Failure(clip_id, video_id, Reason.SPAN_INVALID, str(error))
    if end_s is not None and end_s <= start_s:
        where = f"at its start, {start_s} s" if end_s == start_s else f"at {end_s} s, before its start at {start_s} s"
        return Failure(clip_id, video_id, Reason.SPAN_INVALID, f"the span ends {where}")
    return Clip(clip_id, start_s, end_s, subtitle, caption)


def _table_row(row: dict[str, Any], columns: ColumnsConfig) -> Iterator[Video | Failure]:
    for name in (columns.video_id, columns.clip_id, columns.start, columns.end):
        if name and name not in row:
            yield Failure("", "", Reason.METADATA_INVALID, f"a row has no column {name!r}, only {list(row)[:20]}")
            return
    video_id = id_text(row[columns.video_id])
    start = row[columns.start] if columns.start else 0.0
    end = row[columns.end] if columns.end else None
    end = None if end == "" else end
    start = 0.0 if end is None and start in (None, "") else start
    clip_id = (
        id_text(row[columns.clip_id]) if columns.clip_id else _default_id(video_id, start if columns.start else None)
    )
    if problem := _video_id_problem(video_id):
        yield Failure(_named(clip_id), _named(video_id), Reason.METADATA_INVALID, problem)
        return
    if problem := _clip_id_problem(clip_id):
        yield Failure(_named(clip_id), _named(video_id), Reason.CLIP_ID_INVALID, problem)
        return
    subtitle, caption = (_text(row.get(name)) if name else None for name in (columns.subtitle, columns.caption))
    outcome = _with_span(str(clip_id), str(video_id), start, end, subtitle, caption)
    yield outcome if isinstance(outcome, Failure) else Video(str(video_id), (outcome,))


def _text(value: Any) -> str | None:
    """A text, the first one of a list."""
    return clean_text(value) if not isinstance(value, list) else next(filter(None, map(clean_text, value)), None)


def _named(identity: Any) -> str:
    """An id for the failures table, where one that is not there is empty, and no word."""
    return "" if identity is None else str(identity)


def _default_id(video_id: Any, start: Any) -> str:
    """`{video_id}.{start in ms}.mp4`; a start that is no time stands as it is, for the failures table."""
    if video_id is None:
        return ""
    if start is None:
        return f"{video_id}.mp4"
    try:
        return f"{video_id}.{round(parse_time(start) * 1000)}.mp4"
    except (ValueError, OverflowError):
        return f"{video_id}.{start}.mp4"


def _video_id_problem(video_id: Any) -> str:
    """Why `video_id` cannot name a file below the videos folder; empty where it can."""
    if not isinstance(video_id, str) or not video_id or len(video_id) > MAX_ID_CHARS:
        return "the video id must be a text of 1 to 1,024 characters"
    if not _is_unicode(video_id) or any(ord(char) < 32 for char in video_id):
        return "the video id holds control characters"
    # A template may take the first letters of an id for a folder: no part may begin as the way up.
    if any(part in ("", ".") or part.startswith("..") for part in video_id.split("/")):
        return "the video id leads out of the videos folder"
    return ""


def _clip_id_problem(clip_id: Any) -> str:
    if not isinstance(clip_id, str) or not clip_id or len(clip_id) > MAX_ID_CHARS:
        return "the clip id must be a text of 1 to 1,024 characters"
    return "" if _is_unicode(clip_id) else "the clip id is no valid Unicode"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
