"""Looks at a source video, decoding one frame at most: which stream, which size, which colours.

probe = probe_video(Path("x.mp4"), limits)      # ClipError with a reason where it is no usable video
"""

import errno
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error

from pipeline.data.format import Reason
from pipeline.data.source import colours_of, end_of, video_stream, words_of
from pipeline.data.turn import UPRIGHT, turn_of
from preprocess.limits import LimitsConfig, open_source
from preprocess.records import ClipError

PROBE_TIMEOUT_S = 60.0

_PROGRESSIVE = 1
_RATE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Probe:
    """What the decode needs to know about a source."""

    stream_index: int
    width_px: int
    height_px: int
    matrix: str
    """Colour matrix and range as `pipeline.data.source.Colours` has them."""
    full_range: bool
    audio_index: int | None
    """Stream index of the first audio stream."""
    end_s: Fraction | None = None
    """When the last frame ends, if the container tells."""
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
        raise ClipError(Reason.VIDEO_UNREADABLE, words_of(error).replace(str(path), path.name)) from None


def _describe(container: av.container.InputContainer, limits: LimitsConfig) -> Probe:
    stream = video_stream(container)
    if stream is None:
        raise ClipError(Reason.NO_VIDEO_STREAM, "no video stream")
    codec = stream.codec_context
    if codec.width * codec.height > limits.max_frame_pixels:
        raise ClipError(Reason.TOO_LARGE, f"frames of {codec.width}x{codec.height}")
    audio = container.streams.audio
    colours = colours_of(stream)
    can_be_thinned = _can_be_thinned(container, stream, limits)
    return Probe(
        stream_index=stream.index,
        width_px=codec.width,
        height_px=codec.height,
        matrix=colours.matrix,
        full_range=colours.full_range,
        audio_index=audio[0].index if audio else None,
        end_s=end_of(container, stream),
        can_be_thinned=can_be_thinned,
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
    # Which way up is told beside the stream, and NUT has no place for it; a decoded frame carries it.
    codec.thread_count = 1
    codec.options = {"max_pixels": str(limits.max_frame_pixels)}
    try:
        return turn_of(next(container.decode(stream))) == UPRIGHT
    except (av.error.FFmpegError, StopIteration):
        return False
