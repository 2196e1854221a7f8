"""Any video-text set from plain lists: JSON lines, a JSON array, or CSV, with one video and its text or texts a row.

{"clip_id": "video0", "text": "a cat" | ["a cat", "a kitten"]}        lists of CLIP-ViP
{"video": "clips/video0.mp4", "caption": ...}                         lists of VindLU, InternVideo2
video,caption                                                         CSV; several rows of a video are its captions

python -m preprocess.benchmarks.plain name=mine train=train.jsonl test=test.csv videos=DIR output=data/benchmarks/mine
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import parse_command_line
from pipeline.errors import InputError, run_command
from preprocess.benchmarks.convert import OutputConfig, convert
from preprocess.benchmarks.split import (
    Entry,
    Role,
    Split,
    clean,
    numbered_csv,
    numbered_lines,
    read_json,
    same_name,
)
from preprocess.benchmarks.video_folder import split_suffix
from preprocess.ids import id_text
from preprocess.table_guess import guess_table, shown

VIDEO_NAMES = ("clip_id", "video", "video_id")
TEXT_NAMES = ("text", "caption", "sentence")


class PlainConfig(OutputConfig):
    """Lists of videos and texts, and where their shards go."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the set."""
    train: Path | None = None
    """List of the training split."""
    val: Path | None = None
    """List of the validation split."""
    test: Path | None = None
    """List of the test split."""


def read_plain(lists: dict[Role, Path]) -> list[Split]:
    """A split per list."""
    if not lists:
        raise InputError("no list is given; set train=, val= or test= to a .jsonl, .json or .csv file")
    return [_read_split(path, role) for role, path in lists.items()]


def _read_split(path: Path, role: Role) -> Split:
    texts: dict[str, tuple[str, list[str]]] = {}
    for where, row in _rows(path):
        video = id_text(_pick(row, VIDEO_NAMES, where, path))
        captions = _pick(row, TEXT_NAMES, where, path)
        captions = captions if isinstance(captions, list) else [captions]
        if not isinstance(video, str) or not captions or not all(isinstance(one, str) for one in captions):
            raise InputError(f"{where}: the video must be a string, and the text a string or a list of strings")
        texts.setdefault(same_name(video), (video, []))[1].extend(map(clean, captions))
    entries = tuple(_entry(video, found) for video, found in texts.values())
    if len({entry.clip_id for entry in entries}) < len(entries):
        raise InputError(f"{path}: two videos differ in their suffix only; give them different names")
    return Split(role, role, entries)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from ((f"{path}:{number}", row) for number, row in numbered_csv(path, ()))
    elif suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise InputError(f"{path} must be a JSON array of rows")
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))
    elif suffix in (".parquet", ".gz", ".zst", ".xlsx"):
        raise InputError(f"{path} is no .jsonl, .json, .csv or .tsv file; unpack it, or save it as one")
    else:
        for number, line in numbered_lines(path):
            try:
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                guess = guess_table(path, ()) or "write one object per line"
                raise InputError(f"{path}:{number} is not JSON: {error}; {guess}") from None


def _pick(row: Any, names: tuple[str, ...], where: str, path: Path) -> Any:
    if not isinstance(row, dict):
        guess = guess_table(path, names) if isinstance(row, list) else ""
        raise InputError(f"{where}: a row must be an object with one of {', '.join(names)}" + (guess and f"; {guess}"))
    for name in names:
        if row.get(name) not in (None, "", []):
            return row[name]
    if empty := [name for name in names if name in row]:
        raise InputError(f"{where}: {empty[0]} is empty; fill it in or remove the row")
    guess = guess_table(path, names, list(row))
    raise InputError(
        f"{where}: none of {', '.join(names)} is there, only {shown(list(row))}" + (guess and f"; {guess}")
    )


def _entry(video: str, texts: list[str]) -> Entry:
    """The clip id is the path without its suffix: it names the clip also where two folders hold the same file name."""
    stem, suffix = split_suffix(video)
    name = str(Path(stem)) if suffix else stem
    return Entry(name, name, tuple(texts), suffix=suffix)


def main(argv: list[str]) -> int:
    """Convert plain lists."""
    config = parse_command_line(PlainConfig, argv, program="python -m preprocess.benchmarks.plain", about=__doc__ or "")
    given: dict[Role, Path | None] = {"train": config.train, "val": config.val, "test": config.test}
    lists = {role: path for role, path in given.items() if path is not None}
    return convert(config.name, read_plain(lists), config)


if __name__ == "__main__":
    run_command(main)
