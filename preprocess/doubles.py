"""Which of the clips with one id comes first in the metadata, for any number of clips in bounded memory.

for clip in clips: keys.write(clip_key(clip.clip_id))     # of all clips, in the order of the metadata
first = FirstOfDoubles.find(path_of_keys)
kept, doubles = first.of(clips, places)                   # each clip with its place in that order
"""

import hashlib
from pathlib import Path
from typing import Self

import numpy as np

from preprocess.records import Clip

KEY = np.dtype([("hash", "<u8"), ("check", "<u8")])
_KEYS_PER_PASS = 1 << 20


def clip_key(clip_id: str) -> bytes:
    """What two clip ids must not share, the part that decides the key in the tar, as 16 bytes (`KEY`)."""
    return hashlib.blake2b(key_stem(clip_id).encode(), digest_size=16).digest()


def key_stem(clip_id: str) -> str:
    """The clip id without `.mp4`."""
    return clip_id.removesuffix(".mp4")


class FirstOfDoubles:
    """Tells the first clip of a key, in the order of the metadata, from later ones."""

    def __init__(self, hashes: np.ndarray, checks: np.ndarray, places: np.ndarray) -> None:
        self._hashes, self._checks, self._places = hashes, checks, places

    @classmethod
    def find(cls, path: Path) -> Self:
        """Those of the file of `KEY`s at `path`, which is removed. At 8 bytes a clip, and 24 a key that is there twice:
        every clip may be."""
        keys = np.memmap(path, dtype=KEY, mode="r") if path.stat().st_size else np.zeros(0, dtype=KEY)
        hashes = keys["hash"].copy()
        hashes.sort()  # in place: 100 M clips are 800 MB here, once
        doubles = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        del hashes
        checks = np.zeros(len(doubles), dtype="<u8")
        places = np.full(len(doubles), -1, dtype=np.int64)
        for start in range(0, len(keys) if len(doubles) else 0, _KEYS_PER_PASS):
            _note_first(keys[start : start + _KEYS_PER_PASS], start, doubles, checks, places)
        path.unlink()
        return cls(doubles, checks, places)

    @property
    def is_needed(self) -> bool:
        """Whether there is any double."""
        return len(self._hashes) > 0

    def of(self, clips: list[Clip], places: list[int]) -> tuple[list[Clip], list[Clip]]:
        """Those of `clips` that come first, and the others; each lies at its place in the metadata."""
        kept: list[Clip] = []
        doubles: list[Clip] = []
        for clip, place in zip(clips, places, strict=True):
            (kept if self._is_first(clip.clip_id, place) else doubles).append(clip)
        return kept, doubles

    def _is_first(self, clip_id: str, place: int) -> bool:
        key = np.frombuffer(clip_key(clip_id), dtype=KEY)[0]
        found = int(np.searchsorted(self._hashes, key["hash"]))
        if found == len(self._hashes) or self._hashes[found] != key["hash"]:
            return True
        # Two keys with one hash of 64 bits are no doubles: among 100 M clips that happens once in 4,000 sets.
        return bool(self._places[found] == place or self._checks[found] != key["check"])


def _note_first(keys: np.ndarray, start: int, doubles: np.ndarray, checks: np.ndarray, places: np.ndarray) -> None:
    """Enter check and place of the doubles that come for the first time in `keys`, which begin at place `start`."""
    found = np.searchsorted(doubles, keys["hash"])
    found[found == len(doubles)] = 0
    offsets = np.flatnonzero((doubles[found] == keys["hash"]) & (places[found] < 0))
    fresh, first = np.unique(found[offsets], return_index=True)
    places[fresh] = start + offsets[first]
    checks[fresh] = keys["check"][offsets[first]]
