"""Where the packets of a small MP4 lie, read from its sample tables alone.

A clip of the default codec is JPEG pictures in an MP4. A training sample needs 12 of 40: with the tables, only these 12
are touched, and no demuxer is started.

    packets = jpeg_packets(data)      # [(offset, size), ...] in time order, or None when this is not Motion JPEG
"""

import struct
from collections.abc import Iterator

_JPEG_START = b"\xff\xd8\xff"
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def jpeg_packets(data: bytes) -> list[tuple[int, int]] | None:
    """(offset, size) of every picture of the Motion JPEG track; None for anything else, also for broken tables.

    None sends the caller to the general demuxer, which either understands the file or names its damage.
    """
    try:
        for tables in _tracks(data):
            packets = _packets(data, tables)
            if packets and all(_is_jpeg(data, packet) for packet in (packets[0], packets[-1])):
                return packets
    except (struct.error, ValueError, KeyError):
        return None
    return None


def _is_jpeg(data: bytes, packet: tuple[int, int]) -> bool:
    offset, size = packet
    return size > len(_JPEG_START) and offset + size <= len(data) and data.startswith(_JPEG_START, offset)


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


def _tracks(data: bytes) -> Iterator[dict[bytes, tuple[int, int]]]:
    for kind, start, stop in _boxes(data, 0, len(data)):
        if kind == b"moov":
            for inner, inner_start, inner_stop in _boxes(data, start, stop):
                if inner == b"trak":
                    yield dict(_leaves(data, inner_start, inner_stop))


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
