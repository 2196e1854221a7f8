"""SampleConfig -> videos, clips, spans, ids: a pure function of the config, so that a half-made corpus can go on.

    corpus = plan_corpus(SampleConfig())
    corpus.train[0].clips[0].clip_id        "-f3_kQ0aZ1x.4.mp4"

Clips of a video lie one after the other with short gaps between; numbers of clips skip now and then, spans start at odd
milliseconds, ids hold `-` and `_`, also in front. A few clips are bad on purpose (`Defect`), so that the account of the
preprocessing shows failures as real data does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from pydantic import Field

from pipeline.config import Section
from preprocess.sample.scenes import COLOURS, DIRECTIONS, SHAPES, Scene, draw_scene

ID_ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
CLIPS_PER_VIDEO = (4, 9)
CLIP_MS = (2000, 3700)
GAP_MS = (110, 450)
HELD_OUT_COMBINATIONS = 0.2
MISSING_CAPTIONS = 0.03
MISSING_SUBTITLES = 0.02


class SampleConfig(Section):
    """The generated sample corpus."""

    folder: Path = Path("data/sample")
    """Where the corpus is written."""
    seed: int = Field(default=7, ge=0)
    """The corpus is a pure function of the seed and the numbers below."""
    num_train_clips: int = Field(default=3000, ge=1)
    """Clips for training; the few that are bad on purpose come on top."""
    num_heldout_clips: int = Field(default=256, ge=1, le=320)
    """Clips of other videos, each with one query."""
    width_px: int = Field(default=128, ge=32, multiple_of=2)
    """Width of the raw videos."""
    height_px: int = Field(default=96, ge=32, multiple_of=2)
    """Height of the raw videos."""
    fps: int = Field(default=10, ge=4, le=60)
    """Frames a second of the raw videos."""
    bad_clips: bool = True
    """Add some clips that cannot be delivered: no video, a broken video, a span beyond the end, no text."""
    processes: int = Field(default=0, ge=0)
    """Processes that write videos; 0 takes every core."""


class Defect(StrEnum):
    """What is wrong with a clip on purpose."""

    NO_VIDEO = "no_video"
    BROKEN_VIDEO = "broken_video"
    BEYOND_END = "beyond_end"
    NO_TEXT = "no_text"


@dataclass(frozen=True)
class Clip:
    """One clip of the corpus: what it shows and where it lies in its video."""

    clip_id: str
    start_ms: int
    end_ms: int
    scene: Scene
    text_seed: int
    has_subtitle: bool
    has_caption: bool
    defect: Defect | None = None


@dataclass(frozen=True)
class Video:
    """One raw video; `defect` names what is wrong with the whole file."""

    video_id: str
    clips: tuple[Clip, ...]
    defect: Defect | None = None


@dataclass(frozen=True)
class Corpus:
    """All videos, by split."""

    train: tuple[Video, ...]
    heldout: tuple[Video, ...]

    @property
    def videos(self) -> tuple[Video, ...]:
        """Both splits."""
        return self.train + self.heldout


def plan_corpus(config: SampleConfig) -> Corpus:
    """Every video and clip of the corpus."""
    rng = np.random.default_rng([config.seed, 0])
    held_out = _held_out_combinations(rng)
    train = list(_plan_videos(rng, config.num_train_clips, lambda: _training_scene(rng, held_out)))
    taken: set[tuple[str, ...]] = set()
    heldout = list(_plan_videos(rng, config.num_heldout_clips, lambda: _heldout_scene(rng, taken)))
    if config.bad_clips:
        train += _plan_defects(rng, held_out)
    return Corpus(tuple(train), tuple(heldout))


def _plan_videos(rng: np.random.Generator, num_clips: int, next_scene: Callable[[], Scene]) -> Iterator[Video]:
    """Videos of several clips each, `num_clips` together."""
    while num_clips > 0:
        count = min(num_clips, int(rng.integers(*CLIPS_PER_VIDEO)))
        yield _plan_video(rng, [next_scene() for _ in range(count)])
        num_clips -= count


def _plan_video(rng: np.random.Generator, scenes: list[Scene], defect: Defect | None = None) -> Video:
    video_id = "".join(rng.choice(ID_ALPHABET, 11))
    number, end_ms, clips = -1, 0, []
    for scene in scenes:
        number += 1 if rng.random() < 0.85 else int(rng.integers(2, 4))
        start_ms = end_ms + int(rng.integers(*GAP_MS))
        end_ms = start_ms + int(rng.integers(*CLIP_MS))
        has_caption = bool(rng.random() >= MISSING_CAPTIONS)
        # A clip keeps at least one of its texts: one without any cannot be delivered.
        has_subtitle = bool(rng.random() >= MISSING_SUBTITLES) or not has_caption
        clips.append(
            Clip(
                f"{video_id}.{number}.mp4",
                start_ms,
                end_ms,
                scene,
                int(rng.integers(2**32)),
                has_subtitle,
                has_caption,
            )
        )
    return Video(video_id, tuple(clips), defect)


def _plan_defects(rng: np.random.Generator, held_out: frozenset[tuple[str, str, str]]) -> list[Video]:
    """A video that is not there, one that cannot be read, and one with bad clips among good ones."""
    scenes = [_training_scene(rng, held_out) for _ in range(9)]
    missing = _plan_video(rng, scenes[:3], Defect.NO_VIDEO)
    broken = _plan_video(rng, scenes[3:5], Defect.BROKEN_VIDEO)
    mixed = _plan_video(rng, scenes[5:])
    good, silent, mute, late = mixed.clips
    after_end_ms = late.end_ms + 60_000
    bad = (
        good,
        _replaced(silent, Defect.NO_TEXT),
        _replaced(mute, Defect.NO_TEXT),
        _replaced(late, Defect.BEYOND_END, start_ms=after_end_ms, end_ms=after_end_ms + 2_500),
    )
    return [missing, broken, Video(mixed.video_id, bad)]


def _replaced(clip: Clip, defect: Defect, start_ms: int | None = None, end_ms: int | None = None) -> Clip:
    has_text = defect is not Defect.NO_TEXT
    return Clip(
        clip.clip_id,
        clip.start_ms if start_ms is None else start_ms,
        clip.end_ms if end_ms is None else end_ms,
        clip.scene,
        clip.text_seed,
        has_subtitle=has_text,
        has_caption=has_text,
        defect=defect,
    )


def _held_out_combinations(rng: np.random.Generator) -> frozenset[tuple[str, str, str]]:
    """Combinations of colour, shape and kind of motion that no training clip shows."""
    every = [(colour, shape, kind) for colour in COLOURS for shape in SHAPES for kind in DIRECTIONS]
    return frozenset(combination for combination in every if rng.random() < HELD_OUT_COMBINATIONS)


def _training_scene(rng: np.random.Generator, held_out: frozenset[tuple[str, str, str]]) -> Scene:
    while True:
        scene = draw_scene(rng)
        if scene.combination not in held_out:
            return scene


def _heldout_scene(rng: np.random.Generator, taken: set[tuple[str, ...]]) -> Scene:
    """A scene whose query no other held-out clip has; combinations never shown in training take part as all others."""
    while True:
        scene = draw_scene(rng)
        if scene.content not in taken:
            taken.add(scene.content)
            return scene
