"""Worker processes, each building one shard at a time; the parent hands out shards and collects progress.

    for event in run_workers(shards, plan.folder, config, facts, num_workers):     # VideoDone | ShardDone | ShardFailed

A worker that dies (out of memory, a crash inside a library) or says nothing for too long costs one video: the shard
starts again in a fresh worker with the video that was being read marked as failed.
"""

import contextlib
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
from pipeline.errors import InputError, PipelineError, RunError
from preprocess.caption import count_gpus, worker_device
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
class _Ready:
    """A worker has opened all it needs."""


@dataclass(frozen=True, slots=True)
class _VideoStarted:
    video_id: str


Poisoned = dict[str, tuple[Reason, str]]
"""Video id -> why it must not be read again."""

Event = VideoDone | ShardDone | ShardFailed


@dataclass(slots=True)
class _Worker:
    number: int
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    is_ready: bool = False
    shard: int | None = None
    video_id: str = ""
    heard_s: float = 0.0
    """When the worker was last heard of."""
    is_silent: bool = False
    """It said nothing for too long, and was killed for it."""


def run_workers(
    shards: Sequence[int], plan_folder: Path, config: PreprocessConfig, facts: dict[str, Any], num_workers: int
) -> Iterator[Event]:
    """Build `shards` of the plan in `plan_folder`; events arrive as they happen, in no fixed order between shards."""
    waiting = list(reversed(shards))
    poisoned: dict[int, Poisoned] = {}
    workers = [_start(number, plan_folder, config, facts) for number in range(min(num_workers, len(shards)))]
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
                    workers[worker.number] = worker = _start(worker.number, plan_folder, config, facts)
                if isinstance(event, PipelineError):
                    raise event
                if isinstance(event, _Ready):
                    worker.is_ready = True
                    continue
                if isinstance(event, _VideoStarted):
                    worker.video_id = event.video_id
                    continue
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
            worker.is_silent = True
            worker.process.kill()


def _start(number: int, plan_folder: Path, config: PreprocessConfig, facts: dict[str, Any]) -> _Worker:
    # A fork of a clean server process: no threads, no open databases, and the libraries are imported once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preprocess.workers"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, number, plan_folder, config, facts), daemon=True)
    process.start()
    theirs.close()
    return _Worker(number, process, ours)


def _assign(worker: _Worker, waiting: list[int], poisoned: dict[int, Poisoned]) -> None:
    worker.shard = waiting.pop() if waiting else None
    worker.video_id = ""
    worker.heard_s = time.monotonic()
    if worker.shard is not None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # gone already: it will be buried
            worker.pipe.send((worker.shard, poisoned.get(worker.shard, {})))


def _bury(worker: _Worker, waiting: list[int], poisoned: dict[int, Poisoned]) -> ShardFailed | None:
    """A worker is gone: put its shard back with the guilty video marked, or give the shard up.

    One that dies before it is ready would die again over every shard: that ends the run.
    """
    worker.process.join()
    number, code = worker.shard, worker.process.exitcode
    assert number is not None
    if not worker.is_ready:
        raise RunError(
            f"a worker died while it opened the texts and the captioner ({_exit_words(code)}); give the machine more "
            "memory, or lower workers or captioner.workers_per_gpu"
        )
    known = poisoned.setdefault(number, {})
    if not worker.video_id or worker.video_id in known or len(known) >= MAX_POISONED_PER_SHARD:
        return ShardFailed(number, f"its worker died again ({_exit_words(code)})")
    if worker.is_silent:
        known[worker.video_id] = (Reason.TIME_LIMIT, "reading it hung a worker, which was killed")
    else:
        reason = Reason.MEMORY_LIMIT if code in (-signal.SIGKILL, _OUT_OF_MEMORY) else Reason.VIDEO_UNREADABLE
        known[worker.video_id] = (reason, f"reading it killed a worker ({_exit_words(code)})")
    waiting.append(number)
    return None


def _exit_words(code: int | None) -> str:
    if code == _OUT_OF_MEMORY:
        return "out of memory"
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _work(
    pipe: "Connection[Any, Any]", number: int, plan_folder: Path, config: PreprocessConfig, facts: dict[str, Any]
) -> None:
    """The life of a worker: shards in, events out, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    if config.captioner.kind == "none":
        # Private memory only: the databases of texts are mapped, and may be larger than the machine's memory.
        limit = (config.limits.memory_mb + _SPARE_MB) * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        try:
            tools = Tools.open(_on_own_device(config, number))
            plan = Plan.open(plan_folder)
        except InputError as error:  # a captioner that cannot be loaded, a video index that cannot be read
            pipe.send(error)
            return
        except Exception as error:
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            pipe.send(RunError(f"a worker cannot open what it needs ({type(error).__name__}: {said})"))
            return
        pipe.send(_Ready())
        _build_shards(pipe, tools, plan, facts)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _on_own_device(config: PreprocessConfig, number: int) -> PreprocessConfig:
    """The config of worker `number`: with the one device that it captions on."""
    if config.captioner.kind == "none":
        return config
    device = worker_device(config.captioner.device, number, count_gpus())
    return config.model_copy(update={"captioner": config.captioner.model_copy(update={"device": device})})


def _build_shards(pipe: "Connection[Any, Any]", tools: Tools, plan: Plan, facts: dict[str, Any]) -> None:
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
        except InputError as error:  # the folder belongs to another config
            pipe.send(error)
            return
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)  # as if it had been killed: one video is to blame, not its whole shard
        except OSError as error:
            pipe.send(ShardFailed(number, f"{error.strerror}: {error.filename or tools.config.output}"))
        except Exception:
            pipe.send(ShardFailed(number, traceback.format_exc()))
