"""The end of a video is the end of its clips: no picture is delivered after the last one stops being displayed."""

import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import pytest

from pipeline.data.format import Reason
from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Failure, Media

Painter = Callable[..., Path]
Numbers = Callable[[bytes], list[int]]
LIMITS = LimitsConfig(time_s=60, memory_mb=2048)
BINARIES = sorted({path for path in (shutil.which("ffmpeg"), imageio_ffmpeg.get_ffmpeg_exe()) if path})
B_FRAMES = {"options": {"bf": "3", "g": "100"}}
MPEG4 = {"codec": "mpeg4"}
CODECS = {"mp4": B_FRAMES, "mkv": B_FRAMES, "mov": B_FRAMES, "ts": B_FRAMES, "avi": MPEG4, "flv": {"codec": "flv"}}
RATES = [(suffix, fps) for suffix in ("mp4", "mkv") for fps in (1, 10, 25)]
RATES += [("mov", 1), ("ts", 10), ("ts", 25), ("avi", 10), ("flv", 25)]


@pytest.fixture(params=BINARIES, ids=[str(number) for number in range(len(BINARIES))])
def any_ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Versions differ in what they know of the last frame."""
    monkeypatch.setenv("FFMPEG", request.param)
    find_ffmpeg.cache_clear()
    yield
    find_ffmpeg.cache_clear()


def cut(path: Path, spans: list[tuple[float, float | None]], fps: float = 10) -> list[Media | Failure]:
    clips = [Clip(f"v.{number}", *span) for number, span in enumerate(spans)]
    config = ClipsConfig(fps=fps, size_px=48)
    outcomes = list(cut_clips(path, "v", probe_video(path, LIMITS), clips, config, LIMITS))
    by_id = {one.clip.clip_id if isinstance(one, Media) else one.clip_id: one for one in outcomes}
    return [by_id[clip.clip_id] for clip in clips]


@pytest.mark.usefixtures("any_ffmpeg")
@pytest.mark.parametrize(("suffix", "fps"), RATES)
def test_a_whole_video_has_no_frame_too_many(
    suffix: str, fps: int, painted: Painter, read_numbers: Numbers, tmp_path: Path
) -> None:
    """Two seconds of it are 20 frames at 10 a second, and nothing lies beyond. (Of MPEG-TS with a frame a second ffmpeg
    5.1 does not know how long the last one stays.)"""
    path = painted(tmp_path / f"x.{suffix}", num_frames=2 * fps, fps=fps, **CODECS[suffix])
    whole, last, beyond, far = cut(path, [(0.0, None), (1.8, 2.0), (2.0, 2.3), (7.0, 7.1)])
    assert isinstance(whole, Media) and isinstance(last, Media)
    assert read_numbers(whole.data) == [slot * fps // 10 for slot in range(20)]
    assert read_numbers(last.data) == [slot * fps // 10 for slot in (18, 19)]
    for failure in (beyond, far):
        assert isinstance(failure, Failure) and failure.reason == Reason.SPAN_BEYOND_END


def test_a_span_that_reaches_over_the_end_has_what_lies_inside(
    painted: Painter, read_numbers: Numbers, tmp_path: Path
) -> None:
    path = painted(tmp_path / "x.mp4", num_frames=20, fps=10)
    inside, too_short = cut(path, [(1.0, 2.6), (1.8, 2.6)])
    assert isinstance(inside, Media) and read_numbers(inside.data) == list(range(10, 20))
    assert isinstance(too_short, Failure) and too_short.reason == Reason.SPAN_BEYOND_END


def test_the_last_of_irregular_frames_stays_as_long_as_it_says(
    painted: Painter, read_numbers: Numbers, tmp_path: Path
) -> None:
    times = [0.0, 0.1, 0.5, 0.6, 1.2]
    for suffix in ("mp4", "mkv"):
        path = painted(tmp_path / f"x.{suffix}", num_frames=5, times_s=times)
        end_s = probe_video(path, LIMITS).end_s
        assert end_s is not None and 1.2 < end_s <= Fraction(19, 10)
        (whole,) = cut(path, [(0.0, None)], fps=20)
        assert isinstance(whole, Media)
        wanted = [
            max(number for number in range(5) if times[number] <= slot / 20 + 1e-9) for slot in range(whole.num_frames)
        ]
        assert read_numbers(whole.data) == wanted
        assert (whole.num_frames - 1) / 20 < end_s <= whole.num_frames / 20


def test_files_that_were_joined_byte_by_byte_are_not_cut_at_the_end_of_the_last(
    painted: Painter, tmp_path: Path
) -> None:
    long = painted(tmp_path / "long.mkv", num_frames=60, fps=10)
    short = painted(tmp_path / "short.mkv", num_frames=10, fps=10)
    (tmp_path / "x.mkv").write_bytes(long.read_bytes() + short.read_bytes())
    (late,) = cut(tmp_path / "x.mkv", [(4.0, 5.5)])
    assert isinstance(late, Media) and late.num_frames == 15
