"""Leaves out of a source what no clip needs before anything is decoded: H.264 frames that no other frame refers to.

    source file -> packets -> those of reference frames, and of the frames on wanted slots -> NUT on a pipe -> ffmpeg

At 3 frames a second most non-reference frames are never on a wanted slot, and they are half of all frames. Every frame
that is decoded is what it would have been, so clips have the same bytes as from the whole file. Where that is not
certain (`Probe.can_be_thinned`), or a packet is odd on the way, ffmpeg reads the file itself.

    if probe.can_be_thinned:
        feed_needed(path, probe.stream_index, Wanted(spans, grid), limits, pipe)     # OddPacket: read the file itself
"""

import bisect
import math
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, TypeAlias

import av
import av.error

from pipeline.data.source import rescale
from preprocess.faults import FileSystemFault
from preprocess.limits import LimitsConfig, open_source
from preprocess.select import Grid, Slots

_WHOLE_PACKETS = 64
"""So many packets at the start stay as they are: from them ffmpeg learns how far frames are reordered."""
_LOOK_AHEAD = 16
_MANY_SLOTS = 2000
"""Longer spans, up to those without an end, are not listed slot by slot."""
_AS_IT_IS = {"avoid_negative_ts": "disabled"}
"""The muxer shifts all times otherwise, as B-frames are decoded before time 0."""
_SLICES = frozenset(range(1, 6))
_HARMLESS = frozenset((6, 9, 12))
"""NAL units that may go with their frame: remarks, delimiters, filler."""


Packet: TypeAlias = "av.Packet[av.VideoStream]"


class OddPacket(Exception):
    """A packet that this module does not understand well enough."""


class Wanted:
    """The slots of all spans together."""

    def __init__(self, spans: Sequence[Slots], grid: Grid) -> None:
        self.grid = grid
        short = [span for span in spans if span.count <= _MANY_SLOTS]
        self._slots = sorted({slot for span in short for slot in range(span.first, span.last + 1, span.stride)})
        self._long = [span for span in spans if span.count > _MANY_SLOTS]

    def any_between(self, first: int, end: int) -> bool:
        """Whether a slot of [first, end) is wanted."""
        place = bisect.bisect_left(self._slots, first)
        if place < len(self._slots) and self._slots[place] < end:
            return True
        return any(_next_slot(span, first) < min(end, span.last + 1) for span in self._long)


def _next_slot(span: Slots, first: int) -> int:
    """The first slot of `span`, as if it had no end, that is not before `first`."""
    return span.first + max(0, -(-(first - span.first) // span.stride)) * span.stride


def feed_needed(path: Path, stream_index: int, wanted: Wanted, limits: LimitsConfig, sink: IO[bytes]) -> None:
    """Write the needed packets of one stream of `path` to `sink` as NUT, on the clock that ffmpeg gives the whole file.

    Ends early where nobody reads on. Raises `OddPacket` where the rest of the file must not be read this way.
    """
    pipe = _Pipe(sink)
    try:
        with (
            open_source(path, limits, limits.time_s) as source,
            av.open(pipe, "w", format="nut", options=_AS_IT_IS) as target,
        ):
            stream = source.streams[stream_index]
            assert isinstance(stream, av.VideoStream)
            copy = target.add_stream_from_template(stream)
            for packet in needed_packets(source, stream, wanted):
                packet.stream = copy
                target.mux(packet)
                if not pipe.has_reader:
                    return
    except (av.error.FFmpegError, OSError, ValueError, MemoryError, FileSystemFault) as error:
        raise OddPacket(str(error)) from None


class _Pipe:
    """A sink that cannot seek, and that swallows what nobody reads: libav has no way to say so."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self.has_reader = True

    def write(self, data: bytes) -> int:
        try:
            return self._sink.write(data)
        except BrokenPipeError:
            self.has_reader = False
            return len(data)


def needed_packets(source: av.container.InputContainer, stream: av.VideoStream, wanted: Wanted) -> Iterator[Packet]:
    """The packets of `stream` without those of non-reference frames that are on no wanted slot; times count from 0."""
    length_bytes = ((stream.codec_context.extradata or b"")[4] & 3) + 1
    unit_s = stream.time_base
    assert unit_s is not None
    zero = rescale(source.start_time or 0, Fraction(1, av.time_base), unit_s)
    slots_per_unit = unit_s * wanted.grid.grid_fps
    times: list[int] = []
    """Of the packets around, sorted: a frame is on the screen until the next one."""
    waiting: deque[tuple[int, Packet]] = deque()

    def is_needed(time: int, packet: Packet) -> bool:
        after = bisect.bisect_right(times, time)
        if after == len(times) or not is_disposable(bytes(packet), length_bytes):
            return True
        return wanted.any_between(math.ceil(time * slots_per_unit), math.ceil(times[after] * slots_per_unit))

    for number, packet in enumerate(source.demux(stream)):
        if packet.size == 0:
            break
        if packet.pts is None or packet.dts is None or packet.is_discard or packet.is_corrupt or packet.pts < zero:
            raise OddPacket("a packet without times, or that is not shown")
        if packet.has_sidedata("new_extradata"):
            # NUT has no place for the parameters of another sample entry: what follows would be read with the old ones.
            raise OddPacket("another sample entry")
        time = packet.pts - zero
        packet.pts, packet.dts = time, packet.dts - zero
        bisect.insort(times, time)
        if number < _WHOLE_PACKETS:
            yield packet
            continue
        waiting.append((time, packet))
        if len(waiting) > _LOOK_AHEAD:
            if is_needed(*waiting[0]):
                yield waiting[0][1]
            waiting.popleft()
            del times[: -4 * _LOOK_AHEAD]
    for _, packet in waiting:
        yield packet


def is_disposable(data: bytes, length_bytes: int) -> bool:
    """Whether all of a packet are slices that no other frame refers to."""
    place, num_slices = 0, 0
    while place < len(data):
        start = place + length_bytes
        place = start + int.from_bytes(data[place:start], "big")
        if start >= len(data) or place > len(data):
            return False
        kind, reference = data[start] & 31, data[start] >> 5 & 3
        if kind in _SLICES and reference == 0:
            num_slices += 1
        elif kind not in _HARMLESS:
            return False
    return num_slices > 0
