"""The frames of a clip are the frames of its span, whatever the source looks like."""

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
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
Frames = Callable[[bytes], list[np.ndarray]]
LIMITS = LimitsConfig(time_s=60, memory_mb=2048)


def cut(path: Path, spans: list[tuple[float, float | None]], **options: object) -> list[Media | Failure]:
    config = ClipsConfig.model_validate({"fps": 5, "size_px": 48, **options})
    clips = [Clip(f"v.{number}.mp4", start, end) for number, (start, end) in enumerate(spans)]
    outcomes = list(cut_clips(path, "v", probe_video(path, LIMITS), clips, config, LIMITS))
    ids = [out.clip.clip_id if isinstance(out, Media) else out.clip_id for out in outcomes]
    assert sorted(ids) == sorted(clip.clip_id for clip in clips)
    return [outcomes[ids.index(clip.clip_id)] for clip in clips]


def check_times(media: object, numbers: list[int], times_s: list[float], span: tuple[float, float]) -> None:
    """Every delivered frame was on the screen within half an output interval of where it should be."""
    assert isinstance(media, Media), media
    half = 0.5 / media.fps
    assert media.num_frames == 1 or abs(media.num_frames / media.fps - (span[1] - span[0])) <= half + 1e-6
    ends = [*times_s[1:], float("inf")]
    for position, number in enumerate(numbers):
        wanted = span[0] + position / media.fps
        assert times_s[number] - half <= wanted < ends[number] + half, (position, number, wanted)
    assert len(numbers) == media.num_frames


SPANS = [(0.0, 1.0), (0.333, 1.777), (1.0, 1.04), (1.5, 2.9), (0.4, 2.6)]


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"options": {"g": "200", "bf": "3"}},
        {"fps": 30, "num_frames": 90, "size": (66, 50)},
        {"fps": 3, "num_frames": 9},
        {"pix_fmt": "yuv420p10le", "suffix": "mkv"},
        {"codec": "mpeg4", "suffix": "avi"},
        {"codec": "libvpx-vp9", "suffix": "webm", "options": {"cpu-used": "8", "deadline": "realtime"}},
        {"suffix": "mkv", "size": (127, 95), "pix_fmt": "yuv444p"},
        {"suffix": "ts"},
        {"size": (127, 95), "codec": "mpeg4", "suffix": "avi"},
        pytest.param({"size": (3840, 2160), "options": {"preset": "ultrafast"}}, marks=pytest.mark.heavy),
    ],
    ids=["plain", "long-gop", "30fps", "3fps", "10bit", "avi", "vp9", "odd-444", "mpegts", "odd-420", "4K"],
)
def test_frames_belong_to_the_span(
    source: dict[str, object], painted: Painter, read_numbers: Numbers, tmp_path: Path
) -> None:
    options = dict(source)
    path = painted(tmp_path / f"x.{options.pop('suffix', 'mp4')}", **options)
    fps = float(str(source.get("fps", 25)))
    times = [number / fps for number in range(int(3 * fps))]
    for media, span in zip(cut(path, SPANS), SPANS, strict=True):
        assert isinstance(media, Media), media
        check_times(media, read_numbers(media.data), times, span)


def test_variable_frame_rate_shows_what_was_on_the_screen(
    painted: Painter, read_numbers: Numbers, tmp_path: Path
) -> None:
    times = [0.0, 0.04, 0.08, 0.12, 1.5, 1.54, 1.58, 2.4, 2.44, 2.48, 3.0]
    path = painted(tmp_path / "x.mp4", num_frames=len(times), times_s=times)
    for span in [(0.0, 2.8), (0.6, 1.4), (1.2, 2.6)]:
        (media,) = cut(path, [span])
        assert isinstance(media, Media), media
        check_times(media, read_numbers(media.data), times, span)


def test_start_time_that_is_not_zero(painted: Painter, read_numbers: Numbers, tmp_path: Path) -> None:
    times = [10 + number / 25 for number in range(75)]
    path = painted(tmp_path / "x.mkv", times_s=times)
    (media,) = cut(path, [(1.0, 2.0)])
    assert isinstance(media, Media)
    check_times(media, read_numbers(media.data), [time - 10 for time in times], (1.0, 2.0))


