"""Which frames of a clip, and their pixels: the one decoder of frames, for shards and for ordinary videos.

    clip = open_clip_bytes(data, "mp4")          # .num_frames; Motion JPEG by packet, everything else by PyAV
    frames = clip.read(uniform_indices(clip.num_frames, 12))          # uint8 [12, H, W, 3], RGB
    frames, times_s = read_video("talk.webm", num_frames=12)          # ordinary video of any length

Frame choice is that of the official code: uniform = linspace truncated; jitter moves both ends by up to one interval;
the middle frame is int(N / 2). A clip with fewer frames than asked repeats frames.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.data.format import IMAGE_EXTENSIONS
from pipeline.data.mp4 import jpeg_packets
from pipeline.errors import InputError

Frames = NDArray[np.uint8]
Place = Callable[[int, Frames], None]
Target = Callable[[int, int, int], Frames | None]

MAX_PIXELS = 64 * 2**20  # a header may promise more than the memory holds
_PLAIN_CONTAINERS = {
    # A playlist or concat list in a foreign tar could make ffmpeg open other files and URLs.
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg",
    "protocol_whitelist": "file",
}


class DamagedMedia(ValueError):
    """The bytes of a clip or image cannot be decoded."""


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


class Clip(Protocol):
    """Encoded frames in memory."""

    num_frames: int

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        """Decode each distinct index once and hand (index, RGB frame [H, W, 3]) to `place`, in time order.

        `target(index, H, W)` may name contiguous memory [H, W, 3] to decode into; a JPEG library then needs no copy.
        """

    def read(self, indices: Sequence[int]) -> Frames:
        """uint8 [len(indices), H, W, 3], RGB; indices may repeat."""


class _Readable:
    num_frames: int

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        raise NotImplementedError

    def read(self, indices: Sequence[int]) -> Frames:
        decoded: dict[int, Frames] = {}
        self.visit(indices, decoded.__setitem__)
        if len({frame.shape for frame in decoded.values()}) > 1:
            raise DamagedMedia("its frames differ in size")
        return np.stack([decoded[index] for index in indices])


class MotionJpegClip(_Readable):
    """JPEG pictures at known places: each is decoded alone."""

    def __init__(self, data: bytes, packets: Sequence[tuple[int, int]]) -> None:
        self._data = memoryview(data)
        self._packets = packets
        self.num_frames = len(packets)

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        for index in sorted(set(indices)):
            offset, size = self._packets[index]
            place(index, _decode_jpeg(self._data[offset : offset + size], index, target))


class EncodedClip(_Readable):
    """Any codec that PyAV reads. Frames depend on each other, so all are decoded up to the last one wanted."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        with _open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            # Packets are counted rather than trusted from a header: the count decides which frames are taken.
            try:
                self.num_frames = sum(1 for packet in container.demux(stream) if packet.size)
            except av.FFmpegError as error:
                raise DamagedMedia(str(error)) from None
        if not self.num_frames:
            raise DamagedMedia("no video frames")

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        wanted = sorted(set(indices))
        last: av.VideoFrame | None = None
        reached = 0
        with _open(io.BytesIO(self._data)) as container:
            try:
                for number, frame in enumerate(container.decode(video=0)):
                    last = frame
                    if number == wanted[reached]:
                        place(number, _rgb(frame))
                        reached += 1
                    if reached == len(wanted):
                        return
            except av.FFmpegError as error:
                raise DamagedMedia(str(error)) from None
        if last is None or reached < len(wanted) - 1:
            raise DamagedMedia(f"{len(wanted) - reached} of {len(wanted)} frames cannot be decoded")
        # Some encoders leave a packet without a picture at the end: the last picture stands for it.
        place(wanted[-1], _rgb(last))


