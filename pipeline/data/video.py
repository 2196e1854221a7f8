"""Frames of ordinary video by PyAV: whatever container and codec, the frames that a player shows, by their index.

    clip = EncodedClip(data)                  # bytes in memory, or the path of a file of any length
    clip.num_frames, clip.times_s             # of the displayed frames, counted without decoding one
    clip.visit([0, 12, 24], place)            # RGB, upright

    packets -> (those that are displayed, on one clock) -> num_frames, times_s
            -> decoder, from the key frame before each wanted frame -> matrix, range, turn -> place(index, [H, W, 3])

The meaning of all this is in `pipeline.data.source`, which `preprocess` obeys too.
"""

import bisect
import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import av.stream

from pipeline.data.media import MAX_PIXELS, DamagedMedia, Frames, Place, Readable, Target
from pipeline.data.source import (
    CONTAINERS,
    Clock,
    Colours,
    colours_of,
    displayed_times,
    is_shown,
    video_stream,
    words_of,
)
from pipeline.data.turn import turn_of

_KEPT_BYTES = 64 * 2**20
"""Smaller clips stay open, with their packets, from the count to the decode; larger files are read twice."""
_MAX_STAND_INS = 1
_LIBAV_ERRORS = (av.error.FFmpegError, OSError, ValueError, IndexError, OverflowError, MemoryError)
"""What PyAV raises where the bytes of a file make no sense."""
_SWSCALE = {"bt709": 1, "fcc": 4, "bt601": 5, "smpte240m": 7, "bt2020": 9}
_LIMITED, _FULL = 1, 2
_STATES_TIMES = frozenset(("mov", "matroska"))
"""Demuxers of containers that state when each picture is displayed; elsewhere libavformat has to guess at times."""

Packet = Any
Take = Callable[[int, "av.VideoFrame"], None]


@dataclass(slots=True)
class _Pictures:
    """What one pass over the packets tells about the frames."""

    times: list[int] = field(default_factory=list)
    """Of the displayed frames, sorted."""
    keys: list[tuple[int, int]] = field(default_factory=list)
    """(time, number among the packets) of the pictures that a decoder can start from, sorted."""
    indices: dict[int, int] = field(default_factory=dict)
    """Time -> index of a frame; empty where times do not tell frames apart, which then come in order."""


class EncodedClip(Readable):
    """A video of any codec that libavcodec decodes. Raises DamagedMedia where there is none."""

    def __init__(self, source: bytes | Path) -> None:
        self._source = source
        self._kept: tuple[Any, Any, list[Packet]] | None = None
        with contextlib.ExitStack() as until_read:
            container, stream = until_read.enter_context(_opened(source))
            self._colours = colours_of(stream)
            self._unit_s = stream.time_base
            packets = _on_clock(container, stream)
            if isinstance(source, bytes) and len(source) <= _KEPT_BYTES:
                self._kept = (container, stream, list(packets))
                packets = iter(self._kept[2])
                until_read.pop_all()  # they live as long as the clip
            self._pictures = _survey(packets, stream, not _STATES_TIMES.isdisjoint(container.format.name.split(",")))
        self.num_frames = len(self._pictures.times)
        if not self.num_frames:
            raise DamagedMedia("no video frames")

    @property
    def times_s(self) -> list[float]:
        """When each frame begins to be displayed, in seconds from the start of the file."""
        return [float(time * self._unit_s) for time in self._pictures.times]

    def index_at(self, time_s: float | Fraction) -> int:
        """The frame that is displayed at `time_s`: the last one with a time <= that, the first one before all."""
        return max(0, bisect.bisect_right(self._pictures.times, time_s / self._unit_s) - 1)

    def visit(self, indices: Sequence[int], place: Place, target: Target | None = None) -> None:
        wanted = sorted(set(indices))

        def take(index: int, frame: "av.VideoFrame") -> None:
            place(index, to_rgb(frame, self._colours))

        missing = self._decode(wanted, take, jump=True, stand_in=False) if self._pictures.indices else wanted
        if missing:
            # Not every frame that is called key is one that decoding can start from.
            missing = self._decode(missing, take, jump=False, stand_in=True)
        if len(missing) > _MAX_STAND_INS:
            raise DamagedMedia(f"{len(missing)} of {len(wanted)} frames cannot be decoded")

    def _decode(self, wanted: Sequence[int], take: Take, *, jump: bool, stand_in: bool) -> list[int]:
        """Hand over the frames `wanted` (ascending), all that can be decoded; returns the indices of the others.

        Some encoders leave a packet without a picture: with `stand_in` the picture that is displayed instead, the one
        before, is handed over for such an index.
        """
        hunt = _Hunt(wanted, take, self._pictures, stand_in)
        start = hunt.start() if jump else 0
        with self._decoder() as (decoder, packets):
            for number, packet in enumerate(packets):
                if number < start:
                    continue
                for frame in _decoded(decoder, packet):
                    hunt.meet(frame)
                if hunt.is_over:
                    return hunt.missing
                if jump and hunt.start() > number + 1:
                    start = hunt.start()
                    decoder.flush_buffers()
            for frame in _decoded(decoder, None):
                hunt.meet(frame)
        hunt.end()
        return hunt.missing

    @contextlib.contextmanager
    def _decoder(self) -> Iterator[tuple[Any, Iterator[Packet]]]:
        """A decoder that knows of nothing yet, and all packets."""
        if self._kept is not None:
            _, stream, packets = self._kept
            stream.codec_context.flush_buffers()
            yield stream.codec_context, iter(packets)
            return
        with _opened(self._source) as (container, stream):
            yield stream.codec_context, _on_clock(container, stream)


