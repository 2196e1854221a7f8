"""A fault of the machine is not a fault of the data: errors of the file system are tried again, then fail the shard.

    found = retried(lambda: path.stat(), path)          # FileSystemFault once the pauses are used up
    with SourceFile(path, limit_s=60.0) as file: ...    # reads that are tried again, for libav
    for outcome in with_second_look(attempt, clips, path, clock): ...

What a reader of the bytes says is believed only where the bytes could be read: `SuspectedFault` is what an ffmpeg
raises that was killed, or that speaks of an error of the file system. Then the file is read through, the decode is
tried again, and only what comes out twice is a fault of the video.
"""

import errno
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from pipeline.errors import RunError
from preprocess.clock import Clock
from preprocess.records import Clip, Failure, Media

RETRY_PAUSES_S = (0.1, 0.5, 2.0)
"""Between the attempts of one system call. A mount that is away for longer fails the shard, which a rerun writes."""
SECOND_LOOK_PAUSE_S = 1.0
"""Before a video is decoded again: what killed ffmpeg, such as a lack of memory, may be over by then."""
_CHUNK_BYTES = 1 << 20
_LONGEST_READ_S = 5.0
"""So much of one read counts at most: what lies above was a stop of the whole process, or no time of the video's."""
_HELD_BYTES = 64 * 2**20
"""Clips that wait for the end of their decode, at most: the last picture before an error of reading may be a damaged
one, the clips before these are long past it."""

ANSWERS = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))
"""What says that there is no such file; every other error says that it is not known."""
FILE_SYSTEM_ERRNOS = (
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ESHUTDOWN,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EMFILE,
    errno.ENFILE,
)
"""What a file system, local or far, answers to open and read, and no content of a file can bring about."""
FILE_SYSTEM_WORDS = re.compile("|".join(re.escape(os.strerror(number)) for number in FILE_SYSTEM_ERRNOS).encode())
"""As ffmpeg puts them on its stderr, also where it goes on and ends with 0."""
MAX_WORDS_BYTES = max(len(os.strerror(number)) for number in FILE_SYSTEM_ERRNOS)
_CRASHES = frozenset((signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS))

Found = TypeVar("Found")


class FileSystemFault(RunError):
    """The file system did not answer, also not after some tries. The shard is not written; a rerun writes it."""

    @classmethod
    def of(cls, error: OSError, path: Path) -> Self:
        return cls(f"{error.strerror or error}: {error.filename or path}")


class SuspectedFault(Exception):
    """A decode ended in a way that the machine may be to blame for: the same video is looked at once more."""


def is_outside_signal(code: int) -> bool:
    """Whether a process with this exit code was ended from outside, rather than by a crash of its own."""
    return code < 0 and -code not in _CRASHES


def retried(call: Callable[[], Found], path: Path) -> Found:
    """`call()`, tried again after each of RETRY_PAUSES_S. What answers that there is no such file passes through at
    once; any other `OSError` becomes a `FileSystemFault` that names the path."""
    for pause_s in (*RETRY_PAUSES_S, None):
        try:
            return call()
        except OSError as error:
            if error.errno in ANSWERS:
                raise
            if pause_s is None:
                raise FileSystemFault.of(error, path) from None
            time.sleep(pause_s)
    raise AssertionError


def refuse_trouble(error: Exception, path: Path) -> None:
    """Raise a `FileSystemFault` where `error`, met while a file of the set was opened, tells nothing of its content.

    What cannot be read is not damaged. pyarrow raises `OSError` without a number for what it does not understand.
    """
    if isinstance(error, OSError) and error.errno not in (None, *ANSWERS, errno.EISDIR, errno.EINVAL):
        raise FileSystemFault.of(error, path) from None


class SourceFile:
    """A source video that libav reads through this process: an error of reading is tried again and cannot be lost.

    libav's own reader makes the end of the file, or a gap, of an error in the middle. As a context it raises
    `FileSystemFault` at its end where a read failed for good, whatever libav made of it.
    """

    def __init__(self, path: Path, limit_s: float) -> None:
        self.name = str(path)
        """By its suffix libav weighs the formats."""
        self._path, self._limit_s = path, limit_s
        self._fault: FileSystemFault | None = None
        self._reading_s = 0.0
        self._started_s = time.thread_time()
        self._position = 0
        self._descriptor = retried(self._open, path)
        self._num_bytes = retried(lambda: os.fstat(self._descriptor).st_size, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if self._fault is not None:
            raise self._fault from None

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Raises `TimeoutError` where the work takes longer than the limit."""
        if self._fault is not None:
            raise OSError(errno.EIO, str(self._fault))
        if self._reading_s + time.thread_time() - self._started_s > self._limit_s:
            raise TimeoutError(errno.ETIMEDOUT, f"reading took over {self._limit_s:g} s", self.name)
        before_s = time.monotonic()
        try:
            data = retried(lambda: self._pread(size), self._path)
        except (OSError, FileSystemFault) as error:
            self._fault = error if isinstance(error, FileSystemFault) else FileSystemFault.of(error, self._path)
            raise OSError(errno.EIO, str(error)) from None
        self._reading_s += min(time.monotonic() - before_s, _LONGEST_READ_S)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file; -1 for a place before its start, as an exception would outlive the call inside PyAV."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        if base + offset < 0:
            return -1
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def _open(self) -> int:
        return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def _pread(self, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, self._position)
        except OSError:
            # A stale handle of a network file system heals only by opening again.
            fresh = self._open()
            os.dup2(fresh, self._descriptor, inheritable=False)
            os.close(fresh)
            raise


def read_through(path: Path) -> None:
    """Read the whole file, for its errors alone. Raises `FileSystemFault`, also where it is gone by now."""
    try:
        with SourceFile(path, float("inf")) as file:
            while file.read(_CHUNK_BYTES):
                pass
    except OSError as error:
        raise FileSystemFault.of(error, path) from None


class Attempt(Protocol):
    """One decode of some clips. Raises `SuspectedFault` at its end; if `is_second`, only where no video can be the
    cause."""

    def __call__(self, clips: Sequence[Clip], is_second: bool) -> Iterator[Media | Failure]: ...


def with_second_look(attempt: Attempt, clips: Sequence[Clip], path: Path, clock: Clock) -> Iterator[Media | Failure]:
    """What `attempt` delivers, each clip once; those that a suspected fault left open are decoded again.

    What a second decode of a file without errors says is believed. Raises `FileSystemFault`, and `RunError` where
    ffmpeg is ended from outside again.
    """
    held: deque[Media | Failure] = deque()
    num_bytes = 0
    delivered: set[str] = set()
    try:
        for outcome in attempt(clips, False):
            held.append(outcome)
            num_bytes += _num_bytes(outcome)
            while num_bytes > _HELD_BYTES:
                num_bytes -= _num_bytes(held[0])
                delivered.add(_clip_id(held[0]))
                yield held.popleft()
    except SuspectedFault:
        with clock.stopped():
            time.sleep(SECOND_LOOK_PAUSE_S)
            read_through(path)
        held.clear()
        try:
            yield from attempt([clip for clip in clips if clip.clip_id not in delivered], True)
        except SuspectedFault as fault:
            raise RunError(f"{path}: {fault} twice; look at what ends processes on this machine") from None
    yield from held


def _num_bytes(outcome: Media | Failure) -> int:
    return len(outcome.data) if isinstance(outcome, Media) else 0


def _clip_id(outcome: Media | Failure) -> str:
    return outcome.clip.clip_id if isinstance(outcome, Media) else outcome.clip_id
