"""Tar members where they lie, and the samples that they belong to: the one reading of tars for index, audit, training.

    for member in TarWalk(lambda offset, size: block[offset : offset + size], len(block)):
        if member.kind == "file" and (named := split_name(member.name)) is not None:
            key, extension = named

Headers are followed as GNU tar and Python's `tarfile` follow them: ustar prefixes, GNU long names, PAX paths and sizes,
base-256 sizes. Nothing is unpacked. What a reader by offset cannot use (links, sparse members, devices) has a kind of
its own, so that whoever walks can count and name it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

BLOCK_BYTES = 512
_MAX_HEADER_BYTES = 1 << 20  # of one extended header; a path, and what an archiver notes of attributes

Kind = Literal["file", "folder", "link", "sparse", "other"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",  # contiguous: as a plain file
    b"1": "link",
    b"2": "link",
    b"5": "folder",
    b"S": "sparse",
}
_WITHOUT_CONTENT = b"123456"
"""Links, devices, folders, pipes: nothing follows the header, whatever size it states."""


class TarDamage(ValueError):
    """The bytes are no tar from here on. `member` is the name of the member that is cut, empty for a header."""

    def __init__(self, problem: str, member: str = "") -> None:
        super().__init__(problem)
        self.member = member


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member. Offsets and sizes in bytes."""

    name: str
    """As the tar spells it; bytes that are not UTF-8 are lone surrogates."""
    kind: Kind
    offset: int
    """Of its first header: extended headers that belong to it are in front of its own."""
    data_offset: int
    size: int
    """Of the content that is stored."""

    @property
    def end(self) -> int:
        """Where the next header lies."""
        return self.data_offset + padded(self.size)


@dataclass(slots=True)
class _Extended:
    """What extended headers say of the member behind them."""

    offset: int
    name: str = ""
    size: int | None = None
    is_sparse: bool = False


class TarWalk:
    """The members of a tar of `length` bytes, of which `read(offset, size)` gives any part. To be iterated once.

    Raises TarDamage while it is iterated: a header with a wrong checksum, a member that reaches beyond the end.
    """

    def __init__(self, read: Callable[[int, int], bytes], length: int) -> None:
        self._read = read
        self._length = length
        self.end: int | None = None
        """Once iterated: where the end-of-archive marker lies; None where there is none."""

    def __iter__(self) -> Iterator[TarMember]:
        place = 0
        extended: _Extended | None = None
        while place < self._length:
            header = self._read(place, BLOCK_BYTES)
            if len(header) < BLOCK_BYTES:
                raise TarDamage(f"it ends within the header at byte {place}")
            if not header.strip(b"\0"):
                self.end = place
                break
            _check_sum(header, place)
            kind = header[156:157]
            size = 0 if kind in _WITHOUT_CONTENT else _number(header[124:136], place)
            if kind in b"gxXLK":
                content = self._content(place, size)
                if kind == b"g":
                    _check_global(_pax_records(content, place), place)
                else:
                    extended = extended or _Extended(place)
                    _take(kind, content, extended, place)
                place += BLOCK_BYTES + padded(size)
                continue
            member = self._member(header, place, size, extended)
            if member.data_offset + member.size > self._length:
                raise TarDamage(f"member {member.name!r} reaches beyond the end", member.name)
            yield member
            place, extended = member.end, None
        if extended is not None:
            raise TarDamage("it ends after an extended header", extended.name)

    def _member(self, header: bytes, place: int, size: int, extended: _Extended | None) -> TarMember:
        kind = _KINDS.get(header[156:157], "other")
        data_offset = place + BLOCK_BYTES
        if kind == "sparse" and header[482]:
            data_offset = self._behind_maps(data_offset)
        if extended is None:
            name, offset = _name(header), place
        else:
            name, offset = extended.name or _name(header), extended.offset
            if extended.size is not None and header[156:157] not in _WITHOUT_CONTENT:
                size = extended.size
            kind = "sparse" if extended.is_sparse else kind
        if kind == "file" and name.endswith("/"):
            kind, size = "folder", 0  # as tars of before POSIX spell one
        return TarMember(name, kind, offset, data_offset, size)

    def _behind_maps(self, place: int) -> int:
        """Behind the blocks in which an old GNU sparse header goes on."""
        while True:
            block = self._read(place, BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                raise TarDamage(f"it ends within the map of a sparse member at byte {place}")
            place += BLOCK_BYTES
            if not block[504]:
                return place

    def _content(self, place: int, size: int) -> bytes:
        """The content of an extended header."""
        if size > _MAX_HEADER_BYTES:
            raise TarDamage(f"the extended header at byte {place} states {size} bytes")
        content = self._read(place + BLOCK_BYTES, size)
        if len(content) < size:
            raise TarDamage(f"it ends within the extended header at byte {place}")
        return content


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member's name; None for a name without a stem or without an extension.

    The tar convention: the key is folders and file name up to the file name's first dot, the rest is the extension,
    here in lower case. Folders are part of the key, so that `train/0.mp4` and `val/0.mp4` are two samples; `.` and
    empty folders are not. AppleDouble files (`._0.mp4`) and hidden files have no stem.

    >>> split_name("./train/000000.seg.MP4"), split_name("a.b/c.json"), split_name("._000000.mp4"), split_name("README")
    (('train/000000', 'seg.mp4'), ('a.b/c', 'json'), None, None)
    """
    folder, _, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not extension:
        return None
    if folder:
        stem = "/".join([part for part in folder.split("/") if part not in ("", ".")] + [stem])
    return as_text(stem), extension.lower()


def key_in_old_sidecars(name: str) -> str:
    """The key that indexes of before this convention hold for a member's name: its folders as the tar spells them."""
    folder, slash, base = name.rpartition("/")
    return as_text(f"{folder}{slash}{base.partition('.')[0]}")[:1024]


def as_text(name: str) -> str:
    """A name as valid Unicode: a byte that is no UTF-8 becomes `\\udcXX`, spelled out."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def padded(size: int) -> int:
    """`size` bytes in whole blocks."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _check_sum(header: bytes, place: int) -> None:
    """The checksum is taken over the header with its own field as eight spaces; old tars summed signed bytes."""
    rest = header[:148] + header[156:]
    total = sum(rest) + 8 * ord(" ")
    stated = _number(header[148:156], place)
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in rest):
        raise TarDamage(f"there is no tar header at byte {place}, or a damaged one")


