"""What a run says: a line on the console, a JSON line in `metrics.jsonl` (the truth), a log file per rank.

with quiet(): import deepspeed
start_logging(run_folder / "logs")
metrics = MetricsFile(run_folder / "metrics.jsonl", resume_step=100)
metrics.write(120, {"train/loss": 3.2})
"""

import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.dist import is_main, rank

logger = logging.getLogger("clip_vip")
"""The run's own logger: rank 0 on the console, every rank in its file."""

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
    to_file = LogFile(folder / f"rank_{rank():05d}.log", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [to_file]
    if is_main():
        to_console = logging.StreamHandler(sys.stdout)
        to_console.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(to_console)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class LogFile(logging.FileHandler):
    """A log that a full disk may cut short: what cannot be written is no reason for a traceback on the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: rank 0 says the same on the console."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, one line a step, steps ascending, also over any number of resumes.

    Lines that do not fit on the disk wait in memory for the next write; training goes on.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        """Open for appending; lines after `resume_step`, and a last line that a crash cut off, are dropped.

        The kept lines go to a new file that replaces the old one: a predecessor that is still alive on another node
        goes on writing into a file that nobody sees.
        """
        self.path = path
        kept = [json.dumps(row) for row in read_metrics(path) if row["step"] <= resume_step]
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._stream = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
        self._unwritten = b""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append the line of `step`. Numbers that JSON cannot hold (NaN, infinity) become strings."""
        shown = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._unwritten += json.dumps({"step": step} | shown).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
        self._flush()
        self._stream.close()

    def _flush(self) -> None:
        try:
            while self._unwritten:
                # A disk that is nearly full takes a part of a line; the rest follows it later.
                self._unwritten = self._unwritten[self._stream.write(self._unwritten) :]
        except OSError as error:
            lines = self._unwritten.count(b"\n")
            logger.error(f"{self.path} cannot be written ({error.strerror}): {lines} lines wait; make room")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; one that is cut off or no JSON object ends the reading."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows
