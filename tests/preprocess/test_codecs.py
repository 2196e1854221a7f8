"""The other choices of a delivered clip: H.264, audio, and the fast decode with its time error."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import ValidationError

from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Media

LIMITS = LimitsConfig(time_s=60, memory_mb=2048)


def cut(path: Path, clips: list[Clip], config: ClipsConfig) -> list[Media]:
    outcomes = list(cut_clips(path, "v", probe_video(path, LIMITS), clips, config, LIMITS))
    assert all(isinstance(outcome, Media) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Media)]


def test_h264_shows_the_same_frames_in_fewer_bytes(
    painted: Callable[..., Path], read_painted: Callable[[np.ndarray], int], tmp_path: Path
) -> None:
    path = painted(tmp_path / "x.mp4")
    clips = [Clip("a", 0.5, 2.5), Clip("b", 1.0, 2.0)]
    small = cut(path, clips, ClipsConfig(fps=5, size_px=64, codec="h264", quality=20))
    plain = cut(path, clips, ClipsConfig(fps=5, size_px=64))
    for h264, mjpeg in zip(small, plain, strict=True):
        with av.open(io.BytesIO(h264.data)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            numbers = [read_painted(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        assert len(numbers) == h264.num_frames == mjpeg.num_frames
        wanted = [h264.clip.start_s + position / 5 for position in range(len(numbers))]
        assert all(abs(number / 25 - time) <= 0.05 for number, time in zip(numbers, wanted, strict=True))
    assert sum(len(media.data) for media in small) < sum(len(media.data) for media in plain)
    assert [media.data for media in cut(path, clips, ClipsConfig(fps=5, size_px=64, codec="h264", quality=20))] == [
        media.data for media in small
    ]


def test_settings_that_fit_no_codec_are_refused() -> None:
    for values in ({"codec": "h264", "size_px": 33}, {"codec": "mjpeg", "quality": 40}):
        with pytest.raises(ValidationError):
            ClipsConfig.model_validate(values)


def test_audio_is_copied_for_the_span(
    painted: Callable[..., Path], add_sound: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    silent = painted(tmp_path / "silent.mp4")
    path, rate = add_sound(silent, tmp_path / "x.mp4"), 16000
    config = ClipsConfig(fps=5, size_px=32, audio=True)
    for media in cut(path, [Clip("a", 0.5, 2.5), Clip("b", 2.0, 2.5)], config):
        assert media.audio is not None
        with av.open(io.BytesIO(media.audio)) as container:
            samples = sum(frame.samples for frame in container.decode(audio=0))
        assert media.clip.end_s is not None
        assert abs(samples / rate - (media.clip.end_s - media.clip.start_s)) <= 2 * 1024 / rate
    (without,) = cut(silent, [Clip("a", 0.5, 2.5)], config)
    assert without.audio is None


def test_fast_errs_by_no_more_than_the_b_frames_between_references(
    painted: Callable[..., Path], read_numbers: Callable[[bytes], list[int]], tmp_path: Path
) -> None:
    path = painted(tmp_path / "x.mp4", options={"bf": "3", "b-adapt": "0", "g": "100", "b-pyramid": "none"})
    clip = Clip("a", 0.2, 2.6)
    (exact,), (fast,) = (cut(path, [clip], ClipsConfig(fps=5, size_px=48, fast=fast)) for fast in (False, True))
    pairs = list(zip(read_numbers(exact.data), read_numbers(fast.data), strict=True))
    errors = [abs(there - here) for there, here in pairs]
    assert 0 < max(errors) <= 3
