"""Memory that is used again: never while somebody still looks at it, and without growth."""

import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.pool import empty_bytes, run_workers

pytestmark = pytest.mark.heavy


def painted(number: int) -> dict[str, Any]:
    """Two buffers, one of them seen twice, and a small array by copy."""
    video, middle = empty_bytes(5, 3000), empty_bytes(700)
    video[:], middle[:] = number % 251, number % 241
    return {"video": video, "again": video[:2], "middle": middle, "number": np.array([number])}


def spoilt(number: int) -> dict[str, Any]:
    """What an earlier item left in a buffer is still there; some items hand only one of their two buffers over."""
    first, second = empty_bytes(4096), empty_bytes(4096)
    first[:], second[:] = number % 251, 255
    return {"first": first} if number % 3 else {"first": first, "second": second, "pid": os.getpid()}


def growing(number: int) -> Any:
    pixels = empty_bytes(4096 * (number + 1))
    pixels[:] = number % 251
    return pixels


def mapped() -> int:
    """Buffers that are mapped in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:clip_vip_item")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_what_is_held_keeps_its_content(num_workers: int) -> None:
    """A consumer that keeps views, slices and tensors of some items for a while, and drops them in any order."""
    draw = random.Random(num_workers)
    held: list[tuple[int, Any]] = []
    for number, item in enumerate(run_workers(painted, range(300), num_workers=num_workers, prefetch=2)):
        assert int(item["number"][0]) == number
        kinds = [
            lambda item: item["video"][3:, 5:90],
            lambda item: torch.from_numpy(item["video"]).view(3000, 5)[7],
            lambda item: memoryview(item["again"][1]),
            lambda item: item["video"].reshape(-1)[::7],
        ]
        if draw.random() < 0.6:
            held.append((number, draw.choice(kinds)(item)))
        while held and draw.random() < 0.45:
            held.pop(draw.randrange(len(held)))
        for kept, view in held:
            assert (np.asarray(view) == kept % 251).all()


def test_buffers_that_were_not_handed_over_are_used_again() -> None:
    for number, item in enumerate(run_workers(spoilt, range(60), num_workers=1, prefetch=1)):
        assert (item["first"] == number % 251).all()
        assert number % 3 or (item["second"] == 255).all()


def test_memory_does_not_grow_and_goes_with_the_workers() -> None:
    before = mapped()
    items = run_workers(painted, range(200), num_workers=2, prefetch=2)
    counts = [mapped() - before for _ in items]
    # Two buffers an item; a worker has two items under way, and the trainer holds two at most.
    assert max(counts[20:]) == max(counts[:20]) <= 2 * (2 * 2 + 2) + 2
    del items
    assert mapped() == before


def test_sizes_that_are_not_asked_for_any_more_are_dropped() -> None:
    before = mapped()
    most = 0
    for number, pixels in enumerate(run_workers(growing, range(100), num_workers=1, prefetch=2)):
        assert (pixels == number % 251).all()
        most = max(most, mapped() - before)
    assert most <= 30


def test_items_may_be_dropped_in_another_thread() -> None:
    items = run_workers(painted, range(100), num_workers=1, prefetch=2)
    for number, item in enumerate(items):
        assert (item["video"] == number % 251).all()
        box = [item["video"]]
        del item
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
