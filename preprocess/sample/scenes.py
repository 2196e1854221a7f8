"""What a clip shows: one textured shape over a background, and what it does.

Kinds of motion are `still`, `sideways`, `vertical`, `scale`, `turn` and `blink`; four of them have two directions. One
frame is not meant to tell the kind: at the first frame (and at the last) place, size and angle of a shape have the same
distribution for every kind, because a moving shape starts in either half of the range in which a still one lies.
Direction cannot be told from the frames without their order: a clip and its time reversal have the same ones.
"""

import math
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("striped", "checkered", "spotted", "two-tone")
BACKGROUNDS = ("meadow", "beach", "night sky", "brick wall", "wooden floor", "sea", "snow", "desert")
DIRECTIONS = {
    "still": ("still",),
    "sideways": ("left", "right"),
    "vertical": ("up", "down"),
    "scale": ("grow", "shrink"),
    "turn": ("clockwise", "counterclockwise"),
    "blink": ("blink",),
}
KIND_OF = {direction: kind for kind, directions in DIRECTIONS.items() for direction in directions}
OPPOSITE = {
    direction: directions[1 - number]
    for directions in DIRECTIONS.values()
    if len(directions) == 2
    for number, direction in enumerate(directions)
}

PLACE_RANGE = (0.18, 0.82)
SIZE_RANGE = (0.36, 0.90)
"""Where a shape's middle and its height may lie, as fractions of the picture. A motion covers half of a range."""


@dataclass(frozen=True)
class Scene:
    """One clip's content. `place`, `size` and `angle` are those of the first frame; `sweep` is how far a turn goes."""

    colour: str
    shape: str
    texture: str
    background: str
    direction: str
    place: tuple[float, float]
    size: float
    angle: float
    sweep: float
    blinks: int
    seed: int

    @property
    def kind(self) -> str:
        """The kind of motion."""
        return KIND_OF[self.direction]

    @property
    def combination(self) -> tuple[str, str, str]:
        """Appearance and motion together: some combinations are shown in held-out videos only."""
        return self.colour, self.shape, self.kind

    @property
    def content(self) -> tuple[str, ...]:
        """All that a text may say, without the direction."""
        return self.colour, self.shape, self.texture, self.background, self.kind


@dataclass(frozen=True)
class Pose:
    """Where the shape is at one moment; `size` is its height, as a fraction of the picture's."""

    x: float
    y: float
    size: float
    angle: float
    visible: bool


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene; every kind of motion is as likely as any other."""
    kind = str(rng.choice(list(DIRECTIONS)))
    direction = str(rng.choice(DIRECTIONS[kind]))
    return Scene(
        colour=str(rng.choice(list(COLOURS))),
        shape=str(rng.choice(SHAPES)),
        texture=str(rng.choice(TEXTURES)),
        background=str(rng.choice(BACKGROUNDS)),
        direction=direction,
        place=(
            _start(rng, PLACE_RANGE, {"right": 1, "left": -1}.get(direction)),
            _start(rng, PLACE_RANGE, {"down": 1, "up": -1}.get(direction)),
        ),
        size=math.exp(
            _start(
                rng,
                (math.log(SIZE_RANGE[0]), math.log(SIZE_RANGE[1])),
                {"grow": 1, "shrink": -1}.get(direction),
            )
        ),
        angle=float(rng.uniform(0, 360)),
        sweep=float(rng.uniform(130, 180)),
        blinks=int(rng.choice((2, 4))),
        seed=int(rng.integers(2**32)),
    )


def pose_at(scene: Scene, t: float) -> Pose:
    """The shape at `t` of its clip, 0 (first frame) to 1 (last frame)."""
    x, y = scene.place
    size, angle, visible = scene.size, scene.angle, True
    half = (PLACE_RANGE[1] - PLACE_RANGE[0]) / 2
    growth = math.sqrt(SIZE_RANGE[1] / SIZE_RANGE[0])
    match scene.direction:
        case "left" | "right":
            x += t * half * (1 if scene.direction == "right" else -1)
        case "up" | "down":
            y += t * half * (1 if scene.direction == "down" else -1)
        case "grow" | "shrink":
            size *= growth ** (t if scene.direction == "grow" else -t)
        case "clockwise" | "counterclockwise":
            angle += t * scene.sweep * (1 if scene.direction == "clockwise" else -1)
        case "blink":
            # Even numbers of periods: the shape is there at the first, the middle and the last frame.
            visible = math.cos(2 * math.pi * scene.blinks * (t - 0.5)) > -0.1
    return Pose(x, y, size, angle, visible)


def _start(rng: np.random.Generator, interval: tuple[float, float], heading: int | None) -> float:
    """Uniform in the interval, or in the half from which a motion in direction `heading` stays inside."""
    low, high = interval
    middle = (low + high) / 2
    if heading is None:
        return float(rng.uniform(low, high))
    return float(rng.uniform(low, middle) if heading > 0 else rng.uniform(middle, high))
