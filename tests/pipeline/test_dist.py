"""What a process may do, before there are ranks."""

import resource
from collections.abc import Iterator

import pytest

from pipeline.dist import allow_open_files
from pipeline.train import main


@pytest.fixture
def few_open_files() -> Iterator[int]:
    """The usual limit of a login shell; gives the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_are_allowed_as_far_as_they_may_be(few_open_files: int) -> None:
    allow_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_open_files, few_open_files)


def test_training_starts_with_that(few_open_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    def start(_: object) -> None:
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == few_open_files
        raise Started

    monkeypatch.setattr("pipeline.train.start_distributed", start)
    with pytest.raises(Started):
        main(["configs/pretrain/b32.yaml", "engine.device=cpu", "engine.precision=fp32"])
