"""What happens in a data worker: a rank's part of a composition -> tensors of one batch.

    load = RankLoader(recipe)
    loaded = load(composition)         # Loaded: arrays, keys, bad samples; or Failed

Pixels are written once, by the decoder, into memory that travels to the trainer as it is; they stay [T, H, W, 3] in
memory, and the batch shows them as [T, 3, H, W].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.batch import BadSample
from pipeline.data.cache import CacheConfig, open_folder
from pipeline.data.frames import jittered_indices, middle_index, open_clip_bytes, uniform_indices
from pipeline.data.index import Manifest, Place
from pipeline.data.order import keyed_generator, mix
from pipeline.data.pool import empty_bytes
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.sample import Sample, bad_where_it_fails
from pipeline.data.schedule import Composition
from pipeline.data.sources import Source, SourceConfig
from pipeline.data.storage import DamagedSample, open_files_for
from pipeline.data.transform import WHOLE, FrameFit
from pipeline.errors import PipelineError

Tokenize = Callable[[list[str]], Tensor]
Pixels = NDArray[np.uint8]
_Slot = tuple[int, int, Place]


@dataclass(frozen=True)
class Recipe:
    """Everything a worker needs, picklable and small: manifests are named, not carried."""

    sources: tuple[SourceConfig, ...]
    manifest_hashes: tuple[str, ...]
    excluded_rows: tuple[NDArray[np.int64], ...]
    index_folder: Path | None
    cache: CacheConfig | None
    seed: int
    shuffle: bool
    window_shards: int | None
    num_frames: int
    num_text_tokens: int
    jitter: bool
    fit: FrameFit
    verify_media: bool
    read_ahead: int
    """Reads under way at once."""
    num_rows: int
    """Rows of this rank's batch, padding included."""
    tokenize: Tokenize


@dataclass(frozen=True)
class Loaded:
    """One rank's batch as arrays, pixels channels last."""

    arrays: dict[str, Any]
    """NumPy arrays; once they are on a GPU, tensors."""
    index: int
    epoch: int
    keys: tuple[str, ...]
    sources: tuple[int, ...]
    bad: tuple[BadSample, ...]


@dataclass(frozen=True)
class Failed:
    """A fatal error in a worker, as a value: every rank is to hear of it before any of them raises."""

    message: str


