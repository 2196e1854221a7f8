"""The time limit of a video counts what was spent on the video, and all of it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.format import Reason
from preprocess import cut
from preprocess.clips import ClipsConfig
from preprocess.clock import Clock
from preprocess.cut import cut_clips
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Failure, Media

CONFIG = ClipsConfig(fps=5, size_px=48)
LIMITS = LimitsConfig(time_s=60, memory_mb=2048)
CLIPS = [Clip("a", 0.0, 1.0), Clip("b", 1.0, 2.0), Clip("c", 1.5, 2.9)]


class Jumps:
    """A clock that can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real, self._ahead_s = time.monotonic, 0.0
        monkeypatch.setattr("preprocess.clock.time.monotonic", lambda: self._real() + self._ahead_s)

    def forward(self, seconds: float) -> None:
        self._ahead_s += seconds


@pytest.fixture
def jumps(monkeypatch: pytest.MonkeyPatch) -> Jumps:
    return Jumps(monkeypatch)


def test_it_stands_while_it_is_stopped(jumps: Jumps) -> None:
    clock = Clock(10.0)
    jumps.forward(4.0)
    with clock.stopped():
        jumps.forward(100.0)
        assert 5.0 < clock.left_s() <= 6.0
    assert 5.0 < clock.left_s() <= 6.0
    jumps.forward(7.0)
    assert clock.left_s() < 0.0


def test_what_happens_to_a_clip_elsewhere_is_not_the_video_s_time(
    jumps: Jumps, painted: Callable[..., Path], tmp_path: Path
) -> None:
    """A captioner takes an hour for each clip, while ffmpeg waits."""
    path = painted(tmp_path / "x.mp4")
    outcomes = []
    for outcome in cut_clips(path, "v", probe_video(path, LIMITS), CLIPS, CONFIG, LIMITS):
        jumps.forward(3600.0)
        time.sleep(0.2)  # time for the watching thread to look
        outcomes.append(outcome)
    assert all(isinstance(outcome, Media) for outcome in outcomes) and len(outcomes) == len(CLIPS)


def test_all_passes_share_one_limit(
    jumps: Jumps, painted: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = painted(tmp_path / "x.mp4")
    real = cut.decode_frames_of

    def slow(*arguments: Any) -> Iterator[Any]:
        jumps.forward(40.0)
        yield from real(*arguments)

    monkeypatch.setattr(cut, "CLIPS_PER_PASS", 1)
    monkeypatch.setattr(cut, "decode_frames_of", slow)
    first, *others = cut_clips(path, "v", probe_video(path, LIMITS), CLIPS, CONFIG, LIMITS)
    assert isinstance(first, Media)
    assert [other.reason for other in others if isinstance(other, Failure)] == [Reason.TIME_LIMIT] * 2


def test_the_decode_ends_with_the_last_clip(
    painted: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip to the end of the video that is given up early leaves nothing to decode for."""
    path = painted(tmp_path / "x.mp4", num_frames=75)
    real, slots = cut.decode_frames_of, []

    def counting(*arguments: Any) -> Iterator[Any]:
        for frame in real(*arguments):
            slots.append(frame.slot)
            yield frame

    monkeypatch.setattr(cut, "decode_frames_of", counting)
    limits = LIMITS.model_copy(update={"max_clip_mb": 0})
    (failure,) = cut_clips(path, "v", probe_video(path, limits), [Clip("all", 0.0, None)], CONFIG, limits)
    assert isinstance(failure, Failure) and failure.reason == Reason.TOO_LARGE
    assert len(slots) == 1
