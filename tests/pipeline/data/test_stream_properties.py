"""Whatever sizes, sources, ranks, workers and damage: the union is exact, worlds agree, resume equals uninterrupted."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.batch import Batch
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream

MakeSet = Callable[..., Any]


class Spell:
    """A tokenizer whose ids tell the text."""

    def __call__(self, texts: list[str]) -> torch.Tensor:
        ids = torch.zeros(len(texts), 4, dtype=torch.int64)
        ids[:, 1] = torch.tensor([int(text.split()[1]) for text in texts])
        return ids


@dataclass(frozen=True)
class Case:
    """One drawn situation."""

    sizes: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    batch: int
    ranks: tuple[int, int]
    workers: tuple[int, int]
    window: int | None
    epoch_end: str
    damaged: frozenset[int]
    stop_after: int


@st.composite
def cases(draw: st.DrawFn, max_workers: int) -> Case:
    """Ragged shards, one to three sources, worlds of 1 to 7, some clips of the first source damaged."""
    shards = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
    sizes = tuple(draw(st.lists(shards, min_size=1, max_size=3)))
    return Case(
        sizes=sizes,
        weights=tuple(draw(st.sampled_from([0.25, 1.0, 2.0])) for _ in sizes),
        batch=draw(st.integers(1, min(7, sum(sizes[0])))),
        ranks=(draw(st.integers(1, 7)), draw(st.integers(1, 7))),
        workers=(draw(st.integers(0, max_workers)), draw(st.integers(0, max_workers))),
        window=draw(st.one_of(st.none(), st.integers(1, 3))),
        epoch_end=draw(st.sampled_from(["drop", "carry"])),
        damaged=frozenset(draw(st.sets(st.integers(0, sum(sizes[0]) - 1), max_size=2))),
        stop_after=draw(st.integers(0, 5)),
    )


class World:
    """Ranks played one after the other; rows of global batches come out with their padding removed."""

    def __init__(self, case: Case, folders: list[str], world_size: int, workers: int = 0) -> None:
        sources = [
            SourceConfig(shards=folder, weight=weight) for folder, weight in zip(folders, case.weights, strict=True)
        ]
        config = DataConfig(
            sources=sources,
            num_frames=2,
            num_text_tokens=4,
            num_workers=workers,
            prefetch_batches=1,
            shuffle_window_shards=case.window,
            epoch_end=case.epoch_end,
        )
        self.streams = [
            Stream(
                config,
                global_batch_size=case.batch,
                image_size_px=32,
                tokenize=Spell(),
                seed=5,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]

    def take(self, count: int) -> list[list[Any]]:
        iterators = [iter(stream) for stream in self.streams]
        taken = [_rows([next(batches) for batches in iterators]) for _ in range(count)]
        for batches in iterators:
            batches.close()  # type: ignore[attr-defined]
        return taken

    def state(self) -> dict[str, Any]:
        """What every rank would have: ranks that a test plays one after the other know their own bad samples only."""
        states = [stream.state_dict() for stream in self.streams]
        assert all(state["cursor"] == states[0]["cursor"] for state in states)
        bad = {tuple(sample[:2]): sample for state in states for sample in state["bad"]}
        return {**states[0], "bad": [bad[name] for name in sorted(bad)]}

    def resume(self, state: dict[str, Any]) -> "World":
        for stream in self.streams:
            stream.load_state_dict(state)
        return self


def _rows(parts: list[Batch]) -> list[Any]:
    return [
        (
            part.index,
            part.epoch,
            part.sources[row],
            part.keys[row],
            bool(part.valid_B[row]),
            part.subtitle_BL[row].tolist(),
            int(part.video_BTCHW[row].sum()),
            int(part.middle_BCHW[row].sum()),
        )
        for part in parts
        for row in range(len(part))
        if part.keys[row]
    ]


def check(case: Case, make_set: MakeSet) -> None:
    """The three properties for one case."""
    written = [make_set(list(sizes), f"set_{os.urandom(8).hex()}") for sizes in case.sizes]
    folders = [str(one.folder) for one in written]
    damaged = set()
    members = [(shard, member) for shard in range(len(case.sizes[0])) for member in written[0].members(shard)]
    for number in case.damaged:
        shard, member = members[number]
        damaged.add(member["key"])
        with open(written[0].tar(shard), "r+b") as tar:
            tar.seek(member["media_offset"] + 60)
            tar.write(b"\0\xff\0\xff\0\xff")
    alone = World(case, folders, 1)
    num_epoch = alone.streams[0].batches_in(2)
    num_batches = max(num_epoch, case.stop_after + 2)
    whole = alone.take(num_batches)

    first = [row for batch in whole for row in batch if row[2] == 0]
    rows_of_epochs = Counter(row[3] for row in first)
    assert all(len(batch) == case.batch for batch in whole)
    assert {row[3] for row in first if not row[4]} == damaged & set(rows_of_epochs)
    for number, one in enumerate(written):
        drawn = [row[3] for batch in whole for row in batch if row[2] == number]
        size = len(one.keys)
        if number or case.epoch_end == "carry":
            # The source's own epochs follow each other without a gap.
            for start in range(0, len(drawn) - size + 1, size):
                assert Counter(drawn[start : start + size]) == Counter(one.keys)
            assert max(Counter(drawn[len(drawn) - len(drawn) % size :]).values(), default=1) == 1
        else:
            for epoch in range(2):
                keys = [row[3] for row in first if row[1] == epoch]
                assert len(set(keys)) == len(keys) >= size - case.batch + 1

    interrupted = World(case, folders, case.ranks[0], case.workers[0])
    assert interrupted.take(case.stop_after) == whole[: case.stop_after]
    resumed = World(case, folders, case.ranks[1], case.workers[1]).resume(interrupted.state())
    assert resumed.take(num_batches - case.stop_after) == whole[case.stop_after :]


RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.heavy
@given(case=cases(max_workers=0))
@settings(max_examples=12, deadline=None, suppress_health_check=RELAXED, derandomize=True)
def test_union_worlds_and_resume(case: Case, make_set: MakeSet) -> None:
    check(case, make_set)


@pytest.mark.heavy
@given(case=cases(max_workers=3))
@settings(max_examples=4, deadline=None, suppress_health_check=RELAXED, derandomize=True)
def test_union_worlds_and_resume_with_workers(case: Case, make_set: MakeSet) -> None:
    check(case, make_set)


@pytest.mark.slow
@given(case=cases(max_workers=3))
@settings(max_examples=80, deadline=None, suppress_health_check=RELAXED)
def test_union_worlds_and_resume_in_many_cases(case: Case, make_set: MakeSet) -> None:
    check(case, make_set)
