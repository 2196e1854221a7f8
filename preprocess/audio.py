"""The audio of clips, copied from the source stream without decoding it: one small Matroska file per clip.

    audio = copy_audio(path, probe.audio_index, clips, limits)      # clip id -> bytes

Packets are kept whole, so a cut is exact to one packet (about 20 ms); each lies as far from the clip's start as it lay
in the source.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import av.error

from preprocess.limits import LimitsConfig, open_source
from preprocess.records import Clip


def copy_audio(path: Path, stream_index: int, clips: Sequence[Clip], limits: LimitsConfig) -> dict[str, bytes]:
    """The packets of each span; a clip without any packet, or of a stream that cannot be copied, is left out."""
    packets: dict[str, list[Any]] = {clip.clip_id: [] for clip in clips}
    try:
        with open_source(path, limits, limits.time_s) as source:
            template = source.streams[stream_index]
            zero_s = (source.start_time or 0) / av.time_base
            with contextlib.suppress(av.error.FFmpegError):  # a cut file: what came before the cut is good
                _sort_packets(source.demux(template), zero_s, clips, packets)
            starts_s = {clip.clip_id: zero_s + clip.start_s for clip in clips}
            return {
                clip_id: data
                for clip_id, found in packets.items()
                if found and (data := _mux(found, template, starts_s[clip_id])) is not None
            }
    except (av.error.FFmpegError, OSError, IndexError):
        return {}  # it does not open any more: the decode of the pictures will say why


def _sort_packets(demuxed: Iterable[Any], zero_s: float, clips: Sequence[Clip], packets: dict[str, list[Any]]) -> None:
    """Put every packet to the clips whose span it starts in."""
    for packet in demuxed:
        if packet.pts is None or packet.time_base is None:
            continue
        time_s = float(packet.pts * packet.time_base) - zero_s
        for clip in clips:
            if clip.start_s <= time_s and (clip.end_s is None or time_s < clip.end_s):
                packets[clip.clip_id].append(packet)


def _mux(packets: Sequence[Any], template: Any, start_s: float) -> bytes | None:
    """The packets on a clock that is 0 at `start_s`: sound that sets in late stays late."""
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream_from_template(template)
            for original in packets:
                packet = av.Packet(bytes(original))
                packet.time_base = original.time_base
                packet.pts = packet.dts = original.pts - round(start_s / original.time_base)
                packet.duration = original.duration
                packet.stream = stream
                container.mux(packet)
    except (av.error.FFmpegError, ValueError):
        return None
    return buffer.getvalue()
