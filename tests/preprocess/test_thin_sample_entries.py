"""An mp4 may say in the middle of its track that another encoder goes on, with parameters of its own."""

import dataclasses
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Media

LIMITS = LimitsConfig(time_s=60, memory_mb=2048)
UNIT = 512
"""Length of a frame at 25 a second on PyAV's clock of 12,800."""
_PARENTS = (b"moov", b"trak", b"mdia", b"minf")


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        yield kind, data[place + 8 : place + size]
        place += size


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def table(kind: bytes, *values: int) -> bytes:
    return box(kind, numbers(0, *values))


def entry_of(data: bytes) -> bytes:
    """The only entry of the only stsd."""
    for kind, body in boxes(data):
        if kind == b"stsd":
            return body[8:]
        if kind in (*_PARENTS, b"stbl") and (found := entry_of(body)):
            return found
    return b""


def rebuilt(data: bytes, sample_table: bytes, length: int) -> bytes:
    """The boxes of a moov with another sample table and length, and without an edit list."""
    parts = []
    for kind, old in boxes(data):
        body = rebuilt(old, sample_table, length) if kind in _PARENTS else old
        if kind == b"mdhd":
            body = old[:16] + numbers(length) + old[20:]
        if kind != b"edts":
            parts.append(box(kind, sample_table if kind == b"stbl" else body))
    return b"".join(parts)


def joined(path: Path, first: Path, second: Path) -> Path:
    """One track whose first packets are those of `first`, and whose last are those of `second`, each with its entry."""
    packets = []
    for source in (first, second):
        with av.open(str(source)) as container:
            packets.append([packet for packet in container.demux(video=0) if packet.size])
    both = [*packets[0], *packets[1]]
    data = [bytes(packet) for packet in both]
    file_type = box(b"ftyp", b"isom\0\0\2\0isomavc1")
    starts = [len(file_type) + 8 + sum(map(len, data[:number])) for number in range(len(data))]
    delays = [value for packet in both for value in (1, (packet.pts or 0) - (packet.dts or 0))]
    keys = [number + 1 for number, packet in enumerate(both) if packet.is_keyframe]
    sample_table = b"".join(
        [
            box(b"stsd", numbers(0, 2), entry_of(first.read_bytes()), entry_of(second.read_bytes())),
            table(b"stts", 1, len(both), UNIT),
            table(b"ctts", len(both), *delays),
            table(b"stss", len(keys), *keys),
            table(b"stsz", 0, len(both), *map(len, data)),
            table(b"stsc", 2, 1, 1, 1, len(packets[0]) + 1, 1, 2),
            table(b"stco", len(both), *starts),
        ]
    )
    moov = next(body for kind, body in boxes(first.read_bytes()) if kind == b"moov")
    path.write_bytes(file_type + box(b"mdat", *data) + box(b"moov", rebuilt(moov, sample_table, len(both) * UNIT)))
    return path


def test_a_second_sample_entry_is_left_to_ffmpeg(
    painted: Callable[..., Path],
    paint_number: Callable[[int, int, int], np.ndarray],
    read_numbers: Callable[[bytes], list[int]],
    tmp_path: Path,
) -> None:
    def go_on(number: int, width: int, height: int) -> np.ndarray:
        return paint_number(number + 100, width, height)

    plain = {"bf": "2", "g": "50", "refs": "3"}
    first = painted(tmp_path / "a.mp4", num_frames=100, options=plain)
    other = {**plain, "coder": "0", "x264-params": "8x8dct=0:ref=2"}
    second = painted(tmp_path / "b.mp4", num_frames=100, draw=go_on, options=other)
    path = joined(tmp_path / "x.mp4", first, second)
    probe = probe_video(path, LIMITS)
    assert probe.can_be_thinned
    clips = [Clip("first", 0.2, 3.5), Clip("second", 4.4, 7.6)]
    cut, whole = (
        list(cut_clips(path, "v", seen, clips, ClipsConfig(size_px=48, fps=5), LIMITS))
        for seen in (probe, dataclasses.replace(probe, can_be_thinned=False))
    )
    assert cut == whole
    assert isinstance(cut[1], Media)
    assert read_numbers(cut[1].data)[:3] == [110, 115, 120]
