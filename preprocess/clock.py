"""The time that one video may take: it runs while the video is worked on, and stands while its clips are elsewhere.

clock = Clock(limits.time_s)
with clock.stopped():
    yield outcome       # a captioner, a slow disk: not this video's fault
clock.left_s()
left_s = clock.watch()      # for a loop that looks several times a second: left_s(was_suspended)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONGEST_GAP_S = 2.0
"""Who looks at the clock more often than that, and could not, was suspended (SIGSTOP, the sleep of a laptop)."""


class Clock:
    """Counts down from `limit_s`. One thread stops it; any may look at it."""

    def __init__(self, limit_s: float) -> None:
        self._end_s: float = time.monotonic() + limit_s
        self._stopped_with_s: float | None = None

    def left_s(self) -> float:
        """Seconds that are left; negative where they are used up."""
        stopped_with_s = self._stopped_with_s
        return self._end_s - time.monotonic() if stopped_with_s is None else stopped_with_s

    def watch(self) -> Callable[[bool], float]:
        """`left_s` for a loop that calls it at least every second: a longer gap between two calls does not count, nor
        does the time before a call that says the process at work was suspended."""
        last_s = time.monotonic()

        def left_s(was_suspended: bool) -> float:
            nonlocal last_s
            now_s, before_s = time.monotonic(), last_s
            last_s = now_s
            if (was_suspended or now_s - before_s > LONGEST_GAP_S) and self._stopped_with_s is None:
                self._end_s += now_s - before_s
            return self.left_s()

        return left_s

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time inside does not count."""
        left_s = self._stopped_with_s = self.left_s()
        try:
            yield
        finally:
            self._end_s = time.monotonic() + left_s
            self._stopped_with_s = None
