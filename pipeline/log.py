"""What a run says: a line on the console, a JSON line in `metrics.jsonl` (the truth), a log file per rank.

with quiet(): import deepspeed
start_logging(run_folder / "logs")
metrics = MetricsFile(run_folder / "metrics.jsonl", resume_step=100)
metrics.write(120, {"train/loss": 3.2})

A disk that is full costs a run none of these: lines wait in memory, which is said once, and go out when there is room.
"""

import contextlib
import errno
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipeline.dist import is_main, rank
from pipeline.errors import RunError
from pipeline.metrics_lines import read_lines
from pipeline.retry import retried

logger = logging.getLogger("clip_vip")
"""The run's own logger: rank 0 on the console, every rank in its file."""
file_logger = logging.getLogger("clip_vip.file")
"""The same without the console, for what the user gets to see in another way."""
urgent_logger = logging.getLogger("clip_vip.urgent")
"""Every rank on the console, for what holds all of them up."""

LINE_END = b"\n"
MAX_WAITING_BYTES = 1 << 20
"""Of a log that cannot be written; what is more is dropped and counted."""

NOISY = ("DeepSpeed", "deepspeed", "torch", "torch.utils.cpp_extension", "open_clip", "numexpr", "matplotlib")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what third parties print at import and start-up goes nowhere; their errors are exceptions anyway."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def start_logging(folder: Path) -> None:
    """Send our log to `folder`/rank_00000.log, and that of rank 0 to the console as well."""
    folder.mkdir(parents=True, exist_ok=True)
    to_file = LogFile(folder / f"rank_{rank():05d}.log")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for old in logger.handlers:
        if isinstance(old, LogFile):
            old.close()
    logger.handlers[:] = [to_file]
    file_logger.handlers[:] = [to_file]
    to_console = Console(sys.stdout if is_main() else sys.stderr)
    to_console.setFormatter(logging.Formatter("%(message)s" if is_main() else f"rank {rank()}: %(message)s"))
    urgent_logger.handlers[:] = [to_file, to_console]
    if is_main():
        logger.addHandler(to_console)
    for one in (logger, file_logger, urgent_logger):
        one.setLevel(logging.INFO)
        one.propagate = False


class LogFile(logging.Handler):
    """A log that a full disk cannot cut short: lines wait in memory until there is room. Said once on stderr."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._stream = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the handler
        self._waiting = b""
        self._dropped = 0
        self._is_failing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, after those that wait."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + LINE_END  # a path may be no text
        except Exception:  # a message that does not fit its arguments: our own mistake, no reason to end a run
            self.handleError(record)
            return
        if len(self._waiting) + len(line) > MAX_WAITING_BYTES:
            self._dropped += 1
            line = b""
        self._waiting += line
        try:
            self._write_waiting()
            if self._dropped:
                self._waiting = b"(%d more lines were dropped here: they had no room)" % self._dropped + LINE_END
                self._dropped = 0
                self._write_waiting()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                _say(f"{self.path} cannot be written ({error.strerror}); its lines wait in memory until it can")

    def close(self) -> None:
        """Try once more to write what waits, and let go of the file."""
        if self._waiting and not self._stream.closed:
            try:
                self._write_waiting()
            except OSError as error:
                _say(f"{self.path} lacks its last {self._waiting.count(LINE_END)} lines ({error.strerror})")
        self._stream.close()
        super().close()

    def _write_waiting(self) -> None:
        while self._waiting:
            # A disk that is nearly full takes a part of a line; the rest follows it later.
            self._waiting = self._waiting[self._stream.write(self._waiting) :]


class Console(logging.StreamHandler[TextIO]):
    """Standard output, which may be a file on a full disk or a pipe whose reader has left: said once, in the log."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.missed = 0
        """Records that could not be shown since the last that could."""
        self._is_named = False

    def emit(self, record: logging.LogRecord) -> None:
        """Show the line; when that works again, also how many could not be shown."""
        before, self.missed = self.missed, 0
        super().emit(record)
        if self.missed:
            self.missed += before
        elif before:
            super().emit(logging.makeLogRecord({"msg": f"({before} lines before the last could not be shown here)"}))

    def handleError(self, record: logging.LogRecord) -> None:
        """Count it, and say the first time why; anything but a failing stream is our own mistake, with a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.missed += 1
        if not self._is_named:
            self._is_named = True
            file_logger.error(f"standard output cannot be written ({error.strerror}); see this file instead")


def _say(line: str) -> None:
    """Past the log, on stderr, which may be as full."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, one line a step, steps ascending, also over any number of resumes.

    Lines that do not fit on the disk wait in memory for the next write; training goes on.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        """Open for appending; lines after `resume_step` are dropped, damaged ones kept aside in `metrics.bad`.

        The kept lines go to a new file that replaces the old one: a predecessor that is still alive on another node
        goes on writing into a file that nobody sees. Raises RunError where that cannot be done.
        """
        self.path = path
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            found = retried(lambda: read_lines(path), path)
            self._set_aside(found.bad)
            kept = [line for line, row in zip(found.kept, found.rows, strict=True) if row["step"] <= resume_step]
            with open(temporary, "wb") as stream:
                stream.write(b"".join(line + LINE_END for line in kept))
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            self._stream = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
            self._inode = os.fstat(self._stream.fileno()).st_ino
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError(f"cannot write {path}: {error.strerror}; make room and run the same command again") from None
        self._unwritten = b""
        self._first_unwritten: int | None = None
        self._failed_with: int | None = None

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append the line of `step`. Numbers that JSON cannot hold (NaN, infinity) become strings."""
        shown = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        was_waiting = self._first_unwritten is not None
        self._first_unwritten = self._first_unwritten if was_waiting else step
        self._unwritten += json.dumps({"step": step} | shown).encode() + LINE_END
        error = self._flush()
        if error is not None and not was_waiting:
            logger.error(
                f"{self.path} cannot be written ({error.strerror}): lines wait in memory from step {step} on, training "
                "goes on; make room"
            )

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
        error = self._flush()
        if error is not None:
            logger.error(
                f"{self._unwritten.count(LINE_END)} lines from step {self._first_unwritten} on are not in {self.path}: "
                f"it could not be written to the end ({error.strerror})"
            )
        self._stream.close()

    def _flush(self) -> OSError | None:
        try:
            if self._failed_with == errno.ESTALE:
                self._open_again()
            while self._unwritten:
                # A disk that is nearly full takes a part of a line; the rest follows it later.
                self._unwritten = self._unwritten[self._stream.write(self._unwritten) :]
        except OSError as error:
            self._failed_with = error.errno
            return error
        if self._failed_with is not None:
            logger.info(f"{self.path} is written again, with the lines that waited since step {self._first_unwritten}")
        self._failed_with = self._first_unwritten = None
        return None

    def _open_again(self) -> None:
        """A stale handle of a network file system heals only so. Not where another run has put its own file there."""
        stream = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed below or with the run
        if os.fstat(stream.fileno()).st_ino == self._inode:
            self._stream.close()
            self._stream = stream
        else:
            stream.close()

    def _set_aside(self, bad: list[bytes]) -> None:
        if bad:
            aside = self.path.with_suffix(".bad")
            with open(aside, "ab") as stream:
                stream.writelines(line + LINE_END for line in bad)
            lines = f"{len(bad)} damaged line{'s' * (len(bad) > 1)}"
            logger.warning(f"{self.path} has {lines}, as a power cut or a full disk leaves them; now in {aside.name}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; what is damaged is passed over."""
    return read_lines(path).rows