class RankLoader:
    """Map a rank's Composition to Loaded, or to Failed."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._sources: list[Source] = []
        self._ahead: ReadAhead[_Slot, bytes] = ReadAhead(self._slots, self._read, recipe.read_ahead)

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self.recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["recipe"])  # type: ignore[misc]

    def __call__(self, composition: Composition) -> Loaded | Failed:
        try:
            if not self._sources:
                self._sources = open_sources(self.recipe)
            return self._load(composition)
        except PipelineError as error:
            return Failed(str(error))

    def _load(self, composition: Composition) -> Loaded:
        recipe = self.recipe
        size = recipe.fit.size_px
        video_BTHWC = empty_bytes(recipe.num_rows, recipe.num_frames, size, size, 3)
        middle_BHWC = empty_bytes(recipe.num_rows, size, size, 3)
        valid_B = np.zeros(recipe.num_rows, dtype=bool)
        keys = [""] * recipe.num_rows
        texts = [("", "")] * recipe.num_rows
        bad: list[BadSample] = []
        for row, ((number, own_epoch, place), block) in enumerate(self._ahead.of(composition)):
            source = self._sources[number]
            try:
                sample = source.sample(block(), place, verify_media=recipe.verify_media)
                rng = keyed_generator(recipe.seed, own_epoch, place.key_hash + place.text_number)
                with bad_where_it_fails("media_undecodable"):
                    self._decode(sample, rng, video_BTHWC[row], middle_BHWC[row])
            except DamagedSample as error:
                keys[row] = source.key_at(place)
                bad.append(BadSample(keys[row], f"{source.name}/{place.shard}.tar", error.reason))
                continue
            keys[row], texts[row] = sample.key, (sample.subtitle, sample.caption)
            valid_B[row] = True
        video_BTHWC[~valid_B] = 0
        middle_BHWC[~valid_B] = 0
        subtitle_BL, has_subtitle_B = self._tokens([subtitle for subtitle, _ in texts])
        caption_BL, has_caption_B = self._tokens([caption for _, caption in texts])
        arrays: dict[str, NDArray[Any]] = {
            "video_BTHWC": video_BTHWC,
            "middle_BHWC": middle_BHWC,
            "subtitle_BL": subtitle_BL,
            "caption_BL": caption_BL,
            "valid_B": valid_B,
            "has_subtitle_B": has_subtitle_B,
            "has_caption_B": has_caption_B,
        }
        num_padding = recipe.num_rows - len(composition.sources_G)
        sources = (*(int(number) for number in composition.sources_G), *[-1] * num_padding)
        return Loaded(arrays, composition.index, composition.epoch, tuple(keys), sources, tuple(bad))

    def _read(self, slot: _Slot) -> bytes:
        number, _, place = slot
        return self._sources[number].read(place)

    def _slots(self, composition: Composition) -> list[_Slot]:
        """(source, own epoch, place) of each slot, in slot order."""
        found: list[_Slot | None] = [None] * len(composition.sources_G)
        pairs = np.stack([composition.sources_G, composition.own_epochs_G], axis=1)
        for number, own_epoch in np.unique(pairs, axis=0):
            slots = np.flatnonzero((pairs == (number, own_epoch)).all(axis=1))
            source = self._sources[number]
            positions = composition.positions_G[slots]
            source.prefetch(int(own_epoch), int(positions.max()))
            for slot, place in zip(slots, source.places(int(own_epoch), positions), strict=True):
                found[slot] = (int(number), int(own_epoch), place)
        return [one for one in found if one is not None]

    def _decode(self, sample: Sample, rng: np.random.Generator, video_THWC: Pixels, middle_HWC: Pixels) -> None:
        recipe = self.recipe
        clip = open_clip_bytes(sample.media, sample.ext)
        if recipe.jitter:
            indices = jittered_indices(clip.num_frames, recipe.num_frames, rng)
        else:
            indices = uniform_indices(clip.num_frames, recipe.num_frames)
        middle = middle_index(clip.num_frames)
        view = recipe.fit.draw(rng)

        def place(index: int, frame: Pixels) -> None:
            targets = [video_THWC[slot] for slot, wanted in enumerate(indices) if wanted == index]
            targets += [middle_HWC] if index == middle else []
            recipe.fit.place(frame, view, targets[0])
            for target in targets[1:]:
                target[:] = targets[0]

        def target(index: int, height: int, width: int) -> Pixels | None:
            if view != WHOLE or (height, width) != middle_HWC.shape[:2]:
                return None
            return video_THWC[indices.index(index)] if index in indices else middle_HWC

        clip.visit([*indices, middle], place, target)

    def _tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        ids_BL = np.zeros((len(texts), self.recipe.num_text_tokens), dtype=np.int64)
        has_B = np.array([bool(text) for text in texts])
        if has_B.any():
            ids = self.recipe.tokenize([text for text in texts if text])
            if ids.shape[1:] != ids_BL.shape[1:]:
                raise ValueError(f"the tokenizer gives {ids.shape[1]} ids a text, expected {ids_BL.shape[1]}")
            ids_BL[has_B] = ids.numpy()
        return ids_BL, has_B


def open_sources(recipe: Recipe) -> list[Source]:
    """Map the manifests that the recipe names."""
    max_open_files = open_files_for(recipe.window_shards if recipe.shuffle else None, len(recipe.sources))
    named = zip(recipe.sources, recipe.manifest_hashes, recipe.excluded_rows, strict=True)
    return [
        Source(
            Manifest.open(config.shards, pinned=pinned, index_folder=recipe.index_folder),
            config,
            open_folder(config.shards, recipe.cache, pinned, max_open_files),
            excluded_rows,
            seed=mix(recipe.seed, number),
            shuffle=recipe.shuffle,
            window_shards=recipe.window_shards,
        )
        for number, (config, pinned, excluded_rows) in enumerate(named)
    ]
