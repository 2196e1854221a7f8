"""The stream of training batches: any world size, each sample exactly once per epoch, resumable anywhere.

    sources + weights -> Schedule -> compositions of global batches -> this rank's part -> workers -> Batch

    stream = Stream(config, global_batch_size=1024, image_size_px=224, tokenize=tokenize, seed=42, rank=0, world_size=1)
    for batch in stream: ...              # for ever, epoch after epoch
    state = stream.state_dict()           # after the last batch handed out: small, JSON-able

Global batch b has the same rows in the same order for every number of ranks, workers and prefetched batches. A bad
sample is a masked row; it is named, counted, and known to all ranks at once.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.data.agreement import Agreement
from pipeline.data.batch import BadSample, Batch
from pipeline.data.cache import CacheConfig
from pipeline.data.format import name_hash, unicode_forms
from pipeline.data.index import Manifest
from pipeline.data.loader import Failed, Loaded, RankLoader, Recipe, Tokenize
from pipeline.data.manifest_file import manifest_facts
from pipeline.data.order import Blend, mix
from pipeline.data.pool import WorkerDied, pinned, run_workers
from pipeline.data.remarks import left_out, short_clips
from pipeline.data.schedule import Composition, Cursor, Schedule
from pipeline.data.sources import SourceConfig, num_kept, read_exclude_lists
from pipeline.data.text_table import table_hash
from pipeline.data.tolerance import by_reason, nothing_usable, too_many, too_many_of_a_source
from pipeline.data.transform import FrameFit
from pipeline.data.upload import Upload
from pipeline.errors import InputError, RunError
from pipeline.log import logger

STATE_VERSION = 1


class DataConfig(Section):
    """What the stream reads, in which order, and how a clip becomes tensors."""

    sources: list[SourceConfig] = Field(min_length=1)
    """Shard sets to draw from; an epoch is one pass over the first."""
    num_frames: int = Field(default=12, ge=1)
    """Frames per clip."""
    num_text_tokens: int = Field(default=70, ge=3)
    """Tokens per text, start and end included."""
    jitter: bool = True
    """Move the first and last frame at random by up to one interval, as the official code does in training."""
    frame_fit: Literal["squash", "crop"] = "squash"
    """squash: scale height and width apart to the square; crop: scale the short side and cut the long one."""
    random_crop_min_area: float = Field(default=1.0, gt=0, le=1)
    """Below 1: see a random part of the frame, at least this share of its area; the same for all frames of a clip."""
    flip_probability: float = Field(default=0.0, ge=0, le=1)
    """Chance that a clip is mirrored (texts that name left and right become wrong)."""
    shuffle: bool = True
    """Shuffle every epoch anew; false: manifest order."""
    shuffle_window_shards: int | None = Field(default=None, ge=1)
    """Shuffle the shards, and samples within groups of this many shards; null: shuffle the whole set as one."""
    epoch_end: Literal["drop", "carry"] = "drop"
    """What becomes of the samples that do not fill a last batch: dropped, or carried into the next epoch."""
    exclude: list[Path] = []
    """Text files of clip ids or video ids never to train on, one a line."""
    follow_manifest: bool = False
    """Take up shards that were added to a set, at the start of each epoch; false: keep the manifest that was pinned."""
    verify_media: bool = True
    """Check each clip's sha256 (a tenth of its decoding time): flipped bits are otherwise decoded without complaint."""
    max_bad_fraction: float = Field(default=0.001, ge=0, le=1)
    """Bad samples are masked up to this share of the samples read, beyond it the run fails."""
    max_bad_grace: int = Field(default=100, ge=0)
    """Bad samples that are tolerated on top, however few samples were read, but never over half of a source."""
    num_workers: int = Field(default=4, ge=0)
    """Data workers per rank; 0: load in the trainer's own process."""
    prefetch_batches: int = Field(default=2, ge=1)
    """Batches that each worker holds ready."""
    read_ahead: int = Field(default=16, ge=1, le=256)
    """Samples that each worker reads at once, ahead of decoding: more for a file system that answers slowly."""
    index_folder: Path | None = None
    """Where indexes of manifests are kept; null: beside the shards, or in the user's cache where that is read-only."""

    cache: CacheConfig | None = None
    """For sets in object stores: a local cache of whole shards (needs shuffle_window_shards); null: ranged requests."""

    @model_validator(mode="after")
    def _no_idle_settings(self) -> Self:
        if not self.shuffle and self.shuffle_window_shards is not None:
            raise ValueError("shuffle_window_shards does nothing with shuffle=false; remove one of them")
        if self.follow_manifest and self.epoch_end == "carry":
            raise ValueError("follow_manifest needs epoch borders: set epoch_end=drop")
        if self.cache and not any("://" in source.shards for source in self.sources):
            raise ValueError("cache does nothing: every source is a local folder; remove it")
        if self.cache and self.shuffle and self.shuffle_window_shards is None:
            raise ValueError("a cache of shards needs a window: set shuffle_window_shards so that two windows fit")
        Blend([source.weight for source in self.sources])  # refuses weights that round to nothing
        return self


