"""Delivered clips show the colours of the source, whatever matrix and range the source uses, with every ffmpeg here."""

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Media

LIMITS = LimitsConfig(time_s=60, memory_mb=2048)
_WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}
_TAGS = {"bt709": "bt709", "bt601": "smpte170m", "bt2020": "bt2020nc"}
_PATCH_PX = 48
"""Three macroblocks: the middle one does not see its neighbours, whose chroma bleeds at the edges by design."""
_MIDDLES = (slice(20, None, _PATCH_PX), slice(20, None, _PATCH_PX))
BINARIES = sorted({path for path in (shutil.which("ffmpeg"), imageio_ffmpeg.get_ffmpeg_exe()) if path})
SOURCES = [
    ("bt709", False, 14, True),
    ("bt601", False, 14, True),
    ("bt709", True, 14, True),
    ("bt601", True, 14, True),
    ("bt2020", False, 14, True),
    ("bt601", False, 14, False),
    ("bt709", False, 16, False),
]
"""Matrix, full range, rows of patches, tagged: an untagged source of 720 lines and more is taken to be BT.709."""


@pytest.fixture(params=BINARIES, ids=[str(number) for number in range(len(BINARIES))])
def any_ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Debian's ffmpeg and the one inside the wheel differ in how they convert colours."""
    monkeypatch.setenv("FFMPEG", request.param)
    find_ffmpeg.cache_clear()
    yield
    find_ffmpeg.cache_clear()


def chart(num_rows: int) -> np.ndarray:
    """RGB patches: greys, primaries, secondaries, skin and sky tones, and random colours."""
    named = [
        [(16, 16, 16), (64, 64, 64), (128, 128, 128), (200, 200, 200), (240, 240, 240), (255, 255, 255)],
        [(200, 30, 30), (30, 180, 40), (40, 50, 190), (200, 190, 40), (40, 180, 190), (180, 40, 170)],
        [(224, 172, 140), (120, 80, 60), (135, 190, 230), (90, 140, 70), (250, 130, 20), (0, 0, 0)],
    ]
    colours = np.random.default_rng(0).integers(0, 256, (num_rows, 20, 3), dtype=np.uint8)
    colours[:3, :6] = named
    return colours.repeat(_PATCH_PX, axis=0).repeat(_PATCH_PX, axis=1)


def to_yuv(rgb: np.ndarray, matrix: str, full: bool) -> np.ndarray:
    """The textbook conversion to [3, H, W], written here so that no library decides what is right."""
    red, green, blue = (rgb[..., channel].astype(float) / 255 for channel in range(3))
    weight_red, weight_blue = _WEIGHTS[matrix]
    luma = weight_red * red + (1 - weight_red - weight_blue) * green + weight_blue * blue
    chroma = (blue - luma) / (2 * (1 - weight_blue)), (red - luma) / (2 * (1 - weight_red))
    planes = [luma * 255 if full else 16 + luma * 219]
    planes += [128 + plane * (255 if full else 224) for plane in chroma]
    return np.clip(np.rint(np.stack(planes)), 0, 255).astype(np.uint8)


def to_rgb(luma: np.ndarray, blueness: np.ndarray, redness: np.ndarray) -> np.ndarray:
    """The textbook conversion back from BT.601 limited range."""
    weight_red, weight_blue = _WEIGHTS["bt601"]
    luma, blueness, redness = (luma - 16.0) / 219, (blueness - 128.0) / 224, (redness - 128.0) / 224
    red, blue = luma + 2 * (1 - weight_red) * redness, luma + 2 * (1 - weight_blue) * blueness
    green = (luma - weight_red * red - weight_blue * blue) / (1 - weight_red - weight_blue)
    return np.clip(np.rint(np.stack([red, green, blue], axis=-1) * 255), 0, 255)


def write_source(path: Path, matrix: str, full: bool, num_rows: int, tagged: bool) -> np.ndarray:
    """The chart as lossless H.264 4:2:0; returns it as RGB."""
    reference = chart(num_rows)
    planes = to_yuv(reference, matrix, full)
    picture = planes[0].tobytes() + planes[1, ::2, ::2].tobytes() + planes[2, ::2, ::2].tobytes()
    shape = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{reference.shape[1]}x{reference.shape[0]}", "-r", "25"]
    tags = ["-colorspace", _TAGS[matrix], "-color_range", "pc" if full else "tv"]
    tags = tags if tagged else []
    command = [find_ffmpeg(), "-v", "error", *shape, *tags, "-i", "pipe:0", "-c:v", "libx264", "-qp", "0", *tags]
    subprocess.run([*command, str(path)], input=picture * 10, check=True)
    return reference


def deliver(path: Path, height_px: int, codec: str) -> Media:
    config = ClipsConfig.model_validate({"fps": 5, "size_px": height_px, "resize": "short_side", "codec": codec})
    (media,) = cut_clips(path, "v", probe_video(path, LIMITS), [Clip("v.1", 0.0, 0.4)], config, LIMITS)
    assert isinstance(media, Media), media
    return media


@pytest.mark.usefixtures("any_ffmpeg")
@pytest.mark.parametrize(("matrix", "full", "num_rows", "tagged"), SOURCES)
def test_chart_comes_back_as_jpegs(
    matrix: str, full: bool, num_rows: int, tagged: bool, read_frames: Callable[..., list[np.ndarray]], tmp_path: Path
) -> None:
    reference = write_source(tmp_path / "chart.mkv", matrix, full, num_rows, tagged)
    frame = read_frames(deliver(tmp_path / "chart.mkv", len(reference), "mjpeg").data)[0]
    assert frame.shape == reference.shape
    assert np.abs(frame[_MIDDLES].astype(int) - reference[_MIDDLES].astype(int)).max() <= 3


@pytest.mark.usefixtures("any_ffmpeg")
@pytest.mark.parametrize(("matrix", "full"), [("bt709", False), ("bt601", True)])
def test_chart_comes_back_as_h264(matrix: str, full: bool, tmp_path: Path) -> None:
    reference = write_source(tmp_path / "chart.mkv", matrix, full, 14, True)
    with av.open(io.BytesIO(deliver(tmp_path / "chart.mkv", len(reference), "h264").data)) as container:
        planes = next(container.decode(video=0)).to_ndarray(format="yuv420p")
    height, width = reference.shape[:2]
    chroma = planes[height:].reshape(2, height // 2, width // 2).repeat(2, axis=1).repeat(2, axis=2)
    got = to_rgb(planes[:height], *chroma)
    # One level more than for JPEGs: limited range has coarser steps, and x264's CRF of 4 moves a level now and then.
    assert np.abs(got[_MIDDLES] - reference[_MIDDLES].astype(int)).max() <= 4
