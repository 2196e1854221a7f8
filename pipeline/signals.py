"""Signals become a wish that is granted at a step boundary, by all ranks together.

    with StopRequest() as stop: ... stop.name        # "SIGTERM" once it came, else None

SIGTERM, SIGUSR1 and SIGUSR2 all mean: save, then leave with exit code 0; the same command goes on later.
"""

import signal
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Catches the signals while it is entered."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
