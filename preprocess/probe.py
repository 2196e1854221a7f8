"""Looks at a source video, decoding one frame at most: which stream, which size, which colours.

probe = probe_video(Path("x.mp4"), limits)      # ClipError with a reason where it is no usable video
"""

import errno
from dataclasses import dataclass
from pathlib import Path

import av
import av.error

from pipeline.data.format import Reason
from preprocess.limits import LimitsConfig, open_source
from preprocess.records import ClipError

PROBE_TIMEOUT_S = 60.0

_MATRIX_NAMES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2
_PROGRESSIVE = 1
_RATE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Probe:
    """What the decode needs to know about a source."""

    stream_index: int
    width_px: int
    height_px: int
    matrix: str
    """Colour matrix in ffmpeg's words; an untagged source is taken as BT.709 from 720 lines on, as BT.601 below."""
    full_range: bool
    """An untagged source is taken as limited range, unless its pixel format says otherwise."""
    audio_index: int | None
    """Stream index of the first audio stream."""
    can_be_thinned: bool = False
    """Whether frames that no other refers to can be left out packet by packet: upright, progressive H.264 at a constant
    rate in mp4 or Matroska."""


def probe_video(path: Path, limits: LimitsConfig) -> Probe:
    """Open `path` under the demuxer and protocol lists and describe its first real video stream."""
    timeout_s = min(PROBE_TIMEOUT_S, limits.time_s)
    try:
        with open_source(path, limits, timeout_s) as container:
            return _describe(container, limits)
    except TimeoutError:
        raise ClipError(Reason.TIME_LIMIT, f"opening took over {timeout_s:g} s") from None
    except FileNotFoundError:
        raise ClipError(Reason.VIDEO_MISSING, "the file is gone") from None
    except (av.error.FFmpegError, OSError, MemoryError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EINVAL:
            # What libavformat answers for a demuxer that is not on the list.
            raise ClipError(Reason.FORBIDDEN_FORMAT, "the file's format is not on limits.formats") from None
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            raise ClipError(Reason.MEMORY_LIMIT, "opening needs more memory than limits.memory_mb allows") from None
        raise ClipError(Reason.VIDEO_UNREADABLE, str(error).replace(str(path), path.name)) from None


def _describe(container: av.container.InputContainer, limits: LimitsConfig) -> Probe:
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.codec_context is not None
    ]
    if not streams:
        raise ClipError(Reason.NO_VIDEO_STREAM, "no video stream")
    codec = streams[0].codec_context
    if codec.width * codec.height > limits.max_frame_pixels:
        raise ClipError(Reason.TOO_LARGE, f"frames of {codec.width}x{codec.height}")
    audio = container.streams.audio
    return Probe(
        stream_index=streams[0].index,
        width_px=codec.width,
        height_px=codec.height,
        matrix=_MATRIX_NAMES.get(int(codec.colorspace), "bt709" if codec.height >= 720 else "bt601"),
        full_range=int(codec.color_range) == _FULL_RANGE or str(codec.pix_fmt or "").startswith("yuvj"),
        audio_index=audio[0].index if audio else None,
        can_be_thinned=_can_be_thinned(container, streams[0], limits),
    )


def _can_be_thinned(container: av.container.InputContainer, stream: av.VideoStream, limits: LimitsConfig) -> bool:
    codec = stream.codec_context
    if codec.name != "h264" or {"mp4", "matroska"}.isdisjoint(container.format.name.split(",")):
        return False
    # avcC: NAL units with their length in front. Each field of an interlaced picture may be a packet of its own.
    if (codec.extradata or b"")[:1] != b"\1" or codec.field_order != _PROGRESSIVE:
        return False
    # NUT tells the shape of pixels as the frames have it, and not the container's better knowledge.
    if (stream.sample_aspect_ratio or 1) != (codec.sample_aspect_ratio or 1):
        return False
    # How long the last frame stays follows from the rate that ffmpeg guesses: it must not depend on what it sees of it.
    base, average = stream.base_rate, stream.average_rate
    if not base or not average or abs(base / average - 1) > _RATE_TOLERANCE:
        return False
    # Rotation is told beside the stream; a decoded frame carries it.
    codec.thread_count = 1
    codec.options = {"max_pixels": str(limits.max_frame_pixels)}
    try:
        return next(container.decode(stream)).rotation == 0
    except (av.error.FFmpegError, StopIteration):
        return False
