"""Cuts the frames of one decode pass into clips: a clip is done as soon as its last frame is there.

for outcome in cut_clips(path, video_id, probe, clips, config, limits):   # Media | Failure, in order of completion
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.format import Reason
from preprocess.audio import copy_audio
from preprocess.clips import ClipsConfig
from preprocess.clock import Clock
from preprocess.decode import EncodedFrame, decode_frames_of
from preprocess.faults import with_second_look
from preprocess.limits import LimitsConfig
from preprocess.mux import MUX_ERRORS, Track, open_track
from preprocess.probe import Probe
from preprocess.records import Clip, ClipError, Failure, Media
from preprocess.select import OPEN_END, Grid, Slots

CLIPS_PER_PASS = 500
"""A video with more clips is decoded in several passes: ffmpeg's command line has a length limit."""


@dataclass(slots=True)
class _OpenClip:
    clip: Clip
    slots: Slots
    size_px: tuple[int, int] = (0, 0)
    track: Track | None = None
    """None before the first frame."""
    problem: ClipError | None = None


def cut_clips(
    path: Path, video_id: str, probe: Probe, clips: Sequence[Clip], config: ClipsConfig, limits: LimitsConfig
) -> Iterator[Media | Failure]:
    """Deliver each of `clips` once, as its media or as its failure. Raises `FileSystemFault`."""
    ordered = sorted(clips, key=lambda clip: (clip.start_s, clip.clip_id))
    clock = Clock(limits.time_s)
    for start in range(0, len(ordered), CLIPS_PER_PASS):
        part = ordered[start : start + CLIPS_PER_PASS]
        audio: dict[str, bytes] = {}
        if config.audio and probe.audio_index is not None:
            audio = copy_audio(path, probe.audio_index, part, limits)
        one_pass = functools.partial(_one_pass, path, video_id, probe, config, limits, clock)
        for outcome in with_second_look(one_pass, part, path, clock):
            if config.audio and isinstance(outcome, Media):
                outcome = replace(outcome, audio=audio.get(outcome.clip.clip_id))
            with clock.stopped():
                yield outcome


def _one_pass(
    path: Path,
    video_id: str,
    probe: Probe,
    config: ClipsConfig,
    limits: LimitsConfig,
    clock: Clock,
    clips: Sequence[Clip],
    is_second: bool,
) -> Iterator[Media | Failure]:
    grid = Grid.for_fps(config.fps)
    waiting = [_OpenClip(clip, grid.slots(clip)) for clip in clips]
    waiting.sort(key=lambda item: item.slots.first)
    spans = [item.slots for item in waiting]
    active: list[_OpenClip] = []
    problem: ClipError | None = None
    try:
        with contextlib.closing(decode_frames_of(path, probe, spans, grid, config, limits, clock, is_second)) as frames:
            for frame in frames:
                while waiting and waiting[0].slots.first <= frame.slot:
                    active.append(waiting.pop(0))
                for item in active:
                    if frame.slot in item.slots:
                        _take(item, frame, grid, config, limits)
                done = [item for item in active if item.problem is not None or frame.slot >= item.slots.last]
                for item in done:
                    active.remove(item)
                    yield _close(item, video_id, config, grid, None)
                if not active and not waiting:
                    return  # what is left of the video is in no clip
    except ClipError as error:
        problem = error
    for item in active + waiting:
        yield _close(item, video_id, config, grid, problem)


def _take(item: _OpenClip, frame: EncodedFrame, grid: Grid, config: ClipsConfig, limits: LimitsConfig) -> None:
    """Add a frame to a clip, or note why the clip ends here."""
    try:
        if item.track is None:
            item.size_px = (frame.width_px, frame.height_px)
            item.track = open_track(config.codec, grid.fps, *item.size_px, config.quality)
        item.track.add(frame.data)
    except MUX_ERRORS as error:
        item.problem = _not_encoded(item, config, error)
        return
    if item.track.num_bytes > limits.max_clip_mb * 2**20:
        item.problem = ClipError(Reason.TOO_LARGE, f"more than {limits.max_clip_mb} MB of frames")


def _not_encoded(item: _OpenClip, config: ClipsConfig, error: Exception) -> ClipError:
    width_px, height_px = item.size_px
    detail = f"frames of {width_px}x{height_px} cannot become a clip of {config.codec} ({error})"
    return ClipError(Reason.VIDEO_UNREADABLE, detail)


def _close(
    item: _OpenClip, video_id: str, config: ClipsConfig, grid: Grid, problem: ClipError | None
) -> Media | Failure:
    """The end of a clip; `problem` is what ended the decode before it."""
    num_frames = item.track.num_frames if item.track is not None else 0
    found = item.problem or _lacking(item, num_frames, config, problem)
    if found is None and item.track is not None:
        try:
            return Media(item.clip, item.track.finish(), float(grid.fps), num_frames, *item.size_px)
        except MUX_ERRORS as error:
            found = _not_encoded(item, config, error)
    assert found is not None
    return Failure(item.clip.clip_id, video_id, found.reason, found.detail)


def _lacking(item: _OpenClip, num_frames: int, config: ClipsConfig, problem: ClipError | None) -> ClipError | None:
    """Why the frames that came are not enough for the clip; None where they are."""
    wanted = 1 if item.slots.count == OPEN_END else item.slots.count
    if problem is not None and problem.reason != Reason.VIDEO_UNREADABLE:
        return problem
    if num_frames >= wanted * config.min_coverage:
        return None
    if problem is not None:
        return problem
    if item.slots.count == OPEN_END:
        return ClipError(Reason.NO_FRAMES, "the video holds no frame")
    span = f"{item.clip.start_s:g} to {item.clip.end_s:g} s"
    return ClipError(Reason.SPAN_BEYOND_END, f"{num_frames} of {wanted} frames of {span} lie inside the video")
