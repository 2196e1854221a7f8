"""A bounded local cache of an object store's shards, shared by all processes of a node.

    cache = CacheConfig(folder="/local/cache", max_gb=200)
    folder = open_folder("s3://bucket/train", cache, "4f1d...")       # .read(name, offset, size), .prefetch(names)

A shard is downloaded once per node, under a file lock and a temporary name, and the longest unused ones make room. A
shard that is removed while a process reads it stays readable for that process. With a windowed shuffle the shards of
the next window arrive in the background while this one is being read: give the cache room for two windows.
"""

import fcntl
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Section
from pipeline.data.storage import MAX_OPEN_FILES, Folder, LocalFolder, RemoteFolder, checked, retried
from pipeline.errors import PipelineError

_MAX_OPEN_SHARDS = 4  # an evicted shard that is still open takes up disk until it is closed


class CacheConfig(Section):
    """Where shards of an object store are kept on this node."""

    folder: Path
    """A local folder, best on a fast disk."""
    max_gb: float = Field(default=100.0, gt=0)
    """Shards beyond this size are removed, the longest unused first."""


class CachedFolder:
    """A remote folder whose shards are read from local copies."""

    def __init__(self, url: str, cache: CacheConfig, version: str) -> None:
        self._remote = RemoteFolder(url)
        self._url = url
        self._cache = cache
        self._version = version
        # A shard of the same name in another manifest may have other content: each manifest has its own folder.
        self._root = cache.folder / f"{url.rstrip('/').rsplit('/', 1)[-1]}_{version}"
        self._local = LocalFolder(self._root, _MAX_OPEN_SHARDS)
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._asked: set[str] = set()
        self._thread: threading.Thread | None = None

    def read_file(self, name: str) -> bytes:
        """A whole small file, past the cache. Raises FileNotFoundError, or RunError."""
        return self._remote.read_file(name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Raises DamagedSample, or RunError."""

        def from_copy() -> bytes:
            # Between the download and the first read another process may make room: then it is fetched again.
            for _ in range(3):
                self._fetch(name)
                try:
                    return self._local.pread(name, offset, size)
                except FileNotFoundError:
                    continue
            raise OSError("the cache is too small for the shards in use; raise cache.max_gb")

        return checked(from_copy, f"{self._url}/{name}", offset + size, size)

    def prefetch(self, names: Sequence[str]) -> None:
        """Download these shards in the background, in this order."""
        fresh = [name for name in names if name not in self._asked]
        self._asked = set(names)
        for name in fresh:
            self._wanted.put(name)
        if self._thread is None and fresh:
            self._thread = threading.Thread(target=self._download_ahead, daemon=True)
            self._thread.start()

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": (self._url, self._cache, self._version)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["arguments"])  # type: ignore[misc]

    def _download_ahead(self) -> None:
        while True:
            name = self._wanted.get()
            try:
                retried(lambda name=name: self._fetch(name), f"{self._url}/{name}")  # type: ignore[misc]
            except (OSError, PipelineError):
                # The read that needs this shard meets the same error and reports it.
                continue

    def _fetch(self, name: str) -> None:
        """Have the shard's copy at its place, and mark it as used. Raises OSError."""
        target = self._root / name
        try:
            os.utime(target)
            return
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            if target.exists():
                return
            part = target.with_suffix(".part")
            self._remote.download(name, part)
            part.rename(target)
        self._make_room()

    def _make_room(self) -> None:
        copies = []
        for path in self._cache.folder.rglob("*.tar"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            copies.append((facts.st_mtime_ns, facts.st_size, path))
        excess = sum(size for _, size, _ in copies) - self._cache.max_gb * 1e9
        # The newest copy stays in any case: it is the one that is about to be read.
        for _, size, path in sorted(copies)[:-1]:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def open_folder(
    folder: str, cache: CacheConfig | None = None, version: str = "", max_open_files: int = MAX_OPEN_FILES
) -> Folder:
    """The reader for a path, or for a URL with or without a cache; `version` is the manifest's hash."""
    if "://" not in folder:
        return LocalFolder(folder, max_open_files)
    if cache is None:
        return RemoteFolder(folder)
    return CachedFolder(folder, cache, version)
