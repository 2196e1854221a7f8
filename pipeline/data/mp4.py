"""Where the packets of a small MP4 lie, read from its sample tables alone.

A clip of the default codec is JPEG pictures in an MP4. A training sample needs 12 of 40: with the tables, only these 12
are touched, and no demuxer is started.

    packets = jpeg_packets(data)      # [(offset, size), ...] in time order, or None when this is not Motion JPEG
"""

import struct
from collections.abc import Iterator

_JPEG_START = b"\xff\xd8\xff"
_LIMITED_RANGE = b"CS=ITU601"
"""ffmpeg's remark in a JPEG that is not in full range, which no JPEG library knows."""
_REMARKS_WITHIN_BYTES = 1024
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
_UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)

_Tables = dict[bytes, tuple[int, int]]
"""Kind of a box -> (start, stop) of what is in it."""


def jpeg_packets(data: bytes) -> list[tuple[int, int]] | None:
    """(offset, size) of every picture of the Motion JPEG track, where all of them are displayed, as they are stored and
    one after the other; None for anything else, also for broken tables.

    None sends the caller to the general demuxer, which either understands the file or names its damage.
    """
    try:
        movie, tracks = _movie(data)
        videos = [track for track in tracks if data[slice(*track[b"hdlr"])][8:12] == b"vide"]
        if len(videos) != 1 or not _shows_all(data, movie, videos[0]):
            return None
        packets = _packets(data, videos[0])
        if len(packets) == 1 and len(tracks) > 1:  # the cover of a song
            return None
        if packets and all(_is_jpeg(data, packet) for packet in (packets[0], packets[-1])):
            return packets
    except (struct.error, ValueError, KeyError):
        return None
    return None


def _is_jpeg(data: bytes, packet: tuple[int, int]) -> bool:
    offset, size = packet
    if size <= len(_JPEG_START) or offset + size > len(data) or not data.startswith(_JPEG_START, offset):
        return False
    return data.find(_LIMITED_RANGE, offset, offset + min(size, _REMARKS_WITHIN_BYTES)) < 0


def _boxes(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        elif size == 0:
            size = stop - start
        if size < header or start + size > stop:
            raise ValueError("a box reaches beyond its parent")
        yield kind, start + header, start + size
        start += size


def _movie(data: bytes) -> tuple[_Tables, list[_Tables]]:
    """The boxes of the movie itself, and those of each track."""
    movie: _Tables = {}
    tracks: list[_Tables] = []
    for kind, start, stop in _boxes(data, 0, len(data)):
        if kind == b"moof":
            raise ValueError("a movie in fragments")
        if kind == b"moov":
            for inner, inner_start, inner_stop in _boxes(data, start, stop):
                if inner == b"trak":
                    tracks.append(dict(_leaves(data, inner_start, inner_stop)))
                else:
                    movie[inner] = (inner_start, inner_stop)
    return movie, tracks


def _shows_all(data: bytes, movie: _Tables, track: _Tables) -> bool:
    """Whether nothing turns the pictures, puts them in another order, or hides some of them."""
    if b"ctts" in track or struct.unpack_from(">I", data, track[b"stsd"][0] + 4) != (1,):
        return False
    if not _is_upright(data, movie[b"mvhd"][0], 36, 48) or not _is_upright(data, track[b"tkhd"][0], 40, 52):
        return False
    if b"elst" not in track:
        return True
    start, _ = track[b"elst"]
    is_long = data[start]
    num_edits, length, first = struct.unpack_from(">IQq" if is_long else ">IIi", data, start + 4)
    if num_edits != 1 or first != 0:
        return False
    runs = _numbers(data, *track[b"stts"], words=2)
    last_start = sum(count * duration for count, duration in runs) - runs[-1][1]
    # The length of an edit is on the clock of the movie, which is often coarser than that of the track.
    return not length or last_start * _rate(data, movie[b"mvhd"][0]) < length * _rate(data, track[b"mdhd"][0])


def _is_upright(data: bytes, start: int, place: int, long_place: int) -> bool:
    """Whether the matrix in a header box asks for nothing. Version 1 of a box has longer times before it."""
    start += long_place if data[start] else place
    return data[start : start + len(_UPRIGHT)] == _UPRIGHT


def _rate(data: bytes, start: int) -> int:
    """Time units a second."""
    (rate,) = struct.unpack_from(">I", data, start + (20 if data[start] else 12))
    return int(rate)


def _leaves(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    for kind, inner_start, inner_stop in _boxes(data, start, stop):
        if kind in _CONTAINERS:
            yield from _leaves(data, inner_start, inner_stop)
        else:
            yield kind, (inner_start, inner_stop)


def _packets(data: bytes, tables: dict[bytes, tuple[int, int]]) -> list[tuple[int, int]]:
    sizes = _sizes(data, *tables[b"stsz"])
    chunk_offsets = _offsets(data, tables)
    runs = _numbers(data, *tables[b"stsc"], words=3)
    packets: list[tuple[int, int]] = []
    for number, (first_chunk, per_chunk, _) in enumerate(runs):
        end_chunk = runs[number + 1][0] if number + 1 < len(runs) else len(chunk_offsets) + 1
        for offset in chunk_offsets[first_chunk - 1 : end_chunk - 1]:
            for size in sizes[len(packets) : len(packets) + per_chunk]:
                packets.append((offset, size))
                offset += size
    if len(packets) != len(sizes):
        raise ValueError("the chunk tables do not cover the samples")
    return packets


def _sizes(data: bytes, start: int, stop: int) -> tuple[int, ...]:
    _, constant, count = struct.unpack_from(">3I", data, start)
    if count * 4 > len(data):
        raise ValueError("more samples than bytes")
    if constant:
        return (int(constant),) * int(count)
    if start + 12 + 4 * count > stop:
        raise ValueError("the size table reaches beyond its box")
    sizes: tuple[int, ...] = struct.unpack_from(f">{count}I", data, start + 12)
    return sizes


def _offsets(data: bytes, tables: dict[bytes, tuple[int, int]]) -> tuple[int, ...]:
    start, stop = tables[b"stco"] if b"stco" in tables else tables[b"co64"]
    (count,) = struct.unpack_from(">I", data, start + 4)
    letter, width = ("I", 4) if b"stco" in tables else ("Q", 8)
    if start + 8 + width * count > stop:
        raise ValueError("the offset table reaches beyond its box")
    offsets: tuple[int, ...] = struct.unpack_from(f">{count}{letter}", data, start + 8)
    return offsets


def _numbers(data: bytes, start: int, stop: int, *, words: int) -> list[tuple[int, ...]]:
    (count,) = struct.unpack_from(">I", data, start + 4)
    if start + 8 + 4 * words * count > stop:
        raise ValueError("a table reaches beyond its box")
    flat = struct.unpack_from(f">{words * count}I", data, start + 8)
    return [flat[place : place + words] for place in range(0, len(flat), words)]
