"""Frames to the training square, uint8 in and uint8 out; normalisation happens on the device.

    fit = FrameFit(size_px=224, mode="squash")
    view = fit.draw(rng)                # the same crop and flip for every frame of a clip
    fit.place(frame_HWC, view, out_HWC) # one frame into its place in the batch

Frames that were stored at the training size are copied, never resampled.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """What part of a frame is seen: a box as fractions of the height and width, and whether it is mirrored."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    mirrored: bool = False


WHOLE = View()


@dataclass(frozen=True)
class FrameFit:
    """How a frame becomes a square.

    squash: height and width are scaled apart, nothing is cut off (the official form). crop: the short side is scaled,
    the long side cut; at the centre, or at random in training.
    """

    size_px: int
    mode: Literal["squash", "crop"] = "squash"
    random_crop_min_area: float = 1.0
    flip_probability: float = 0.0

    def draw(self, rng: np.random.Generator) -> View:
        """One clip's view in training."""
        if self.random_crop_min_area == 1.0 and self.flip_probability == 0.0:
            return WHOLE
        side = float(rng.uniform(self.random_crop_min_area, 1.0)) ** 0.5
        top, left = (float(place) for place in rng.uniform(0.0, 1.0 - side, size=2))
        return View(top, left, side, side, bool(rng.random() < self.flip_probability))

    def place(self, frame: Pixels, view: View, out: Pixels) -> None:
        """Write [H, W, 3] `frame`, seen through `view`, into `out` [size_px, size_px, 3]."""
        if view == WHOLE and frame.shape == out.shape:
            if frame.ctypes.data != out.ctypes.data:  # else it was decoded in place
                out[:] = frame
            return
        box = self._box(frame, view)
        fitted = resize(box, self.size_px)
        out[:] = fitted[:, ::-1] if view.mirrored else fitted

    def _box(self, frame: Pixels, view: View) -> Pixels:
        height, width = frame.shape[:2]
        top, left = 0, 0
        if self.mode == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            height = width = side
        box_height, box_width = max(1, round(height * view.height)), max(1, round(width * view.width))
        top += min(round(height * view.top), height - box_height)
        left += min(round(width * view.left), width - box_width)
        return frame[top : top + box_height, left : left + box_width]


def resize(frame: Pixels, size_px: int) -> Pixels:
    """Bicubic with antialiasing, [H, W, 3] -> [size_px, size_px, 3]."""
    if frame.shape[:2] == (size_px, size_px):
        return frame
    # Channels last in memory: torch has a vectorised uint8 kernel for exactly this layout.
    pixels_1CHW = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).unsqueeze(0)
    scaled_1CHW = torch.nn.functional.interpolate(
        pixels_1CHW, size=(size_px, size_px), mode="bicubic", antialias=True, align_corners=False
    )
    scaled: Pixels = scaled_1CHW[0].permute(1, 2, 0).numpy()
    return scaled
