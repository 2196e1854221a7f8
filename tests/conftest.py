"""What no test may leave behind for the next one in its process."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Jobs that run inside a test set RANK, WORLD_SIZE and more; the next test is a process of its own again."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ |= before