def _number(field: bytes, place: int) -> int:
    """Octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:
            raise TarDamage(f"the header at byte {place} states a negative size")
        return value
    digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise TarDamage(f"there is no tar header at byte {place}, or a damaged one")
    return int(digits, 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _take(kind: bytes, content: bytes, extended: _Extended, place: int) -> None:
    """Add what one extended header says. A PAX record outdoes a GNU long name; a long link's target is of no use."""
    if kind == b"L":
        extended.name = extended.name or content.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    elif kind in b"xX":
        records = _pax_records(content, place)
        path = records.get(b"GNU.sparse.name") or records.get(b"path")
        if path:
            extended.name = path.decode("utf-8", "surrogateescape")
        if size := records.get(b"size"):
            if not size.isdigit() or len(size) > 19:
                raise TarDamage(f"the extended header at byte {place} states the size {size[:20]!r}")
            extended.size = int(size)
        extended.is_sparse = extended.is_sparse or _speaks_of_holes(records)


def _check_global(records: dict[bytes, bytes], place: int) -> None:
    """A global header holds for all members behind it, but a reader by offset never sees it: it may not matter."""
    if records.keys() & {b"path", b"size"} or _speaks_of_holes(records):
        raise TarDamage(f"the global header at byte {place} gives all members one path or size")


def _speaks_of_holes(records: dict[bytes, bytes]) -> bool:
    return any(name.startswith(b"GNU.sparse.") for name in records)


def _pax_records(content: bytes, place: int) -> dict[bytes, bytes]:
    """`<length> <name>=<value>\\n`, length in bytes of all of it: a value may hold any byte."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(content) and content[start]:
        length, _, _ = content[start : start + 20].partition(b" ")
        stop = start + int(length) if length.isdigit() else 0
        record = content[start + len(length) + 1 : stop - 1]
        name, equals, value = record.partition(b"=")
        if not equals or stop > len(content) or content[stop - 1 : stop] != b"\n":
            raise TarDamage(f"the extended header at byte {place} is damaged")
        records[name] = value
        start = stop
    return records