class Image(_Readable):
    """An image: a video of one frame."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.num_frames = 1

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        if self._data.startswith(b"\xff\xd8\xff"):
            place(0, _decode_jpeg(self._data, 0, target))
            return
        import PIL.Image

        try:
            with PIL.Image.open(io.BytesIO(self._data)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DamagedMedia(f"a picture of {picture.width} x {picture.height} px")
                pixels = np.array(picture.convert("RGB"))
        except Exception as error:  # damaged bytes raise whatever the format's reader stumbles over, SyntaxError too
            raise DamagedMedia(str(error)) from None
        place(0, pixels)


def open_clip_bytes(data: bytes, ext: str) -> Clip:
    """The frames of one media member. Raises DamagedMedia."""
    if ext in IMAGE_EXTENSIONS:
        return Image(data)
    packets = jpeg_packets(data)
    return EncodedClip(data) if packets is None else MotionJpegClip(data, packets)


def read_video(path: str | Path, *, num_frames: int) -> tuple[Frames, list[float]]:
    """`num_frames` frames at uniform times of an ordinary video, and these times: uint8 [T, H, W, 3], RGB.

    Seeks to the key frame before each wanted time unless that would go back, so hours of video cost no more than T
    groups of pictures. Raises InputError for a file that is no video.
    """
    try:
        with av.open(f"file:{path}", metadata_errors="ignore", options=_PLAIN_CONTAINERS) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            times_s = _uniform_times(container, stream, num_frames)
            frames = [_rgb(frame) for frame in _frames_at(container, stream, times_s)]
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"cannot read video {path}: {error}") from None
    return np.stack(frames), times_s


def _uniform_times(container: Any, stream: Any, num_frames: int) -> list[float]:
    """Times of the uniform frames: those of frame numbers where the container counts frames, else of the duration."""
    start_s = float((stream.start_time or 0) * stream.time_base)
    if stream.frames and stream.average_rate:
        return [start_s + index / float(stream.average_rate) for index in uniform_indices(stream.frames, num_frames)]
    if stream.duration:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration:
        duration_s = container.duration / av.time_base
    else:
        raise InputError(f"{container.name} states no duration; remux it with ffmpeg -c copy")
    return [start_s + float(place) for place in np.linspace(0, max(0.0, duration_s - 0.1), num_frames)]


def _frames_at(container: Any, stream: Any, times_s: Sequence[float]) -> Iterator[Any]:
    """The frame shown at each of the ascending `times_s`."""
    half = Fraction(1, 2) / (stream.average_rate or 30)
    shown, frames = None, iter(container.decode(stream))
    for number, time_s in enumerate(times_s):
        if number and time_s - times_s[number - 1] > 2.0:
            container.seek(int(time_s / stream.time_base), stream=stream, backward=True)
            frames = iter(container.decode(stream))
        while shown is None or shown.time is None or shown.time < time_s - half:
            following = next(frames, None)
            if following is None:
                break
            shown = following
        if shown is None:
            raise InputError(f"{container.name} has no frame that can be decoded")
        yield shown


def _open(source: Any) -> Any:
    try:
        container = av.open(source, metadata_errors="ignore", options=_PLAIN_CONTAINERS)
    except (av.FFmpegError, ValueError) as error:
        raise DamagedMedia(str(error)) from None
    if not container.streams.video:
        container.close()
        raise DamagedMedia("no video stream")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise DamagedMedia("a codec that ffmpeg cannot decode")
    # One thread: the loader runs one process per core already.
    container.streams.video[0].thread_type = "NONE"
    container.streams.video[0].codec_context.thread_count = 1
    return container


def _rgb(frame: Any) -> Frames:
    pixels: Frames = frame.to_ndarray(format="rgb24")
    return pixels


def _decode_jpeg(data: bytes | memoryview, index: int, target: Target | None) -> Frames:
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > MAX_PIXELS:
            raise DamagedMedia(f"a picture of {width} x {height} px")
        memory = target(index, height, width) if target else None
        pixels: Frames = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=memory)
    except ValueError as error:
        raise DamagedMedia(str(error)) from None
    return pixels
