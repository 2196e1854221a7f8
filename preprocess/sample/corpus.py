"""Plan -> files, in the shape of HD-VILA-100M; what is there already is left alone, `corpus.json` comes last.

metadata/train/hdvila_part*.jsonl, metadata/heldout/hdvila_part0.jsonl     videos with their clips and spans
subtitles.jsonl       {"clip_id", "text"}; a few lines hold bytes that are not UTF-8
captions_db/          LMDB: clip id -> caption
videos/{video_id}.mp4
queries.jsonl         {"query_id", "text", "clip_id"}, one per held-out clip
pairs_motion.jsonl, pairs_direction.jsonl      {"clip_id", "text", "distractor"}: minimal pairs
corpus.json           seed and counts
"""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from tqdm import tqdm

from pipeline.config import config_hash
from pipeline.errors import InputError
from preprocess.sample.plan import Clip, Corpus, Defect, SampleConfig, Video, plan_corpus
from preprocess.sample.texts import other_direction, other_kind, write_caption, write_query, write_subtitle
from preprocess.sample.video import write_video

NUM_TRAIN_PARTS = 3
STRAY_BYTES_EVERY = 400


def build_corpus(config: SampleConfig) -> bool:
    """Write what is missing of the corpus; returns whether anything was."""
    folder, facts = config.folder, _facts_path(config)
    _claim(config)
    corpus = plan_corpus(config)
    missing = [
        video
        for video in corpus.videos
        if video.defect is not Defect.NO_VIDEO and not _video_path(config, video).exists()
    ]
    if facts.exists() and not missing:
        return False
    facts.unlink(missing_ok=True)
    _write_videos(missing, config)
    _write_metadata(folder / "metadata" / "train", corpus.train, NUM_TRAIN_PARTS)
    _write_metadata(folder / "metadata" / "heldout", corpus.heldout, 1)
    _write_subtitles(folder / "subtitles.jsonl", corpus)
    _write_captions(folder / "captions_db", corpus)
    _write_queries(folder, corpus)
    _write_text(facts, json.dumps(_facts(config, corpus), indent=2) + "\n")
    return True


def _claim(config: SampleConfig) -> None:
    """Mark the folder as this config's; refuse one that belongs to another."""
    mark = config.folder / "config_hash"
    identity = config_hash(config, exclude={"folder", "processes"})
    if not mark.exists():
        if config.folder.exists() and any(config.folder.iterdir()):
            raise InputError(f"{config.folder} exists and is no sample corpus; name another folder=")
        (config.folder / "videos").mkdir(parents=True, exist_ok=True)
        _write_text(mark, identity + "\n")
    elif mark.read_text().strip() != identity:
        raise InputError(f"{config.folder} holds a sample corpus of another config; remove it or name another folder=")


def _write_videos(videos: Sequence[Video], config: SampleConfig) -> None:
    processes = min(config.processes or os.cpu_count() or 1, len(videos))
    jobs = [(video, config) for video in videos]
    num_clips = sum(len(video.clips) for video in videos)
    with tqdm(
        total=num_clips,
        desc="sample videos",
        unit="clip",
        disable=not jobs,
        mininterval=1.0 if sys.stderr.isatty() else 10.0,
    ) as bar:
        if processes <= 1:
            for job in jobs:
                bar.update(_write_one(job))
            return
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for done in pool.imap_unordered(_write_one, jobs):
                bar.update(done)


def _write_one(job: tuple[Video, SampleConfig]) -> int:
    video, config = job
    write_video(video, config, _video_path(config, video))
    return len(video.clips)


