"""Subtitles and published captions by clip id: JSONL, a JSON list, Parquet, CSV, LMDB, or VTT/SRT beside videos."""

from typing import Literal

from pipeline.config import Section


class TextsConfig(Section):
    """Where the two texts of a clip come from. A missing text is missing, never a word."""

    subtitles: tuple[str, ...] = ()
    """Files or LMDB folders with subtitles by clip id, the first hit wins; a path with `{video_id}` that ends in
    .vtt or .srt is cut to the clip's span."""
    captions: tuple[str, ...] = ()
    """Files or LMDB folders with published captions by clip id, the first hit wins."""
    require: Literal["none", "any", "subtitle", "caption", "both"] = "none"
    """Which texts a clip must have to be delivered; otherwise it fails with `no_text`."""
