"""Delivered JPEGs show the colours of the source, whatever matrix and range the source uses."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import ffmpeg_version, find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Media

LIMITS = LimitsConfig(time_s=60, memory_mb=2048)
_WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}


def chart() -> np.ndarray:
    """RGB patches of 32 px: greys, primaries, secondaries, skin and sky tones."""
    colours = np.array(
        [
            [(16, 16, 16), (64, 64, 64), (128, 128, 128), (200, 200, 200), (240, 240, 240), (255, 255, 255)],
            [(200, 30, 30), (30, 180, 40), (40, 50, 190), (200, 190, 40), (40, 180, 190), (180, 40, 170)],
            [(224, 172, 140), (120, 80, 60), (135, 190, 230), (90, 140, 70), (250, 130, 20), (0, 0, 0)],
        ],
        dtype=np.uint8,
    )
    return colours.repeat(32, axis=0).repeat(32, axis=1)


def to_yuv444(rgb: np.ndarray, matrix: str, full: bool) -> bytes:
    """The textbook conversion, written here so that no library decides what is right."""
    red, green, blue = (rgb[..., channel].astype(float) / 255 for channel in range(3))
    weight_red, weight_blue = _WEIGHTS[matrix]
    luma = weight_red * red + (1 - weight_red - weight_blue) * green + weight_blue * blue
    chroma = (blue - luma) / (2 * (1 - weight_blue)), (red - luma) / (2 * (1 - weight_red))
    planes = [luma * 255 if full else 16 + luma * 219]
    planes += [128 + plane * (255 if full else 224) for plane in chroma]
    return b"".join(np.clip(np.rint(plane), 0, 255).astype(np.uint8).tobytes() for plane in planes)


@pytest.mark.parametrize(
    ("matrix", "full", "tagged"),
    [
        ("bt709", False, True),
        ("bt601", False, True),
        ("bt709", True, True),
        ("bt601", True, True),
        ("bt601", False, False),
    ],
)
def test_chart_comes_back(
    matrix: str, full: bool, tagged: bool, read_frames: Callable[..., list[np.ndarray]], tmp_path: Path
) -> None:
    reference = chart()
    height, width = reference.shape[:2]
    raw, path = tmp_path / "chart.yuv", tmp_path / "chart.mkv"
    raw.write_bytes(to_yuv444(reference, matrix, full) * 10)
    tags = ["-colorspace", "bt709" if matrix == "bt709" else "smpte170m", "-color_range", "pc" if full else "tv"]
    shape = ["-f", "rawvideo", "-pix_fmt", "yuv444p", "-s", f"{width}x{height}", "-r", "25"]
    encode = ["-c:v", "libx264", "-qp", "1", *(tags if tagged else [])]
    subprocess.run(
        [find_ffmpeg(), "-v", "error", *shape, *(tags if tagged else []), "-i", str(raw), *encode, str(path)],
        stdin=subprocess.DEVNULL,
        check=True,
    )
    config = ClipsConfig(fps=5, size_px=height, resize="short_side", quality=2)
    (media,) = cut_clips(path, "v", probe_video(path, LIMITS), [Clip("v.1", 0.0, 0.4)], config, LIMITS)
    assert isinstance(media, Media), media
    frame = read_frames(media.data)[0]
    assert frame.shape == reference.shape
    # ffmpeg 9.0.2, unlike 5.1.9, rounds chroma down when it converts the range: up to one level more error in blue.
    # The middle of each patch: chroma is stored at half resolution, so edges bleed by design.
    centres = (slice(16, None, 32), slice(16, None, 32))
    got = np.asarray(Image.fromarray(frame))[centres].astype(int)
    assert np.abs(got - reference[centres].astype(int)).max() <= (3 if ffmpeg_version().startswith("5.") else 4)
