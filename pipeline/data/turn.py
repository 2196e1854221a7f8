"""Which way up: from decoded pictures to displayed ones, by a video's display matrix or an image's EXIF orientation.

    turn_of(frame).apply(picture)             # uint8 [H, W, 3], upright

The rules are those of the ffmpeg program (`-autorotate`), for each of the eight ways to lay a rectangle.
"""

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import av

_DISPLAY_MATRIX = "DISPLAYMATRIX"


@dataclass(frozen=True, slots=True)
class Turn:
    """From decoded pictures to displayed ones: rows and columns change places first, then each may be reversed."""

    transpose: bool = False
    mirror_columns: bool = False
    mirror_rows: bool = False
    degrees: int = 0
    """Clockwise, where the turn is none of the eight: within the picture's size, with black corners, as ffmpeg."""

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[H, W, 3] as decoded -> as displayed, contiguous."""
        if self == UPRIGHT:
            return picture
        if self.degrees:
            import PIL.Image

            bilinear = PIL.Image.Resampling.BILINEAR
            return np.asarray(PIL.Image.fromarray(picture).rotate(-self.degrees, resample=bilinear))
        rows, columns = (-1 if mirrored else 1 for mirrored in (self.mirror_rows, self.mirror_columns))
        turned = picture.transpose(1, 0, 2) if self.transpose else picture
        return np.ascontiguousarray(turned[::rows, ::columns])


UPRIGHT = Turn()


def turn_of(frame: "av.VideoFrame") -> Turn:
    """What the display matrix of a decoded frame, which is that of its container or its codec, asks for."""
    found: Any = frame.side_data.get(_DISPLAY_MATRIX)
    return UPRIGHT if found is None else turn_from_matrix(struct.unpack("=9i", bytes(found)[:36]))


def turn_from_matrix(matrix: tuple[int, ...]) -> Turn:
    """Of [a b u, c d v, x y w]: a decoded pixel (x, y) is displayed at (a x + c y, b x + d y)."""
    a, b, _, c, d = matrix[:5]
    if not math.hypot(a, c) or not math.hypot(b, d):
        return UPRIGHT
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))))
    # ffmpeg counts whole degrees, and one as none; at a right angle the signs decide, which tell a mirror too.
    if degrees in (90, -90):
        return Turn(True, mirror_columns=c < 0, mirror_rows=b < 0)
    if degrees not in (0, 1, 180, -180):
        return Turn(degrees=degrees)
    return Turn(False, mirror_columns=a < 0, mirror_rows=d < 0)
