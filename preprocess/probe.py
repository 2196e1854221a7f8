"""Looks at a source video without decoding it: which stream, which size, which colours.

probe = probe_video(Path("x.mp4"), limits)      # ClipError with a reason where it is no usable video
"""

import errno
from dataclasses import dataclass
from pathlib import Path

import av
import av.error

from pipeline.data.format import Reason
from preprocess.limits import LimitsConfig, open_options
from preprocess.records import ClipError

PROBE_TIMEOUT_S = 60.0

_MATRIX_NAMES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2


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


def probe_video(path: Path, limits: LimitsConfig) -> Probe:
    """Open `path` under the demuxer and protocol lists and describe its first real video stream."""
    timeout_s = min(PROBE_TIMEOUT_S, limits.time_s)
    try:
        # Tags are free text: stray bytes in them are no reason to refuse a video.
        with av.open(
            f"file:{path}", container_options=open_options(limits), timeout=timeout_s, metadata_errors="replace"
        ) as container:
            return _describe(container, limits)
    except av.error.ExitError:
        raise ClipError(Reason.TIME_LIMIT, f"opening took over {timeout_s:g} s") from None
    except av.error.FileNotFoundError:
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
    )
