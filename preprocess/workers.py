"""Worker processes, each building one shard at a time; the parent hands out shards and collects progress.

    for event in run_workers(shards, plan.folder, config, facts, num_workers):     # VideoDone | ShardDone | ShardFailed

A worker that dies (out of memory, a crash inside a library) or says nothing for too long costs one video: the shard
starts again in a fresh worker with the video that was being read marked as failed.
"""

import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.config import PreprocessConfig
from preprocess.plan import Plan
from preprocess.shard import Tools, VideoDone, build_shard

MAX_POISONED_PER_SHARD = 20
_PATROL_S = 30.0
_PATIENCE_S = 600.0
_OUT_OF_MEMORY = 86
"""Exit code of a worker whose own limit of memory was met."""
_SPARE_MB = 2048
"""What a worker may use beside the limit of a video."""


@dataclass(frozen=True, slots=True)
class ShardDone:
    number: int


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """A shard that could not be written: a full disk, a bug. Nothing of it is visible."""

    number: int
    problem: str


@dataclass(frozen=True, slots=True)
class _VideoStarted:
    video_id: str


Poisoned = dict[str, tuple[Reason, str]]
"""Video id -> why it must not be read again."""

Event = VideoDone | ShardDone | ShardFailed


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    shard: int | None = None
    video_id: str = ""
    heard_s: float = 0.0
    """When the worker was last heard of."""


def run_workers(
    shards: Sequence[int], plan_folder: Path, config: PreprocessConfig, facts: dict[str, Any], num_workers: int
) -> Iterator[Event]:
    """Build `shards` of the plan in `plan_folder`; events arrive as they happen, in no fixed order between shards."""
    waiting = list(reversed(shards))
    poisoned: dict[int, Poisoned] = {}
    workers = [_start(plan_folder, config, facts) for _ in range(min(num_workers, len(shards)))]
    try:
        for worker in workers:
            _assign(worker, waiting, poisoned)
        while any(worker.shard is not None for worker in workers):
            pipes = {worker.pipe: worker for worker in workers if worker.shard is not None}
            for pipe in wait(list(pipes), timeout=_PATROL_S):
                worker = pipes[pipe]  # type: ignore[index]
                worker.heard_s = time.monotonic()
                try:
                    event = worker.pipe.recv()
                except (EOFError, OSError):
                    event = _bury(worker, waiting, poisoned)
                    workers[workers.index(worker)] = worker = _start(plan_folder, config, facts)
                if isinstance(event, _VideoStarted):
                    worker.video_id = event.video_id
                    continue
                if isinstance(event, InputError):
                    raise event
                if event is not None:
                    yield event
                if not isinstance(event, VideoDone):
                    _assign(worker, waiting, poisoned)
            _kill_silent(pipes.values(), config)
    finally:
        for worker in workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _kill_silent(workers: Iterable[_Worker], config: PreprocessConfig) -> None:
    """ffmpeg has its own deadline; this one is for a library that hangs inside the worker itself."""
    silence_s = 2 * config.limits.time_s + _PATIENCE_S
    for worker in workers:
        if worker.shard is not None and time.monotonic() - worker.heard_s > silence_s:
            worker.process.kill()


def _start(plan_folder: Path, config: PreprocessConfig, facts: dict[str, Any]) -> _Worker:
    # A fork of a clean server process: no threads, no open databases, and the libraries are imported once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preprocess.workers"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, plan_folder, config, facts), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _assign(worker: _Worker, waiting: list[int], poisoned: dict[int, Poisoned]) -> None:
    worker.shard = waiting.pop() if waiting else None
    worker.video_id = ""
    worker.heard_s = time.monotonic()
    if worker.shard is not None:
        worker.pipe.send((worker.shard, poisoned.get(worker.shard, {})))


def _bury(worker: _Worker, waiting: list[int], poisoned: dict[int, Poisoned]) -> ShardFailed | None:
    """A worker is gone: put its shard back with the guilty video marked, or give the shard up."""
    worker.process.join()
    number = worker.shard
    assert number is not None
    known = poisoned.setdefault(number, {})
    cause = f"reading it killed a worker ({_exit_words(worker.process.exitcode)})"
    if not worker.video_id or worker.video_id in known or len(known) >= MAX_POISONED_PER_SHARD:
        return ShardFailed(number, f"its worker died again ({_exit_words(worker.process.exitcode)})")
    killed = worker.process.exitcode in (-signal.SIGKILL, _OUT_OF_MEMORY)
    known[worker.video_id] = (Reason.MEMORY_LIMIT if killed else Reason.VIDEO_UNREADABLE, cause)
    waiting.append(number)
    return None


def _exit_words(code: int | None) -> str:
    if code == _OUT_OF_MEMORY:
        return "out of memory"
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _work(pipe: "Connection[Any, Any]", plan_folder: Path, config: PreprocessConfig, facts: dict[str, Any]) -> None:
    """The life of a worker: shards in, events out, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    if config.captioner.kind == "none":
        # Private memory only: the databases of texts are mapped, and may be larger than the machine's memory.
        limit = (config.limits.memory_mb + _SPARE_MB) * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        try:
            tools = Tools.open(config)
            plan = Plan.open(plan_folder)
        except InputError as error:  # a captioner that cannot be loaded, a video index that cannot be read
            pipe.send(error)
            return
        while True:
            number, poisoned = pipe.recv()
            try:
                shard = plan.shard(number)
                events = build_shard(shard, tools, facts, poisoned)
                for video in shard.videos:
                    pipe.send(_VideoStarted(video.video_id))
                    pipe.send(next(events))
                for _ in events:
                    pass
                pipe.send(ShardDone(number))
            except (BrokenPipeError, EOFError):
                raise
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)  # as if it had been killed: one video is to blame, not its whole shard
            except OSError as error:
                pipe.send(ShardFailed(number, f"{error.strerror}: {error.filename or config.output}"))
            except Exception:
                pipe.send(ShardFailed(number, traceback.format_exc()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
