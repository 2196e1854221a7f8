"""Frames to squares: squash keeps everything, crop keeps the aspect ratio, a clip is seen through one view."""

import numpy as np
import pytest

from pipeline.data.transform import WHOLE, FrameFit, View, resize


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green grows downwards."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, :, 0] = np.linspace(0, 240, width)[None]
    frame[:, :, 1] = np.linspace(0, 240, height)[:, None]
    return frame


def placed(fit: FrameFit, frame: np.ndarray, view: View = WHOLE) -> np.ndarray:
    out = np.zeros((fit.size_px, fit.size_px, 3), np.uint8)
    fit.place(frame, view, out)
    return out.astype(int)


def test_squash_shows_the_whole_width_and_crop_its_middle() -> None:
    frame = ramp(40, 120)
    squashed, cropped = placed(FrameFit(32), frame), placed(FrameFit(32, "crop"), frame)
    assert (squashed[16, 0, 0], squashed[16, -1, 0]) == pytest.approx((0, 240), abs=8)
    assert (cropped[16, 0, 0], cropped[16, -1, 0]) == pytest.approx((80, 160), abs=8)
    assert (cropped[0, 16, 1], cropped[-1, 16, 1]) == pytest.approx((0, 240), abs=8)


def test_a_frame_of_the_right_size_is_copied() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(placed(FrameFit(32), frame), frame)


def test_a_view_is_a_part_and_may_be_mirrored() -> None:
    seen = placed(FrameFit(32), ramp(64, 64), View(top=0.0, left=0.5, height=0.5, width=0.5, mirrored=True))
    assert (seen[0, 0, 0], seen[0, -1, 0]) == pytest.approx((240, 120), abs=8)
    assert (seen[0, 0, 1], seen[-1, 0, 1]) == pytest.approx((0, 120), abs=8)


def test_drawn_views_lie_inside_and_keep_the_smallest_area() -> None:
    fit = FrameFit(32, random_crop_min_area=0.3, flip_probability=0.5)
    views = [fit.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert all(view.top + view.height <= 1 and view.left + view.width <= 1 for view in views)
    assert min(view.height * view.width for view in views) >= 0.3 - 1e-9
    assert 60 < sum(view.mirrored for view in views) < 140
    assert FrameFit(32).draw(np.random.default_rng(0)) == WHOLE


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, 8).astype(int) - 128).max() < 20
