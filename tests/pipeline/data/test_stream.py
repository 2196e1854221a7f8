"""The stream: exactly once, the same batches for every world size, resume equals uninterrupted."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from pipeline.data import stream as stream_module
from pipeline.data.agreement import Agreement
from pipeline.data.batch import Batch
from pipeline.data.loader import RankLoader
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream

MakeSet = Callable[..., Any]


class Spell:
    """A tokenizer whose ids tell the text: [1, word, number, 9, 0, 0]. Picklable, for the workers."""

    def __call__(self, texts: list[str]) -> torch.Tensor:
        ids = torch.zeros(len(texts), 6, dtype=torch.int64)
        for row, text in enumerate(texts):
            word, number = text.split()
            ids[row, :4] = torch.tensor([1, {"said": 2, "seen": 3}[word], int(number), 9])
        return ids


def stream_of(*sets: Any, batch: int = 4, rank: int = 0, world_size: int = 1, seed: int = 7, **options: Any) -> Stream:
    weights = options.pop("weights", [1.0] * len(sets))
    sources = [SourceConfig(shards=str(one.folder), weight=weight) for one, weight in zip(sets, weights, strict=True)]
    defaults: dict[str, Any] = {"num_frames": 3, "num_text_tokens": 6, "num_workers": 0}
    config = DataConfig(sources=sources, **{**defaults, **options})
    return Stream(
        config, global_batch_size=batch, image_size_px=32, tokenize=Spell(), seed=seed, rank=rank, world_size=world_size
    )


def take(stream: Stream, count: int) -> list[Batch]:
    return list(islice(stream, count))


def joined(per_rank: list[list[Batch]]) -> list[tuple[Any, ...]]:
    """Global batches from the ranks' parts, padding removed: comparable values, pixels included."""
    out = []
    for parts in zip(*per_rank, strict=True):
        rows = [
            (part.keys[row], part.video_BTCHW[row].tolist(), part.subtitle_BL[row].tolist(), bool(part.valid_B[row]))
            for part in parts
            for row in range(len(part))
            if part.keys[row]
        ]
        out.append((parts[0].index, parts[0].epoch, rows))
    return out


def test_an_epoch_holds_each_sample_once_and_the_next_one_another_order(make_set: MakeSet) -> None:
    written = make_set([5, 3, 4])
    stream = stream_of(written, batch=4)
    assert (stream.batches_per_epoch, stream.samples_per_epoch) == (3, 12)
    batches = take(stream, 6)
    epochs = [[key for batch in batches if batch.epoch == epoch for key in batch.keys] for epoch in (0, 1)]
    assert [sorted(keys) for keys in epochs] == [sorted(written.keys)] * 2
    assert epochs[0] != epochs[1]
    assert [batch.index for batch in batches] == list(range(6))


def test_what_is_waited_for_other_ranks_is_not_counted_as_waiting_for_data(
    make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    load, share = RankLoader.__call__, Agreement.share

    def slow_load(self: RankLoader, composition: Any) -> Any:
        now[0] += 1.0
        return load(self, composition)

    def slow_share(self: Agreement, *report: Any) -> Any:
        now[0] += 100.0
        return share(self, *report)

    monkeypatch.setattr(RankLoader, "__call__", slow_load)
    monkeypatch.setattr(Agreement, "share", slow_share)
    monkeypatch.setattr(stream_module.time, "perf_counter", lambda: now[0])
    stream = stream_of(make_set([8]), batch=4)
    take(stream, 2)
    assert stream.waited_s == 2.0


def test_rows_hold_their_own_frames_and_texts(make_set: MakeSet) -> None:
    written = make_set([6], num_frames=9)
    (batch,) = take(stream_of(written, batch=6, jitter=False, num_frames=3), 1)
    assert batch.video_BTCHW.shape == (6, 3, 3, 32, 32)
    for row, key in enumerate(batch.keys):
        number = int(key.split("+")[1])
        assert batch.subtitle_BL[row].tolist() == [1, 2, number, 9, 0, 0]
        assert batch.caption_BL[row].tolist() == [1, 3, number, 9, 0, 0]
        shown = batch.video_BTCHW[row].float().mean(dim=(2, 3))
        for place, frame in enumerate((0, 4, 8)):
            assert shown[place].tolist() == pytest.approx([40 + 8 * number, 20 + 5 * frame, 128], abs=4)
        assert batch.middle_BCHW[row].float().mean(dim=(1, 2))[1] == pytest.approx(20 + 5 * 4, abs=4)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_batches_are_the_same_for_every_world_size(make_set: MakeSet, world_size: int) -> None:
    written = make_set([5, 3, 4])
    alone = joined([take(stream_of(written, batch=5), 4)])
    ranks = [take(stream_of(written, batch=5, rank=rank, world_size=world_size), 4) for rank in range(world_size)]
    assert joined(ranks) == alone
    assert {len(batch) for batches in ranks for batch in batches} == {-(-5 // world_size)}
    padding = [batch for batches in ranks for batch in batches if not all(batch.keys)]
    assert all(not batch.valid_B[row] for batch in padding for row, key in enumerate(batch.keys) if not key)


@pytest.mark.parametrize("epoch_end", ["drop", "carry"])
def test_resume_equals_uninterrupted_on_other_ranks(make_set: MakeSet, epoch_end: str) -> None:
    written = make_set([5, 3, 3])
    whole = joined([take(stream_of(written, batch=4, epoch_end=epoch_end), 7)])
    first = stream_of(written, batch=4, epoch_end=epoch_end)
    take(first, 3)
    resumed = []
    for rank in range(2):
        stream = stream_of(written, batch=4, epoch_end=epoch_end, rank=rank, world_size=2)
        stream.load_state_dict(first.state_dict())
        resumed.append(take(stream, 4))
    assert joined(resumed) == whole[3:]


@pytest.mark.heavy
def test_workers_deliver_what_the_main_process_delivers(make_set: MakeSet) -> None:
    written = make_set([5, 3, 4])
    alone = joined([take(stream_of(written, batch=4), 5)])
    stream = stream_of(written, batch=4, num_workers=2)
    batches = iter(stream)
    assert joined([[next(batches) for _ in range(5)]]) == alone
    assert stream.state_dict()["cursor"]["batches"] == 5, "state advances on consumption, not on prefetch"
    batches.close()  # type: ignore[attr-defined]
