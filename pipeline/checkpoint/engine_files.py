"""DeepSpeed's file writer, replaced by one that notes a failed write instead of raising it.

DeepSpeed's save is a sequence of writes and barriers. A rank that raises in the middle leaves all others waiting for
ever; a rank that notes the error and goes on lets everyone reach the vote on success.
"""

from pathlib import Path
from typing import Any

import torch


class NotingCheckpointEngine:
    """What DeepSpeed calls to make folders and to write and read its state files."""

    name = "NotingCheckpointEngine"

    def __init__(self) -> None:
        self.errors: list[str] = []

    def create(self, info: object) -> None:
        """A save begins."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        self._note(lambda: Path(path).mkdir(parents=True, exist_ok=exist_ok))

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""

        def write() -> None:
            # torch reports a failed write to a path without its cause; a stream of ours raises the OSError itself.
            with open(path, "wb") as stream:
                torch.save(state_dict, stream)

        self._note(write)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file. This unpickles: only files of our own checkpoints, whose hashes were checked, come here."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: object) -> bool:
        """A save ends."""
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Whether this rank writes what is the same on all ranks."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """Whether writing goes on in the background."""
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

    def _note(self, action: Any) -> None:
        try:
            action()
        except (OSError, RuntimeError) as error:
            self.errors.append(write_error(error))


def write_error(error: BaseException) -> str:
    """One line for a failed write: the operating system's reason where there is one behind it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return " ".join(f"{type(cause or error).__name__}: {cause or error}".split())