class _Hunt:
    """Picks wanted frames out of what a decoder gives, in order."""

    def __init__(self, wanted: Sequence[int], take: Take, pictures: _Pictures, stand_in: bool) -> None:
        self._wanted, self._take, self._pictures, self._stand_in = wanted, take, pictures, stand_in
        self._reached = 0
        self._met = 0
        self._before: av.VideoFrame | None = None
        self.missing: list[int] = []

    @property
    def is_over(self) -> bool:
        return self._reached == len(self._wanted)

    def start(self) -> int:
        """Number of the packet from which the next wanted frame can be decoded."""
        time = self._pictures.times[self._wanted[self._reached]]
        place = bisect.bisect_right(self._pictures.keys, (time, 1 << 62)) - 1
        return self._pictures.keys[place][1] if place >= 0 else 0

    def meet(self, frame: "av.VideoFrame") -> None:
        if self.is_over:
            return
        indices = self._pictures.indices
        index = indices.get(-1 if frame.pts is None else frame.pts, -1) if indices else self._met
        self._met += 1
        if index < 0:
            return
        while not self.is_over and self._wanted[self._reached] < index:
            self._miss(self._before or frame)
        if not self.is_over and self._wanted[self._reached] == index:
            self._take(index, frame)
            self._reached += 1
        self._before = frame

    def end(self) -> None:
        """Nothing more comes."""
        while not self.is_over:
            self._miss(self._before)

    def _miss(self, frame: "av.VideoFrame | None") -> None:
        index = self._wanted[self._reached]
        self._reached += 1
        if frame is None:
            raise DamagedMedia("no frame can be decoded")
        self.missing.append(index)
        if self._stand_in and len(self.missing) <= _MAX_STAND_INS:
            self._take(index, frame)


def _decoded(decoder: Any, packet: Packet | None) -> "list[av.VideoFrame]":
    try:
        return list(decoder.decode(packet))
    except _LIBAV_ERRORS as error:
        raise DamagedMedia(words_of(error)) from None


def to_rgb(frame: "av.VideoFrame", colours: Colours) -> Frames:
    """uint8 [H, W, 3], RGB, upright."""
    words: dict[str, Any] = {}
    if colours.matrix != "rgb":
        words["src_colorspace"] = _SWSCALE[colours.matrix]
        words["src_color_range"] = _FULL if colours.full_range else _LIMITED
    try:
        pixels: Any = frame.to_ndarray(format="rgb24", threads=1, **words)
    except _LIBAV_ERRORS as error:
        raise DamagedMedia(words_of(error)) from None
    return turn_of(frame).apply(pixels)


@contextlib.contextmanager
def _opened(source: bytes | Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream."""
    try:
        container: Any = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}",
            metadata_errors="ignore",
            options={"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"},
        )
    except _LIBAV_ERRORS as error:
        raise DamagedMedia(f"no video that ffmpeg can read ({words_of(error)})") from None
    with container:
        stream = video_stream(container)
        if stream is None:
            raise DamagedMedia(_why_no_stream(container))
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        codec = stream.codec_context
        # One thread: the loader runs one process per core already.
        codec.thread_type = "NONE"
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def _why_no_stream(container: Any) -> str:
    if any(stream.codec_context is None for stream in container.streams.video):
        return "a codec that ffmpeg cannot decode"
    return "no video stream" + (", only a cover picture" if container.streams.video else "")


def _on_clock(container: Any, stream: Any) -> Iterator[Packet]:
    """The packets from the first key frame on, with displayed times; all of them where no frame is called key."""
    clock = Clock(container, stream)
    before: list[Packet] = []
    found = False
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            clock.set_times(packet)
            found = found or packet.is_keyframe
            if found:
                yield packet
            else:
                before.append(packet)
    except _LIBAV_ERRORS as error:
        raise DamagedMedia(words_of(error)) from None
    if not found:
        yield from before


def _survey(packets: Iterator[Packet], stream: Any, states_times: bool) -> _Pictures:
    pictures = _Pictures()
    codec = stream.codec_context.name
    first_key: int | None = None
    for number, packet in enumerate(packets):
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.is_keyframe:
            first_key = time if first_key is None else first_key
            pictures.keys.append((time, number))
        if is_shown(packet, codec):
            pictures.times.append(time)
    pictures.times = displayed_times(pictures.times, first_key)
    pictures.keys.sort()
    if states_times and len(set(pictures.times)) == len(pictures.times):
        pictures.indices = {time: index for index, time in enumerate(pictures.times)}
    return pictures