def _write_metadata(folder: Path, videos: Sequence[Video], num_parts: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(num_parts):
        _write_lines(folder / f"hdvila_part{part}.jsonl", (_metadata_row(video) for video in videos[part::num_parts]))


def _metadata_row(video: Video) -> dict[str, Any]:
    clips = [{"clip_id": clip.clip_id, "span": [_clock(clip.start_ms), _clock(clip.end_ms)]} for clip in video.clips]
    return {"video_id": video.video_id, "url": f"https://example.org/watch?v={video.video_id}", "clip": clips}


def _clock(time_ms: int) -> str:
    """Milliseconds as the metadata writes them: 00:00:17.759."""
    seconds, milliseconds = divmod(time_ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{milliseconds:03d}"


def _write_subtitles(path: Path, corpus: Corpus) -> None:
    lines = []
    for clip in _clips(corpus.videos):
        if clip.has_subtitle:
            text = write_subtitle(clip.scene, np.random.default_rng([clip.text_seed, 0]))
            lines.append(json.dumps({"clip_id": clip.clip_id, "text": text}).encode())
            if len(lines) % STRAY_BYTES_EVERY == 0:
                lines[-1] = _with_stray_byte(lines[-1])
    _write_bytes(path, b"\n".join(lines) + b"\n")


def _with_stray_byte(line: bytes) -> bytes:
    """The line with a Latin-1 byte before the end of its text, as the real file has."""
    assert line.endswith(b'"}')
    return line[:-2] + b" \xe9" + line[-2:]


def _write_captions(path: Path, corpus: Corpus) -> None:
    """LMDB: clip id -> caption, built beside its place and renamed."""
    staged = path.with_name(path.name + ".partial")
    shutil.rmtree(staged, ignore_errors=True)
    with lmdb.open(str(staged), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        for clip in _clips(corpus.videos):
            if clip.has_caption:
                caption = write_caption(clip.scene, np.random.default_rng([clip.text_seed, 1]))
                transaction.put(clip.clip_id.encode(), caption.encode())
    shutil.rmtree(path, ignore_errors=True)
    staged.replace(path)


def _write_queries(folder: Path, corpus: Corpus) -> None:
    queries, motion_pairs, direction_pairs = [], [], []
    for number, clip in enumerate(_clips(corpus.heldout)):
        rng = np.random.default_rng([clip.text_seed, 2])
        text = write_query(clip.scene)
        queries.append({"query_id": f"query_{number:04d}", "text": text, "clip_id": clip.clip_id})
        other = write_query(clip.scene, other_kind(clip.scene, rng))
        motion_pairs.append({"clip_id": clip.clip_id, "text": text, "distractor": other})
        opposite = other_direction(clip.scene)
        if opposite is not None:
            other = write_query(clip.scene, opposite)
            direction_pairs.append({"clip_id": clip.clip_id, "text": text, "distractor": other})
    _write_lines(folder / "queries.jsonl", queries)
    _write_lines(folder / "pairs_motion.jsonl", motion_pairs)
    _write_lines(folder / "pairs_direction.jsonl", direction_pairs)


def _facts(config: SampleConfig, corpus: Corpus) -> dict[str, Any]:
    clips = list(_clips(corpus.videos))
    return {
        "seed": config.seed,
        "num_videos": len(corpus.videos),
        "num_train_clips": sum(len(video.clips) for video in corpus.train),
        "num_heldout_clips": sum(len(video.clips) for video in corpus.heldout),
        "num_bad_clips": sum(
            video.defect is not None or clip.defect is not None for video in corpus.videos for clip in video.clips
        ),
        "num_subtitles": sum(clip.has_subtitle for clip in clips),
        "num_captions": sum(clip.has_caption for clip in clips),
    }


def _clips(videos: Iterable[Video]) -> Iterator[Clip]:
    for video in videos:
        yield from video.clips


def _facts_path(config: SampleConfig) -> Path:
    return config.folder / "corpus.json"


def _video_path(config: SampleConfig, video: Video) -> Path:
    return config.folder / "videos" / f"{video.video_id}.mp4"


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, content: bytes) -> None:
    staged = path.with_name(path.name + ".partial")
    staged.write_bytes(content)
    staged.replace(path)
