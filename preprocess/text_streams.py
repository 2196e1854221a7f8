"""Files of text as binary streams: plain, .gz or .zst, in UTF-8 without its mark, with a line end that readers know.

with open_bytes(path) as stream:
    line = stream.readline()
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from pipeline.errors import DISK_TROUBLE, InputError
from pipeline.text_files import HEAD_BYTES, not_utf8_text

MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
"""How a packed file begins, by its suffix."""
_CHUNK = 1 << 20
_PACKED_CHUNK = 1 << 12
"""4 kB of zstd unpack to 128 MB at the very most."""


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """`path` as a binary stream, decompressed by its suffix, without a byte order mark; a file of \\r alone has \\n.

    A missing, damaged or cut file, and one that is no UTF-8 text, is an `InputError`.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115 -- closed below, with what wraps it
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            raise
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    try:
        with raw:
            head = raw.peek(HEAD_BYTES)
            packing = path.suffix.lower()
            if (magic := MAGIC.get(packing)) and head and not head.startswith(magic):
                what = not_utf8_text(head) or "is not compressed, whatever its name says"
                raise InputError(f"{path} {what}; give it the name of what it is")
            if packing == ".gz":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield _text_stream(io.BufferedReader(unpacked, _CHUNK), path)
            elif packing == ".zst":
                yield _text_stream(io.BufferedReader(_ZstdFrames(raw), _CHUNK), path)
            else:
                yield _text_stream(raw, path)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}); download it again") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None  # reading names no file


def _text_stream(stream: io.BufferedReader, path: Path) -> BinaryIO:
    head = stream.peek(HEAD_BYTES)
    if complaint := not_utf8_text(head):
        raise InputError(f"{path} {complaint}")
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    if b"\r" in head and b"\n" not in head and b"\r\n" not in stream.peek(_CHUNK):
        return cast(BinaryIO, io.BufferedReader(_Newlines(cast(BinaryIO, stream)), _CHUNK))
    return cast(BinaryIO, stream)


class _Newlines(io.RawIOBase):
    """A stream whose lines end in \\r alone, with \\n in its place."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self._stream.read(len(target)).replace(b"\r", b"\n")
        target[: len(data)] = data
        return len(data)


class _ZstdFrames(io.RawIOBase):
    """What a row of zstd frames unpacks to. zstandard's own reader takes a frame that is cut short for its end."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready and (data := self._packed.read(_PACKED_CHUNK)):
            self._ready = self._unpack(data)
        if not self._ready and self._frame is not None:
            raise EOFError("the last zstd frame has no end")
        count = min(len(target), len(self._ready))
        target[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self, data: bytes) -> bytes:
        parts = []
        while data:
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            parts.append(self._frame.decompress(data))
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        return b"".join(parts)
