"""What every reader of frames gives: a clip in memory, of which single frames are decoded by their index.

clip.num_frames                       # of the frames that are displayed
clip.visit([0, 12, 24], place)        # place(index, uint8 [H, W, 3])
clip.read([0, 0, 12])                 # uint8 [3, H, W, 3]
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Place = Callable[[int, Frames], None]
Target = Callable[[int, int, int], Frames | None]

MAX_PIXELS = 64 * 2**20  # a header may promise more than the memory holds


class DamagedMedia(ValueError):
    """The bytes of a clip or image cannot be decoded."""


class Clip(Protocol):
    """Encoded frames in memory."""

    num_frames: int

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        """Decode each distinct index once and hand (index, RGB frame [H, W, 3]) to `place`.

        `target(index, H, W)` may name contiguous memory [H, W, 3] to decode into; a JPEG library then needs no copy.
        """

    def read(self, indices: Sequence[int]) -> Frames:
        """uint8 [len(indices), H, W, 3], RGB; indices may repeat."""


class Readable:
    """A clip that can be visited, and so be read."""

    num_frames: int

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        raise NotImplementedError

    def read(self, indices: Sequence[int]) -> Frames:
        decoded: dict[int, Frames] = {}
        self.visit(indices, decoded.__setitem__)
        if len({frame.shape for frame in decoded.values()}) > 1:
            raise DamagedMedia("its frames differ in size")
        return np.stack([decoded[index] for index in indices])
