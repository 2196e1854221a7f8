"""One mp4 from the frames of a clip: the same bytes for the same frames and library versions.

data = mux_mjpeg(jpegs, fps, width_px, height_px)       # every packet is one of the JPEGs, as it is
data = encode_h264(pictures, fps, width_px, height_px, crf)   # pictures: raw yuv420p, BT.601 limited range
"""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

_BT601 = 6


def mux_mjpeg(frames: Sequence[bytes], fps: Fraction, width_px: int, height_px: int) -> bytes:
    """An mp4 in which every packet is one of `frames`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuvj420p"
        stream.codec_context.color_range = 2
        for number, frame in enumerate(frames):
            packet = av.Packet(frame)
            packet.stream = stream
            packet.time_base = 1 / fps
            packet.pts = packet.dts = number
            packet.duration = 1
            packet.is_keyframe = True
            container.mux(packet)
    return buffer.getvalue()


def encode_h264(frames: Sequence[bytes], fps: Fraction, width_px: int, height_px: int, crf: int) -> bytes:
    """An H.264 mp4 of raw yuv420p pictures; one thread, so that the bytes do not depend on the machine's cores."""
    buffer = io.BytesIO()
    options = {"crf": str(crf), "preset": "veryfast", "flags": "+bitexact"}
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        context.color_range = 1
        for number, frame in enumerate(frames):
            planes = np.frombuffer(frame, dtype=np.uint8).reshape(height_px * 3 // 2, width_px)
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            picture.pts, picture.time_base = number, 1 / fps
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()
