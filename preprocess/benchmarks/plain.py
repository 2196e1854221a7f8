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
from preprocess.benchmarks.split import Entry, Role, Split, clean, read_csv, read_json, read_lines

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
    texts: dict[str, list[str]] = {}
    for where, row in _rows(path):
        video = _pick(row, VIDEO_NAMES, where)
        captions = _pick(row, TEXT_NAMES, where)
        captions = captions if isinstance(captions, list) else [captions]
        if not isinstance(video, str) or not captions or not all(isinstance(one, str) for one in captions):
            raise InputError(f"{where}: the video must be a string, and the text a string or a list of strings")
        texts.setdefault(video, []).extend(map(clean, captions))
    entries = tuple(Entry(_clip_id(video), _clip_id(video), tuple(found)) for video, found in texts.items())
    if len({entry.clip_id for entry in entries}) < len(entries):
        raise InputError(f"{path}: two videos differ in their suffix only; give them different names")
    return Split(role, role, entries)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".csv":
        yield from ((f"{path}: row {number}", dict(row)) for number, row in enumerate(read_csv(path, ()), start=2))
    elif path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise InputError(f"{path} must be a JSON array of rows")
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))
    else:
        for number, line in enumerate(read_lines(path), start=1):
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number} is not JSON: {error}; write one object per line") from None


def _pick(row: Any, names: tuple[str, ...], where: str) -> Any:
    if isinstance(row, dict):
        for name in names:
            if row.get(name):
                return row[name]
    raise InputError(f"{where}: none of {', '.join(names)} is there")


def _clip_id(video: str) -> str:
    """The path without its suffix: it names the clip also where two folders hold the same file name."""
    path = Path(video)
    return str(path.with_suffix("")) if path.suffix.lower() in (".mp4", ".avi", ".mkv", ".webm", ".mov") else video


def main(argv: list[str]) -> int:
    """Convert plain lists."""
    config = parse_command_line(PlainConfig, argv, program="python -m preprocess.benchmarks.plain", about=__doc__ or "")
    given: dict[Role, Path | None] = {"train": config.train, "val": config.val, "test": config.test}
    lists = {role: path for role, path in given.items() if path is not None}
    return convert(config.name, read_plain(lists), config)


if __name__ == "__main__":
    run_command(main)
