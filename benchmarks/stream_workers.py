"""Workers and waiting: clips/s of 2 workers against 1, and the share of a training step spent waiting for data.

    python -m benchmarks.stream_workers [seconds per measurement]

Workers: whole batches through the stream, from a shard in the page cache; the two settings take turns. On a machine
that is busy with other work the clock measures that work too, so clips per CPU-second of the workers are printed as
well: they tell whether a second worker costs the first one anything.
Latency: the same with 30 ms added to every read, with reads ahead and one by one; the latency is added by this script.
Data wait: a step is a sleep (the GPU's time) that is 1.5 times as long as the workers need for a batch.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.stream_scale import tokenize, write_set
from pipeline.data.loader import RankLoader, Recipe
from pipeline.data.pool import run_workers
from pipeline.data.schedule import Composition
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream

BATCH = 32


def stream_of(folder: Path, num_workers: int) -> Stream:
    """Batches of 32 clips, 12 frames of 224 px."""
    config = DataConfig(sources=[SourceConfig(shards=str(folder))], num_workers=num_workers)
    return Stream(config, global_batch_size=BATCH, image_size_px=224, tokenize=tokenize, seed=1)


class FarLoader(RankLoader):
    """A loader whose local reads take longer by `latency_s`."""

    def __init__(self, recipe: Recipe, latency_s: float) -> None:
        super().__init__(recipe)
        self._latency_s = latency_s

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": (self.recipe, self._latency_s)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["arguments"])  # type: ignore[misc]

    def _read(self, slot: Any) -> bytes:
        time.sleep(self._latency_s)
        return super()._read(slot)


def far_speed(folder: Path, latency_s: float, read_ahead: int, seconds: float) -> float:
    """Clips per second of one worker, in the steady state."""
    stream = stream_of(folder, 1)

    def compositions() -> Iterator[Composition]:
        cursor = stream._schedule.start()
        while True:
            composition, cursor = stream._schedule.compose(cursor, BATCH)
            yield composition

    load = FarLoader(replace(stream._recipe(), read_ahead=read_ahead), latency_s)
    batches = run_workers(load, compositions(), num_workers=1, prefetch=2)
    for _ in range(3):
        next(batches)
    started, num_batches = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        num_batches += 1
    elapsed = time.perf_counter() - started
    batches.close()
    return num_batches * BATCH / elapsed


def workers_cpu_s() -> float:
    """CPU time of all processes below this one."""
    times = [process.cpu_times() for process in psutil.Process(os.getpid()).children(recursive=True)]
    return sum(time.user + time.system for time in times)


def speeds(folder: Path, num_workers: int, seconds: float) -> tuple[float, float]:
    """(clips per second, clips per CPU-second of the workers) in the steady state."""
    batches = iter(stream_of(folder, num_workers))
    for _ in range(2 * num_workers + 1):
        next(batches)
    started, cpu_started, num_clips = time.perf_counter(), workers_cpu_s(), 0
    while time.perf_counter() - started < seconds:
        num_clips += len(next(batches))
    elapsed, cpu_s = time.perf_counter() - started, workers_cpu_s() - cpu_started
    batches.close()  # type: ignore[attr-defined]
    return num_clips / elapsed, num_clips / cpu_s


def data_wait(folder: Path, num_workers: int, step_s: float, num_steps: int) -> tuple[float, float]:
    """(share of time that a loop of `step_s` steps waits for its next batch, the same by this process's CPU time)."""
    batches = iter(stream_of(folder, num_workers))
    for _ in range(2 * num_workers + 1):
        next(batches)
    waited, busy_s, started = 0.0, 0.0, time.perf_counter()
    for _ in range(num_steps):
        asked, cpu_asked = time.perf_counter(), time.process_time()
        next(batches)
        waited, busy_s = waited + time.perf_counter() - asked, busy_s + time.process_time() - cpu_asked
        time.sleep(step_s)
    batches.close()  # type: ignore[attr-defined]
    return waited / (time.perf_counter() - started), busy_s / (num_steps * step_s)


def print_far_speeds(folder: Path, seconds: float) -> None:
    """One worker near and far from its files; the settings take turns."""
    settings = [(0.0, 1), (0.0, 16), (0.03, 1), (0.03, 16)]
    found = [[far_speed(folder, *setting, seconds / 2) for setting in settings] for _ in range(4)]
    near_one, near, far_one, far = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"1 worker, reads from the page cache: one by one {near_one:.0f} clips/s, 16 ahead {near:.0f}")
    print(f"1 worker, 30 ms added to each read: one by one {far_one:.0f} clips/s, 16 ahead {far:.0f}")
    print(f"16 ahead / one by one: {near / near_one:.2f} near, {far / far_one:.1f} far; far / near: {far / near:.2f}")


def main(argv: list[str]) -> None:
    """Print one line per figure."""
    seconds = float(argv[0]) if argv else 6.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder, 100_000)
        pairs = [(speeds(folder, 1, seconds), speeds(folder, 2, seconds)) for _ in range(4)]
        one, two = (statistics.median(pair[which][0] for pair in pairs) for which in (0, 1))
        print(f"1 worker: {one:.0f} clips/s, 2 workers: {two:.0f} clips/s")
        ratios = [both[0] / alone[0] for alone, both in pairs]
        print(f"2 workers / 1 worker, clips per second: median {statistics.median(ratios):.2f}, best {max(ratios):.2f}")
        per_cpu = statistics.median(2 * both[1] / alone[1] for alone, both in pairs)
        print(f"2 workers / 1 worker, by the CPU time that a clip costs: {per_cpu:.2f}")
        print_far_speeds(folder, seconds)
        step_s = 1.5 * BATCH / two
        waits = [data_wait(folder, 2, step_s, 30) for _ in range(3)]
        clock, cpu = (statistics.median(column) for column in zip(*waits, strict=True))
        print(f"data wait with steps of {step_s:.3f} s: {clock:.2%} by the clock, {cpu:.2%} by CPU time")


if __name__ == "__main__":
    # Workers unpickle by module name, and `__main__` is another module there.
    from benchmarks import stream_workers

    stream_workers.main(sys.argv[1:])
