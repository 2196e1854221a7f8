"""Reads in threads, a few ahead of what is decoded: a far file system answers slowly, but many at a time.

    ahead = ReadAhead(items_of, read, depth=16)
    for item, wait in ahead.of(request): block = wait()       # in order; raises what read(item) raised

Reads of the request that comes next begin as soon as all of this one are under way, so that no batch starts with an
empty pipe. At most `depth` reads are under way or wait to be used.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from pipeline.data.pool import next_request

_LONG_S = 0.001  # from the page cache, a clip takes a tenth of it
_REQUESTS_IN_THREADS = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Reads(Generic[Item, Result]):
    """The reads of one request: begun in order, used in order."""

    request: Any
    waiting: deque[Item]
    begun: deque[tuple[Item, Future[Result]]] = field(default_factory=deque)


class ReadAhead(Generic[Item, Result]):
    """`read(item)` for each of `items_of(request)`, in order, `depth` at once where a read takes long.

    What is in memory already comes faster without threads: they cost a twentieth of the time of decoding. So a read is
    made when it is asked for, until reads take long; then threads read ahead for a number of requests.
    """

    def __init__(self, items_of: Callable[[Any], Sequence[Item]], read: Callable[[Item], Result], depth: int) -> None:
        self._items_of = items_of
        self._read = read
        self._depth = depth
        self._threads = ThreadPoolExecutor(depth, thread_name_prefix="read_ahead")  # starts none before it must
        self._requests_in_threads = 0
        self._mean_s = 0.0
        self._next: _Reads[Item, Result] | None = None

    def of(self, request: Any) -> Iterator[tuple[Item, Callable[[], Result]]]:
        """Each item of `request`, with a function that waits for its read and gives the result."""
        here, self._next = self._next, None
        if here is None or here.request is not request:
            here = _Reads(request, deque(self._items_of(request)))
        try:
            while here.waiting or here.begun:
                if self._requests_in_threads:
                    self._begin(here)
                if here.begun:
                    item, future = here.begun.popleft()
                    yield item, future.result
                else:
                    item = here.waiting.popleft()
                    yield item, partial(self._read_here, item)
        finally:
            self._requests_in_threads = max(0, self._requests_in_threads - 1)
            for _, future in here.begun:
                future.cancel()

    def _read_here(self, item: Item) -> Result:
        started = time.perf_counter()
        try:
            return self._read(item)
        finally:
            # A mean: where other processes take turns on this core, now and then a read takes their time.
            self._mean_s += (time.perf_counter() - started - self._mean_s) / 8
            if self._depth > 1 and self._mean_s > _LONG_S:
                self._requests_in_threads, self._mean_s = _REQUESTS_IN_THREADS, 0.0

    def _begin(self, here: _Reads[Item, Result]) -> None:
        """Fill the pipe: with reads of this request, then with those of the next, if it is known by now."""
        room = self._depth - len(here.begun) - (len(self._next.begun) if self._next else 0)
        room -= self._submit(here, room)
        if room and self._next is None and (request := next_request()) is not None:
            self._next = _Reads(request, deque(self._items_of(request)))
        if room and self._next is not None:
            self._submit(self._next, room)

    def _submit(self, reads: _Reads[Item, Result], room: int) -> int:
        count = min(room, len(reads.waiting))
        for _ in range(count):
            item = reads.waiting.popleft()
            reads.begun.append((item, self._threads.submit(self._read, item)))
        return count
