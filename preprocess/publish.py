"""Files appear under their final name whole or not at all: write beside, fsync, rename, fsync the folder."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DISK_TROUBLE, InputError

TEMPORARY_SUFFIX = ".tmp"
_OTHERS_IDLE_S = 3600.0


def temporary_path(path: Path) -> Path:
    """A hidden sibling of `path` that no other process of any machine uses."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}{TEMPORARY_SUFFIX}")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished, closed file its final name, durably. A folder of that name is an `InputError`."""
    sync_file(temporary)
    try:
        temporary.replace(path)
    except IsADirectoryError:
        temporary.unlink()
        raise InputError(f"{path} is a folder; remove it") from None
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of `path`."""
    temporary = temporary_path(path)
    temporary.write_bytes(data)
    publish(temporary, path)


def sync_file(path: Path) -> None:
    """Make the content of a closed file survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str, others_idle_s: float = 0.0) -> None:
    """Remove what killed writers of `name` left behind; that of other machines if it is untouched for so long."""
    for path in folder.glob(f".{name}.*{TEMPORARY_SUFFIX}"):
        is_own = path.name.startswith(f".{name}.{os.uname().nodename}-")
        if is_own or _idle_s(path) >= others_idle_s:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _idle_s(path: Path) -> float:
    """Since when nothing changed in a file, or in a folder of files."""
    times = []
    for item in [path, *path.glob("*")]:
        with contextlib.suppress(FileNotFoundError):
            times.append(item.stat().st_mtime)
    return time.time() - max(times, default=0.0)


@contextlib.contextmanager
def sole_writer(folder: Path, *names: str) -> Iterator[None]:
    """While it is open, no other process writes `names` in `folder`; what killed writers left of them is removed.

    The lock goes with its process, however that ends. It is the folder's only one: do not open it twice. On a file
    system whose locks hold on one node only (Lustre's localflock) a writer on another node may be at work too: both
    write the same under names of their own, and what the other has begun is left alone.
    """
    try:
        stream = open(folder / ".lock", "a")  # noqa: SIM115 -- closed below
    except OSError as error:
        if error.errno in DISK_TROUBLE and error.errno != errno.EROFS:
            raise
        raise InputError(f"cannot write to {folder} ({error.strerror}); give a folder that can be written") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            raise InputError(
                f"{folder} lies on a file system without locks ({error.strerror}); mount it with them (Lustre: flock, "
                "NFS: no nolock), or give another folder"
            ) from None
        for name in names:
            remove_leftovers(folder, name, _OTHERS_IDLE_S)
        yield
