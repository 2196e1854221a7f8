"""The lines of a `metrics.jsonl`, also of one that a power cut, a full disk or a crash has damaged. No third parties.

    lines = read_lines(run_folder / "metrics.jsonl")
    lines.rows         # [{"step": 1, "train/loss": 3.2, ...}, ...]
    lines.bad          # bytes that are no line: a row of NULs, half a line

A damaged line ends nothing: the rows behind it count. What follows damage within one line is a row again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROW_BEGINS = b'{"step"'


@dataclass
class Lines:
    """What a metrics file holds, in its order."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Objects with an integer `step`."""
    kept: list[bytes] = field(default_factory=list)
    """The text of each row, without its line end."""
    bad: list[bytes] = field(default_factory=list)
    """What is no row."""


def read_lines(path: Path) -> Lines:
    """Read a metrics file; none that is there has no lines. Raises OSError where it cannot be read."""
    lines = Lines()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return lines
    for line in content.split(b"\n"):  # not splitlines(): a text may hold other line ends
        if line.strip():
            _add(lines, line)
    return lines


def _add(lines: Lines, line: bytes) -> None:
    """File one line as a row, as bad, or as bad bytes with a row behind them."""
    for start in sorted({0, max(0, line.rfind(_ROW_BEGINS))}):
        row = _row(line[start:])
        if row is not None:
            lines.rows.append(row)
            lines.kept.append(line[start:])
            lines.bad += [line[:start]] if start else []
            return
    lines.bad.append(line)


def _row(text: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None
