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
from pipeline.data.format import unicode_forms
from pipeline.errors import InputError
from preprocess.csv_rows import BadRow
from preprocess.ids import KEEP_ALL_TEXTS, id_text
from preprocess.lines import read_rows
from preprocess.records import Clip, clean_text
from preprocess.subtitle_files import SubtitleFiles
from preprocess.table_guess import columns_of, guess_table
from preprocess.text_index import TextIndex, build_index_once, index_folder
from preprocess.videos import fixed_folder

_KIND = "texts"
_ID_COLUMNS = ("clip_id", "image_id", "id", "key")
_TEXT_COLUMNS = ("text", "caption", "subtitle", "sentence", "description")


class TextsConfig(Section):
    """Where the two texts of a clip come from. A missing text is missing, never a word."""

    subtitles: tuple[str, ...] = ()
    """Files or LMDB folders with subtitles by clip id, the first hit wins; a path with `{video_id}` that ends in
    .vtt or .srt (UTF-8 or UTF-16) is cut to the clip's span."""
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

    def take_problems(self) -> list[str]:
        """What of the subtitle files could not be read since the last call: "path: problem", in order."""
        lookups = (*self.subtitles, *(lookup for _, lookup in self.captions))
        return [
            problem for lookup in lookups if isinstance(lookup, SubtitleFiles) for problem in lookup.take_problems()
        ]

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


def check_text_sources(config: TextsConfig, max_line_bytes: int) -> None:
    """Raise an `InputError` for a source that is not there or of which no row can be read. Writes nothing."""
    for name in (*config.subtitles, *config.captions):
        path = Path(name)
        if "{video_id" in name:
            folder = fixed_folder(name)
            if not folder.is_dir():
                raise InputError(
                    f"texts: there is no folder {folder} for {name}; mount the file system or mend the path"
                )
        elif not path.exists():
            raise InputError(f"texts: there is no {path}; download it or take it off the list")
        elif path.is_dir():
            _LmdbTexts(path)
        elif next(_rows(path, max_line_bytes), None) is None:
            raise InputError(f"texts: {path} holds no text; download it again or take it off the list")


def prepare_texts(config: TextsConfig, output: Path, max_line_bytes: int) -> None:
    """Index the tables among the text sources, once. Missing or unreadable sources are an `InputError`."""
    check_text_sources(config, max_line_bytes)
    for name in (*config.subtitles, *config.captions):
        path = Path(name)
        if "{video_id" in name or path.is_dir():
            continue
        num_repeated = build_index_once(_rows(path, max_line_bytes), index_folder(path, output, _KIND))
        if num_repeated:
            print(
                f"texts: {num_repeated:,} rows of {path} repeat a clip id, of each the first stays; {KEEP_ALL_TEXTS}",
                file=sys.stderr,
                flush=True,
            )


def id_variants(clip_id: str) -> tuple[str, ...]:
    """The id as it is, and with or without its suffix; composed and decomposed where that makes a difference."""
    forms = unicode_forms(clip_id)
    return (*forms, *(form.removesuffix(".mp4") if form.endswith(".mp4") else f"{form}.mp4" for form in forms))


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
            problem = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{path} is no readable LMDB folder: {problem}") from None

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
    """(clip id, text) of a table, several of them for a list of texts. Rows without either are passed over, and counted
    on stderr where they are no rows or hold something else for a text."""
    id_column = text_column = ""
    num_rows, num_bad, first_bad = 0, 0, ""
    for row in read_rows(path, max_line_bytes):
        num_rows += 1
        if isinstance(row, BadRow):
            num_bad, first_bad = num_bad + 1, first_bad or f"{row.where}: {row.problem}"
            continue
        if id_column not in row or text_column not in row:
            id_column = next((name for name in _ID_COLUMNS if name in row), id_column)
            text_column = next((name for name in _TEXT_COLUMNS if name in row), text_column)
            if id_column not in row or text_column not in row:
                continue
        clip_id, content = id_text(row[id_column]), row[text_column]
        if not isinstance(clip_id, str) or not isinstance(content, str | list | None):
            problem = f"{id_column} {clip_id!r} with {text_column} {content!r}"[:200]
            num_bad, first_bad = num_bad + 1, first_bad or problem
            continue
        for one in content if isinstance(content, list) else [content]:
            if (text := clean_text(one)) is not None:
                yield clip_id, text
    if num_rows and not (id_column and text_column):
        raise _no_columns(path, max_line_bytes, first_bad)
    if num_bad:
        print(
            f"texts: {num_bad:,} lines of {path} are no rows and were passed over, the first: {first_bad}",
            file=sys.stderr,
            flush=True,
        )


def _no_columns(path: Path, max_line_bytes: int, first_bad: str) -> InputError:
    columns = columns_of(path, max_line_bytes)
    guess = guess_table(path, (_ID_COLUMNS[0], _TEXT_COLUMNS[0]), columns)
    has = f"has only the columns {', '.join(columns[:20])}" if columns else f"holds no row ({first_bad})"
    return InputError(
        f"texts: {path} {has}; it needs one of {', '.join(_ID_COLUMNS)} and one of {', '.join(_TEXT_COLUMNS)}"
        + (f"; {guess}" if guess else "")
    )
