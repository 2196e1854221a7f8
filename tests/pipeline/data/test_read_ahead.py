"""Reads overlap, are bounded and in order, go on into the next request, and fail in their turn."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import read_ahead, storage
from pipeline.data.pool import next_request, run_workers
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.storage import LocalFolder, open_files_for
from pipeline.errors import RunError


def items_of(request: Sequence[int]) -> list[int]:
    return list(request)


@pytest.fixture(autouse=True)
def every_read_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_LONG_S", 0.0)


class Counted:
    """Tells how many reads have begun and not been used; a read ends at once."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.guard = threading.Lock()

    def __call__(self, item: int) -> int:
        with self.guard:
            self.begun.append(item)
        return item * item


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_results_come_in_order_and_no_more_are_begun_than_the_depth(depth: int) -> None:
    read = Counted()
    for item, wait in ReadAhead(items_of, read, depth).of(range(20)):
        assert wait() == item * item
        assert len(read.begun) <= item + depth
    assert sorted(read.begun) == list(range(20))


def test_reads_overlap() -> None:
    """After the first, every read waits until four are under way: one after the other they would wait for ever."""
    together = threading.Barrier(4)

    def read(item: int) -> int:
        if item:
            together.wait(60)
        return item

    assert [wait() for _, wait in ReadAhead(items_of, read, 4).of(range(9))] == list(range(9))


def test_what_is_at_hand_is_read_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_LONG_S", 60.0)
    ahead = ReadAhead(items_of, lambda item: (item, threading.get_ident()), 4)
    me = threading.get_ident()
    assert [wait() for _, wait in ahead.of(range(5))] == [(item, me) for item in range(5)]
    ahead._requests_in_threads = 1
    assert all(thread != me for _, thread in (wait() for _, wait in ahead.of(range(5))))
    assert all(thread == me for _, thread in (wait() for _, wait in ahead.of(range(5))))


def test_an_error_is_raised_in_its_turn() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise RunError("the file system keeps failing")
        return item

    met: list[int] = []
    with pytest.raises(RunError, match="keeps failing"):
        for _, wait in ReadAhead(items_of, read, 8).of(range(6)):
            met.append(wait())
    assert met == [0, 1]


def test_reads_of_the_next_request_begin_when_all_of_this_one_have(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = range(3), range(10, 20)
    monkeypatch.setattr(read_ahead, "next_request", lambda: second)
    read = Counted()
    ahead = ReadAhead(items_of, read, 4)
    assert [wait() for _, wait in ahead.of(first)] == [0, 1, 4]
    while len(read.begun) < 6:
        time.sleep(0.001)
    assert sorted(read.begun) == [0, 1, 2, 10, 11, 12]
    monkeypatch.setattr(read_ahead, "next_request", lambda: None)
    assert [wait() for _, wait in ahead.of(second)] == [item * item for item in second]
    assert sorted(read.begun) == [0, 1, 2, *second]  # none was made twice


def peeked(number: int) -> tuple[int, Any]:
    deadline = time.monotonic() + 60
    while number < 5 and next_request() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return number, next_request()


@pytest.mark.heavy
def test_a_worker_can_see_its_next_request() -> None:
    assert list(run_workers(peeked, range(6), num_workers=1, prefetch=2)) == [
        *((number, number + 1) for number in range(5)),
        (5, None),
    ]
    assert next_request() is None


def test_threads_read_what_is_there_while_files_are_closed_and_opened(tmp_path: Path) -> None:
    """One file may stay open, so that nearly every read closes a file that another thread is reading."""
    contents = {f"{number}.tar": np.random.default_rng(number).bytes(1000) for number in range(5)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    folder = LocalFolder(tmp_path, max_open_files=1)
    before = len(list(Path("/proc/self/fd").iterdir()))

    def read(number: int) -> bool:
        name, start = random.choice(list(contents)), number % 900
        return folder.read(name, start, 100) == contents[name][start : start + 100]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(4000)))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_window_of_shards_stays_open_as_far_as_descriptors_go(monkeypatch: pytest.MonkeyPatch) -> None:
    limit: Callable[[int], tuple[int, int]] = lambda _: (4096, 4096)  # noqa: E731
    monkeypatch.setattr(storage.resource, "getrlimit", limit)
    assert open_files_for(None, 1) == open_files_for(16, 1) == storage.MAX_OPEN_FILES
    assert (open_files_for(1024, 1), open_files_for(1024, 4), open_files_for(10_000, 1)) == (1024, 512, 2048)
