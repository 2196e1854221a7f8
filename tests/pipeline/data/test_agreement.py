"""Two real ranks: what goes wrong on one is known to both, and neither waits for ever."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.data import storage
from pipeline.data.agreement import Agreement
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import PipelineError

pytestmark = pytest.mark.heavy
MakeSet = Callable[..., Any]


class Ones:
    """A tokenizer; one that kills its process stands for a worker that the system kills."""

    def __init__(self, kills: bool = False) -> None:
        self.kills = kills

    def __call__(self, texts: list[str]) -> torch.Tensor:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(len(texts), 6, dtype=torch.int64)


def stream_of(
    folder: Path, rank: int, kills: bool = False, texts: tuple[str, ...] | None = None, **options: Any
) -> Stream:
    config = DataConfig(
        sources=[SourceConfig(shards=str(folder))],
        num_frames=2,
        num_text_tokens=6,
        **{"num_workers": 0, "shuffle": False, **options},
    )
    return Stream(
        config,
        global_batch_size=6,
        image_size_px=32,
        tokenize=Ones(kills),
        seed=7,
        rank=rank,
        world_size=2,
        texts=texts,
    )


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except PipelineError as error:
        return f"{type(error).__name__}: {error}"


def a_bad_sample_is_in_the_state_of_both(folder: Path, rank: int) -> Any:
    stream = stream_of(folder, rank)
    (batch,) = islice(stream, 1)
    return stream.state_dict()["bad"], len(batch.bad)


def the_tolerance_stops_both(folder: Path, rank: int) -> Any:
    return outcome(lambda: next(iter(stream_of(folder, rank, max_bad_grace=0, max_bad_fraction=0.0))))


def a_broken_file_system_on_one_stops_both(folder: Path, rank: int) -> Any:
    def broken(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    stream, real, pauses = stream_of(folder, rank), os.pread, storage.READ_RETRY_PAUSES_S
    if rank == 1:
        os.pread, storage.READ_RETRY_PAUSES_S = broken, (0.0,)
    try:
        return outcome(lambda: next(iter(stream)))
    finally:
        os.pread, storage.READ_RETRY_PAUSES_S = real, pauses


def a_killed_worker_of_one_stops_both(folder: Path, rank: int) -> Any:
    return outcome(lambda: next(iter(stream_of(folder, rank, kills=rank == 1, num_workers=rank))))


def wrong_input_on_the_first_reaches_both(folder: Path, rank: int) -> Any:
    return outcome(lambda: stream_of(folder / "nowhere" if rank == 0 else folder, rank))


def wrong_input_on_the_last_reaches_both(folder: Path, rank: int) -> Any:
    no_folder = folder / "manifest.parquet"
    return outcome(lambda: stream_of(folder, rank, index_folder=no_folder if rank == 1 else None))


def opening_has_no_time_limit(folder: Path, rank: int) -> Any:
    agreement = Agreement(2)
    agreement._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
    return agreement.each(lambda: time.sleep(2.5 * rank) or "opened")  # type: ignore[func-returns-value]


def a_masked_rank_beside_another_goes_on(folder: Path, rank: int) -> Any:
    batch = next(iter(stream_of(folder.parent / "half", rank, texts=("subtitle",))))
    return batch.valid_B.tolist() == [rank == 0] * 3


def a_batch_without_a_usable_row_stops_both(folder: Path, rank: int) -> Any:
    return outcome(lambda: next(iter(stream_of(folder.parent / "gone", rank, texts=("subtitle",)))))


def texts_that_the_loss_lacks_stop_both(folder: Path, rank: int) -> Any:
    return outcome(lambda: next(iter(stream_of(folder.parent / "silent", rank, texts=("caption",)))))


def the_end_of_one_stops_the_other(folder: Path, rank: int) -> Any:
    batches = iter(stream_of(folder, rank))
    if rank == 1:
        os._exit(0)
    return outcome(lambda: next(batches))


CASES = [
    a_bad_sample_is_in_the_state_of_both,
    the_tolerance_stops_both,
    a_broken_file_system_on_one_stops_both,
    a_killed_worker_of_one_stops_both,
    wrong_input_on_the_first_reaches_both,
    wrong_input_on_the_last_reaches_both,
    opening_has_no_time_limit,
    a_masked_rank_beside_another_goes_on,
    a_batch_without_a_usable_row_stops_both,
    texts_that_the_loss_lacks_stop_both,
    the_end_of_one_stops_the_other,
]


def be_rank(rank: int, folder: Path, store: Path, results: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for case in CASES:
        results.send(case(folder, rank))
    os._exit(0)


def test_ranks_agree_on_what_went_wrong(make_set: MakeSet, tmp_path: Path) -> None:
    written = make_set([4, 3])
    member = written.members(1)[0]  # row 4: in the second rank's half of the first batch
    with open(written.tar(1), "r+b") as tar:
        tar.seek(member["media_offset"] + 100)
        tar.write(b"\xff\x00\xff\x00")
    make_set([3, 3], "half").tar(1).unlink()
    make_set([6], "gone").tar(0).unlink()
    make_set([6], "silent", caption=None)
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(2)]
    ranks = [
        context.Process(target=be_rank, args=(rank, written.folder, tmp_path / "store", pipes[rank][1]))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    answers: list[list[Any]] = [[], []]
    for rank, number in [(0, 11), (1, 10)]:
        for _ in range(number):
            assert pipes[rank][0].poll(120), f"rank {rank} hangs in {CASES[len(answers[rank])].__name__}"
            answers[rank].append(pipes[rank][0].recv())
    for process in ranks:
        process.join(30)
    named = [member["key"], f"{written.folder}/shards/000001.tar", "media_changed"]
    assert answers[0][0] == ([named], 0) and answers[1][0] == ([named], 1)
    for case in range(1, 10):
        assert answers[0][case] == answers[1][case], CASES[case].__name__
    assert answers[0][1].startswith("RunError: 1 bad samples in 6")
    assert "Input/output error (tried 2 times)" in answers[0][2]
    assert answers[0][3].startswith("RunError: a data worker of rank 1 was killed")
    assert answers[0][4].startswith("InputError: ") and "has no manifest.parquet" in answers[0][4]
    assert answers[0][5].startswith("InputError: cannot write the index folder")
    assert answers[0][6] == "opened"
    assert answers[0][7] is True
    assert answers[0][8].startswith(
        "RunError: none of the 6 samples of batch 0 is usable: {'shard_missing': 6}, such as"
    )
    assert "/gone/shards/000000.tar (shard_missing); bring the tars back" in answers[0][8]
    assert "none has a caption, which the loss compares; check subtitle_from, caption_from" in answers[0][9]
    assert answers[0][10].startswith("RunError: another rank went away")
