"""Both roads of ordinary video, the ffmpeg program of `preprocess.run` and the frame reader of training and `encode`,
show the pictures that were painted, at the times that the ffmpeg program states, each the right way up."""

import io
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pipeline.data.frames import open_clip_bytes, read_video, uniform_indices
from pipeline.data.mp4 import jpeg_packets
from pipeline.data.video import EncodedClip
from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Media
from tests.readers.painting import Source, areas, ffmpeg, painted_areas, write
from tests.readers.sources import QUICK, SOURCES

LIMITS = LimitsConfig(time_s=60, memory_mb=2048)
LEVELS = 8


def expected_areas(source: Source, number: int) -> np.ndarray:
    colours = painted_areas(number)
    return (colours @ [0.299, 0.587, 0.114])[:, None].repeat(3, axis=1) if source.pixels == "gray" else colours


def times_by_ffmpeg(path: Path, stream: int) -> list[float]:
    said = ffmpeg("-i", path, "-map", f"0:{stream}", "-vf", "showinfo", "-fps_mode", "passthrough", "-f", "null", "-")
    return [float(time) for time in re.findall(r" pts_time:(-?[0-9.e+-]+)", said)]


def delivered(path: Path, fps: float) -> list[np.ndarray]:
    config = ClipsConfig(fps=fps, size_px=96, quality=2)
    (media,) = cut_clips(path, "v", probe_video(path, LIMITS), [Clip("v.1", 0.0, None)], config, LIMITS)
    assert isinstance(media, Media), media
    packets = jpeg_packets(media.data)
    assert packets is not None and len(packets) == media.num_frames
    return [np.asarray(PIL.Image.open(io.BytesIO(media.data[at : at + size])).convert("RGB")) for at, size in packets]


def check(source: Source, name: str, folder: Path) -> None:
    path = write(source, folder, name)
    data = path.read_bytes()
    reader = EncodedClip(data)
    frames = reader.read(range(reader.num_frames))
    # The frame reader against what was painted, and against the program's times.
    assert len(frames) == len(source.numbers)
    for number, frame in zip(source.numbers, frames, strict=True):
        assert np.abs(areas(frame) - expected_areas(source, number)).max() <= LEVELS, number
    times_s = times_by_ffmpeg(path, probe_video(path, LIMITS).stream_index)
    assert reader.times_s == pytest.approx(times_s, rel=1e-5, abs=1e-6)
    # The program's road: at each slot of the clip the picture that the reader displays then, and none after the end.
    rate = Fraction(20) if source.times else Fraction(source.rate)
    clip = delivered(path, float(rate))
    for slot, frame in enumerate(clip):
        index = reader.index_at(slot / rate)
        assert np.abs(areas(frame) - areas(frames[index])).max() <= LEVELS, (slot, index)
        assert np.abs(areas(frame) - expected_areas(source, source.numbers[index])).max() <= LEVELS, (slot, index)
    if source.times:
        assert times_s[-1] < len(clip) / rate <= times_s[-1] + max(np.diff(times_s))
    else:
        assert len(clip) == math.ceil((times_s[-1] + 1 / rate) * rate - Fraction(1, 100))
    # A member of a tar, which may be read without a demuxer.
    member = open_clip_bytes(data, "mp4")
    assert member.num_frames == len(frames)
    assert all(
        np.abs(areas(one) - areas(frame)).max() <= LEVELS
        for one, frame in zip(member.read(range(len(frames))), frames, strict=True)
    )
    # A file by its path, and the same file in a tar.
    wanted = uniform_indices(len(frames), 5)
    assert np.array_equal(read_video(path, num_frames=5), open_clip_bytes(data, "mp4").read(wanted))
    assert np.array_equal(EncodedClip(path).read(wanted), frames[wanted])


@pytest.mark.heavy
@pytest.mark.parametrize("name", QUICK)
def test_one_file_of_each_kind(name: str, tmp_path: Path) -> None:
    check(SOURCES[name], name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SOURCES) - set(QUICK)))
def test_every_file_of_the_matrix(name: str, tmp_path: Path) -> None:
    check(SOURCES[name], name, tmp_path)


def test_the_matrix_is_large() -> None:
    assert len(SOURCES) >= 60 and set(QUICK) <= set(SOURCES)
