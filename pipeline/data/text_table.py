"""Several texts per clip: a table beside a shard set, so that the clip itself is stored once.

texts.jsonl, a row {"clip_id", "text"} per pair, in place of the subtitles in the shards. An epoch shows every (clip,
text) pair exactly once, in rounds: round r shows each clip that has more than r texts once, with the r-th text of an
order drawn for this clip and epoch. So the captions of one video do not meet in one batch as each other's negatives.

table = TextTable.read(path, manifest, excluded_rows)
picks = table.picks(epoch_order_of_round, positions, key=mix(seed, own_epoch))       # (manifest row, number, text)
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.data.format import name_hash, sample_key, unicode_forms
from pipeline.data.index import Manifest
from pipeline.data.order import EpochOrder, mix, permute
from pipeline.errors import InputError
from pipeline.text_files import read_json_rows

_COLUMNS = '{"clip_id", "text"}'
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Pick:
    """One (clip, text) pair of an epoch."""

    row: int
    number: int
    """Which of the clip's texts."""
    text: str


class TextTable:
    """The texts of the clips of one manifest; clips in manifest order."""

    def __init__(self, texts_of_row: dict[int, list[str]], shard_of: Callable[[Int64s], Int64s], num_shards: int):
        self._rows = np.array(sorted(texts_of_row), dtype=np.int64)
        self._texts = [texts_of_row[int(row)] for row in self._rows]
        counts = np.array([len(texts) for texts in self._texts], dtype=np.int64)
        self.num_pairs = int(counts.sum())
        self._clips_of_round = [np.flatnonzero(counts > number) for number in range(int(counts.max(initial=0)))]
        self._round_ends = np.cumsum([len(clips) for clips in self._clips_of_round])
        self.shard_sizes_of_round = [
            np.bincount(shard_of(self._rows[clips]), minlength=num_shards) for clips in self._clips_of_round
        ]

    @classmethod
    def read(cls, path: Path, manifest: Manifest, excluded_rows: Int64s) -> Self:
        """The texts of the clips that `manifest` holds; texts of other clips are left out."""
        excluded = set(excluded_rows.tolist())
        places = manifest.places(np.arange(len(manifest)))
        row_of_key = {place.key_hash: place.row for place in places if place.row not in excluded}
        texts_of_row: dict[int, list[str]] = {}
        for clip_id, text in _pairs(path):
            rows = (row_of_key.get(name_hash(sample_key(form))) for form in unicode_forms(clip_id))
            if (row := next((row for row in rows if row is not None), None)) is not None:
                texts_of_row.setdefault(row, []).append(text)
        if not texts_of_row:
            raise InputError(
                f"{path} has no text for any clip of {manifest.folder}; check the source's texts and shards"
            )
        return cls(texts_of_row, manifest.shard_of, manifest.num_shards)

    def picks(self, order_of_round: Callable[[int], EpochOrder], positions: Int64s, *, key: int | None) -> list[Pick]:
        """The pairs at `positions` of an epoch. `key` draws each clip's order of texts; None: that of the file."""
        found: dict[int, Pick] = {}
        rounds = np.searchsorted(self._round_ends, positions, side="right")
        for number in np.unique(rounds):
            slots = np.flatnonzero(rounds == number)
            start = int(self._round_ends[number - 1]) if number else 0
            clips = self._clips_of_round[number][order_of_round(int(number)).rows(positions[slots] - start)]
            found |= {
                int(slot): self._pick(int(clip), int(number), key) for slot, clip in zip(slots, clips, strict=True)
            }
        return [found[slot] for slot in range(len(positions))]

    def _pick(self, clip: int, number: int, key: int | None) -> Pick:
        texts, row = self._texts[clip], int(self._rows[clip])
        if key is not None and len(texts) > 1:
            number = int(permute(np.array([number]), len(texts), mix(key, row))[0])
        return Pick(row, number, texts[number])


def table_hash(path: Path) -> str:
    """16 hex digits of the table's bytes: what a run pins."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"cannot read the texts {path}: {error.strerror}; check the source's texts") from None


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for place, row in read_json_rows(path, _COLUMNS):
        clip_id, text = row.get("clip_id"), row.get("text")
        clip_id = str(clip_id) if type(clip_id) is int else clip_id
        if clip_id is None or text is None:
            raise InputError(f"{place} is no row {_COLUMNS}")
        if not isinstance(clip_id, str) or not isinstance(text, str) or not text.strip():
            raise InputError(f"{place}: clip_id and text must be texts that are not empty")
        yield clip_id, text.strip()
