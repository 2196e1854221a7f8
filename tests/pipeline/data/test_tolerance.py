"""Nothing is learned from nothing: a batch without a usable row and a source that is mostly bad end the run."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import RunError
from pipeline.log import logger

MakeSet = Callable[..., Any]
BOTH = ("subtitle", "caption")


def stream_of(*sets: Any, batch: int, texts: tuple[str, ...] | None, **options: Any) -> Stream:
    sources = [SourceConfig(shards=str(one.folder)) for one in sets]
    config = DataConfig(sources=sources, num_frames=2, num_text_tokens=4, **{"num_workers": 0, **options})
    return Stream(
        config,
        global_batch_size=batch,
        image_size_px=32,
        tokenize=lambda words: torch.ones(len(words), 4, dtype=torch.int64),
        seed=3,
        texts=texts,
    )


def spoil(written: Any, numbers: range) -> None:
    members = [(shard, row) for shard in range(len(written.shards)) for row in written.members(shard)]
    for number in numbers:
        shard, row = members[number]
        with open(written.tar(shard), "r+b") as tar:
            tar.seek(row["media_offset"] + 100)
            tar.write(b"\xff\0\xff\0")


def test_a_batch_without_a_readable_sample_names_source_reason_example_and_way_out(make_set: MakeSet) -> None:
    written = make_set([4, 4])
    spoil(written, range(4, 8))
    batches = iter(stream_of(written, batch=4, texts=BOTH, shuffle=False))
    assert next(batches).valid_B.all()
    words = (
        r"none of the 4 samples of batch 1 is usable: \{'media_changed': 4\}, such as v0\+4 of .*/set/shards/000001.tar"
    )
    with pytest.raises(RunError, match=words + r" \(media_changed\); the media differ .*; then resume"):
        next(batches)


@pytest.mark.parametrize(
    ("fields", "texts", "is_usable"),
    [
        ({"caption": None}, ("subtitle",), True),
        ({"caption": None}, BOTH, True),
        ({"caption": None}, ("caption",), False),
        ({"subtitle": None}, ("subtitle",), False),
        ({"subtitle": None, "caption": None}, BOTH, False),
        ({"subtitle": None, "caption": None}, None, True),
    ],
)
def test_a_row_is_usable_with_a_text_that_the_loss_compares(
    make_set: MakeSet, fields: dict[str, Any], texts: tuple[str, ...] | None, is_usable: bool
) -> None:
    stream = stream_of(make_set([4], **fields), batch=4, texts=texts)
    if is_usable:
        assert next(iter(stream)).valid_B.all()
    else:
        with pytest.raises(RunError, match=f"none has a {' or a '.join(texts or ())}, which the loss compares"):
            next(iter(stream))


def test_a_text_that_no_sample_has_is_told_of_at_the_start(
    make_set: MakeSet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped caption_from takes the terms with captions out of the loss."""
    monkeypatch.setattr(logger, "propagate", True)
    next(iter(stream_of(make_set([4], caption=None), batch=4, texts=BOTH)))
    assert [record.message for record in caplog.records] == [
        "no sample of the first batch has a caption, which the loss compares; check caption_from of data.sources"
    ]
    caplog.clear()
    next(iter(stream_of(make_set([4], "whole"), batch=4, texts=BOTH)))
    next(iter(stream_of(make_set([4], "other", caption=None), batch=4, texts=("subtitle",))))
    assert not caplog.records


def test_the_grace_is_never_for_most_of_a_small_set(make_set: MakeSet) -> None:
    """One batch has usable rows each time: what ends the run is the share of the source."""
    written = make_set([3, 4])
    spoil(written, range(3))
    assert int(next(iter(stream_of(written, batch=7, texts=BOTH))).valid_B.sum()) == 4
    spoil(written, range(3, 4))
    with pytest.raises(RunError, match=r"4 of the 7 samples of .*/set are bad \(\{'media_changed': 4\}\), such as v"):
        next(iter(stream_of(written, batch=7, texts=BOTH)))
    next(iter(stream_of(written, batch=7, texts=BOTH, max_bad_fraction=0.6)))


def test_a_small_source_is_not_lost_beside_a_large_one(make_set: MakeSet) -> None:
    large, small = make_set([20], "large"), make_set([2, 2], "large/small")
    spoil(small, range(3))
    with pytest.raises(RunError, match=r"3 of the 4 samples of .*/large/small are bad"):
        list(islice(stream_of(large, small, batch=8, texts=BOTH), 3))


def test_the_count_goes_on_after_a_resume(make_set: MakeSet) -> None:
    written = make_set([10])
    spoil(written, range(6))
    first = stream_of(written, batch=5, texts=BOTH, shuffle=False, max_bad_fraction=1.0)
    with pytest.raises(RunError, match="none of the 5"):
        next(iter(first))
    spoil_fewer = make_set([2, 8], "other")
    spoil(spoil_fewer, range(6))
    stream = stream_of(spoil_fewer, batch=5, texts=None, shuffle=False)
    next(iter(stream))
    resumed = stream_of(spoil_fewer, batch=5, texts=BOTH, shuffle=False)
    resumed.load_state_dict(stream.state_dict())
    with pytest.raises(RunError, match="6 of the 10 samples of"):
        next(iter(resumed))
