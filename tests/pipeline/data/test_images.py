"""Images come upright, in 8 bits, on white; damage is named, and plain JPEGs go the fast way."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from pipeline.data import images
from pipeline.data.frames import DamagedMedia, open_clip_bytes


def chart() -> np.ndarray:
    """[24, 40, 3]: every quarter another colour, so that each of the eight ways to lay it looks different."""
    picture = np.zeros((24, 40, 3), np.uint8)
    picture[:12, :20], picture[:12, 20:] = (200, 40, 40), (40, 180, 60)
    picture[12:, :20], picture[12:, 20:] = (50, 60, 200), (235, 235, 235)
    return picture


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, ext: str) -> np.ndarray:
    (frame,) = open_clip_bytes(data, ext).read([0])
    return frame


def middles(picture: np.ndarray) -> np.ndarray:
    """Of the four quarters."""
    height, width = picture.shape[:2]
    return picture[height // 4 :: height // 2, width // 4 :: width // 2].astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("ext", "options"), [("jpeg", {"quality": 95}), ("png", {}), ("webp", {"lossless": True})])
def test_exif_orientation(orientation: int, ext: str, options: dict[str, Any]) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIL.Image.fromarray(chart()), ext, exif=exif, **options)
    frame = read(data, ext)
    upright = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB"))
    assert frame.shape == upright.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert np.abs(middles(frame) - middles(upright)).max() <= 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(
        middles(read(encoded(PIL.Image.fromarray(chart()), "png", exif=exif), "png")), middles(chart())
    )


def test_broken_exif_turns_nothing() -> None:
    data = encoded(PIL.Image.fromarray(chart()), "jpeg", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.abs(middles(read(data, "jpg")) - middles(chart())).max() <= 4


def png16(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, written here: Pillow writes no RGB of that depth."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bits_become_their_upper_eight() -> None:
    ramp = np.arange(64, dtype=np.uint16) * 1024
    grey = read(png16(ramp[None], 0), "png")
    assert grey[0, :, 0].tolist() == [number * 4 for number in range(64)]
    assert (grey == grey[..., :1]).all()
    colours = np.stack([ramp, ramp[::-1], ramp], axis=1)
    assert np.array_equal(read(png16(colours[None], 2), "png")[0], colours >> 8)
    with_alpha = np.concatenate([colours, np.full((64, 1), 65535, np.uint16)], axis=1)
    assert np.array_equal(read(png16(with_alpha[None], 6), "png")[0], colours >> 8)
    grey_alpha = np.stack([ramp, np.full(64, 65535, np.uint16)], axis=1)
    assert np.array_equal(read(png16(grey_alpha[None], 4), "png")[0, :, 0], ramp >> 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("ext", ["png", "webp"])
def test_other_depths(mode: str, ext: str) -> None:
    picture = PIL.Image.fromarray(chart()).convert(mode)
    wanted = np.asarray(picture.convert("RGB"))
    options = {"lossless": True} if ext == "webp" else {}
    given = picture if ext == "png" else picture.convert("RGB")
    assert np.array_equal(read(encoded(given, ext, **options), ext), wanted)


@pytest.mark.parametrize("ext", ["png", "webp"])
def test_transparent_pixels_lie_on_white(ext: str) -> None:
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:, :4] = (10, 20, 30, 255)
    picture[:4, 4:] = (0, 0, 0, 128)
    options = {"lossless": True, "exact": True} if ext == "webp" else {}
    frame = read(encoded(PIL.Image.fromarray(picture), ext, **options), ext)
    assert frame[0, 0].tolist() == [10, 20, 30] and frame[7, 7].tolist() == [255] * 3
    assert abs(int(frame[0, 7, 0]) - 127) <= 1


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_transparent_colour_of_a_palette_lies_on_white(transparency: int | bytes) -> None:
    picture = PIL.Image.new("P", (8, 8), 0)
    picture.putpalette([200, 40, 40, 0, 0, 0])
    picture.paste(1, (4, 0, 8, 8))
    frame = read(encoded(picture, "png", transparency=transparency), "png")
    assert frame[0, 0].tolist() == [200, 40, 40] and frame[0, 7].tolist() == [255] * 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_four_inks(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIL.Image.fromarray(chart()).convert("CMYK"), "jpeg", quality=95, exif=exif)
    frame = read(data, "jpg")
    assert frame.shape == ((24, 40, 3) if orientation == 1 else (40, 24, 3))
    upright = chart() if orientation == 1 else np.rot90(chart(), -1)
    assert np.abs(middles(frame) - middles(upright)).max() <= 6


def test_grey_and_progressive_jpegs() -> None:
    grey = read(encoded(PIL.Image.fromarray(chart()).convert("L"), "jpeg", quality=95), "jpg")
    assert (grey == grey[..., :1]).all() and grey.shape == (24, 40, 3)
    progressive = read(encoded(PIL.Image.fromarray(chart()), "jpeg", quality=95, progressive=True), "jpg")
    assert np.abs(middles(progressive) - middles(chart())).max() <= 4


def test_of_an_animation_the_first_frame() -> None:
    first, second = PIL.Image.fromarray(chart()), PIL.Image.new("RGB", (40, 24), "black")
    data = encoded(first, "webp", save_all=True, append_images=[second], duration=100, lossless=True)
    clip = open_clip_bytes(data, "webp")
    assert clip.num_frames == 1
    assert np.array_equal(clip.read([0])[0], chart())


def test_a_plain_jpeg_is_decoded_in_place_and_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PIL.Image.fromarray(chart()), "jpeg")

    def never(*_: object) -> None:
        raise AssertionError("the slow way")

    monkeypatch.setattr(images, "_by_pillow", never)
    monkeypatch.setattr(images, "_turn_of_jpeg", never)
    memory = np.zeros((24, 40, 3), np.uint8)
    seen: list[np.ndarray] = []
    open_clip_bytes(data, "jpg").visit([0], lambda _, frame: seen.append(frame), lambda *_: memory)
    assert seen[0].ctypes.data == memory.ctypes.data and memory.any()


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_a_picture_that_is_cut_short_is_damage(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(PIL.Image.fromarray(noise), kind)
    with pytest.raises(DamagedMedia):
        read(data[: len(data) // 2], kind)
