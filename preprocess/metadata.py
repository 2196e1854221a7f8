"""Reads metadata files into `VideoRecord`s: HD-VILA's jsonl, or any JSONL, CSV or Parquet through a column mapping."""

from typing import Literal

from pydantic import Field

from pipeline.config import Section


class ColumnsConfig(Section):
    """Names of the columns of a table with one clip (or one whole video) a row; used with `layout: table`."""

    video_id: str = "video_id"
    """The video; together with `videos.templates` it gives the path."""
    clip_id: str = ""
    """The clip; empty: `{video_id}.{number}.mp4`, numbered by start."""
    start: str = ""
    """Start of the span: seconds or HH:MM:SS.mmm; empty with `end` empty: the whole video is one clip."""
    end: str = ""
    """End of the span."""
    subtitle: str = ""
    """A column that holds the subtitle itself, where there is one."""
    caption: str = ""
    """A column that holds the caption itself, where there is one."""


class MetadataConfig(Section):
    """Which clips exist."""

    files: tuple[str, ...] = Field(min_length=1)
    """Paths or glob patterns; plain, .gz or .zst. Parts that were not downloaded are simply not there."""
    layout: Literal["hdvila", "table"] = "hdvila"
    """hdvila: one video a line with its list of clips; table: one clip a row of JSONL, CSV or Parquet."""
    columns: ColumnsConfig = ColumnsConfig()
    exclude: tuple[str, ...] = ()
    """Files with one video id or clip id a line that must not be delivered: evaluation sets, removed videos."""
