"""Which frames of a clip, and their pixels: the one decoder of frames, for shards and for ordinary videos.

    clip = open_clip_bytes(data, "mp4")          # .num_frames; Motion JPEG by packet, everything else by PyAV
    frames = clip.read(uniform_indices(clip.num_frames, 12))          # uint8 [12, H, W, 3], RGB
    frames = read_video("talk.webm", num_frames=12)                   # ordinary video of any length

Frame choice is that of the official code: uniform = linspace truncated; jitter moves both ends by up to one interval;
the middle frame is int(N / 2). A clip with fewer frames than asked repeats frames.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.format import IMAGE_EXTENSIONS
from pipeline.data.images import Image, decode_jpeg
from pipeline.data.media import Clip, DamagedMedia, Frames, Place, Readable, Target
from pipeline.data.mp4 import jpeg_packets
from pipeline.errors import InputError

__all__ = ["Clip", "DamagedMedia", "Frames", "Image", "MotionJpegClip"]

_IN_MEMORY_BYTES = 256 * 2**20
"""A larger file is read from where it lies; it is no clip of ours."""


def uniform_indices(num_frames: int, num_wanted: int) -> list[int]:
    """`linspace(0, N-1, T)` truncated: evaluation's frames, and training's without jitter."""
    return [int(place) for place in np.linspace(0, num_frames - 1, num_wanted)]


def jittered_indices(num_frames: int, num_wanted: int, rng: np.random.Generator) -> list[int]:
    """Training's frames: start and end each move inwards by up to one interval, int(N / (T-1)), linspace between."""
    interval = num_frames // max(1, num_wanted - 1)
    start = int(rng.integers(0, interval + 1))
    end = int(rng.integers(num_frames - 1 - interval, num_frames))
    # With T = 2 or 3 and few frames the moved ends may leave the clip.
    return [min(max(int(place), 0), num_frames - 1) for place in np.linspace(start, end, num_wanted)]


def middle_index(num_frames: int) -> int:
    """The frame that stands for the clip: F of the paper."""
    return num_frames // 2


class MotionJpegClip(Readable):
    """JPEG pictures at known places: each is decoded alone."""

    def __init__(self, data: bytes, packets: Sequence[tuple[int, int]]) -> None:
        self._data = memoryview(data)
        self._packets = packets
        self.num_frames = len(packets)

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        for index in sorted(set(indices)):
            offset, size = self._packets[index]
            place(index, decode_jpeg(self._data[offset : offset + size], index, target))


def open_clip_bytes(data: bytes, ext: str) -> Clip:
    """The frames of one media member. Raises DamagedMedia."""
    if ext in IMAGE_EXTENSIONS:
        return Image(data)
    packets = jpeg_packets(data)
    if packets is not None:
        return MotionJpegClip(data, packets)
    from pipeline.data.video import EncodedClip  # a worker that reads our own shards does without libav

    return EncodedClip(data)


def read_video(path: str | Path, *, num_frames: int, fit: Callable[[Frames], Frames] | None = None) -> Frames:
    """`num_frames` uniform frames of an ordinary video, each as `fit` makes it: uint8 [T, H, W, 3], RGB.

    They are the frames that the same file shows in a tar of training: its packets are counted, and of a file of any
    length one group of pictures is decoded for each frame. Raises InputError for a file that is no video.
    """
    try:
        clip = _open_path(Path(path))
        indices = uniform_indices(clip.num_frames, num_frames)
        fitted: dict[int, Frames] = {}
        clip.visit(indices, lambda index, frame: fitted.update({index: fit(frame) if fit else frame}))
        return np.stack([fitted[index] for index in indices])
    except OSError as error:
        raise InputError(f"cannot read video {path}: {error.strerror}") from None
    except ValueError as error:  # DamagedMedia, and frames that differ in size where nothing fits them
        raise InputError(f"cannot read video {path}: {error}") from None


def _open_path(path: Path) -> Clip:
    if path.stat().st_size <= _IN_MEMORY_BYTES:
        return open_clip_bytes(path.read_bytes(), "")
    from pipeline.data.video import EncodedClip

    return EncodedClip(path)
