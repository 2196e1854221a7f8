"""Clips for evaluation: each one exactly once, in a fixed order, uniform frames, no padding.

reader = ClipReader("data/shards/sample_heldout", num_frames=12, image_size_px=224)
for clip_ids, video_BTCHW, ok_B in reader.batches(0, len(reader), batch_size=32, num_workers=2): ...
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.cache import open_folder
from pipeline.data.format import name_hash
from pipeline.data.frames import open_clip_bytes, uniform_indices
from pipeline.data.index import Place
from pipeline.data.loader import Failed
from pipeline.data.manifest_file import read_manifest, sidecar_columns
from pipeline.data.pool import WorkerDied, empty_bytes, run_workers
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.sample import bad_where_it_fails, open_block, read_block
from pipeline.data.storage import DamagedSample, Folder
from pipeline.data.transform import WHOLE, FrameFit
from pipeline.errors import InputError, PipelineError, RunError

_PREFETCH_BATCHES = 2
_READ_AHEAD = 16


class ClipReader:
    """The clips of a shard set by id; all of them in manifest order, or the ones asked for in the order asked for."""

    def __init__(
        self,
        shards: str | Path,
        *,
        num_frames: int,
        image_size_px: int,
        clip_ids: Sequence[str] | None = None,
        frame_fit: str = "squash",
    ) -> None:
        places = _places_by_clip_id(str(shards))
        if clip_ids is not None:
            missing = [clip_id for clip_id in clip_ids if clip_id not in places]
            if missing:
                raise InputError(
                    f"{shards} lacks {len(missing)} of {len(clip_ids)} clips, the first is {missing[0]!r}; "
                    "see its failures folder"
                )
        self.clip_ids = list(places if clip_ids is None else clip_ids)
        self._places = [places[clip_id] for clip_id in self.clip_ids]
        self._folder = open_folder(str(shards))
        self._num_frames = num_frames
        self._fit = FrameFit(image_size_px, "crop" if frame_fit == "crop" else "squash")

    def __len__(self) -> int:
        return len(self.clip_ids)

    def batches(
        self, start: int, stop: int, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Yield (clip ids, video uint8 [b, T, 3, H, W], ok bool [b]) of clips [start, stop).

        A clip that cannot be read is a row of zeros with `ok` false. Raises RunError when the file system keeps
        failing.
        """
        pieces = [range(at, min(at + batch_size, stop)) for at in range(start, stop, batch_size)]
        load = _ClipBatches(self._folder, self._places, self._num_frames, self._fit)
        loaded = run_workers(load, pieces, num_workers=num_workers, prefetch=_PREFETCH_BATCHES)
        try:
            for piece, item in zip(pieces, loaded, strict=True):
                if isinstance(item, Failed):
                    raise RunError(item.message)
                video_BTHWC, ok_B = (torch.from_numpy(part) for part in item)
                yield self.clip_ids[piece.start : piece.stop], video_BTHWC.permute(0, 1, 4, 2, 3), ok_B
        except WorkerDied:
            raise RunError(
                "a data worker was killed, most often for memory: lower num_workers or the batch size"
            ) from None
        finally:
            loaded.close()


class _ClipBatches:
    def __init__(self, folder: Folder, places: Sequence[Place], num_frames: int, fit: FrameFit) -> None:
        self._folder = folder
        self._places = places
        self._num_frames = num_frames
        self._fit = fit
        self._ahead: ReadAhead[Place, bytes] = ReadAhead(self._places_of, self._read, _READ_AHEAD)

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": (self._folder, self._places, self._num_frames, self._fit)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["arguments"])  # type: ignore[misc]

    def __call__(self, numbers: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | Failed:
        size = self._fit.size_px
        video_BTHWC = empty_bytes(len(numbers), self._num_frames, size, size, 3)
        ok_B = np.zeros(len(numbers), dtype=bool)
        for row, (place, block) in enumerate(self._ahead.of(numbers)):
            try:
                self._decode(block(), place, video_BTHWC[row])
                ok_B[row] = True
            except DamagedSample:
                video_BTHWC[row] = 0
            except PipelineError as error:
                return Failed(str(error))
        return video_BTHWC, ok_B

    def _places_of(self, numbers: Sequence[int]) -> list[Place]:
        return [self._places[number] for number in numbers]

    def _read(self, place: Place) -> bytes:
        return read_block(self._folder, place)

    def _decode(self, block: bytes, place: Place, video_THWC: NDArray[np.uint8]) -> None:
        sample = open_block(block, place, subtitle_from="", caption_from="")
        with bad_where_it_fails("media_undecodable"):
            clip = open_clip_bytes(sample.media, sample.ext)
            indices = uniform_indices(clip.num_frames, self._num_frames)
            for frame, out in zip(clip.read(indices), video_THWC, strict=True):
                self._fit.place(frame, WHOLE, out)


def _places_by_clip_id(folder: str) -> dict[str, Place]:
    places: dict[str, Place] = {}
    reader = open_folder(folder)
    for shard in read_manifest(folder):
        name = f"{shard['shard']}.parquet"
        try:
            content = reader.read_file(name)
        except FileNotFoundError:
            raise InputError(f"{folder}/{name} is missing; write the manifest of {folder} again") from None
        table = sidecar_columns(content, f"{folder}/{name}", ["key", "clip_id", "offset", "size"])
        for row in table.to_pylist():
            places[row["clip_id"]] = Place(
                len(places), shard["shard"], row["offset"], row["size"], name_hash(row["key"])
            )
    return places
