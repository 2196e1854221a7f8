"""LSMDC 2016: film clips of a few seconds, one sentence each; retrieval among the 1,000 clips of the public test list.

Reads LSMDC16_annos_training.csv, LSMDC16_annos_val.csv and LSMDC16_challenge_1000_publictect.csv: tab-separated, no
header, no quoting, six fields: clip id, start and end aligned, start and end extracted, sentence. Clips lie at
`<movie>/<clip id>.avi`. A sentence belongs to the clip id of its own line, never to a position in another list.

    python -m preprocess.benchmarks.lsmdc annotations=DIR videos=DIR
"""

from pathlib import Path

from pipeline.config import parse_command_line
from pipeline.errors import InputError, run_command
from preprocess.benchmarks.convert import BenchmarkConfig, convert
from preprocess.benchmarks.split import Entry, Published, Role, Split, clean, numbered_lines

FILES: dict[Role, str] = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
PUBLISHED: dict[Role, Published] = {
    "train": Published((101_000,), tolerance=1000),
    "val": Published((7408,)),
    "test": Published((1000,)),
}
NUM_FIELDS = 6
KNOWN_BAD = frozenset({"1012_Unbreakable_00.05.16.065-00.05.21.941"})
"""Clips that cannot be decoded as published."""


class LsmdcConfig(BenchmarkConfig):
    """Where LSMDC lies and where its shards go."""

    output: Path = Path("data/benchmarks/lsmdc")
    """Folder for everything that is written."""
    fps: float = 6.0
    """Frames per second of the delivered clips: a clip of 4 seconds gives 24 frames to choose 12 from."""


def read_lsmdc(folder: Path) -> list[Split]:
    """The three splits, one entry per clip."""
    return [_read_split(folder / name, role) for role, name in FILES.items()]


def _read_split(path: Path, role: Role) -> Split:
    sentences: dict[str, list[str]] = {}
    num_rows = 0
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != NUM_FIELDS:
            raise InputError(
                f"{path}:{number} has {len(fields)} tab-separated fields, not {NUM_FIELDS}; is it LSMDC16?"
            )
        clip_id, sentence = fields[0].strip(), clean(fields[-1])
        if not clip_id or not sentence:
            raise InputError(f"{path}:{number} has an empty clip id or sentence; is it the published file?")
        num_rows += 1
        if clip_id not in KNOWN_BAD:
            sentences.setdefault(clip_id, []).append(sentence)
    entries = tuple(Entry(clip_id, clip_id, tuple(texts)) for clip_id, texts in sentences.items())
    left_out = num_rows - sum(len(entry.texts) for entry in entries)
    notes = (f"{left_out} rows of clips that are known to be broken are left out: {', '.join(KNOWN_BAD)}",)
    return Split(role, role, entries, texts=PUBLISHED[role], notes=notes if left_out else ())


def main(argv: list[str]) -> int:
    """Convert LSMDC."""
    config = parse_command_line(LsmdcConfig, argv, program="python -m preprocess.benchmarks.lsmdc", about=__doc__ or "")
    return convert("lsmdc", read_lsmdc(config.annotations), config)


if __name__ == "__main__":
    run_command(main)
