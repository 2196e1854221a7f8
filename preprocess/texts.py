"""Subtitles and published captions by clip id: JSONL, a JSON list, Parquet, CSV, LMDB, or VTT/SRT beside videos.

    prepare_texts(config.texts, output, max_line_bytes)          # once: tables become indexes below output/plan/texts
    texts = Texts.open(config.texts, output)                     # in every worker
    subtitle, caption, source = texts.of(video_id, clip)

Ids are looked up as they are, then with and without `.mp4`. A text of nothing but white space is missing.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import lmdb
from pydantic import field_validator

from pipeline.config import Section
from pipeline.errors import InputError
from preprocess.lines import BadRow, read_rows, table_kind
from preprocess.records import Clip, clean_text
from preprocess.subtitle_files import SubtitleFiles
from preprocess.text_index import TextIndex, build_index_once, index_folder
from preprocess.videos import fixed_folder

_KIND = "texts"
_ID_COLUMNS = ("clip_id", "image_id", "id", "key")
_TEXT_COLUMNS = ("text", "caption", "subtitle", "sentence", "description")


class TextsConfig(Section):
    """Where the two texts of a clip come from. A missing text is missing, never a word."""

    subtitles: tuple[str, ...] = ()
    """Files or LMDB folders with subtitles by clip id, the first hit wins; a path with `{video_id}` that ends in
    .vtt or .srt is cut to the clip's span."""
    captions: tuple[str, ...] = ()
    """Files or LMDB folders with published captions by clip id, the first hit wins."""
    require: Literal["none", "any", "subtitle", "caption", "both"] = "none"
    """Which texts a clip must have to be delivered; otherwise it fails with `no_text`."""

    @field_validator("subtitles", "captions")
    @classmethod
    def _templates_can_find_files(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if "{video_id" not in name:
                continue
            try:
                name.format(video_id="x")
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"the template {name!r} is wrong ({error}); it takes {{video_id}} only") from None
            if not name.endswith((".vtt", ".srt")):
                raise ValueError(f"a file per {{video_id}} must be a .vtt or .srt file, got {name!r}")
        return names


@dataclass(frozen=True, slots=True)
class ClipTexts:
    """The two texts of a clip; None: there is none."""

    subtitle: str | None
    caption: str | None
    caption_source: str | None

    def satisfies(self, require: str) -> bool:
        has = {"subtitle": self.subtitle is not None, "caption": self.caption is not None}
        return {
            "none": True,
            "any": any(has.values()),
            "both": all(has.values()),
        }.get(require, has.get(require, False))


Lookup = Callable[[str, Clip], str | None]
"""(video id, clip) -> text."""


@dataclass(frozen=True)
class Texts:
    """All text sources of a set, open for reading."""

    subtitles: tuple[Lookup, ...]
    captions: tuple[tuple[str, Lookup], ...]

    @classmethod
    def open(cls, config: TextsConfig, output: Path) -> Self:
        return cls(
            tuple(_open_source(path, output) for path in config.subtitles),
            tuple((Path(path).name, _open_source(path, output)) for path in config.captions),
        )

    def of(self, video_id: str, clip: Clip) -> ClipTexts:
        subtitle = clip.subtitle or _first(lookup(video_id, clip) for lookup in self.subtitles)
        if clip.caption is not None:
            return ClipTexts(subtitle, clip.caption, "metadata")
        for name, lookup in self.captions:
            caption = lookup(video_id, clip)
            if caption is not None:
                return ClipTexts(subtitle, caption, name)
        return ClipTexts(subtitle, None, None)


def text_folders(config: TextsConfig) -> list[Path]:
    """The folders that hold the subtitle files of all videos."""
    return sorted({fixed_folder(name) for name in (*config.subtitles, *config.captions) if "{video_id" in name})


def prepare_texts(config: TextsConfig, output: Path, max_line_bytes: int) -> None:
    """Index the tables among the text sources, once. Missing or unreadable sources are an `InputError`."""
    for name in (*config.subtitles, *config.captions):
        path = Path(name)
        if "{video_id" in name:
            if not fixed_folder(name).is_dir():
                raise InputError(
                    f"texts: there is no folder {fixed_folder(name)}; mount the file system or mend the path"
                )
            continue
        if not path.exists():
            raise InputError(f"texts: there is no {path}; download it or take it off the list")
        if path.is_dir():
            _LmdbTexts(path)
        else:
            build_index_once(_rows(path, max_line_bytes), index_folder(path, output, _KIND))


def id_variants(clip_id: str) -> tuple[str, str]:
    """The id as it is, and with or without its suffix."""
    return clip_id, clip_id.removesuffix(".mp4") if clip_id.endswith(".mp4") else f"{clip_id}.mp4"


def _first(values: Iterator[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)


def _open_source(name: str, output: Path) -> Lookup:
    path = Path(name)
    if "{video_id" in name:
        return SubtitleFiles(name)
    if path.is_dir():
        return _LmdbTexts(path)
    return _IndexedTexts(index_folder(path, output, _KIND))


class _IndexedTexts:
    def __init__(self, folder: Path) -> None:
        self._index = TextIndex(folder)

    def __call__(self, video_id: str, clip: Clip) -> str | None:
        return _first(clean_text(self._index.get(clip_id)) for clip_id in id_variants(clip.clip_id))


class _LmdbTexts:
    """An LMDB folder with clip id -> text, both UTF-8, as HD-VILA's captions are published."""

    def __init__(self, path: Path) -> None:
        try:
            self._environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_spare_txns=1)
        except lmdb.Error as error:
            raise InputError(f"{path} is no readable LMDB folder: {error}") from None

    def __call__(self, video_id: str, clip: Clip) -> str | None:
        with self._environment.begin(buffers=False) as transaction:
            for clip_id in id_variants(clip.clip_id):
                key = clip_id.encode()
                # LMDB refuses empty keys and keys over 511 bytes.
                data = transaction.get(key) if 0 < len(key) <= self._environment.max_key_size() else None
                if data is not None and (text := clean_text(data.decode("utf-8", "replace"))):
                    return text
        return None


def _rows(path: Path, max_line_bytes: int) -> Iterator[tuple[str, str]]:
    """(clip id, text) of a table; rows without either are passed over, lines that are none are counted on stderr."""
    id_column = text_column = ""
    num_bad = 0
    columns: list[str] = []
    table_kind(path)
    for row in read_rows(path, max_line_bytes):
        if isinstance(row, BadRow):
            num_bad += 1
            continue
        if id_column not in row or text_column not in row:
            columns = columns or list(row)[:20]
            id_column = next((name for name in _ID_COLUMNS if name in row), id_column)
            text_column = next((name for name in _TEXT_COLUMNS if name in row), text_column)
            if id_column not in row or text_column not in row:
                continue
        if (text := clean_text(row[text_column])) is not None:
            yield str(row[id_column]), text
    if columns and not (id_column and text_column):
        raise InputError(
            f"texts: {path} has only the columns {', '.join(columns)}; it needs one of {', '.join(_ID_COLUMNS)} and "
            f"one of {', '.join(_TEXT_COLUMNS)}"
        )
    if num_bad:
        print(f"texts: {num_bad:,} lines of {path} are no rows and were passed over", file=sys.stderr, flush=True)
