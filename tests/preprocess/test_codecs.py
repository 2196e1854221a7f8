"""The other choices of a delivered clip: H.264, audio, and the fast decode with its time error."""

import io
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import ValidationError

from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.mux import open_track
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


def test_h264_depends_on_its_frames_only() -> None:
    """x264's macroblock tree read memory that nobody wrote: now and then a few bytes more."""
    rng, kept = np.random.default_rng(0), []
    for width, height, num_frames in ((48, 48, 6), (64, 64, 6), (86, 64, 7), (112, 112, 9)):
        picture = rng.integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
        frames = [np.roll(picture, 3 * number, axis=1).tobytes() for number in range(num_frames)]
        encoded = set()
        for number in range(30):
            kept = [*kept[-4:], np.full(rng.integers(1_000, 400_000), number, np.uint8)]  # another heap each time
            track = open_track("h264", Fraction(5), width, height, 20)
            for frame in frames:
                track.add(frame)
            encoded.add(track.finish())
        assert len(encoded) == 1


def test_the_quality_follows_the_codec_where_none_is_named() -> None:
    assert (ClipsConfig().quality, ClipsConfig(codec="mjpeg").quality, ClipsConfig(codec="h264").quality) == (4, 4, 23)
    assert ClipsConfig(codec="h264", quality=4).quality == 4


def test_the_size_limit_is_about_what_is_delivered(painted: Callable[..., Path], tmp_path: Path) -> None:
    """3 s of raw 640x480 at 25 a second are 33 MB, the clip is a hundredth of it."""
    path = painted(tmp_path / "x.mp4", size=(640, 480))
    config = ClipsConfig(fps=25, size_px=480, resize="short_side", codec="h264")
    limits = LIMITS.model_copy(update={"max_clip_mb": 1})
    (media,) = cut_clips(path, "v", probe_video(path, limits), [Clip("a", 0.0, 3.0)], config, limits)
    assert isinstance(media, Media), media
    assert len(media.data) < 2**20 < media.num_frames * 640 * 480


def test_settings_that_fit_no_codec_are_refused() -> None:
    for values in ({"codec": "h264", "size_px": 33}, {"codec": "mjpeg", "quality": 40}, {"fps": 0.0004}):
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


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_sound_lies_where_it_lay(
    suffix: str, painted: Callable[..., Path], add_sound: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    """Sound that sets in 1.3 s after the pictures."""
    silent, path = painted(tmp_path / "silent.mp4", num_frames=150), tmp_path / f"late.{suffix}"
    sound = add_sound(silent, tmp_path / "sound.mp4")
    late = ["-i", str(silent), "-itsoffset", "1.3", "-i", str(sound), "-map", "0:v", "-map", "1:a", "-c", "copy"]
    subprocess.run([find_ffmpeg(), "-v", "error", *late, str(path)], stdin=subprocess.DEVNULL, check=True)
    packet_s = 1024 / 16000
    for media in cut(path, [Clip("a", 0.0, 2.0), Clip("b", 1.0, 3.0), Clip("c", 2.0, 3.0)], ClipsConfig(audio=True)):
        assert media.audio is not None
        with av.open(io.BytesIO(media.audio)) as container:
            first_s = next(frame.time for frame in container.decode(audio=0))
        assert abs(first_s - max(0.0, 1.3 - media.clip.start_s)) <= 1.1 * packet_s


def test_fast_errs_by_no_more_than_the_b_frames_between_references(
    painted: Callable[..., Path], read_numbers: Callable[[bytes], list[int]], tmp_path: Path
) -> None:
    path = painted(tmp_path / "x.mp4", options={"bf": "3", "b-adapt": "0", "g": "100", "b-pyramid": "none"})
    clip = Clip("a", 0.2, 2.6)
    (exact,), (fast,) = (cut(path, [clip], ClipsConfig(fps=5, size_px=48, fast=fast)) for fast in (False, True))
    pairs = list(zip(read_numbers(exact.data), read_numbers(fast.data), strict=True))
    errors = [abs(there - here) for there, here in pairs]
    assert 0 < max(errors) <= 3
