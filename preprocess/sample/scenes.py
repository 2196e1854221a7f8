"""What a clip shows: one textured shape over a background, and what it does.

Kinds of motion are `still`, `sideways`, `vertical`, `scale`, `turn` and `blink`; four of them have two directions. One
frame is not meant to tell the kind: at the first frame (and at the last) place, size and angle of a shape have the same
distribution for every kind, because a moving shape starts where still ones lie.
Direction cannot be told from the set of frames without their order: a clip and its time reversal have the same ones.
(The first frame alone does give it away: a shape that goes right starts at the left.)
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
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
TEXTURES = ("striped", "checkered", "spotted")
BACKGROUNDS = ("meadow", "beach", "night sky", "brick wall", "sea", "snow")
"""Texts of captions and queries name colour and shape alone: so few appearances that every batch holds several clips of
the same one, which only the motion tells apart. Texture and background vary unnamed."""
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

PLACES = (0.22, 0.78)
PLACE_NOISE = 0.06
SIZES = (0.34, 0.70)
SIZE_NOISE = 0.03
"""A shape's middle lies near one or the other of two columns and rows, its height (as a fraction of the picture's) is
near one of two sizes; a motion goes from one to the other."""


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
    def content(self) -> tuple[str, str, str]:
        """What a query says."""
        return self.colour, self.shape, self.direction


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
            _near(rng, PLACES, {"right": 0, "left": 1}.get(direction), PLACE_NOISE),
            _near(rng, PLACES, {"down": 0, "up": 1}.get(direction), PLACE_NOISE),
        ),
        size=_near(rng, SIZES, {"grow": 0, "shrink": 1}.get(direction), SIZE_NOISE),
        angle=float(rng.uniform(0, 360)),
        sweep=float(rng.uniform(130, 180)),
        blinks=int(rng.choice((2, 4))),
        seed=int(rng.integers(2**32)),
    )


def pose_at(scene: Scene, t: float) -> Pose:
    """The shape at `t` of its clip, 0 (first frame) to 1 (last frame)."""
    x, y = scene.place
    size, angle, visible = scene.size, scene.angle, True
    way, growth = PLACES[1] - PLACES[0], SIZES[1] / SIZES[0]
    match scene.direction:
        case "left" | "right":
            x += t * way * (1 if scene.direction == "right" else -1)
        case "up" | "down":
            y += t * way * (1 if scene.direction == "down" else -1)
        case "grow" | "shrink":
            size *= growth ** (t if scene.direction == "grow" else -t)
        case "clockwise" | "counterclockwise":
            angle += t * scene.sweep * (1 if scene.direction == "clockwise" else -1)
        case "blink":
            # Even numbers of periods: the shape is there at the first, the middle and the last frame.
            visible = math.cos(2 * math.pi * scene.blinks * (t - 0.5)) > -0.1
    return Pose(x, y, size, angle, visible)


def _near(rng: np.random.Generator, ends: tuple[float, float], which: int | None, noise: float) -> float:
    """Near `ends[which]`, or near either end."""
    end = ends[int(rng.integers(2)) if which is None else which]
    return end + float(rng.uniform(-noise, noise))
