"""The order of an epoch: a pure function of (seed, epoch, sizes), exactly once by construction, O(1) memory.

    position in the epoch -> rank in the shuffled set          `EpochOrder`, a keyed permutation
    slot of the blended stream -> (source, index in source)    `Blend`, exact integer arithmetic

A permutation of [0, n) is a Feistel network on the next power of two, walked until it falls below n. Any position is
computed alone: resuming at sample 50 million costs what sample 0 costs. The arithmetic is our own on 64-bit integers,
so an order does not change with a library's random generators.

    order = EpochOrder(shard_sizes, seed=42, epoch=3, window_shards=None)
    rows = order.rows(np.arange(start, stop))
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]

_ROUNDS = 8
_MAX_SORTED = 1024
_MAX_DENOMINATOR = 1_000_000
_TOO_SMALL = f"below 1/{2 * _MAX_DENOMINATOR} it rounds to nothing; multiply all weights by the same number"
_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


def mix(*words: int) -> int:
    """64 well-mixed bits of a few integers (splitmix64 over each word in turn): the key of every random draw."""
    state = 0
    for word in words:
        state = (state + _GOLDEN + (word & _MASK_64)) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state


def keyed_generator(*words: int) -> np.random.Generator:
    """The random generator of one sample in one epoch: the same on every rank and worker, at every resume."""
    return np.random.Generator(np.random.Philox(key=mix(*words)))


def permute(positions: Int64s, size: int, key: int) -> Int64s:
    """Map `positions` in [0, size) through the permutation of [0, size) that `key` names."""
    keys = [mix(key, number) for number in range(_ROUNDS)]
    if size <= _MAX_SORTED:
        # A network of so few bits is visibly not random; sorting random numbers is, and costs little.
        hashed = _hash(_hash(np.arange(size, dtype=np.uint64), keys[0]), keys[1])
        order: Int64s = np.argsort(hashed, kind="stable")
        return order[positions]
    bits = (size - 1).bit_length()
    values = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= size)
    while len(outside):
        values[outside] = _feistel(values[outside], bits, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: UInt64s, bits: int, keys: Sequence[int]) -> UInt64s:
    """A bijection of [0, 2^bits): the two halves take turns at being changed by a hash of the other."""
    low_bits = bits // 2
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << (bits - low_bits)) - 1)
    low, high = values & low_mask, values >> np.uint64(low_bits)
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        high ^= _hash(low, first) & high_mask
        low ^= _hash(high, second) & low_mask
    return (high << np.uint64(low_bits)) | low


def _hash(values: UInt64s, key: int) -> UInt64s:
    hashed = (values ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
    hashed ^= hashed >> np.uint64(29)
    hashed *= np.uint64(0x94D049BB133111EB)
    hashed ^= hashed >> np.uint64(32)
    return hashed


class EpochOrder:
    """One source's order in one epoch.

    Without a window the whole set is one permutation: two clips of a video meet in a batch exactly as often as chance
    has it. With `window_shards` the shards are permuted, and samples mix within groups of that many shards: a reader
    then needs only two groups at hand at a time (a local cache), and clips of a video, which lie in one shard, meet
    more often by about num_shards / window_shards.
    """

    def __init__(
        self, shard_sizes: Int64s, *, seed: int, epoch: int, shuffle: bool = True, window_shards: int | None = None
    ) -> None:
        self.num_samples = int(shard_sizes.sum())
        self._key = mix(seed, epoch)
        self._whole = shuffle and window_shards is None
        num_shards = len(shard_sizes)
        self.shard_order = (
            permute(np.arange(num_shards), num_shards, mix(self._key, 1))
            if shuffle and window_shards is not None
            else np.arange(num_shards)
        )
        if self._whole:
            return
        first_rows = np.concatenate([[0], np.cumsum(shard_sizes)])
        self._first_row_of_turn = first_rows[self.shard_order]
        self.turn_ends = np.cumsum(shard_sizes[self.shard_order])
        group = window_shards if shuffle and window_shards is not None else num_shards
        self._window_ends = np.append(self.turn_ends[group - 1 :: group], self.num_samples)
        self._window_shards = group
        self._shuffle = shuffle

    def rows(self, positions: Int64s) -> Int64s:
        """The rows (in manifest order) at these positions of the epoch."""
        if self._whole:
            return permute(positions, self.num_samples, mix(self._key, 2))
        places = self._within_windows(positions) if self._shuffle else positions
        turns = np.searchsorted(self.turn_ends, places, side="right")
        starts = np.where(turns > 0, self.turn_ends[turns - 1], 0)
        rows: Int64s = self._first_row_of_turn[turns] + (places - starts)
        return rows

    def shards_ahead(self, position: int) -> Int64s:
        """The shards of the window at `position` and of the next: what a cache should hold. None without windows."""
        if self._whole or not self._shuffle:
            return np.empty(0, dtype=np.int64)
        window = int(np.searchsorted(self._window_ends, position, side="right"))
        return self.shard_order[window * self._window_shards : (window + 2) * self._window_shards]

    def _within_windows(self, positions: Int64s) -> Int64s:
        places = np.empty_like(positions)
        windows = np.searchsorted(self._window_ends, positions, side="right")
        for window in np.unique(windows):
            chosen = windows == window
            start = int(self._window_ends[window - 1]) if window else 0
            size = int(self._window_ends[window]) - start
            places[chosen] = start + permute(positions[chosen] - start, size, mix(self._key, 3, int(window)))
        return places


class Blend:
    """Which source fills a slot of the stream: source 0 takes its share of all slots, source 1 its share of the rest...

    Each share is a Bresenham line in integers, so the first p slots hold every source's share of p within one per
    source before it, any slot is computed alone, and a batch's composition is exact and the same on every rank.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(str(weight)).limit_denominator(_MAX_DENOMINATOR) for weight in weights]
        if not all(exact):
            raise ValueError(f"weight {min(weights)} is too small: {_TOO_SMALL}")
        scale = math.lcm(*(weight.denominator for weight in exact))
        parts = [int(weight * scale) for weight in exact]
        divisor = math.gcd(*parts)
        self.parts = tuple(part // divisor for part in parts)

    def counts(self, num_slots: int) -> list[int]:
        """How many of the first `num_slots` slots each source fills."""
        counts, rest = [], num_slots
        for number, part in enumerate(self.parts):
            taken = -((-rest * part) // sum(self.parts[number:]))
            counts.append(taken)
            rest -= taken
        return counts

    def num_slots(self, num_first: int) -> int:
        """The number of slots in which source 0 has delivered `num_first` samples, up to its next one."""
        return num_first * sum(self.parts) // self.parts[0]

    def assign(self, slots: Int64s) -> tuple[Int64s, Int64s]:
        """(source, index within the source's own sequence) of each slot."""
        sources = np.full(len(slots), -1, dtype=np.int64)
        indices = np.empty(len(slots), dtype=np.int64)
        open_slots, place = np.arange(len(slots)), slots.astype(np.int64)
        for number, part in enumerate(self.parts):
            total = sum(self.parts[number:])
            before, after = _share(place, part, total), _share(place + 1, part, total)
            mine = after > before
            sources[open_slots[mine]] = number
            indices[open_slots[mine]] = before[mine]
            open_slots, place = open_slots[~mine], (place - before)[~mine]
        return sources, indices


def _share(places: Int64s, part: int, total: int) -> Int64s:
    """ceil(place * part / total) of each place, exact.

    Weights of many decimals have parts beyond 10^12: where the product leaves 64 bits, it is taken in Python's own
    integers, a microsecond a slot.
    """
    if (int(places.max(initial=0)) + 1) * total < 2**62:
        return -((-places * part) // total)
    return np.array([-((-int(place) * part) // total) for place in places], dtype=np.int64)
