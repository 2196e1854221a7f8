"""What each global batch consists of: pure functions of a small cursor.

    Cursor --Schedule.compose(cursor, global_batch_size)--> (source, own epoch, position) of G slots, next Cursor

Slots of the blended stream are counted within an epoch of the first source. With `drop` an epoch ends when fewer than G
slots are left; with `carry` the slots run on, and a batch may hold the end of one epoch and the start of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import Blend
from pipeline.errors import InputError

Int64s = NDArray[np.int64]
EpochEnd = Literal["drop", "carry"]


@dataclass(frozen=True)
class Cursor:
    """A place in the stream: everything that a resume needs besides the manifests."""

    epoch: int = 0
    """Epochs of the first source that are behind us (with `carry`: always 0, the slots run on)."""
    slot: int = 0
    """Slots consumed since that epoch began."""
    batches: int = 0
    """Global batches consumed in the run."""
    starts: tuple[tuple[int, int], ...] = ()
    """(own epoch, position) of each source when that epoch began."""


@dataclass(frozen=True)
class Composition:
    """One global batch: G slots in order."""

    index: int
    epoch: int
    sources_G: Int64s
    own_epochs_G: Int64s
    positions_G: Int64s

    def part(self, rank: int, world_size: int) -> "Composition":
        """The slots of one rank: contiguous, and even within one."""
        total = len(self.sources_G)
        mine = slice(total * rank // world_size, total * (rank + 1) // world_size)
        return replace(
            self,
            sources_G=self.sources_G[mine],
            own_epochs_G=self.own_epochs_G[mine],
            positions_G=self.positions_G[mine],
        )


class Schedule:
    """The blended epochs of sources with these sizes and weights."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], epoch_end: EpochEnd) -> None:
        self.sizes = tuple(sizes)
        self.blend = Blend(weights)
        self.epoch_end = epoch_end
        self.num_slots = self.blend.num_slots(self.sizes[0])

    def start(self) -> Cursor:
        """The beginning of a run."""
        return Cursor(starts=tuple((0, 0) for _ in self.sizes))

    def batches_in(self, num_epochs: float, global_batch_size: int) -> int:
        """The number of whole global batches in `num_epochs` epochs; with `drop` rounded to the nearest."""
        if self.epoch_end == "carry":
            return self.blend.num_slots(int(num_epochs * self.sizes[0])) // global_batch_size
        return round(num_epochs * (self.num_slots // global_batch_size))

    def at_border(self, cursor: Cursor, global_batch_size: int) -> bool:
        """Whether the next batch opens a new epoch."""
        return self.epoch_end == "drop" and cursor.slot + global_batch_size > self.num_slots

    def open_epoch(self, cursor: Cursor) -> Cursor:
        """The cursor at the start of the next epoch: the first source begins anew, the others go on where they are."""
        starts = [self._advance(number, count, cursor) for number, count in enumerate(self.blend.counts(cursor.slot))]
        starts[0] = (cursor.epoch + 1, 0)
        return replace(cursor, epoch=cursor.epoch + 1, slot=0, starts=tuple(starts))

    def compose(self, cursor: Cursor, global_batch_size: int) -> tuple[Composition, Cursor]:
        """The batch after `cursor`, and the cursor after that batch."""
        if self.at_border(cursor, global_batch_size):
            if self.num_slots < global_batch_size:
                raise InputError(
                    f"an epoch has {self.num_slots} samples, fewer than one global batch of {global_batch_size}; "
                    "use a smaller batch.global_batch_size or data.epoch_end=carry"
                )
            cursor = self.open_epoch(cursor)
        slots = np.arange(cursor.slot, cursor.slot + global_batch_size)
        sources, indices = self.blend.assign(slots)
        start_epochs, start_positions = (np.array(column) for column in zip(*cursor.starts, strict=True))
        reached = start_positions[sources] + indices
        sizes = np.array(self.sizes)[sources]
        own_epochs = start_epochs[sources] + reached // sizes
        epoch = cursor.epoch if self.epoch_end == "drop" else cursor.slot // self.num_slots
        composition = Composition(cursor.batches, epoch, sources, own_epochs, reached % sizes)
        after = replace(cursor, slot=cursor.slot + global_batch_size, batches=cursor.batches + 1)
        return composition, after

    def _advance(self, source: int, count: int, cursor: Cursor) -> tuple[int, int]:
        own_epoch, position = cursor.starts[source]
        reached = position + count
        return own_epoch + reached // self.sizes[source], reached % self.sizes[source]
