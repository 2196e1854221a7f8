"""Clips of a shard set in a stated order, for evaluation: uniform frames, no shuffling, no padding.

reader = ClipReader("data/shards/sample_heldout", num_frames=12, image_size_px=224)
for clip_ids, video_BTCHW, ok_B in reader.batches(0, len(reader.clip_ids), batch_size=32): ...
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor


class ClipReader:
    """Clips by number: the position in `clip_ids`."""

    clip_ids: list[str]

    def __init__(
        self, shards: str | Path, *, num_frames: int, image_size_px: int, clip_ids: Sequence[str] | None = None
    ) -> None:
        raise NotImplementedError

    def batches(
        self, start: int, stop: int, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Yield (clip_ids, video uint8 [b, T, 3, H, W], ok bool [b]) for the clips [start, stop)."""
        raise NotImplementedError
