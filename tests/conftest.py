"""Every test finds what it would find alone: the environment as it was, the same examples each time."""

import os
from collections.abc import Iterator

import pytest

try:
    from hypothesis import settings
except ImportError:  # on a machine with a GPU and no package index; tests/gpu does without
    pass
else:
    # To search for new examples: pytest --hypothesis-profile default
    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Jobs that run inside a test set RANK, WORLD_SIZE and more; the next test is a process of its own again."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ |= before
