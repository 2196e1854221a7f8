"""What an ordinary video shows: which stream, which of its pictures and when, which way up, in which colours.

There are two readers of ordinary video: `preprocess` decodes whole files with the ffmpeg program, in one pass and to
the byte the same everywhere; `pipeline.data.video` decodes single frames of bytes in memory with PyAV, in data workers
that cannot afford a process per sample. This module is the one description that both obey. Its measure is what the
ffmpeg program and every player show.

    stream = video_stream(container)          # None: nothing but sound, covers and data
    colours = colours_of(stream)              # matrix and range, also where the file does not say
    turn = turn_of(frame)                     # (turn.py) from decoded rows and columns to displayed ones
    clock = Clock(container, stream)          # packet times to displayed times, which count from the file's start

Times: the first time of a file is 0 (ffmpeg's `ts_offset`). A container whose time stamps may start again (MPEG-TS and
PS, Ogg: `AVFMT_TS_DISCONT`) goes on where it was when they jump back by more than 0.1 s or away by more than 10 s.
A frame is displayed at time t if it is the last one with a time <= t.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mpegvideo", "h264")
"""Demuxers that open one file and nothing else: a playlist or concat list could name other files and URLs."""

_MICROSECOND = Fraction(1, 1_000_000)
_TS_DISCONT = 0x200
"""libavformat's AVFMT_TS_DISCONT."""
_LAST_TIME = 1 << 62
_KNOWS_ITS_END = frozenset(("mov", "matroska", "asf"))
_SLACK_S = 1
"""Sound may go on after the pictures."""
_JUMP_BACK_S, _JUMP_S = Fraction(1, 10), 10
"""ffmpeg's own bounds, `dts_delta_threshold` the second."""

_DEFAULT, _ATTACHED_PICTURE = 0x1, 0x400
_DEFAULT_BONUS_PIXELS = 5_000_000
_PICTURE_CODECS = frozenset(("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegxl"))

_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2
_HD_LINES = 720


def video_stream(container: "av.container.InputContainer") -> "av.VideoStream | None":
    """The stream that ffmpeg takes where nobody names one: the largest, with a bonus for the one that is flagged as
    default; the first of equals. Attached pictures are no video, nor is a single picture beside other streams, whether
    it is flagged or not, nor a stream that no decoder knows.
    """
    streams = [stream for stream in container.streams.video if _is_video(container, stream)]
    return max(streams, key=_size_with_bonus, default=None)


def _is_video(container: "av.container.InputContainer", stream: "av.VideoStream") -> bool:
    if stream.codec_context is None or int(stream.disposition) & _ATTACHED_PICTURE:
        return False
    others = len(container.streams.video) + len(container.streams.audio) > 1
    return not (others and stream.codec_context.name in _PICTURE_CODECS and _holds_one_picture(container, stream))


def _holds_one_picture(container: "av.container.InputContainer", stream: "av.VideoStream") -> bool:
    if stream.frames:
        return bool(stream.frames == 1)
    # Matroska counts nothing. The second picture of a film comes at once; only after a cover all has to be read.
    pictures = 0
    for packet in container.demux(stream):
        pictures += packet.size > 0
        if pictures > 1:
            break
    container.seek(0)
    return pictures <= 1


def _size_with_bonus(stream: "av.VideoStream") -> int:
    codec = stream.codec_context
    return int(codec.width * codec.height + _DEFAULT_BONUS_PIXELS * (int(stream.disposition) & _DEFAULT))


@dataclass(frozen=True, slots=True)
class Colours:
    """How numbers of a YUV picture become colours."""

    matrix: str
    """In ffmpeg's words: bt709, bt601, bt2020, fcc, smpte240m; rgb where the pictures need no matrix."""
    full_range: bool


def colours_of(stream: "av.VideoStream") -> Colours:
    """The stream's own words; an untagged stream is BT.709 from 720 lines on and BT.601 below, in limited range unless
    its pixel format says otherwise: yuvj, RGB and grey are in full range."""
    codec = stream.codec_context
    pixels = str(codec.pix_fmt or "")
    if is_rgb(pixels):
        return Colours("rgb", True)
    untagged = "bt709" if codec.height >= _HD_LINES else "bt601"
    full_range = int(codec.color_range) == _FULL_RANGE or pixels.startswith(("yuvj", "gray"))
    return Colours(_MATRICES.get(int(codec.colorspace), untagged), full_range)


