"""The one small exception tree, and the exit codes that follow from it.

    0  done
    1  failed: the input was right, the work was not finished (RunError, a full disk, or any error not foreseen)
    2  wrong input: nothing was started (InputError)

Every entry point is wrapped by `run_command`, which turns a `PipelineError` into one line on stderr: `error: ...`, or
`machine fault: ...` where another machine may do the same work. Messages say what, where, and what to do. A traceback
is printed only for errors that are our own mistakes.

    if __name__ == "__main__":
        run_command(main)
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable


class PipelineError(Exception):
    """Base of all errors that a user is meant to read."""

    exit_code = 1


class InputError(PipelineError, ValueError):
    """Wrong input: a config, a file or an argument that the user must change. Exit code 2."""

    exit_code = 2


class RunError(PipelineError, RuntimeError):
    """The input was right, but the work could not be done: a full disk, a dead rank, bad samples. Exit code 1."""

    exit_code = 1


class MachineFault(RunError):
    """This machine is at fault: a lost mount, a killed self test. Another node may do the same work. Exit code 1."""


DISK_TROUBLE = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENODEV),
        *(errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET, errno.ETIMEDOUT),
    )
)
"""Errors of a disk or of a mount, as the operating system numbers them: no fault of what was asked for."""


def run_command(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(sys.argv[1:])` and exit with 0, 1 or 2; a `PipelineError` becomes one line on stderr."""
    try:
        code = main(sys.argv[1:]) or 0
    except PipelineError as error:
        kind = "machine fault" if isinstance(error, MachineFault) else "error"
        print(f"{kind}: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        code = 1
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not our failure, and there is nobody left to tell.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; mend that and run the same command again", file=sys.stderr, flush=True)
        code = 1
    sys.exit(_with_output_written(code))


def _with_output_written(code: int) -> int:
    """The exit code, or 1 where what was printed does not fit: Python would find that at its end and leave with 120."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            print(f"error: the output could not be written ({error.strerror})", file=sys.stderr, flush=True)
        return code or 1
    return code
