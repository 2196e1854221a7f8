"""Scene -> frames: uint8 RGB pictures of one clip, drawn with numpy and Pillow.

    draw_frame(Canvas(scene, 128, 96), pose) -> PIL image

The picture of a shape is made once per scene at SPRITE_PX and turned and scaled per frame.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from preprocess.sample.scenes import COLOURS, Pose, Scene

SPRITE_PX = 96
Mask = npt.NDArray[np.bool_]
Grid = npt.NDArray[np.floating]

# Dark beside every colour of a shape: at 32 pixels the shape must stand out from its background.
_GROUND = {
    "meadow": ((30, 62, 26), (20, 48, 18)),
    "beach": ((82, 72, 50), (70, 60, 40)),
    "night sky": ((10, 12, 30), (24, 24, 52)),
    "brick wall": ((66, 34, 28), (52, 26, 20)),
    "wooden floor": ((70, 52, 33), (52, 36, 22)),
    "sea": ((14, 48, 62), (26, 64, 74)),
    "snow": ((88, 92, 98), (78, 83, 90)),
    "desert": ((86, 64, 36), (74, 46, 24)),
}


class Canvas:
    """The still parts of one scene: its background and the sprite of its shape."""

    def __init__(self, scene: Scene, width_px: int, height_px: int) -> None:
        rng = np.random.default_rng(scene.seed)
        self.background = Image.fromarray(_paint_background(scene.background, width_px, height_px, rng))
        self._sprite = Image.fromarray(_paint_sprite(scene), "RGBA")
        self._turned: tuple[float, Image.Image] | None = None

    def sprite_at(self, angle: float) -> Image.Image:
        """The sprite turned clockwise by `angle` degrees; the last one is kept, because most motions do not turn."""
        if self._turned is None or self._turned[0] != angle:
            # The sprite's disc of radius 1 is the shape's bounding circle, so a turn never cuts it.
            self._turned = (angle, self._sprite.rotate(-angle, Image.Resampling.BILINEAR))
        return self._turned[1]


def draw_frame(canvas: Canvas, pose: Pose) -> Image.Image:
    """One frame: the shape in its pose over the background."""
    frame = canvas.background.copy()
    if not pose.visible:
        return frame
    width_px, height_px = frame.size
    side_px = max(4, round(pose.size * height_px))
    placed = canvas.sprite_at(pose.angle).resize((side_px, side_px), Image.Resampling.BOX)
    frame.paste(placed, (round(pose.x * width_px - side_px / 2), round(pose.y * height_px - side_px / 2)), placed)
    return frame


def _paint_sprite(scene: Scene) -> npt.NDArray[np.uint8]:
    """uint8 [S, S, 4]: the shape at angle 0, filled with its texture, with a dark rim, transparent around."""
    axis = (np.arange(SPRITE_PX, dtype=np.float32) + 0.5) / SPRITE_PX * 2 - 1
    x, y = np.meshgrid(axis, axis)
    inside = _shape_mask(scene.shape, x, y, 1.0)
    core = _shape_mask(scene.shape, x, y, 0.88)
    light = np.array(COLOURS[scene.colour], np.float32)
    sprite = np.zeros((SPRITE_PX, SPRITE_PX, 4), np.uint8)
    sprite[..., :3] = np.where(_texture_mask(scene.texture, x, y)[..., None], light * 0.45, light)
    sprite[..., :3][inside & ~core] = 20
    sprite[..., 3] = inside * 255
    return sprite


def _shape_mask(shape: str, x: Grid, y: Grid, scale: float) -> Mask:
    """Where a shape lies; `scale` below 1 gives its core without the rim."""
    x, y = x / scale, y / scale
    radius = np.hypot(x, y)
    inside: Mask
    match shape:
        case "circle":
            inside = radius < 0.9
        case "ring":
            inside = (radius < 0.95) & (radius > 0.5 / scale**2)
        case "square":
            inside = np.maximum(np.abs(x), np.abs(y)) < 0.69
        case "cross":
            inside = (np.minimum(np.abs(x), np.abs(y)) < 0.28) & (np.maximum(np.abs(x), np.abs(y)) < 0.92)
        case "triangle":
            corner = np.arctan2(x, -y)
            inside = radius * np.cos((corner + math.pi) % (2 * math.pi / 3) - math.pi / 3) < 0.49
        case "star":
            corner = np.abs((np.arctan2(x, -y) + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
            inside = radius * (np.cos(corner) + 1.38 * np.sin(corner)) < 0.97
        case _:
            raise ValueError(f"unknown shape {shape!r}")
    return inside


def _texture_mask(texture: str, x: Grid, y: Grid) -> Mask:
    """Where the darker tone lies; no texture is the same after a turn, so that a turn can be seen."""
    dark: Mask
    match texture:
        case "striped":
            dark = np.mod(x + 0.125, 0.5) < 0.25
        case "checkered":
            dark = (np.mod(x, 0.9) < 0.45) ^ (np.mod(y, 0.9) < 0.45)
        case "spotted":
            spots = ((-0.35, -0.3), (0.4, -0.15), (-0.1, 0.42), (0.62, 0.5), (0.05, -0.75))
            dark = np.any([np.hypot(x - u, y - v) < 0.2 for u, v in spots], axis=0)
        case "two-tone":
            dark = x < 0
        case _:
            raise ValueError(f"unknown texture {texture!r}")
    return dark


def _paint_background(name: str, width_px: int, height_px: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3]: two tones mixed by a pattern of the place, with some grain; no two scenes have the same."""
    x, y = _axes(width_px, height_px)
    shift_x, shift_y = rng.uniform(0, 1, 2)
    match name:
        case "brick wall":
            row = np.floor((y + shift_y) * 7)
            mortar = (np.mod((y + shift_y) * 7, 1) < 0.16) | (np.mod((x + shift_x) * 6 + row / 2, 1) < 0.09)
            mix = mortar.astype(np.float32)
        case "wooden floor":
            plank = np.floor((x + shift_x) * 6)
            mix = 0.5 + 0.3 * np.sin(plank * 12.9) + 0.4 * (np.mod((x + shift_x) * 6, 1) < 0.08)
        case "sea":
            mix = 0.5 + 0.5 * np.sin((y + shift_y) * 40 + 1.5 * np.sin((x + shift_x) * 9))
        case "desert":
            mix = 0.5 + 0.5 * np.sin((y + shift_y + 0.12 * np.sin((x + shift_x) * 5)) * 14)
        case "night sky":
            mix = (rng.random((height_px, width_px)) > 0.99) * 3.0 + y * 0.6
        case "meadow":
            mix = rng.random((height_px, width_px)) * 0.5
        case _:
            mix = 0.4 * y + 0.3 * np.sin((x + shift_x) * 7 + 3 * y)
    dark, light = (np.array(tone, np.float32) for tone in _GROUND[name])
    mix = mix[..., None] + rng.normal(0, 0.04, (height_px, width_px, 1))
    tint = rng.normal(0, 8, 3)
    painted: npt.NDArray[np.uint8] = np.clip(dark + (light - dark) * mix + tint, 0, 255).astype(np.uint8)
    return painted


@lru_cache(maxsize=4)
def _axes(width_px: int, height_px: int) -> tuple[Grid, Grid]:
    x, y = np.meshgrid(np.linspace(0, 1, width_px), np.linspace(0, 1, height_px))
    return x.astype(np.float32), y.astype(np.float32)
