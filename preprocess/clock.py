"""The time that one video may take: it runs while the video is worked on, and stands while its clips are elsewhere.

clock = Clock(limits.time_s)
with clock.stopped():
    yield outcome       # a captioner, a slow disk: not this video's fault
clock.left_s()
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts down from `limit_s`. One thread stops it; any may look at it."""

    def __init__(self, limit_s: float) -> None:
        self._end_s: float = time.monotonic() + limit_s
        self._stopped_with_s: float | None = None

    def left_s(self) -> float:
        """Seconds that are left; negative where they are used up."""
        stopped_with_s = self._stopped_with_s
        return self._end_s - time.monotonic() if stopped_with_s is None else stopped_with_s

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time inside does not count."""
        left_s = self._stopped_with_s = self.left_s()
        try:
            yield
        finally:
            self._end_s = time.monotonic() + left_s
            self._stopped_with_s = None
