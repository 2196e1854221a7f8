"""Cuts the frames of one decode pass into clips: the frames of a clip become one mp4 as soon as its last one is there.

for outcome in cut_clips(path, probe, clips, config, limits):   # Media | Failure, in order of completion
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.data.format import Reason
from preprocess.audio import copy_audio
from preprocess.clips import ClipsConfig
from preprocess.decode import EncodedFrame, decode_frames_of
from preprocess.limits import LimitsConfig
from preprocess.mux import encode_h264, mux_mjpeg
from preprocess.probe import Probe
from preprocess.records import Clip, ClipError, Failure, Media
from preprocess.select import OPEN_END, Grid, Slots

CLIPS_PER_PASS = 500
"""A video with more clips is decoded in several passes: ffmpeg's command line has a length limit."""


@dataclass(slots=True)
class _OpenClip:
    clip: Clip
    slots: Slots
    frames: list[EncodedFrame] = field(default_factory=list)
    num_bytes: int = 0


def cut_clips(
    path: Path, video_id: str, probe: Probe, clips: Sequence[Clip], config: ClipsConfig, limits: LimitsConfig
) -> Iterator[Media | Failure]:
    """Deliver each of `clips` once, as its media or as its failure."""
    ordered = sorted(clips, key=lambda clip: (clip.start_s, clip.clip_id))
    for start in range(0, len(ordered), CLIPS_PER_PASS):
        part = ordered[start : start + CLIPS_PER_PASS]
        audio: dict[str, bytes] = {}
        if config.audio and probe.audio_index is not None:
            audio = copy_audio(path, probe.audio_index, part, limits)
        for outcome in _one_pass(path, video_id, probe, part, config, limits):
            yield outcome if isinstance(outcome, Failure) else replace(outcome, audio=audio.get(outcome.clip.clip_id))


def _one_pass(
    path: Path, video_id: str, probe: Probe, clips: Sequence[Clip], config: ClipsConfig, limits: LimitsConfig
) -> Iterator[Media | Failure]:
    grid = Grid.for_fps(config.fps)
    waiting = [_OpenClip(clip, grid.slots(clip)) for clip in clips]
    waiting.sort(key=lambda item: item.slots.first)
    active: list[_OpenClip] = []
    problem: ClipError | None = None
    try:
        for frame in decode_frames_of(path, probe, [item.slots for item in waiting], grid, config, limits):
            while waiting and waiting[0].slots.first <= frame.slot:
                active.append(waiting.pop(0))
            for item in active:
                if frame.slot in item.slots:
                    item.frames.append(frame)
                    item.num_bytes += len(frame.data)
            done = [item for item in active if _is_done(item, frame.slot, limits)]
            for item in done:
                active.remove(item)
                yield _close(item, video_id, grid, config, limits, None)
    except ClipError as error:
        problem = error
    for item in active + waiting:
        yield _close(item, video_id, grid, config, limits, problem)


def _is_done(item: _OpenClip, slot: int, limits: LimitsConfig) -> bool:
    return slot >= item.slots.last or item.num_bytes > limits.max_clip_mb * 2**20


def _close(
    item: _OpenClip, video_id: str, grid: Grid, config: ClipsConfig, limits: LimitsConfig, problem: ClipError | None
) -> Media | Failure:
    clip, frames = item.clip, item.frames
    if item.num_bytes > limits.max_clip_mb * 2**20:
        return Failure(clip.clip_id, video_id, Reason.TOO_LARGE, f"more than {limits.max_clip_mb} MB of frames")
    wanted = 1 if item.slots.count == OPEN_END else item.slots.count
    if problem is not None and problem.reason != Reason.VIDEO_UNREADABLE:
        return Failure(clip.clip_id, video_id, problem.reason, problem.detail)
    if len(frames) < wanted * config.min_coverage:
        if problem is not None:
            return Failure(clip.clip_id, video_id, problem.reason, problem.detail)
        if item.slots.count == OPEN_END:
            return Failure(clip.clip_id, video_id, Reason.NO_FRAMES, "the video holds no frame")
        detail = f"{len(frames)} of {wanted} frames of {clip.start_s:g} to {clip.end_s:g} s lie inside the video"
        return Failure(clip.clip_id, video_id, Reason.SPAN_BEYOND_END, detail)
    first = frames[0]
    pictures = [frame.data for frame in frames]
    if config.codec == "mjpeg":
        data = mux_mjpeg(pictures, grid.fps, first.width_px, first.height_px)
    else:
        data = encode_h264(pictures, grid.fps, first.width_px, first.height_px, config.quality)
    return Media(clip, data, float(grid.fps), len(frames), first.width_px, first.height_px)
