"""Reads that the file system refuses now and then, tried again: a fault of the machine is no fault of the data.

    content = retried(path.read_bytes, path)

A network file system answers EIO or ESTALE for a moment, a busy node EMFILE, a token that is being renewed EACCES. So
only what is not there passes through at once; anything else is asked for again, and named when it stays.
"""

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.errors import RunError

FAULTS = frozenset((errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOTCONN))
"""What no change of a config or a path puts right: the machine or its file system is at fault."""
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))
PAUSES_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
"""Between the attempts; half a minute in all."""

Content = TypeVar("Content")


def retried(read: Callable[[], Content], path: Path) -> Content:
    """`read()`, tried again after each of PAUSES_S. Raises RunError that names `path` and the reason.

    FileNotFoundError, NotADirectoryError and IsADirectoryError are answers, not faults: they pass through at once.
    """
    pauses_s = list(PAUSES_S)
    while True:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            if not pauses_s:
                raise RunError(
                    f"cannot read {path}: {reason} (tried {len(PAUSES_S) + 1} times in {sum(PAUSES_S):.0f} s); nothing "
                    "was changed: mend the file system or the rights, then run the same command again"
                ) from error
            if len(pauses_s) == len(PAUSES_S):
                logging.getLogger("clip_vip").warning(f"cannot read {path} ({reason}); trying again")
            time.sleep(pauses_s.pop(0))
