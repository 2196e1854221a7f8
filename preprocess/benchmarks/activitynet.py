"""ActivityNet Captions as paragraphs: the sentences of a video joined by a space (not joined, R@1 is 20 instead of 51).

Reads train.json and val_1.json, {"v_<id>": {"duration", "timestamps", "sentences"}}, and where they are there
train_ids.json and val_ids.json, lists of ids, which then choose among them. Sentences are joined in the order of the
file, as the official lists are. Videos are `v_<id>` with any suffix.

    python -m preprocess.benchmarks.activitynet annotations=DIR videos=DIR
"""

from pathlib import Path
from typing import Any

from pipeline.config import parse_command_line
from pipeline.errors import InputError, run_command
from preprocess.benchmarks.convert import BenchmarkConfig, convert
from preprocess.benchmarks.split import Entry, Published, Role, Split, field, paragraph, read_json, same_name


class ActivityNetConfig(BenchmarkConfig):
    """Where ActivityNet lies and where its shards go."""

    output: Path = Path("data/benchmarks/activitynet")
    """Folder for everything that is written."""
    fps: float = 1.0
    """Frames per second of the delivered clips: 32 frames are taken from two to four minutes."""


def read_activitynet(folder: Path) -> list[Split]:
    """The training split and val_1, on which the paper tests."""
    return [
        _read_split(folder, "train", "train", "train_ids.json", "train", Published((10_009,))),
        _read_split(folder, "val_1", "val_1", "val_ids.json", "test", Published((4917,))),
    ]


def _read_split(folder: Path, name: str, stem: str, ids_name: str, role: Role, published: Published) -> Split:
    path, ids_path = folder / f"{stem}.json", folder / ids_name
    annotations = read_json(path)
    if not isinstance(annotations, dict):
        raise InputError(f"{path} must be an object of videos; is it the published file?")
    annotations = {same_name(one): row for one, row in annotations.items()}
    ids = list(annotations)
    notes = []
    if ids_path.exists():
        wanted = read_json(ids_path)
        if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
            raise InputError(f"{ids_path} must be a list of video ids; is it the published file?")
        wanted = list(map(same_name, wanted))
        ids = [one for one in wanted if one in annotations]
        notes += _difference(ids_path.name, path.name, wanted, annotations)
    entries = tuple(_entry(one, annotations[one], path) for one in ids)
    return Split(name, role, entries, videos=published, texts=published, notes=tuple(notes))


def _entry(video_id: str, row: Any, path: Path) -> Entry:
    where = f"{path}: {video_id}"
    sentences = field(row, "sentences", list, where)
    text = paragraph(sentences) if all(isinstance(one, str) for one in sentences) else ""
    if not text:
        raise InputError(f"{where} has no sentence; is it the published file?")
    return Entry(video_id, video_id, (text,))


def _difference(ids_name: str, data_name: str, wanted: list[str], annotations: dict[str, Any]) -> list[str]:
    without_text = [one for one in wanted if one not in annotations]
    wanted_set = set(wanted)
    not_wanted = [one for one in annotations if one not in wanted_set]
    notes = []
    if without_text:
        shown = ", ".join(without_text)
        notes.append(f"{len(without_text)} ids of {ids_name} have no text in {data_name} and are left out: {shown}")
    if not_wanted:
        notes.append(f"{len(not_wanted)} videos of {data_name} are not in {ids_name} and are left out")
    return notes


def main(argv: list[str]) -> int:
    """Convert ActivityNet Captions."""
    config = parse_command_line(
        ActivityNetConfig, argv, program="python -m preprocess.benchmarks.activitynet", about=__doc__ or ""
    )
    return convert("activitynet", read_activitynet(config.annotations), config)


if __name__ == "__main__":
    run_command(main)
