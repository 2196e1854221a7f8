"""From splits to files: texts, queries, shards (by `preprocess.run`), and the report. Every converter ends here.

    splits -> counts checked -> texts.jsonl | queries.jsonl -> metadata + video index -> preprocess.run -> report

A count that is not the published one stops the conversion before any video is decoded, unless `accept_counts` is set. A
video that is missing or unreadable is listed by name and reason; nothing is dropped in silence. The same command, run
again after more videos came, delivers these too.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config import Section
from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.benchmarks.checks import check_counts, check_entries, describe_split, find_leakage
from preprocess.benchmarks.report import console_report, markdown_report
from preprocess.benchmarks.split import Split
from preprocess.benchmarks.video_folder import VideoFolder
from preprocess.config import PreprocessConfig, RetryConfig
from preprocess.merge import published_shards
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
    report: dict[str, Any] = {"set": name, "count_findings": findings, "leakage": leakage, "splits": {}}
    for split in chosen:
        target = config.output / split.name
        _write_split(split, folder, target, config)
        report["splits"][split.name] = {**describe_split(split), **_account(split, target)}
    (config.output / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    (config.output / "report.md").write_text(markdown_report(report), encoding="utf-8")
    print(console_report(report))
    return 0


def _write_split(split: Split, folder: VideoFolder, target: Path, config: OutputConfig) -> None:
    """Texts or queries, then the shards."""
    target.mkdir(parents=True, exist_ok=True)
    pairs = [(entry.clip_id, text) for entry in split.entries for text in entry.texts]
    if split.role == "train":
        _write_rows(target / "texts.jsonl", ({"clip_id": clip_id, "text": text} for clip_id, text in pairs))
    else:
        rows = ({"query_id": f"{n:06d}", "text": text, "clip_id": clip_id} for n, (clip_id, text) in enumerate(pairs))
        _write_rows(target / "queries.jsonl", rows)
    metadata, index = target / "metadata.jsonl", target / "videos.jsonl"
    found = {entry.clip_id: path for entry in split.entries if (path := folder.find(entry.file)) is not None}
    if not found:
        raise InputError(
            f"split {split.name}: none of its {len(split.entries):,} videos is below {config.videos}, "
            f"{split.entries[0].file} for one; check videos="
        )
    _write_rows(index, ({"video_id": clip_id, "path": str(path)} for clip_id, path in found.items()))
    _write_rows(
        metadata,
        (
            {
                "video_id": entry.clip_id,
                "clip_id": entry.clip_id,
                "subtitle": entry.texts[0],
                **({} if entry.end_s is None else {"start": 0.0, "end": entry.end_s}),
            }
            for entry in split.entries
        ),
    )
    settings = _preprocess_config(target, metadata, index, config, cut=split.entries[0].end_s is not None)
    last_run_s = _last_run_s(target)
    run(settings)
    if last_run_s is not None:
        retry(_with_reasons(settings, last_run_s, found.values()))


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


def _account(split: Split, target: Path) -> dict[str, Any]:
    """Which clips were delivered, and why the others were not: read back from the shard set itself."""
    shards = target / "shards"
    failures = {}
    for row in standing_failures(shards, set(published_shards(shards))):
        failures[row["clip_id"]] = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
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


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
