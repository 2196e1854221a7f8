"""One mp4 from the frames of a clip, as they come: the same bytes for the same frames and library versions.

    track = open_track("mjpeg", fps, width_px, height_px, quality)
    for frame in frames:
        track.add(frame.data)       # mjpeg: a JPEG, kept as it is; h264: raw yuv420p, BT.601 limited range
    data = track.finish()

`num_bytes` says how large the clip is so far. `add` and `finish` raise one of MUX_ERRORS where frames cannot become a
clip of this codec.
"""

import io
from fractions import Fraction
from typing import Protocol

import av
import av.error
import numpy as np

MUX_ERRORS = (av.error.FFmpegError, ValueError)
_BT601 = 6


class Track(Protocol):
    """The mp4 of one clip in the making."""

    num_frames: int

    @property
    def num_bytes(self) -> int: ...

    def add(self, frame: bytes) -> None: ...

    def finish(self) -> bytes: ...


def open_track(codec: str, fps: Fraction, width_px: int, height_px: int, quality: int) -> Track:
    """An empty mp4. `quality` is the CRF of H.264; JPEGs have theirs already."""
    if codec == "mjpeg":
        return _MjpegTrack(fps, width_px, height_px)
    return _H264Track(fps, width_px, height_px, quality)


class _MjpegTrack:
    """An mp4 in which every packet is one of the frames; clips that overlap share them until the end."""

    def __init__(self, fps: Fraction, width_px: int, height_px: int) -> None:
        self._fps, self._size = fps, (width_px, height_px)
        self._frames: list[bytes] = []
        self.num_frames = self.num_bytes = 0

    def add(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.num_frames += 1
        self.num_bytes += len(frame)

    def finish(self) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("mjpeg", rate=self._fps)
            stream.width, stream.height = self._size
            stream.pix_fmt = "yuvj420p"
            stream.codec_context.color_range = 2
            for number, frame in enumerate(self._frames):
                packet = av.Packet(frame)
                packet.stream = stream
                packet.time_base = 1 / self._fps
                packet.pts = packet.dts = number
                packet.duration = 1
                packet.is_keyframe = True
                container.mux(packet)
        return buffer.getvalue()


class _H264Track:
    """Encoded at once, so that a long clip is never held as raw pictures; one thread, whatever the machine has."""

    def __init__(self, fps: Fraction, width_px: int, height_px: int, crf: int) -> None:
        self._fps, self._shape = fps, (height_px * 3 // 2, width_px)
        self._buffer = io.BytesIO()
        # The macroblock tree reads memory that nobody wrote, and its choices follow: other bytes now and then.
        options = {"crf": str(crf), "preset": "veryfast", "flags": "+bitexact", "x264-params": "mbtree=0"}
        self._container = av.open(self._buffer, "w", format="mp4", options={"fflags": "+bitexact"})
        stream = self._container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        context.color_range = 1
        self._stream = stream
        self.num_frames = 0

    @property
    def num_bytes(self) -> int:
        return self._buffer.tell()

    def add(self, frame: bytes) -> None:
        planes = np.frombuffer(frame, dtype=np.uint8).reshape(self._shape)
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts, picture.time_base = self.num_frames, 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()
