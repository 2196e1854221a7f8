"""What is said at the start: samples that epochs leave out, clips with fewer frames than are asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.data.schedule import Schedule
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream

MakeSet = Callable[..., Any]


def remarks(*sets: Any, batch: int, kind: str = "video", **options: Any) -> list[str]:
    sources = [SourceConfig(shards=str(one.folder), kind=kind) for one in sets]
    config = DataConfig(sources=sources, num_text_tokens=4, num_workers=0, **options)
    stream = Stream(
        config, global_batch_size=batch, image_size_px=32, tokenize=lambda texts: torch.ones(len(texts), 4), seed=3
    )
    return stream.remarks()


def test_an_epoch_says_what_it_leaves_out(make_set: MakeSet) -> None:
    written = make_set([5, 4])
    (said,) = remarks(written, batch=4, num_frames=3)
    assert said.startswith("each epoch leaves out 1 of its 9 samples, which fill no last batch of 4")
    assert remarks(written, batch=3, num_frames=3) == []
    assert remarks(written, batch=4, num_frames=3, epoch_end="carry") == []


def test_clips_with_far_fewer_frames_than_asked_for_are_told_of(make_set: MakeSet) -> None:
    short, long = make_set([2, 3], "short", num_frames=4), make_set([5], "long", num_frames=20)
    (said,) = remarks(short, long, batch=10, num_frames=12)
    assert f"data.num_frames=12, but half of the clips of {short.folder} hold at most 4 frames" in said
    assert "5 clips in 2 shards looked at, 100% hold fewer than 12" in said
    assert remarks(short, long, batch=10, num_frames=4) == []
    assert remarks(short, batch=5, num_frames=12, kind="image") == []


def test_a_sidecar_that_is_gone_by_then_stops_nothing(make_set: MakeSet) -> None:
    written = make_set([2, 3], num_frames=4)
    assert len(remarks(written, batch=5, num_frames=12)) == 1  # its index is built by now
    for shard in range(2):
        written.tar(shard).with_suffix(".parquet").unlink()
    assert remarks(written, batch=5, num_frames=12) == []


@pytest.mark.parametrize("epochs", [0.5, 1, 2.25, 5])
def test_carried_epochs_lose_less_than_a_batch_of_the_whole_run(epochs: float) -> None:
    """MSR-VTT: 9,000 videos of 20 captions, batches of 128."""
    dropped, carried = (Schedule([180_000], [1.0], end) for end in ("drop", "carry"))
    assert dropped.batches_in(epochs, 128) == round(epochs * 1406)
    assert 0 <= epochs * 180_000 - 128 * carried.batches_in(epochs, 128) < 128
