"""Bytes of a shard set: by offset from a local or parallel file system, or from an object store through fsspec.

    folder = open_folder("data/shards/train")              pread, a few open files
    folder = open_folder("s3://bucket/train")              one ranged request per sample
    folder = open_folder("s3://bucket/train", cache)       whole shards through a bounded local cache (cache.py)
    folder.read("shards/000012.tar", offset, size)         -> bytes

What an error means is decided here, once: a missing file or one that ends too early is the sample's fault
(`DamagedSample`: masked and counted); any other error of the file system may pass, so the read is tried again, and when
it does not pass it is fatal (`RunError`) and never counted as a bad sample.
"""

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec

from pipeline.errors import InputError, RunError

READ_RETRY_PAUSES_S = (0.1, 1.0, 5.0)
MAX_OPEN_FILES = 64

Read = TypeVar("Read")


def open_files_for(window_shards: int | None, num_sources: int) -> int:
    """Files to keep open for one source: a window's shards, as far as half of this process's descriptors go."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(MAX_OPEN_FILES, min(window_shards or 0, allowed // (2 * num_sources)))


class DamagedSample(Exception):
    """One sample cannot be delivered; `reason` is one stable word that the meters count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Folder(Protocol):
    """A shard set's files, read by name."""

    def read_file(self, name: str) -> bytes:
        """A whole small file. Raises FileNotFoundError, or RunError."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Raises DamagedSample, or RunError."""

    def prefetch(self, names: Sequence[str]) -> None:
        """These files will be read soon."""


class _OpenFile:
    """A descriptor that is closed when the last thread lets go of it, also one that is being read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)


class LocalFolder:
    """A folder of a local or parallel file system. Threads may read at once."""

    def __init__(self, folder: str | Path, max_open_files: int = MAX_OPEN_FILES) -> None:
        self._folder = Path(folder)
        self._max_open_files = max_open_files
        self._open_files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._guard = threading.Lock()

    def read_file(self, name: str) -> bytes:
        """A whole small file. Raises FileNotFoundError, or RunError."""
        return retried((self._folder / name).read_bytes, f"{self._folder}/{name}")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Raises DamagedSample, or RunError."""
        return checked(lambda: self.pread(name, offset, size), f"{self._folder}/{name}", offset + size, size)

    def prefetch(self, names: Sequence[str]) -> None:
        """Nothing to do: the kernel reads ahead."""

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes; fewer at the end of the file. Raises OSError."""
        file = self._opened(name)
        try:
            pieces = [os.pread(file.descriptor, size, offset)]
            while pieces[-1] and (missing := size - sum(map(len, pieces))):
                pieces.append(os.pread(file.descriptor, missing, offset + size - missing))
        except OSError:
            # A stale handle of a network file system heals only by opening again.
            with self._guard:
                if self._open_files.get(name) is file:
                    del self._open_files[name]
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": (self._folder, self._max_open_files)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["arguments"])  # type: ignore[misc]

    def _opened(self, name: str) -> _OpenFile:
        with self._guard:
            if name in self._open_files:
                self._open_files.move_to_end(name)
                return self._open_files[name]
        file = _OpenFile(self._folder / name)  # not under the lock: opening is what takes long on a far file system
        with self._guard:
            file = self._open_files.setdefault(name, file)
            if len(self._open_files) > self._max_open_files:
                self._open_files.popitem(last=False)
        return file


class RemoteFolder:
    """A folder that fsspec reaches, read by ranges."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._opened: tuple[Any, str] | None = None

    def read_file(self, name: str) -> bytes:
        """A whole small file. Raises FileNotFoundError, or RunError."""
        return retried(lambda: self.fetch(name), f"{self._url}/{name}")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Raises DamagedSample, or RunError."""
        where = f"{self._url}/{name}"
        return checked(lambda: self.fetch(name, start=offset, end=offset + size), where, offset + size, size)

    def prefetch(self, names: Sequence[str]) -> None:
        """Nothing to do: a ranged request brings just the sample."""

    def fetch(self, name: str, **span: int) -> bytes:
        """The file's bytes, or those of a span. Raises OSError."""
        return bytes(self._asked(lambda fs, root: fs.cat_file(f"{root}/{name}", **span)))

    def download(self, name: str, target: Path) -> None:
        """The whole file to a local path. Raises OSError, also when it arrives cut short."""
        expected = self._asked(lambda fs, root: fs.size(f"{root}/{name}"))
        self._asked(lambda fs, root: fs.get_file(f"{root}/{name}", str(target)))
        if expected is not None and target.stat().st_size != expected:
            raise OSError(f"{target.stat().st_size} of {expected} bytes arrived")

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url, "_opened": None}

    def _asked(self, ask: Callable[[Any, str], Read]) -> Read:
        if self._opened is None:
            try:
                self._opened = fsspec.core.url_to_fs(self._url)
            except (ValueError, ImportError) as error:
                raise InputError(f"cannot open {self._url}: {error}") from None
        try:
            return ask(*self._opened)
        except OSError:
            raise
        except Exception as error:
            # Each store has its own error classes; here they mean what an OSError means.
            raise OSError(f"{type(error).__name__}: {error}") from error


def checked(read: Callable[[], bytes], where: str, end: int, size: int) -> bytes:
    """`size` bytes by `read`, with the meaning of errors that the module's docstring states."""
    try:
        content = retried(read, where)
    except FileNotFoundError:
        raise DamagedSample("shard_missing", where) from None
    if len(content) < size:
        raise DamagedSample("shard_truncated", f"{where} ends before byte {end}")
    return content


def retried(read: Callable[[], Read], where: str) -> Read:
    """`read()`, tried again after each of READ_RETRY_PAUSES_S; FileNotFoundError passes through at once."""
    for pause_s in READ_RETRY_PAUSES_S:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(pause_s)
    try:
        return read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(
            f"cannot read {where}: {error.strerror or error} (tried {len(READ_RETRY_PAUSES_S) + 1} times); "
            "check the file system, then resume"
        ) from None