def is_rgb(pixel_format: str) -> bool:
    """Whether pictures of ffmpeg's pixel format hold red, green and blue, as planes, packed or from a palette."""
    return pixel_format.startswith(("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "pal8", "x2rgb", "x2bgr"))


def rescale(value: int, unit: Fraction, other: Fraction) -> int:
    """`value` units in other units, to the nearest, halves away from zero, as av_rescale_q."""
    exact = value * unit / other
    return math.floor(exact + Fraction(1, 2)) if exact >= 0 else -math.floor(-exact + Fraction(1, 2))


class Clock:
    """Packet times of one stream, in file order, to displayed times in the stream's unit."""

    def __init__(self, container: "av.container.InputContainer", stream: "av.VideoStream") -> None:
        assert stream.time_base is not None
        self.unit_s: Fraction = stream.time_base
        self.offset = -rescale(container.start_time or 0, _MICROSECOND, self.unit_s)
        self.may_jump = bool(container.format.flags & _TS_DISCONT)
        self.frame = math.floor(1 / stream.average_rate / self.unit_s) if stream.average_rate else 0
        # AVI states when pictures are decoded; ffmpeg shows those of H.264 later, by what its decoder holds back.
        is_late = container.format.name == "avi" and stream.codec_context.name == "h264"
        self._delay = stream.codec_context.reorder_depth * self.frame if is_late else None
        self._last: int | None = None
        self._next = 0

    def set_times(self, packet: "av.Packet[Any]") -> None:
        """Put displayed times in place of the packet's own."""
        if self._delay is not None and packet.dts is not None:
            packet.pts = packet.dts + self._delay
        if packet.dts is None and packet.pts is None:  # a bare stream: one picture after the other
            packet.pts = packet.dts = self._next - self.offset
        stamp: Any = packet.dts if packet.dts is not None else packet.pts
        reached = stamp + self.offset
        if self.may_jump and self._last is not None:
            ahead_s = (reached - self._next) * self.unit_s
            if abs(ahead_s) > _JUMP_S or (reached - self._last) * self.unit_s < -_JUMP_BACK_S:
                self.offset -= reached - self._next
                reached = self._next
        self._last, self._next = reached, reached + (packet.duration or self.frame)
        offset = self.offset
        packet.pts = packet.pts + offset if packet.pts is not None else None
        packet.dts = packet.dts + offset if packet.dts is not None else None


def end_of(container: "av.container.InputContainer", stream: "av.VideoStream") -> Fraction | None:
    """When the last frame stops being displayed, in seconds from the start of the file; None where that does not follow
    from the last packets alone. Leaves the container at its end.
    """
    clock = Clock(container, stream)
    demuxers = set(container.format.name.split(","))
    if _KNOWS_ITS_END.isdisjoint(demuxers):
        return None
    try:
        container.seek(_LAST_TIME, stream=stream, backward=True)
        shown = []
        for packet in container.demux(stream):
            clock.set_times(packet)
            if is_shown(packet, stream.codec_context.name) and packet.pts is not None:
                shown.append((packet.pts, packet.duration))
    except (OSError, ValueError):  # a file that cannot be searched, or not in time: FFmpegErrors are both
        return None
    if not shown:
        return None
    last, duration = max(shown)
    if duration is None or duration <= 1:  # one tick is what demuxers say that do not know
        stated_end = (stream.duration or 0) + (stream.start_time or 0) + clock.offset
        duration = clock.frame or max(stated_end - last, 1)
    end_s = (last + duration) * clock.unit_s
    # Files that were joined byte by byte may end with earlier times than they hold; only mp4 cannot.
    if "mov" not in demuxers and container.duration and container.duration * _MICROSECOND > end_s + _SLACK_S:
        return None
    return end_s


def is_shown(packet: "av.Packet[Any]", codec: str) -> bool:
    """Whether a packet holds a picture that is displayed: none that an edit list hides, none that only others use."""
    if not packet.size or packet.is_discard:
        return False
    # VP8 tells in its first bits whether a picture is only a reference for others.
    return codec != "vp8" or bool(memoryview(packet)[0] & 0x10)


def displayed_times(times: Iterable[int], key_time: int | None) -> list[int]:
    """In order; leading pictures of the first key picture, which no decoder can show, left out."""
    return sorted(time for time in times if key_time is None or time >= key_time)


def words_of(error: Exception) -> str:
    """What libav says, without its number and the name of the file."""
    return str(getattr(error, "strerror", None) or error)
