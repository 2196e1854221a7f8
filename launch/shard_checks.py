"""What a shard set needs and how much it will be, as far as the login node can see.

lacking = missing_inputs(config)             # metadata, texts, weights of the captioner: one line each
unseen = unseen_videos(config.videos)        # videos may be mounted on the nodes only
state = set_state(config, dry_run=True)      # shards, and what is missing of them
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.disk import compare_disk
from pipeline.errors import InputError

if TYPE_CHECKING:
    from preprocess.config import PreprocessConfig
    from preprocess.plan import Plan
    from preprocess.videos import VideosConfig

MEAN_CLIP_S = 13.4
"""Of HD-VILA-100M, which the bytes of a clip were measured on."""
H264_SHARE = 0.31
"""Of the bytes of MJPEG: 132 KB against 430 KB for 13.4 s at 224 px (DESIGN.md, section 3)."""
SHARDS_LOOKED_AT = 4


@dataclass(frozen=True)
class SetState:
    """How far a set is."""

    num_shards: int
    missing: list[int]
    """Numbers of the shards that are not written."""
    clips_to_come: int
    """Clips of these."""
    mean_clip_s: float
    """Of some of them; MEAN_CLIP_S where the metadata give no ends."""


def missing_inputs(config: "PreprocessConfig") -> list[str]:
    """Metadata, lists, texts and weights that are not there."""
    from preprocess.metadata import find_files

    lacking: list[str] = []
    for pattern in config.metadata.files:
        try:
            find_files((pattern,))
        except InputError as error:
            lacking.append(str(error))
    lacking += [
        f"metadata.exclude: there is no file {path}; correct the path, or take it off the list"
        for path in config.metadata.exclude
        if not Path(path).is_file()
    ]
    for key, names in (("subtitles", config.texts.subtitles), ("captions", config.texts.captions)):
        for name in names:
            place = fixed_folder(name) if "{" in name else Path(name)
            if not place.exists():
                lacking.append(f"texts.{key}: there is no {place}; download it, or take it off the list")
    return lacking


def unreadable_tables(config: "PreprocessConfig") -> list[str]:
    """The first table of which no row can be read."""
    from preprocess.inputs import check_inputs

    try:
        check_inputs(config)
    except InputError as error:
        return [str(error)]
    return []


def unseen_videos(videos: "VideosConfig") -> list[str]:
    """Places of videos that are not there, or hold nothing, on this machine."""
    if videos.index:
        there = Path(videos.index).is_file()
        return [] if there else [f"videos.index: there is no file {videos.index}; check the path"]
    lines = []
    for template in videos.templates:
        folder = fixed_folder(template)
        if not folder.is_dir():
            lines.append(f"videos.templates: there is no folder {folder} on this machine; mount it, or change the path")
        elif is_empty(folder):
            lines.append(f"videos.templates: {folder} is empty on this machine; mount it, or put videos there")
    return lines


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing; one that may not be listed may hold something."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except PermissionError:
        return False


def uncached_captioner(config: "PreprocessConfig") -> list[str]:
    """Weights of the captioner that nodes without internet could not fetch."""
    chosen = config.captioner
    if chosen.kind != "open_clip" or not chosen.pretrained or Path(chosen.pretrained).exists():
        return []
    from pipeline.model.tags import cached_weights

    try:
        cached = cached_weights(chosen.model, chosen.pretrained)
    except InputError as error:
        return [f"captioner: {error}"]
    what = f"captioner: weights of {chosen.model} {chosen.pretrained}"
    return [] if cached else [f"{what} are not in this machine's cache; fetch them before the nodes need them"]


def fixed_folder(template: str) -> Path:
    """The folder that a template names for all videos.

    >>> str(fixed_folder("data/videos/{video_id:.2}/{video_id}.mp4"))
    'data/videos'
    """
    return Path(template.partition("{")[0] + "x").parent


def set_state(config: "PreprocessConfig", *, dry_run: bool) -> SetState:
    """Plan the set or open its plan; see which shards are not written. A dry run leaves no plan in a new folder."""
    from preprocess.claim import claim_folder
    from preprocess.planning import make_plan
    from preprocess.run import missing_shards

    with tempfile.TemporaryDirectory() as elsewhere:
        is_trial = dry_run and not config.output.exists()
        if not is_trial:
            # Made here, once, the plan is only opened by the tasks. It also refuses the folder of another config.
            claim_folder(config)
        folder = Path(elsewhere) / "set" if is_trial else config.output
        plan = make_plan(folder, config.metadata, config.shards, config.seed, config.limits.max_line_mb * 2**20)
        missing = missing_shards(plan, config)
        num_clips = sum(plan.num_clips(number) for number in missing)
        return SetState(plan.num_shards, missing, num_clips, mean_clip_s(plan, missing) if dry_run else MEAN_CLIP_S)


def mean_clip_s(plan: "Plan", numbers: list[int]) -> float:
    """Mean duration of the clips of a few shards, where the metadata say where they end."""
    looked_at = numbers[:: max(1, len(numbers) // SHARDS_LOOKED_AT)][:SHARDS_LOOKED_AT]
    clips = [clip for number in looked_at for video in plan.shard(number).videos for clip in video.clips]
    spans = [clip.end_s - clip.start_s for clip in clips if clip.end_s is not None]
    return sum(spans) / len(spans) if spans else MEAN_CLIP_S


def set_disk(config: "PreprocessConfig", state: SetState | None) -> tuple[list[str], list[str]]:
    """(facts, lacking) of the disk for the shards that are not written; without a plan, for all of HD-VILA-100M."""
    from pipeline.plan import BYTES_PER_CLIP, HDVILA_CLIPS

    if state is None and config.metadata.layout != "hdvila":
        return [], []
    num_clips, mean_s = (state.clips_to_come, state.mean_clip_s) if state else (HDVILA_CLIPS, MEAN_CLIP_S)
    clips = config.clips
    scale = (clips.size_px / 224) ** 2 * clips.fps / 3 * mean_s / MEAN_CLIP_S
    scale *= H264_SHARE if clips.codec == "h264" else 1
    what = f"shards of {num_clips:,} clips" + ("" if state else ", if the metadata are those of HD-VILA-100M,")
    return compare_disk(what, config.output.resolve(), num_clips * BYTES_PER_CLIP * scale)
