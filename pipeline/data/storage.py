"""Bytes of a shard set: by offset from a local or parallel file system, or from an object store through a local cache.

    Folder("data/shards/train").read("shards/000012.tar", offset, size)   -> bytes
    Folder("s3://bucket/train", cache)                                    shards come whole into a bounded cache

What an error means is decided here, once: a missing file or one that ends too early is the sample's fault
(`DamagedSample`: masked and counted); any other error of the file system may pass, so the read is tried again, and when
it does not pass it is fatal (`RunError`) and never counted as a bad sample.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.errors import RunError

READ_RETRY_PAUSES_S = (0.1, 1.0, 5.0)
_MAX_OPEN_FILES = 64

Read = TypeVar("Read")


class DamagedSample(Exception):
    """One sample cannot be delivered; `reason` is one stable word that the meters count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Folder:
    """A shard set's files, read by name."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read_file(self, name: str) -> bytes:
        """A whole small file. FileNotFoundError stays as it is."""
        return retried(lambda: (Path(self.folder) / name).read_bytes(), f"{self.folder}/{name}")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""
        try:
            content = retried(lambda: self._pread(name, offset, size), f"{self.folder}/{name}")
        except FileNotFoundError:
            raise DamagedSample("shard_missing", name) from None
        if len(content) < size:
            raise DamagedSample("shard_truncated", f"{name} ends before byte {offset + size}")
        return content

    def close(self) -> None:
        """Close what is open; the next read opens again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _pread(self, name: str, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(name)
        try:
            pieces = [os.pread(descriptor, size, offset)]
            while pieces[-1] and (missing := size - sum(map(len, pieces))):
                pieces.append(os.pread(descriptor, missing, offset + size - missing))
        except OSError:
            # A stale handle of a network file system heals only by opening again.
            os.close(self._descriptors.pop(name))
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _descriptor(self, name: str) -> int:
        if name not in self._descriptors:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[name] = os.open(Path(self.folder) / name, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.move_to_end(name)
        return self._descriptors[name]


def retried(read: Callable[[], Read], where: str) -> Read:
    """`read()`, tried again after each of READ_RETRY_PAUSES_S; FileNotFoundError passes through at once."""
    for pause_s in (*READ_RETRY_PAUSES_S, None):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if pause_s is None:
                raise RunError(
                    f"cannot read {where}: {error.strerror or error} (tried {len(READ_RETRY_PAUSES_S) + 1} times); "
                    "check the file system, then resume"
                ) from None
            time.sleep(pause_s)
    raise AssertionError("unreachable")
