"""MSR-VTT: 9,000 training videos with 20 captions each; 1kA: 1,000 videos, one sentence each.

Reads MSRVTT_data.json, MSRVTT_train.9k.csv and MSRVTT_JSFUSION_test.csv; videos are `{video_id}.mp4`. The 1kA sentences
come from the JSFUSION file only: a test list with 20 captions per video is another protocol.

    python -m preprocess.benchmarks.msrvtt annotations=DIR videos=DIR
"""

from collections import defaultdict
from pathlib import Path

from pipeline.config import parse_command_line
from pipeline.errors import InputError, run_command
from preprocess.benchmarks.convert import BenchmarkConfig, convert
from preprocess.benchmarks.split import Entry, Published, Split, clean, field, read_csv, read_json, same_name


class MsrvttConfig(BenchmarkConfig):
    """Where MSR-VTT lies and where its shards go."""

    output: Path = Path("data/benchmarks/msrvtt")
    """Folder for everything that is written."""
    fps: float = 6.0
    """Frames per second of the delivered clips; 6 as in the official configs."""


def read_msrvtt(folder: Path) -> list[Split]:
    """The 9k training split and the 1kA test split."""
    return [_train_split(folder), _test_split(folder)]


def _train_split(folder: Path) -> Split:
    data_path = folder / "MSRVTT_data.json"
    data = read_json(data_path)
    captions: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(field(data, "sentences", list, str(data_path))):
        where = f"{data_path}: sentence {number}"
        captions[same_name(field(row, "video_id", str, where))].append(clean(field(row, "caption", str, where)))
    videos = field(data, "videos", list, str(data_path))
    known = {same_name(field(row, "video_id", str, f"{data_path}: videos")) for row in videos}
    entries = []
    for row in read_csv(folder / "MSRVTT_train.9k.csv", ("video_id",)):
        video_id = same_name(row["video_id"].strip())
        if video_id not in known or not captions[video_id]:
            raise InputError(f"{folder / 'MSRVTT_train.9k.csv'}: {video_id!r} has no caption in {data_path}")
        entries.append(Entry(video_id, video_id, tuple(captions[video_id])))
    return Split("train_9k", "train", tuple(entries), videos=Published((9000,)), texts=Published((180_000,)))


def _test_split(folder: Path) -> Split:
    path = folder / "MSRVTT_JSFUSION_test.csv"
    rows = list(read_csv(path, ("key", "vid_key", "video_id", "sentence")))
    entries = tuple(Entry(row["video_id"].strip(), row["video_id"].strip(), (clean(row["sentence"]),)) for row in rows)
    if len({entry.clip_id for entry in entries}) < len(entries):
        raise InputError(f"{path}: a video has several rows; 1kA has one sentence per video, from the JSFUSION file")
    return Split(
        "test_1ka",
        "test",
        entries,
        videos=Published((1000,)),
        texts=Published((1000,)),
        distinct_texts=Published((995,)),
    )


def main(argv: list[str]) -> int:
    """Convert MSR-VTT."""
    config = parse_command_line(
        MsrvttConfig, argv, program="python -m preprocess.benchmarks.msrvtt", about=__doc__ or ""
    )
    return convert("msrvtt", read_msrvtt(config.annotations), config)


if __name__ == "__main__":
    run_command(main)
