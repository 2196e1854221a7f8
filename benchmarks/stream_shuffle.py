"""How much more often than by chance two clips of one video meet in a batch, by shuffle window.

    python -m benchmarks.stream_shuffle [num_shards]

Shards of 1,000 clips, 30 clips to a video, all clips of a video in one shard. Chance is the expectation under a uniform
permutation of the whole set: B (B - 1) / 2 pairs a batch, each of one video with probability 29 / (N - 1).
"""

import sys

import numpy as np

from pipeline.data.order import EpochOrder

SHARD_SIZE = 1000
CLIPS_PER_VIDEO = 30
BATCH = 1024


def meeting_factor(num_shards: int, window_shards: int | None, shuffle: bool = True, num_batches: int = 2000) -> float:
    """Pairs of one video in the first batches of an epoch, relative to chance."""
    size = num_shards * SHARD_SIZE
    order = EpochOrder(np.full(num_shards, SHARD_SIZE), seed=3, epoch=0, shuffle=shuffle, window_shards=window_shards)
    num_batches = min(num_batches, size // BATCH)
    pairs = 0
    for number in range(num_batches):
        rows = order.rows(np.arange(number * BATCH, (number + 1) * BATCH))
        shard, place = np.divmod(rows, SHARD_SIZE)
        _, counts = np.unique(shard * SHARD_SIZE + place // CLIPS_PER_VIDEO, return_counts=True)
        pairs += int((counts * (counts - 1) // 2).sum())
    # 1,000 clips are 33 videos of 30 clips and one of 10.
    same = 33 * 30 * 29 + 10 * 9
    chance = num_batches * BATCH * (BATCH - 1) / 2 * (num_shards * same) / (size * (size - 1))
    return pairs / chance


def main(argv: list[str]) -> None:
    """Print a line per window."""
    num_shards = int(argv[0]) if argv else 2000
    print(f"{num_shards} shards of {SHARD_SIZE}, batches of {BATCH}; 1.00 is chance")
    for window in (None, 1024, 256, 64, 16):
        name = "whole set" if window is None else f"{window} shards"
        expected = 1.0 if window is None else num_shards / min(window, num_shards)
        print(f"window {name:12s} {meeting_factor(num_shards, window):8.2f}   (num_shards / window: {expected:.2f})")
    print(f"no shuffle          {meeting_factor(num_shards, None, shuffle=False):8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
