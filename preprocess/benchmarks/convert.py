"""From splits to files: texts, queries, shards (by `preprocess.run`), and the report. Every converter ends here.

    splits -> counts checked -> texts.jsonl | queries.jsonl -> metadata + video index -> preprocess.run -> report

A count that is not the published one stops the conversion before any video is decoded, unless `accept_counts` is set. A
video that is missing or unreadable is listed by name and reason; nothing is dropped in silence. The same command, run
again after more videos came, delivers these too.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config import Section
from pipeline.data.format import Reason
from pipeline.errors import InputError, RunError
from preprocess.benchmarks.checks import check_counts, check_entries, describe_split, find_leakage
from preprocess.benchmarks.report import console_report, markdown_report
from preprocess.benchmarks.split import Split
from preprocess.benchmarks.video_folder import VideoFolder
from preprocess.config import PreprocessConfig, RetryConfig
from preprocess.publish import write_atomically
from preprocess.published import published_shards
from preprocess.retry import retry
from preprocess.rounds import standing_failures
from preprocess.run import run


class OutputConfig(Section):
    """Where the videos are and what the shards look like."""

    videos: Path
    """Folder of the video files; folders below it are searched."""
    output: Path
    """Folder for everything that is written."""
    fps: float = Field(default=3.0, gt=0)
    """Frames per second of the delivered clips."""
    size_px: int = Field(default=224, ge=16)
    """Side of the square frames; squashed, as the official code does."""
    clips_per_shard: int = Field(default=500, ge=1)
    """Size of the shards."""
    workers: int = Field(default=0, ge=0)
    """Worker processes; 0: one per CPU core."""
    splits: tuple[str, ...] = ()
    """Convert these splits only; empty: all."""
    accept_counts: bool = False
    """Go on when a count differs from the published one; the report shows both."""


class BenchmarkConfig(OutputConfig):
    """The same with a folder of published annotation files."""

    annotations: Path
    """Folder of the published annotation files."""


def convert(name: str, splits: list[Split], config: OutputConfig) -> int:
    """Write everything, print and keep the report. Raises RunError when a shard set could not be finished."""
    leakage = find_leakage(splits)
    unknown = set(config.splits) - {split.name for split in splits}
    if unknown:
        raise InputError(
            f"splits: {', '.join(sorted(unknown))} not in {name}; it has {', '.join(split.name for split in splits)}"
        )
    chosen = [split for split in splits if split.name in config.splits or not config.splits]
    for split in chosen:
        check_entries(split)
    findings = [finding for split in chosen for finding in check_counts(split)]
    if findings and not config.accept_counts:
        raise InputError(
            f"{name}: {'; '.join(findings)}; check the annotation files, or set accept_counts=true to go on with them"
        )
    folder = VideoFolder(config.videos)
    found = {split.name: _find_videos(split, folder, config.videos) for split in chosen}
    report: dict[str, Any] = {"set": name, "count_findings": findings, "leakage": leakage, "splits": {}}
    for split in chosen:
        target = config.output / split.name
        _write_split(split, found[split.name], target, config)
        report["splits"][split.name] = {**describe_split(split), **_account(split, target, config.videos)}
    (config.output / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    (config.output / "report.md").write_text(markdown_report(report), encoding="utf-8")
    print(console_report(report), flush=True)
    _check_delivered(report, config.output)
    return 0


def _find_videos(split: Split, folder: VideoFolder, root: Path) -> dict[str, Path]:
    """The files of a split by clip id; `InputError` where there is none."""
    paths = {entry.clip_id: folder.find(entry.file, entry.suffix) for entry in split.entries}
    found = {clip_id: path for clip_id, path in paths.items() if path is not None}
    if not found:
        raise InputError(
            f"split {split.name}: none of its {len(split.entries):,} videos is below {root}, "
            f"{split.entries[0].file} for one; check videos="
        )
    return found


def _check_delivered(report: dict[str, Any], output: Path) -> None:
    """A split without one clip is a mistake that nobody should take for a set."""
    for name, split in report["splits"].items():
        if not split["delivered"]:
            clip_id, why = next(iter(split["not_delivered"].items()), ("none", "no reason is known"))
            raise RunError(
                f"split {name}: not one of its {split['videos']['annotated']:,} videos was delivered, {clip_id} for "
                f"one ({why}); mend the videos and run the same command again; {output / 'report.md'} lists all"
            )


def _write_split(split: Split, found: dict[str, Path], target: Path, config: OutputConfig) -> None:
    """Texts or queries, then the shards."""
    texts = {("texts" if split.role == "train" else "queries") + ".jsonl": _lines(_text_rows(split))}
    files = texts | {"metadata.jsonl": _lines(_metadata_rows(split))}
    _check_same_annotations(target, files)
    target.mkdir(parents=True, exist_ok=True)
    files["videos.jsonl"] = _lines({"video_id": clip_id, "path": str(path)} for clip_id, path in found.items())
    for file, content in files.items():
        write_atomically(target / file, content)
    metadata, index = target / "metadata.jsonl", target / "videos.jsonl"
    settings = _preprocess_config(target, metadata, index, config, cut=split.entries[0].end_s is not None)
    last_run_s = _last_run_s(target)
    run(settings)
    if last_run_s is not None:
        retry(_with_reasons(settings, last_run_s, found.values()))


def _text_rows(split: Split) -> Iterator[dict[str, str]]:
    """Training texts, or the queries, numbered."""
    pairs = [(entry.clip_id, text) for entry in split.entries for text in entry.texts]
    for number, (clip_id, text) in enumerate(pairs):
        if split.role == "train":
            yield {"clip_id": clip_id, "text": text}
        else:
            yield {"query_id": f"{number:06d}", "text": text, "clip_id": clip_id}


def _metadata_rows(split: Split) -> Iterator[dict[str, Any]]:
    """What `preprocess.run` reads: a video each, with its first text."""
    for entry in split.entries:
        span = {} if entry.end_s is None else {"start": 0.0, "end": entry.end_s}
        yield {"video_id": entry.clip_id, "clip_id": entry.clip_id, "subtitle": entry.texts[0], **span}


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _check_same_annotations(target: Path, files: dict[str, bytes]) -> None:
    """Refuse, before anything is replaced, the folder of shards that were made from other annotations."""
    if not (target / "shards" / "plan").exists():
        return
    here = [(file, target / file) for file in files if (target / file).exists()]
    different = [file for file, path in here if path.read_bytes() != files[file]]
    if different:
        raise InputError(
            f"{target} was converted from other annotation files ({', '.join(different)} would change); give another "
            "output, or remove the folder to start over"
        )


def _last_run_s(target: Path) -> float | None:
    """When the shards were last finished, in the clock of the files; None: never."""
    stats = target / "shards" / "stats.json"
    return stats.stat().st_mtime if stats.exists() else None


def _with_reasons(settings: PreprocessConfig, last_run_s: float, videos: Iterable[Path]) -> PreprocessConfig:
    """Missing videos are tried again when their files are there, unreadable ones when any file came since."""
    came = any(path.stat().st_ctime > last_run_s for path in videos)
    reasons = (Reason.VIDEO_MISSING, *((Reason.VIDEO_UNREADABLE,) if came else ()))
    return settings.model_copy(update={"retry": RetryConfig(reasons=reasons)})


def _preprocess_config(
    target: Path, metadata: Path, index: Path, config: OutputConfig, *, cut: bool
) -> PreprocessConfig:
    columns = {"video_id": "video_id", "clip_id": "clip_id", "subtitle": "subtitle"}
    if cut:
        columns |= {"start": "start", "end": "end"}
    settings = {
        "output": str(target / "shards"),
        "workers": config.workers,
        "metadata": {"layout": "table", "files": [str(metadata)], "columns": columns},
        "videos": {"index": str(index)},
        "clips": {
            "fps": config.fps,
            "size_px": config.size_px,
            # "The first 30 seconds" holds for shorter videos too.
            "min_coverage": 0.001,
        },
        "shards": {"clips_per_shard": config.clips_per_shard},
    }
    return PreprocessConfig.model_validate(settings)


def _account(split: Split, target: Path, videos: Path) -> dict[str, Any]:
    """Which clips were delivered, and why the others were not: read back from the shard set itself."""
    shards = target / "shards"
    failures = {}
    file_of = {entry.clip_id: entry.file for entry in split.entries}
    for row in standing_failures(shards, set(published_shards(shards))):
        clip_id, reason, detail = row["clip_id"], row["reason"], row["detail"]
        if reason == Reason.VIDEO_MISSING:
            detail = f"no file {file_of.get(clip_id, clip_id)} with any suffix of a video below {videos}"
        failures[clip_id] = f"{reason}: {detail}" if detail else reason
    delivered = 0
    for path in sorted((shards / "shards").glob("*.parquet")):
        delivered += pq.read_metadata(path).num_rows
    texts_of = {entry.clip_id: len(entry.texts) for entry in split.entries}
    lost = {clip_id: why for clip_id, why in failures.items() if clip_id in texts_of}
    return {
        "delivered": delivered,
        "texts_with_video": sum(texts_of.values()) - sum(texts_of[clip_id] for clip_id in lost),
        "not_delivered": lost,
    }