@pytest.mark.parametrize(
    ("resize", "size"), [("squash", (48, 48)), ("short_side", (64, 48)), ("center_crop", (48, 48))]
)
@pytest.mark.parametrize("second_size", [(96, 64), (96, 128)], ids=["wide", "tall"])
@pytest.mark.parametrize("codec", ["mjpeg", "h264"])
def test_a_size_that_changes_on_the_way(
    resize: str,
    size: tuple[int, int],
    second_size: tuple[int, int],
    codec: str,
    painted: Painter,
    paint_number: Callable[[int, int, int], np.ndarray],
    read_painted: Callable[[np.ndarray], int],
    tmp_path: Path,
) -> None:
    """As in recordings of broadcasts: two sizes in one stream, one clock. A clip keeps its first size."""
    options = {"bf": "0"}
    first = painted(tmp_path / "a.ts", num_frames=40, options=options)
    times = [number / 25 for number in range(90)]

    def go_on(number: int, width: int, height: int) -> np.ndarray:
        return paint_number(number + 40, width, height)

    second = painted(
        tmp_path / "b.ts", num_frames=50, times_s=times[40:], size=second_size, draw=go_on, options=options
    )
    path = tmp_path / "x.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    spans: list[tuple[float, float | None]] = [(0.2, 1.2), (1.0, 2.4), (2.0, 3.4)]
    for media, span in zip(cut(path, spans, resize=resize, codec=codec), spans, strict=True):
        assert isinstance(media, Media), media
        assert (media.width_px, media.height_px) == size
        with av.open(io.BytesIO(media.data)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert {frame.shape[1::-1] for frame in frames} == {size}
        # All of the picture is there: black and white blocks, and nothing of what was in its place before.
        frames = frames if resize != "center_crop" else [_uncropped(frame) for frame in frames]
        check_times(media, [read_painted(frame) for frame in frames], times, (span[0], span[1] or 0.0))


def _uncropped(frame: np.ndarray) -> np.ndarray:
    """A centre crop of 64x48 with the columns that it lost: blocks reach from edge to edge."""
    return np.pad(frame, ((0, 0), (8, 8), (0, 0)), mode="edge")


@pytest.mark.parametrize(("resize", "size"), [("short_side", (86, 48)), ("center_crop", (48, 48))])
def test_pixels_that_are_not_square(
    resize: str, size: tuple[int, int], painted: Painter, read_numbers: Numbers, tmp_path: Path
) -> None:
    """16:9 in 5:4, as on DVDs: in the stream's own words, or in the container's alone."""
    path = painted(tmp_path / "x.mp4", size=(80, 64), options={"x264-params": "sar=64/45", "bf": "2"})
    told = tmp_path / "told.mp4"
    plain = painted(tmp_path / "plain.mp4", size=(80, 64), options={"bf": "2"})
    command = [find_ffmpeg(), "-v", "error", "-i", str(plain), "-c", "copy", "-aspect", "16:9", str(told)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    for source in (path, told):
        (media,) = cut(source, [(0.0, 1.0)], resize=resize)
        assert isinstance(media, Media), media
        assert (media.width_px, media.height_px) == size


def test_frames_that_no_codec_takes_fail_their_clip(painted: Painter, tmp_path: Path) -> None:
    """A strip of a picture, scaled to 224 at its short side, is too high for H.264."""
    path = painted(tmp_path / "x.mp4", num_frames=5, size=(16, 2000), options={"preset": "ultrafast"})
    (failure,) = cut(path, [(0.0, 0.2)], resize="short_side", size_px=224, codec="h264")
    assert isinstance(failure, Failure) and failure.reason == Reason.VIDEO_UNREADABLE
    assert "224x28000" in failure.detail


def test_overlapping_and_equal_spans_get_equal_frames(painted: Painter, read_numbers: Numbers, tmp_path: Path) -> None:
    first, second, shifted = cut(painted(tmp_path / "x.mp4"), [(0.5, 2.0), (0.5, 2.0), (0.7, 2.2)])
    assert isinstance(first, Media) and isinstance(second, Media) and isinstance(shifted, Media)
    assert first.data == second.data
    assert read_numbers(first.data)[1:] == read_numbers(shifted.data)[:-1]


def test_hundreds_of_clips_in_one_pass(painted: Painter, read_numbers: Numbers, tmp_path: Path) -> None:
    spans = [(0.004 * number, 0.004 * number + 0.4 + 0.2 * (number % 5)) for number in range(400)]
    times = [number / 25 for number in range(75)]
    for media, span in zip(cut(painted(tmp_path / "x.mp4"), spans), spans, strict=True):
        assert isinstance(media, Media), media
        check_times(media, read_numbers(media.data), times, span)


def test_one_frame_and_whole_video(painted: Painter, read_numbers: Numbers, tmp_path: Path) -> None:
    (single,) = cut(painted(tmp_path / "one.mp4", num_frames=1), [(0.0, None)])
    assert isinstance(single, Media) and read_numbers(single.data) == [0]
    (whole,) = cut(painted(tmp_path / "all.mp4"), [(0.0, None)])
    assert isinstance(whole, Media)
    assert read_numbers(whole.data) == list(range(0, 75, 5))


def test_spans_beyond_the_end(painted: Painter, tmp_path: Path) -> None:
    beyond, cut_short, mostly_beyond = cut(painted(tmp_path / "x.mp4"), [(5.0, 6.0), (2.0, 3.6), (2.8, 4.0)])
    assert isinstance(beyond, Failure) and beyond.reason == Reason.SPAN_BEYOND_END
    assert isinstance(mostly_beyond, Failure) and mostly_beyond.reason == Reason.SPAN_BEYOND_END
    assert isinstance(cut_short, Media) and cut_short.num_frames == 5


def test_rotated_video_stands_upright(painted: Painter, read_frames: Frames, tmp_path: Path) -> None:
    def left_white(number: int, width: int, height: int) -> np.ndarray:
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, : width // 2] = 255
        return picture

    plain = painted(tmp_path / "plain.mp4", draw=left_white, num_frames=25)
    rotated = tmp_path / "rotated.mp4"
    command = [find_ffmpeg(), "-v", "error", "-display_rotation", "90", "-i", str(plain), "-c", "copy", str(rotated)]
    if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode != 0:
        # Before ffmpeg 6 the flag travels as metadata.
        command = [find_ffmpeg(), "-v", "error", "-i", str(plain), "-c", "copy", "-metadata:s:v", "rotate=270"]
        subprocess.run([*command, str(rotated)], stdin=subprocess.DEVNULL, check=True)
    (media,) = cut(rotated, [(0.0, 0.5)], resize="short_side")
    assert isinstance(media, Media)
    assert media.height_px > media.width_px
    frame = read_frames(media.data)[0].astype(int)
    top, bottom = frame[: frame.shape[0] // 3].mean(), frame[-frame.shape[0] // 3 :].mean()
    assert abs(top - bottom) > 200


@pytest.mark.parametrize(
    ("resize", "size"), [("squash", (48, 48)), ("short_side", (64, 48)), ("center_crop", (48, 48))]
)
def test_geometry(resize: str, size: tuple[int, int], painted: Painter, tmp_path: Path) -> None:
    (media,) = cut(painted(tmp_path / "x.mp4"), [(0.0, 1.0)], resize=resize)
    assert isinstance(media, Media)
    assert (media.width_px, media.height_px) == size


def test_interlaced_video(painted: Painter, read_numbers: Numbers, tmp_path: Path) -> None:
    path = painted(tmp_path / "x.mp4", options={"flags": "+ildct+ilme", "x264-params": "interlaced=1"})
    (media,) = cut(path, [(0.4, 1.4)])
    assert isinstance(media, Media)
    check_times(media, read_numbers(media.data), [number / 25 for number in range(75)], (0.4, 1.4))
