"""Sources of the stream: a shard set each, its exclude lists applied, its epochs shuffled.

source = Source(manifest, config, folder, excluded_rows, seed=42, shuffle=True, window_shards=None)
places = source.places(own_epoch, positions)
sample = source.sample(source.read(places[0]), places[0], verify_media=True)
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.data.index import Manifest, Place
from pipeline.data.manifest_file import read_table
from pipeline.data.order import EpochOrder, mix
from pipeline.data.sample import Sample, open_block, read_block
from pipeline.data.storage import Folder
from pipeline.data.text_table import TextTable
from pipeline.errors import InputError
from pipeline.text_files import read_text_lines

Int64s = NDArray[np.int64]


class SourceConfig(Section):
    """One shard set that the stream draws from."""

    shards: str
    """Folder of a shard set (with manifest.parquet), or its fsspec URL such as s3://bucket/set."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this source in every batch, relative to the other sources' weights."""
    kind: Literal["video", "image"] = "video"
    """`image`: image-text pairs as videos of one frame, with captions only."""
    subtitle_from: str | None = None
    """Where the subtitle lies: `json:FIELD`, `txt`, or '' for nowhere; null: as the manifest says."""
    caption_from: str | None = None
    """Where the caption lies: `json:FIELD`, `txt`, or '' for nowhere; null: as the manifest says."""
    texts: Path | None = None
    """JSON lines {"clip_id", "text"} in place of the subtitles: an epoch shows every (clip, text) pair once."""

    @model_validator(mode="after")
    def _one_origin_of_subtitles(self) -> "SourceConfig":
        if self.texts is not None and (self.subtitle_from is not None or self.kind == "image"):
            raise ValueError("texts gives the subtitles of a video source; leave subtitle_from and kind as they are")
        return self


class Source:
    """The kept samples of one manifest: manifest rows minus the excluded ones, in shuffled order per epoch."""

    def __init__(
        self,
        manifest: Manifest,
        config: SourceConfig,
        folder: Folder,
        excluded_rows: Int64s,
        *,
        seed: int,
        shuffle: bool = True,
        window_shards: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.name = config.shards
        self._subtitle_from, self._caption_from = texts_from(manifest, config)
        self._folder = folder
        # Kept sample k is row k + (number of excluded rows before it), found by one binary search.
        self._kept_before_excluded = excluded_rows - np.arange(len(excluded_rows))
        self.shard_sizes = manifest.shard_sizes
        if len(excluded_rows):
            gone = np.bincount(manifest.shard_of(excluded_rows), minlength=manifest.num_shards)
            self.shard_sizes = manifest.shard_sizes - gone
        self.num_samples = manifest.num_samples - len(excluded_rows)
        if not self.num_samples:
            raise InputError(f"{config.shards} has no sample left after data.exclude")
        self._seed, self._shuffle, self._window_shards = seed, shuffle, window_shards
        self._table = None
        if config.texts is not None:
            self._table = TextTable.read(config.texts, manifest, excluded_rows)
            self.num_samples = self._table.num_pairs
        self._order = lru_cache(maxsize=4)(
            partial(self._order_of, seed=seed, shuffle=shuffle, window_shards=window_shards)
        )

    def places(self, own_epoch: int, positions: Int64s) -> list[Place]:
        """Where the samples at `positions` of this source's epoch `own_epoch` lie."""
        if self._table is not None:
            return self._places_of_pairs(self._table, own_epoch, positions)
        kept = self._order(own_epoch).rows(positions)
        rows = kept + np.searchsorted(self._kept_before_excluded, kept, side="right")
        return self.manifest.places(rows)

    def prefetch(self, own_epoch: int, position: int) -> None:
        """Have the shards of this window and the next one brought near, where the folder has a cache."""
        if self._table is not None:
            return  # a round passes over the whole set: there is no window ahead
        order = self._order(own_epoch)
        shards = order.shards_ahead(position)
        if len(shards) and shards[-1] == order.shard_order[-1]:
            shards = np.concatenate([shards, self._order(own_epoch + 1).shards_ahead(0)])
        self._folder.prefetch([f"{self.manifest.shard_name(int(shard))}.tar" for shard in shards])

    def _order_of(self, own_epoch: int, *, seed: int, shuffle: bool, window_shards: int | None) -> EpochOrder:
        return EpochOrder(self.shard_sizes, seed=seed, epoch=own_epoch, shuffle=shuffle, window_shards=window_shards)

    def _places_of_pairs(self, table: TextTable, own_epoch: int, positions: Int64s) -> list[Place]:
        def order_of_round(number: int) -> EpochOrder:
            return EpochOrder(
                table.shard_sizes_of_round[number],
                seed=mix(self._seed, number + 1),
                epoch=own_epoch,
                shuffle=self._shuffle,
                window_shards=self._window_shards,
            )

        key = mix(self._seed, own_epoch) if self._shuffle else None
        picks = table.picks(order_of_round, positions, key=key)
        places = self.manifest.places(np.array([pick.row for pick in picks], dtype=np.int64))
        return [
            replace(place, text=pick.text, text_number=pick.number) for place, pick in zip(places, picks, strict=True)
        ]

    def read(self, place: Place) -> bytes:
        """The bytes of the sample at `place`. Raises DamagedSample, or RunError when the file system keeps failing."""
        return read_block(self._folder, place)

    def sample(self, block: bytes, place: Place, *, verify_media: bool) -> Sample:
        """The sample in the bytes that `read` gave. Raises DamagedSample."""
        sample = open_block(
            block,
            place,
            subtitle_from=self._subtitle_from if place.text is None else "",
            caption_from=self._caption_from,
            verify_media=verify_media,
        )
        return sample if place.text is None else replace(sample, subtitle=place.text)

    def key_at(self, place: Place) -> str:
        """The key of a sample that could not be read, from its shard's sidecar; its row number without one."""
        in_shard = place.row - int(self.manifest.first_rows[self.manifest.shard_of(np.array([place.row]))[0]])
        try:
            sidecar = self._folder.read_file(f"{place.shard}.parquet")
            return str(read_table(sidecar, ["key"]).column("key")[in_shard].as_py())
        except Exception:  # a name for the log is not worth an error, whatever is wrong with the sidecar
            return f"row {place.row}"


def num_kept(manifest: Manifest, config: SourceConfig, excluded_rows: Int64s) -> int:
    """Samples of one epoch of a source: its kept clips, or their pairs with texts."""
    if config.texts is not None:
        return TextTable.read(config.texts, manifest, excluded_rows).num_pairs
    return len(manifest) - len(excluded_rows)


def texts_from(manifest: Manifest, config: SourceConfig) -> tuple[str, str]:
    """Where a source's subtitle and caption lie: what the config says, else what the manifest says."""
    subtitle_from = manifest.subtitle_from if config.subtitle_from is None else config.subtitle_from
    caption_from = manifest.caption_from if config.caption_from is None else config.caption_from
    return ("" if config.kind == "image" else subtitle_from), caption_from


def read_exclude_lists(paths: Sequence[Path]) -> list[str]:
    """Clip ids, video ids or keys from text files, one a line; empty lines and `#` lines are skipped."""
    names: set[str] = set()
    for path in paths:
        try:
            names.update(line.strip() for _, line in read_text_lines(path) if not line.startswith("#"))
        except InputError as error:
            problem = str(error).removeprefix(f"cannot read {path}: ")
            raise InputError(f"cannot read exclude list {path}: {problem} (data.exclude)") from None
    return sorted(names)
