"""DiDeMo as paragraphs: all descriptions of a video joined by a space, in the order of the file; its first 30 seconds.

Reads {train,val,test}_list.txt (one file name a line) and {train,val,test}_data.json (a list of
{"video", "description", "times"}). Video files may have been re-encoded: they are matched without their suffix.

    python -m preprocess.benchmarks.didemo annotations=DIR videos=DIR
"""

from collections import defaultdict
from pathlib import Path

from pydantic import Field

from pipeline.config import parse_command_line
from pipeline.errors import InputError, run_command
from preprocess.benchmarks.convert import BenchmarkConfig, convert
from preprocess.benchmarks.split import (
    Entry,
    Published,
    Role,
    Split,
    field,
    paragraph,
    read_json,
    read_lines,
    same_name,
)

# Sources differ by a few videos: the official code's lists against those in circulation.
PUBLISHED: dict[Role, Published] = {
    "train": Published((8392, 8394, 8395)),
    "val": Published((1065,)),
    "test": Published((1003, 1004)),
}


class DidemoConfig(BenchmarkConfig):
    """Where DiDeMo lies and where its shards go."""

    output: Path = Path("data/benchmarks/didemo")
    """Folder for everything that is written."""
    fps: float = 3.0
    """Frames per second of the delivered clips: 90 frames of 30 seconds."""
    max_seconds: float | None = Field(default=30.0, gt=0)
    """Use the start of each video only; null: all of it."""


def read_didemo(folder: Path, max_seconds: float | None) -> list[Split]:
    """The three splits, one paragraph per video."""
    return [_read_split(folder, role, max_seconds) for role in PUBLISHED]


def _read_split(folder: Path, role: Role, max_seconds: float | None) -> Split:
    data_path = folder / f"{role}_data.json"
    rows = read_json(data_path)
    if not isinstance(rows, list):
        raise InputError(f"{data_path} must be a list of descriptions; is it the published file?")
    sentences: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(rows):
        where = f"{data_path}: entry {number}"
        sentences[same_name(_stem(field(row, "video", str, where)))].append(field(row, "description", str, where))
    names = [same_name(_stem(line.strip())) for line in read_lines(folder / f"{role}_list.txt")]
    texts = {name: paragraph(sentences[name]) for name in names if name in sentences}
    silent = [name for name in names if not texts.get(name)]
    listed = set(names)
    unlisted = [name for name in sentences if name not in listed]
    notes = []
    if silent:
        notes.append(f"{len(silent)} listed videos have no description and are left out: {', '.join(silent)}")
    if unlisted:
        notes.append(f"{len(unlisted)} described videos are not on the list and are left out: {', '.join(unlisted)}")
    entries = tuple(Entry(name, name, (texts[name],), end_s=max_seconds) for name in names if texts.get(name))
    return Split(role, role, entries, videos=PUBLISHED[role], texts=PUBLISHED[role], notes=tuple(notes))


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0] if "." in name else name


def main(argv: list[str]) -> int:
    """Convert DiDeMo."""
    config = parse_command_line(
        DidemoConfig, argv, program="python -m preprocess.benchmarks.didemo", about=__doc__ or ""
    )
    return convert("didemo", read_didemo(config.annotations, config.max_seconds), config)


if __name__ == "__main__":
    run_command(main)
