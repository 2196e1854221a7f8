"""Waiting for a data worker, and naming one that does not answer: stopped, or stuck on a file system that is away.

    wait = Wait(channel, "worker 2", slow_after_s=60.0)
    wait.for_answer()        # returns when the channel has something to read, however long that takes

It costs one poll() where the answer is there. A worker that comes back goes on as if nothing had been.
"""

import logging
import select
import socket
import time

import psutil

SLOW_AFTER_S = 60.0
logger = logging.getLogger("clip_vip.urgent")

_MEANING = {
    psutil.STATUS_STOPPED: "stopped by a signal; kill -CONT lets it go on",
    psutil.STATUS_DISK_SLEEP: "its file system does not answer",
    psutil.STATUS_ZOMBIE: "it has ended",
}


class Wait:
    """One worker's channel, seen from the trainer."""

    def __init__(self, channel: socket.socket, name: str, slow_after_s: float = SLOW_AFTER_S) -> None:
        self.pid: int | None = None
        """Its process, once that is known."""
        self._name = name
        self._slow_after_s = slow_after_s
        self._readable = select.poll()
        self._readable.register(channel, select.POLLIN)

    def for_answer(self) -> None:
        """Wait; after `slow_after_s`, and each time the wait has doubled, log for whom and since when."""
        if self._readable.poll(1000 * self._slow_after_s):
            return
        began = time.monotonic() - self._slow_after_s
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - self._slow_after_s))
        while True:
            waited_s = time.monotonic() - began
            logger.warning(f"waits for data of {self._name} ({self._state()}) since {since}: {_shown(waited_s)} by now")
            if self._readable.poll(1000 * waited_s):
                break
        logger.warning(f"{self._name} answers again, after {_shown(time.monotonic() - began)}")

    def _state(self) -> str:
        if self.pid is None:
            return "its process has not begun yet"
        try:
            status = psutil.Process(self.pid).status()
        except psutil.Error:
            return f"process {self.pid}"
        return f"process {self.pid}, {_MEANING.get(status, status)}"


def _shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
