"""DeepSpeed's file writer, replaced by one that keeps what it is given in memory and writes it later.

    writer = SnapshotWriter(); engine.save(folder, tag, writer)      # the state as it is now; no file is touched
    facts, errors = writer.write()                                   # in a thread, while training goes on

DeepSpeed's save is a sequence of writes and barriers. A rank that raises in the middle leaves all others waiting for
ever, and all of them wait for the slowest disk. Here nothing can fail in between but memory, and what fails afterwards
is noted, so that everyone reaches the vote on success.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.retry import retried


class SnapshotWriter:
    """What DeepSpeed calls to make folders and to write and read its state files."""

    name = "SnapshotWriter"

    def __init__(self) -> None:
        self._files: list[tuple[Path, io.BytesIO]] = []

    def create(self, info: object) -> None:
        """A save begins."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are made with the files."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep one file: its bytes, which no later step changes."""
        content = io.BytesIO()
        with _no_checksums():
            torch.save(state_dict, content)
        self._files.append((Path(path), content))

    def write(self) -> tuple[dict[Path, dict[str, Any]], list[str]]:
        """Bring what was kept to the disk and let go of it; size and SHA-256 of each file, and errors of one line."""
        facts, errors = {}, []
        for path, content in self._files:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as stream:
                    stream.write(content.getbuffer())
                    stream.flush()
                    os.fsync(stream.fileno())
                digest = hashlib.sha256(content.getbuffer()).hexdigest()
                facts[path] = {"bytes": content.getbuffer().nbytes, "sha256": digest}
            except Exception as error:  # whatever it is: the others wait to hear of it
                errors.append(write_error(error))
        self._files.clear()
        return facts, errors

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file. This unpickles: only files of our own checkpoints, whose hashes were checked, come here."""
        return retried(lambda: torch.load(path, map_location=map_location, weights_only=False), Path(path))

    def commit(self, info: object) -> bool:
        """A save ends."""
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Whether this rank writes what is the same on all ranks."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Whether DeepSpeed has to wait for this writer: no, `write` and the vote are ours."""
        return False

    def set_commit_info(self, info: object) -> None:
        """Nothing to remember."""

    def get_commit_info(self) -> None:
        """Nothing was remembered."""

    def cleanup(self) -> None:
        """Nothing to end."""

    def preserves_storage_sharing(self) -> bool:
        """torch.save keeps tensors that share memory together."""
        return True


@contextlib.contextmanager
def _no_checksums() -> Iterator[None]:
    """Without torch's own CRC-32, which training would wait for: COMPLETE.json holds a SHA-256 of every file."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def write_error(error: BaseException) -> str:
    """One line for a failed write: the operating system's reason where there is one behind it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return " ".join(f"{type(cause or error).__name__}: {cause or error}".split())
