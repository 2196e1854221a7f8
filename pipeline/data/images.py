"""Images as a person sees them: upright, 8 bits, RGB, on white.

    image = Image(data)                     # a clip of one frame
    pixels = decode_jpeg(data, 0, None)     # one JPEG by libjpeg-turbo, as it is stored: a frame of Motion JPEG

- EXIF orientation is obeyed, in JPEG, PNG and WebP.
- 16 bits a channel become their upper 8.
- Transparent pixels lie on white, as in img2dataset: the colours that they hide mean nothing.
- CMYK becomes RGB by Pillow's plain formula; colour profiles are not applied.
- Of an animation the first frame is taken.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg

from pipeline.data.media import MAX_PIXELS, DamagedMedia, Frames, Place, Readable, Target
from pipeline.data.turn import UPRIGHT, Turn

_JPEG_START = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
_EXIF_WITHIN_BYTES = 1 << 17
"""A segment holds up to 64 KB, and the one with EXIF is the first or the second."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Turn(mirror_columns=True),
    3: Turn(mirror_columns=True, mirror_rows=True),
    4: Turn(mirror_rows=True),
    5: Turn(transpose=True),
    6: Turn(transpose=True, mirror_columns=True),
    7: Turn(transpose=True, mirror_columns=True, mirror_rows=True),
    8: Turn(transpose=True, mirror_rows=True),
}
"""EXIF orientation: what has to be done to the stored picture."""


class Image(Readable):
    """An image: a video of one frame."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.num_frames = 1

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        place(0, self._jpeg(target) if self._data.startswith(_JPEG_START) else _by_pillow(self._data))

    def _jpeg(self, target: Target | None) -> Frames:
        turn = UPRIGHT
        if self._data.find(_EXIF, 0, _EXIF_WITHIN_BYTES) >= 0:
            turn = _turn_of_jpeg(self._data)
        if _is_cmyk(self._data):
            return _by_pillow(self._data)
        return turn.apply(decode_jpeg(self._data, 0, target if turn == UPRIGHT else None))


def decode_jpeg(data: bytes | memoryview, index: int, target: Target | None) -> Frames:
    """Decode into the memory that `target` names for this index and size, if it does. Raises DamagedMedia."""
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > MAX_PIXELS:
            raise DamagedMedia(f"a picture of {width} x {height} px")
        memory = target(index, height, width) if target else None
        pixels: Frames = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=memory)
    except ValueError as error:
        raise DamagedMedia(str(error)) from None
    return pixels


def _is_cmyk(data: bytes) -> bool:
    """libjpeg-turbo has no way from four inks to RGB."""
    try:
        return str(simplejpeg.decode_jpeg_header(data)[2]) in ("CMYK", "YCCK")
    except ValueError as error:
        raise DamagedMedia(str(error)) from None


def _turn_of_jpeg(data: bytes) -> Turn:
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            return _turn_of(picture)
    except Exception:  # what is wrong with the picture itself, its decoder will say
        return UPRIGHT


def _turn_of(picture: Any) -> Turn:
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION), UPRIGHT)
    except Exception:  # EXIF is foreign bytes beside the picture: broken ones turn nothing
        return UPRIGHT


def _by_pillow(data: bytes) -> Frames:
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DamagedMedia(f"a picture of {picture.width} x {picture.height} px")
            turn = _turn_of(picture)
            return turn.apply(_eight_bit_rgb(picture))
    except Exception as error:  # damaged bytes raise whatever the format's reader stumbles over, SyntaxError too
        raise DamagedMedia(str(error)) from None


def _eight_bit_rgb(picture: Any) -> Frames:
    """uint8 [H, W, 3]."""
    import PIL.Image

    if picture.mode.startswith("I"):  # 16 bits of grey; convert() would cut them off at 255
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return grey[..., None].repeat(3, axis=2)
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", seen.size, "white"), seen)
    return np.array(picture.convert("RGB"))
