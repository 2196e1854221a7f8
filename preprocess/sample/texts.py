"""Scene -> texts of three kinds, which share words but no sentence.

caption     of the middle frame, like an image captioner's: appearance and place, no motion
subtitle    like recognised speech: chatty, no punctuation, with gaps and off-topic talk; the motion is known only here
query       one clean sentence, for retrieval; its wording never occurs in training
"""

import numpy as np

from preprocess.sample.scenes import DIRECTIONS, KIND_OF, OPPOSITE, SIZES, Scene, pose_at

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
_MOTION = {
    "still": "stays still",
    "left": "slides left",
    "right": "slides right",
    "up": "moves up",
    "down": "moves down",
    "grow": "gets bigger",
    "shrink": "gets smaller",
    "clockwise": "turns clockwise",
    "counterclockwise": "turns counterclockwise",
    "blink": "blinks on and off",
}
_OPENINGS = ("", "", "okay", "so", "um", "now", "well", "yeah", "look")
_ENDINGS = ("", "", "", "you know", "so yeah", "nice")
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
    "a {size}{colour} {shape}",
    "a picture of a {size}{colour} {shape}",
    "there is a {size}{colour} {shape} in the picture",
    "a {size}{shape} that is {colour}",
)

OFF_TOPIC_SHARE = 0.06
COLOUR_SHARE, SHAPE_SHARE, TEXTURE_SHARE, PLACE_SHARE = 0.5, 0.5, 0.05, 0.05
"""How often a speaker names what everybody can see: seldom, so that subtitle and caption do not say the same."""
REPEAT_SHARE = 0.5
ASIDE_SHARE = 0.06
DROPPED_WORD_SHARE = 0.05


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """What an image captioner says of the middle frame."""
    return _pick(rng, _CAPTIONS).format(
        size=_size_word(pose_at(scene, 0.5).size),
        colour=scene.colour,
        shape=scene.shape,
    )


def write_subtitle(scene: Scene, rng: np.random.Generator) -> str:
    """What the speaker says meanwhile: mostly about the scene, sometimes about anything else."""
    if rng.random() < OFF_TOPIC_SHARE:
        return " ".join(rng.permutation(_OFF_TOPIC)[: int(rng.integers(1, 3))].tolist())
    said = _MOTION[scene.direction]
    parts = [_pick(rng, _OPENINGS), _subject(scene, rng), said]
    if rng.random() < PLACE_SHARE:
        parts.append(_pick(rng, _PLACES[scene.background]))
    if rng.random() < REPEAT_SHARE:
        parts.append(f"{_pick(rng, ('yeah', 'see', 'um', 'look'))} it {said}")
    parts.append(_pick(rng, _ENDINGS))
    if rng.random() < ASIDE_SHARE:
        parts.insert(int(rng.choice((0, len(parts)))), _pick(rng, _OFF_TOPIC))
    words = " ".join(parts).split()
    return " ".join(word for word in words if rng.random() >= DROPPED_WORD_SHARE)


def write_query(scene: Scene, direction: str | None = None) -> str:
    """The one clean sentence of a scene; `direction` puts another motion in its place (for minimal pairs)."""
    return f"The {scene.colour} {scene.shape} {_MOTION[direction or scene.direction]}."


def other_kind(scene: Scene, rng: np.random.Generator) -> str:
    """A motion of another kind."""
    kind = _pick(rng, tuple(kind for kind in DIRECTIONS if kind != scene.kind))
    return _pick(rng, DIRECTIONS[kind])


def other_direction(scene: Scene) -> str | None:
    """The same kind of motion the other way, or None where there is none."""
    assert scene.direction in KIND_OF
    return OPPOSITE.get(scene.direction)


def _subject(scene: Scene, rng: np.random.Generator) -> str:
    """`the red one`, `the striped star`, or just `it`."""
    colour = scene.colour if rng.random() < COLOUR_SHARE else ""
    shape = scene.shape if rng.random() < SHAPE_SHARE else ""
    if not colour and not shape:
        return "it"
    return f"the {scene.texture if rng.random() < TEXTURE_SHARE else ''} {colour} {shape or 'one'}"


def _size_word(size: float) -> str:
    low, high = SIZES
    if size < low + 0.25 * (high - low):
        return "small "
    return "large " if size > low + 0.75 * (high - low) else ""


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
