"""Signals become a request that is granted at a step boundary, by all ranks together.

    with StopRequest() as stop: ... stop.name        # "SIGTERM" once it came, else None
        with stop.steps_at_risk(lost): train()       # in here Ctrl-C is such a request too

SIGTERM, SIGUSR1 and SIGUSR2 all mean: save, then leave with exit code 0; the same command goes on later. So does the
first Ctrl-C while there are steps to lose; one after any of these leaves at once, with exit code 1, and says what is
lost. Before and after, Ctrl-C ends the process as it does any other.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from pipeline.dist import is_main

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
ONE_PRESS_S = 1.0
"""The terminal and a launcher may both send a signal for one Ctrl-C: what comes within this time is the same press."""
LEAVE_LIMIT_S = 2.0
"""So long `leave` may take at a second Ctrl-C: a file system that hangs may be why it was pressed."""


class StopRequest:
    """Catches the signals while it is entered. In the main thread.

    Python runs a handler between two steps of the interpreter: not while a collective waits for a lost rank. So a
    thread hears of every signal through the wakeup descriptor, and a second Ctrl-C ends the process from there.
    """

    def __init__(self, leave: Callable[[], None] = lambda: None) -> None:
        self.name: str | None = None
        self.leave = leave
        """What is done last when a second Ctrl-C ends the process."""
        self._lost: Callable[[], str] | None = None
        self._asked_at_s: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._woken, self._waking = socket.socketpair()
        self._waking.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True, name="signals").start()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._waking.close()  # ends the thread

    @contextlib.contextmanager
    def steps_at_risk(self, lost: Callable[[], str]) -> Iterator[None]:
        """Inside, Ctrl-C asks to save and leave; `lost` says what a second one loses, from another thread."""
        self._lost = lost
        try:
            yield
        finally:
            self._lost = None

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._lost is None:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name

    def _listen(self) -> None:
        with self._woken:
            while numbers := self._woken.recv(16):
                for number in numbers:
                    if self._lost is not None and number in SIGNALS:
                        self._heard(signal.Signals(number), self._lost)

    def _heard(self, received: signal.Signals, lost: Callable[[], str]) -> None:
        """A signal, while there are steps to lose."""
        now = time.monotonic()
        if self._asked_at_s is None:
            self._asked_at_s = now
            if received == signal.SIGINT:
                _say("Ctrl-C: saving after the step under way, then leaving; a second Ctrl-C leaves at once")
        elif received == signal.SIGINT and now - self._asked_at_s > ONE_PRESS_S:
            _say(f"error: left at once; {lost()}; the same command goes on from there")
            leaving = threading.Thread(target=self.leave, daemon=True)
            leaving.start()
            leaving.join(LEAVE_LIMIT_S)
            os._exit(1)


def _say(line: str) -> None:
    """On stderr, past the log: its lock may be held by what hangs. Rank 0 speaks for all."""
    if is_main():
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())