class Stream:
    """Batches of one rank. Iterating goes on from the present state; so does every new `iter(stream)`."""

    def __init__(
        self,
        config: DataConfig,
        *,
        global_batch_size: int,
        image_size_px: int,
        tokenize: Tokenize,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        manifests: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`manifests` are the hashes to begin with, as a saved state names them; None: the newest of every source.

        `texts`: of "subtitle" and "caption" those that a loss compares. Then a global batch in which no sample can be
        read and has one of them is an error, and so is a source of which more than half is bad. None: nothing is
        trained, bad samples are masked up to the tolerance. `device`: a GPU to which the pixels of a batch go before it
        is handed out.
        """
        self.config = config
        self.global_batch_size = global_batch_size
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._tokenize = tokenize
        self._image_size_px = image_size_px
        self._texts = None if texts is None else tuple(texts)
        self._device = device
        self._excluded_names = read_exclude_lists(config.exclude)
        self._agreement = Agreement(world_size)
        self._open_manifests(manifests or self._agreement.from_first(self._pin_newest))
        self._order = self._order_identity()
        self._cursor = self._schedule.start()
        self._bad: dict[tuple[str, str], BadSample] = {}
        self.composition: list[int] = []
        """Samples of each source in the last global batch handed out."""
        self.waited_s = 0.0
        """Seconds that this rank has waited for its own workers; what ranks wait for one another is not in it."""

    @property
    def samples_per_epoch(self) -> int:
        """Samples of one epoch: those of the first source and what the others add to it."""
        return self._schedule.num_slots

    @property
    def batches_per_epoch(self) -> int:
        """Whole global batches in one epoch."""
        return self.batches_in(1)

    def batches_in(self, num_epochs: float) -> int:
        """Whole global batches in so many epochs; with `epoch_end: drop` rounded to the nearest."""
        return self._schedule.batches_in(num_epochs, self.global_batch_size)

    def remarks(self) -> list[str]:
        """What is worth knowing at the start and is no error: what epochs leave out, clips with too few frames."""
        found = [left_out(self.samples_per_epoch, self.global_batch_size) if self.config.epoch_end == "drop" else ""]
        for source, wanted in zip(self.config.sources, self._hashes, strict=True):
            if source.kind == "video":
                manifest = Manifest.open(source.shards, pinned=wanted, index_folder=self.config.index_folder)
                names = [manifest.shard_name(int(number)) for number in np.flatnonzero(manifest.shard_sizes)]
                found.append(short_clips(source.shards, names, self.config.num_frames))
        return [remark for remark in found if remark]

    @property
    def composition_of_epoch(self) -> list[int]:
        """Samples of each source in all global batches of this epoch so far (with `carry`: of the run)."""
        return self._schedule.blend.counts(self._cursor.slot)

    @property
    def bad_by_reason(self) -> dict[str, int]:
        """Distinct bad samples met so far, counted by reason."""
        return by_reason(self._bad.values())

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self._until_manifest_changes()

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch handed out, JSON-able, the same on every rank."""
        return {
            "version": STATE_VERSION,
            "cursor": asdict(self._cursor),
            "manifests": list(self._hashes),
            "order": dict(self._order),
            "bad": [[sample.key, sample.shard, sample.reason] for sample in self._bad.values()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a saved batch; ranks, workers and the global batch size may differ from the saving run's."""
        if state["version"] != STATE_VERSION:
            raise InputError(f"stream state has version {state['version']}, this code reads {STATE_VERSION}")
        for name, value in self._order.items():
            if state["order"][name] != value:
                raise InputError(
                    f"the run to resume has {name}={state['order'][name]!r}, this config has {value!r}: the order of "
                    "samples would differ; restore the value, or start a new run"
                )
        if tuple(state["manifests"]) != self._hashes:
            self._open_manifests(state["manifests"])
        cursor = state["cursor"]
        starts = tuple((int(own_epoch), int(position)) for own_epoch, position in cursor["starts"])
        self._cursor = Cursor(cursor["epoch"], cursor["slot"], cursor["batches"], starts)
        self._bad = {(key, shard): BadSample(key, shard, reason) for key, shard, reason in state["bad"]}

    def _until_manifest_changes(self) -> Iterator[Batch]:
        if self.config.follow_manifest and self._schedule.at_border(self._cursor, self.global_batch_size):
            self._follow_manifests()
        issued: deque[tuple[Composition, Cursor]] = deque()
        loaded = run_workers(
            RankLoader(self._recipe()),
            self._compositions(issued),
            num_workers=self.config.num_workers,
            prefetch=self.config.prefetch_batches,
        )
        if self._device is not None and self._device.type == "cuda":
            loaded = pinned(loaded, Upload(self._device))
        try:
            for item in self._timed(self._deaths_named(loaded)):
                composition, after = issued.popleft()
                batch = self._account(item)
                self._cursor = after
                self.composition = np.bincount(composition.sources_G, minlength=len(self.config.sources)).tolist()
                yield batch
        finally:
            loaded.close()

    def _compositions(self, issued: deque[tuple[Composition, Cursor]]) -> Iterator[Composition]:
        """This rank's part of the coming batches; runs ahead of consumption by what is prefetched."""
        cursor = self._cursor
        first = True
        while first or not (self.config.follow_manifest and self._schedule.at_border(cursor, self.global_batch_size)):
            composition, cursor = self._schedule.compose(cursor, self.global_batch_size)
            issued.append((composition, cursor))
            yield composition.part(self._rank, self._world_size)
            first = False

    def _timed(self, loaded: Iterator[Loaded | Failed]) -> Iterator[Loaded | Failed]:
        while True:
            began = time.perf_counter()
            item = next(loaded, None)
            self.waited_s += time.perf_counter() - began
            if item is None:
                return
            yield item

    def _deaths_named(self, loaded: Iterator[Loaded | Failed]) -> Iterator[Loaded | Failed]:
        """Turn the death of a worker into a failure, of which all ranks hear."""
        try:
            yield from loaded
        except WorkerDied:
            yield Failed(
                f"a data worker of rank {self._rank} was killed, most often for memory: lower data.num_workers or "
                "data.prefetch_batches, or ask for more memory; then resume"
            )

    def _account(self, item: Loaded | Failed) -> Batch:
        """Tell all ranks what went wrong here and hear what went wrong there; the batch, if the run may go on."""
        failure = item.message if isinstance(item, Failed) else None
        bad = () if isinstance(item, Failed) else item.bad
        bad_everywhere, num_usable = self._agreement.share(bad, failure, self._num_usable(item))
        for sample in bad_everywhere:
            if (sample.key, sample.shard) not in self._bad and self._rank == 0:
                logger.warning(f"bad sample {sample.key} of {sample.shard}: {sample.reason}; masked")
            self._bad[(sample.key, sample.shard)] = sample
        if self._texts is not None and num_usable == 0:
            raise RunError(nothing_usable(self._cursor.batches, self.global_batch_size, bad_everywhere, self._texts))
        if complaint := self._complaint():
            raise RunError(complaint)
        assert isinstance(item, Loaded), "share raises a failure"
        if self._cursor == self._schedule.start() and self._rank == 0:
            self._warn_of_absent_texts(item)
        return _batch(item)

    def _num_usable(self, item: Loaded | Failed) -> int:
        """Rows of this rank from which the loss can learn."""
        if isinstance(item, Failed) or not self._texts:
            return 0
        return int(np.any([item.arrays[f"has_{text}_B"] for text in self._texts], axis=0).sum())

    def _warn_of_absent_texts(self, first: Loaded) -> None:
        """Name a text that the loss compares and no sample has: a wrong `caption_from` takes terms out of the loss."""
        for text in self._texts or ():
            if first.arrays["valid_B"].any() and not first.arrays[f"has_{text}_B"].any():
                logger.warning(
                    f"no sample of the first batch has a {text}, which the loss compares; check {text}_from of "
                    "data.sources"
                )

    def _complaint(self) -> str:
        """Why the run may not go on with the bad samples met so far; "" where it may."""
        config, bad = self.config, list(self._bad.values())
        num_read = (self._cursor.batches + 1) * self.global_batch_size
        if len(bad) > config.max_bad_grace + config.max_bad_fraction * num_read:
            return too_many(bad, num_read)
        if self._texts is None:
            return ""
        sizes = {source.shards: size for source, size in zip(config.sources, self._schedule.sizes, strict=True)}
        return too_many_of_a_source(bad, sizes, config.max_bad_fraction)

    def _pin_newest(self) -> list[str]:
        """The hashes of the sources' manifests as they are now."""
        return [manifest_facts(source.shards)["manifest_hash"] for source in self.config.sources]

    def _open_manifests(self, hashes: Sequence[str]) -> None:
        """Pin these manifests: their sizes, and the rows that the exclude lists take out."""

        def opened() -> list[Manifest]:
            return [
                Manifest.open(source.shards, pinned=pinned, index_folder=self.config.index_folder)
                for source, pinned in zip(self.config.sources, hashes, strict=True)
            ]

        # Where an index is missing, one process builds it, which may take longer than a collective may wait.
        manifests = self._agreement.each(opened)
        self._hashes = tuple(hashes)
        names = [form for name in self._excluded_names for form in unicode_forms(name)]
        self._excluded_rows = tuple(manifest.rows_named(names) for manifest in manifests)
        sizes = [
            num_kept(manifest, source, rows)
            for manifest, source, rows in zip(manifests, self.config.sources, self._excluded_rows, strict=True)
        ]
        for source, size in zip(self.config.sources, sizes, strict=True):
            if not size:
                raise InputError(f"{source.shards} has no sample left after data.exclude")
        weights = [source.weight for source in self.config.sources]
        self._schedule = Schedule(sizes, weights, self.config.epoch_end)

    def _follow_manifests(self) -> None:
        """At an epoch border: pin the newest manifests, as rank 0 sees them. A source that changed begins anew."""
        newest = self._agreement.from_first(self._pin_newest)
        cursor = self._schedule.open_epoch(self._cursor)
        starts = [
            start if old == new or number == 0 else (start[0] + 1, 0)
            for number, (start, old, new) in enumerate(zip(cursor.starts, self._hashes, newest, strict=True))
        ]
        self._open_manifests(newest)
        self._cursor = replace(cursor, starts=tuple(starts))

    def _recipe(self) -> Recipe:
        config = self.config
        fit = FrameFit(self._image_size_px, config.frame_fit, config.random_crop_min_area, config.flip_probability)
        return Recipe(
            sources=tuple(config.sources),
            manifest_hashes=self._hashes,
            excluded_rows=self._excluded_rows,
            index_folder=config.index_folder,
            cache=config.cache,
            seed=self._seed,
            shuffle=config.shuffle,
            window_shards=config.shuffle_window_shards,
            num_frames=config.num_frames,
            num_text_tokens=config.num_text_tokens,
            jitter=config.jitter,
            fit=fit,
            verify_media=config.verify_media,
            read_ahead=config.read_ahead,
            num_rows=-(-self.global_batch_size // self._world_size),
            tokenize=self._tokenize,
        )

    def _order_identity(self) -> dict[str, Any]:
        """What the order of samples depends on, besides manifests and cursor, as the files are at the start."""
        return {
            "seed": self._seed,
            "weights": list(self._schedule.blend.parts),
            "shuffle": self.config.shuffle,
            "shuffle_window_shards": self.config.shuffle_window_shards,
            "epoch_end": self.config.epoch_end,
            "exclude": f"{len(self._excluded_names)} names, {mix(*map(name_hash, self._excluded_names)):016x}",
            "texts": [None if source.texts is None else table_hash(source.texts) for source in self.config.sources],
        }


def _batch(item: Loaded) -> Batch:
    tensors = {
        name: values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
        for name, values in item.arrays.items()
    }
    return Batch(
        video_BTCHW=tensors.pop("video_BTHWC").permute(0, 1, 4, 2, 3),
        middle_BCHW=tensors.pop("middle_BHWC").permute(0, 3, 1, 2),
        **tensors,
        keys=item.keys,
        epoch=item.epoch,
        index=item.index,
        bad=item.bad,
        sources=item.sources,
    )
