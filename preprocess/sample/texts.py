"""Scene -> texts of three kinds, which share words but no sentence.

caption     of the middle frame, like an image captioner's: appearance and place, no motion
subtitle    like recognised speech: chatty, no punctuation, with gaps and off-topic talk; the motion is known only here
query       one clean sentence, for retrieval; its wording never occurs in training
"""

import numpy as np

from preprocess.sample.scenes import DIRECTIONS, KIND_OF, OPPOSITE, SIZE_RANGE, Scene, pose_at

_PLACES = {
    "meadow": ("in a green meadow", "on a grassy meadow"),
    "beach": ("on a sandy beach", "at the beach"),
    "night sky": ("in the night sky", "under a starry night sky"),
    "brick wall": ("in front of a brick wall", "against a red brick wall"),
    "wooden floor": ("on a wooden floor", "on top of a wooden floor"),
    "sea": ("in the sea", "over the waves of the sea"),
    "snow": ("in the snow", "on white snow"),
    "desert": ("in the desert", "on the dunes of a desert"),
}
_SPOKEN_MOTION = {
    "still": ("it stays still", "it just stays still", "it does not move it stays still"),
    "left": ("it slides to the left", "it slides left", "it is sliding over to the left"),
    "right": ("it slides to the right", "it slides right", "it is sliding over to the right"),
    "up": ("it moves up", "it is moving up", "it moves all the way up"),
    "down": ("it moves down", "it is moving down", "it moves all the way down"),
    "grow": ("it grows bigger", "it grows and gets bigger", "it is growing bigger"),
    "shrink": ("it shrinks smaller", "it shrinks and gets smaller", "it is shrinking smaller"),
    "clockwise": ("it turns clockwise", "it is turning clockwise", "it turns around clockwise"),
    "counterclockwise": (
        "it turns counterclockwise",
        "it is turning counterclockwise",
        "it turns around counterclockwise",
    ),
    "blink": ("it blinks", "it blinks on and off", "it is blinking on and off"),
}
_QUERY_MOTION = {
    "still": "stays still",
    "left": "slides to the left",
    "right": "slides to the right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows bigger",
    "shrink": "shrinks smaller",
    "clockwise": "turns clockwise",
    "counterclockwise": "turns counterclockwise",
    "blink": "blinks on and off",
}
_OPENINGS = (
    "okay so",
    "all right",
    "so um",
    "now",
    "well",
    "and here",
    "yeah so",
    "hey guys",
    "let me show you",
    "look",
)
_SIGHTS = ("we have this", "you can see the", "there is a", "this is a", "i really like that", "check out the")
_LINKS = ("and", "and you know", "and um", "see how", "and then", "watch", "as you can see")
_ENDINGS = ("", "", "just like that", "right there", "isn't that nice", "you know", "there you go", "so yeah")
_OFF_TOPIC = (
    "don't forget to subscribe to the channel",
    "thanks for all the comments last week",
    "i had way too much coffee this morning",
    "we will get to the recipe in a minute",
    "my sister called me about the car again",
    "the weather has been crazy lately",
    "links are in the description below",
    "sorry about the noise in the background",
    "anyway where was i",
    "this part of the video is not sponsored",
)
_CAPTIONS = (
    "a {size}{texture} {colour} {shape} {place}",
    "a {size}{colour} {texture} {shape} {place}",
    "a picture of a {size}{texture} {colour} {shape} {place}",
    "there is a {size}{colour} {texture} {shape} {place}",
)

OFF_TOPIC_SHARE = 0.08
DROPPED_WORD_SHARE = 0.05


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """What an image captioner says of the middle frame."""
    return _pick(rng, _CAPTIONS).format(
        size=_size_word(pose_at(scene, 0.5).size),
        texture=scene.texture,
        colour=scene.colour,
        shape=scene.shape,
        place=_pick(rng, _PLACES[scene.background]),
    )


def write_subtitle(scene: Scene, rng: np.random.Generator) -> str:
    """What the speaker says meanwhile: mostly about the scene, sometimes about anything else."""
    if rng.random() < OFF_TOPIC_SHARE:
        return " ".join(rng.permutation(_OFF_TOPIC)[: int(rng.integers(1, 3))].tolist())
    texture = scene.texture if rng.random() < 0.7 else ""
    place = _pick(rng, _PLACES[scene.background]) if rng.random() < 0.6 else ""
    sight = f"{_pick(rng, _SIGHTS)} {texture} {scene.colour} {scene.shape} {place}"
    motion = f"{_pick(rng, _LINKS)} {_pick(rng, _SPOKEN_MOTION[scene.direction])}"
    parts = [_pick(rng, _OPENINGS), sight, motion, _pick(rng, _ENDINGS)]
    if rng.random() < 0.25:
        parts.insert(int(rng.choice((0, 4))), _pick(rng, _OFF_TOPIC))
    words = " ".join(parts).split()
    return " ".join(word for word in words if rng.random() >= DROPPED_WORD_SHARE)


def write_query(scene: Scene, direction: str | None = None) -> str:
    """The one clean sentence of a scene; `direction` puts another motion in its place (for minimal pairs)."""
    place = _PLACES[scene.background][0]
    motion = _QUERY_MOTION[direction or scene.direction]
    return f"The {scene.colour} {scene.shape}, {scene.texture}, {motion} {place}."


def other_kind(scene: Scene, rng: np.random.Generator) -> str:
    """A motion of another kind."""
    kind = _pick(rng, tuple(kind for kind in DIRECTIONS if kind != scene.kind))
    return _pick(rng, DIRECTIONS[kind])


def other_direction(scene: Scene) -> str | None:
    """The same kind of motion the other way, or None where there is none."""
    assert scene.direction in KIND_OF
    return OPPOSITE.get(scene.direction)


def _size_word(size: float) -> str:
    low, high = SIZE_RANGE
    if size < low + 0.3 * (high - low):
        return "small "
    return "large " if size > low + 0.7 * (high - low) else ""


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
