"""Brings clips of many videos together into caption batches, and hands them on in the order in which they came.

    batches = CaptionBatches(captioner, config.captioner, require)
    for outcome in batches.add(outcome): ...      # ready ones, in order
    for outcome in batches.finish(): ...          # the rest of the shard

Batches end with their shard, so that a shard can be rebuilt alone, byte for byte; where much waits for
them they end early.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.format import Reason
from pipeline.data.frames import DamagedMedia, middle_index, open_clip_bytes
from preprocess.caption import Captioner, CaptionerConfig
from preprocess.records import Failure, Media
from preprocess.texts import ClipTexts

MAX_WAITING_BYTES = 128 * 2**20
"""Media that waits for a batch, at most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One clip at the end of the decode: its media or its failure, and its texts."""

    video_id: str
    result: Media | Failure
    texts: ClipTexts
    caption_frame: int | None = None
    """The frame of the delivered clip that a generated caption describes."""


class CaptionBatches:
    """Captions what needs a caption; passes everything else through."""

    def __init__(self, captioner: Captioner | None, config: CaptionerConfig, require: str) -> None:
        self._captioner = captioner
        self._config = config
        self._require = require
        self._waiting: list[Outcome] = []
        self._num_images = self._num_bytes = 0

    def add(self, outcome: Outcome) -> Iterator[Outcome]:
        """Take one outcome in; yields those that are ready."""
        self._waiting.append(outcome)
        self._num_images += self._needs_caption(outcome)
        self._num_bytes += len(outcome.result.data) if isinstance(outcome.result, Media) else 0
        is_full = self._num_images >= self._config.batch_size or self._num_bytes >= MAX_WAITING_BYTES
        if self._num_images == 0 or is_full:
            yield from self.finish()

    def finish(self) -> Iterator[Outcome]:
        """Caption and yield all that wait."""
        outcomes, self._waiting = self._waiting, []
        self._num_images = self._num_bytes = 0
        places = [place for place, outcome in enumerate(outcomes) if self._needs_caption(outcome)]
        if places and self._captioner is not None:
            images = [_middle_frame(outcomes[place].result) for place in places]
            seen = [(place, image) for place, image in zip(places, images, strict=True) if image is not None]
            ids = [_clip_id(outcomes[place]) for place, _ in seen]
            texts = self._captioner([image for _, image in seen], ids) if seen else []
            for (place, _), text in zip(seen, texts, strict=True):
                outcomes[place] = self._with_caption(outcomes[place], text)
        for outcome in outcomes:
            yield self._judged(outcome)

    def _needs_caption(self, outcome: Outcome) -> bool:
        if self._captioner is None or isinstance(outcome.result, Failure):
            return False
        return outcome.texts.caption is None or self._config.replace

    def _with_caption(self, outcome: Outcome, text: str | None) -> Outcome:
        assert isinstance(outcome.result, Media)
        if text is None:
            return outcome
        texts = replace(outcome.texts, caption=text, caption_source=self._config.source)
        return replace(outcome, texts=texts, caption_frame=middle_index(outcome.result.num_frames))

    def _judged(self, outcome: Outcome) -> Outcome:
        """A clip that needs a caption and got none fails here, after the captioner had its chance."""
        if isinstance(outcome.result, Failure) or outcome.texts.satisfies(self._require):
            return outcome
        detail = f"the captioner wrote nothing, and texts.require is {self._require}"
        failure = Failure(outcome.result.clip.clip_id, outcome.video_id, Reason.CAPTION_FAILED, detail)
        return replace(outcome, result=failure)


def _clip_id(outcome: Outcome) -> str:
    assert isinstance(outcome.result, Media)
    return outcome.result.clip.clip_id


def _middle_frame(result: Media | Failure) -> np.ndarray | None:
    assert isinstance(result, Media)
    return middle_frame(result.data, "mp4")


def middle_frame(data: bytes, extension: str) -> np.ndarray | None:
    """Frame int(N / 2) of a clip as uint8 [H, W, 3]; None where it cannot be decoded."""
    try:
        clip = open_clip_bytes(data, extension)
        frames: Sequence[np.ndarray] = clip.read([middle_index(clip.num_frames)])  # type: ignore[assignment]
    except (DamagedMedia, ValueError):
        return None
    return frames[0]
