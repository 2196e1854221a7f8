"""Whether the process that holds something is still at work, found out without trusting clocks or process numbers.

    me = this_process()                                   # JSON-able, kept by whoever holds the thing
    is_alive = seen_here(me, pid)                         # True, False, or None: it cannot be seen from here
    beats = Heartbeat(path, clock).changes_within(90.0)   # else: does the file that it touches change?

Process numbers mean something only within one boot of one kernel and one namespace: another container of the same host
has the same name and the same numbers. Wall clocks are stepped, so a heartbeat's age says nothing; whether it changes
while one looks at it does.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.retry import retried

POLL_S = 1.0
_START_FIELD = 22 - 3
"""`starttime` of proc(5)'s stat, in the fields that follow the command's name: ticks since the boot."""


@dataclass(frozen=True)
class Clock:
    """Time that only runs forward; tests bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


SYSTEM_CLOCK = Clock()


def this_process() -> dict[str, Any]:
    """What tells this process from all others, beside its number: boot, namespace and start. None where unknown."""
    found: dict[str, Any] = {"boot_id": None, "pid_namespace": None, "start_ticks": None}
    with suppress(OSError):
        # A /proc of another namespace, as some containers have it, would show other processes under our numbers.
        if Path("/proc/self").readlink().name == str(os.getpid()):
            found["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            found["pid_namespace"] = str(Path("/proc/self/ns/pid").readlink())
            found["start_ticks"] = _start_ticks(os.getpid())
    return found


def seen_here(holder: dict[str, Any], pid: int) -> bool | None:
    """Whether process `pid`, of which `this_process` once gave `holder`, is alive; None where this process can't tell.

    False is proof: the same boot, the same namespace, and there the number is free or another process's by now.
    """
    here = this_process()
    if any(here[name] is None or holder.get(name) != here[name] for name in ("boot_id", "pid_namespace")):
        return None
    try:
        os.kill(pid, 0)  # /proc may hide what belongs to another user; this does not
        return bool(_start_ticks(pid) == holder["start_ticks"])
    except ProcessLookupError:
        return False
    except OSError:
        return None


def _start_ticks(pid: int) -> int | None:
    """When the process started, in ticks since the boot; None for one that ended and was not yet waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[_START_FIELD])


@dataclass(frozen=True)
class Heartbeat:
    """A file that its holder touches now and then."""

    path: Path
    clock: Clock = SYSTEM_CLOCK

    def changes_within(self, seconds: float) -> bool:
        """Whether the file changes, or goes, while `seconds` pass by this process's own clock."""
        first, began = self._state(), self.clock.monotonic()
        while self.clock.monotonic() - began < seconds:
            self.clock.sleep(POLL_S)
            if self._state() != first:
                return True
        return False

    def _state(self) -> tuple[int, int, int] | None:
        try:
            status = retried(self._opened, self.path)
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _opened(self) -> os.stat_result:
        with open(self.path, "rb") as stream:  # NFS asks the server anew when a file is opened
            return os.fstat(stream.fileno())
