"""Worker processes, each building one shard at a time; the parent hands out shards and collects progress.

    for event in run_workers(shards, plan.folder, config, facts, num_workers):     # VideoDone | ShardDone | ShardFailed

A worker that ends (killed, out of memory, a crash inside a library) or says nothing for too long costs no shard: that
starts again in a fresh worker. The video that was being read is to blame where the same happens over it again; then it
is marked as failed, and the shard starts once more.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.data.format import Reason
from pipeline.errors import InputError, MachineFault, PipelineError, RunError
from preprocess.caption import count_gpus, worker_device
from preprocess.config import PreprocessConfig
from preprocess.faults import is_outside_signal
from preprocess.lifeline import end_with_parent
from preprocess.limits import process_status
from preprocess.plan import Plan
from preprocess.presence import Seen
from preprocess.shard import Tools, VideoDone, build_shard

MAX_POISONED_PER_SHARD = 20
_ENDS_BEFORE_BLAME = 2
"""So many workers must have ended over a video: the first may have been the machine's doing."""
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
class _Queue:
    """The shards that are not done, and what is known about those that were begun."""

    waiting: list[int]
    """Last one first."""
    before: Seen
    """Videos of the set that were looked for, in published shards and in this job."""
    poisoned: dict[int, Poisoned] = field(default_factory=dict)
    ends: dict[int, Counter[str]] = field(default_factory=dict)
    """Shard -> how many workers ended over each of its videos."""


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
    shards: Sequence[int],
    plan_folder: Path,
    config: PreprocessConfig,
    facts: dict[str, Any],
    num_workers: int,
    before: Seen,
) -> Iterator[Event]:
    """Build `shards` of the plan in `plan_folder`; events arrive as they happen, in no fixed order between shards.

    `before` tells how many videos of the set were there so far. What ends the whole job is raised: `InputError`,
    `MachineFault`.
    """
    queue = _Queue(list(reversed(shards)), before)
    workers = [_start(number, plan_folder, config, facts) for number in range(min(num_workers, len(shards)))]
    try:
        for worker in workers:
            _assign(worker, queue)
        while any(worker.shard is not None for worker in workers):
            pipes = {worker.pipe: worker for worker in workers if worker.shard is not None}
            looked_s = time.monotonic()
            ready = wait(list(pipes), timeout=_PATROL_S)
            _forgive_gap(workers, time.monotonic() - looked_s)
            for pipe in ready:
                worker = pipes[pipe]  # type: ignore[index]
                worker.heard_s = time.monotonic()
                try:
                    event = worker.pipe.recv()
                except (EOFError, OSError):
                    event = _bury(worker, queue)
                    workers[worker.number] = worker = _start(worker.number, plan_folder, config, facts)
                if isinstance(event, PipelineError):
                    raise event
                if isinstance(event, _Ready):
                    worker.is_ready = True
                    continue
                if isinstance(event, _VideoStarted):
                    worker.video_id = event.video_id
                    continue
                if isinstance(event, VideoDone):
                    queue.before += Seen(int(not event.is_missing), int(event.is_missing))
                if event is not None:
                    yield event
                if not isinstance(event, VideoDone):
                    _assign(worker, queue)
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
        if worker.shard is not None and process_status(worker.process.pid or 0).get("State", "").startswith("T"):
            worker.heard_s = time.monotonic()
        elif worker.shard is not None and time.monotonic() - worker.heard_s > silence_s:
            worker.is_silent = True
            worker.process.kill()


def _forgive_gap(workers: Iterable[_Worker], waited_s: float) -> None:
    """A wait far beyond its timeout: all of us were suspended, and no worker could say anything."""
    if waited_s > 2 * _PATROL_S:
        for worker in workers:
            worker.heard_s += waited_s


def _start(number: int, plan_folder: Path, config: PreprocessConfig, facts: dict[str, Any]) -> _Worker:
    # A fork of a clean server process: no threads, no open databases, and the libraries are imported once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preprocess.workers"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, number, plan_folder, config, facts), daemon=True)
    process.start()
    theirs.close()
    return _Worker(number, process, ours)


def _assign(worker: _Worker, queue: _Queue) -> None:
    worker.shard = queue.waiting.pop() if queue.waiting else None
    worker.video_id = ""
    worker.heard_s = time.monotonic()
    if worker.shard is not None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # gone already: it will be buried
            worker.pipe.send((worker.shard, queue.poisoned.get(worker.shard, {}), queue.before))


def _bury(worker: _Worker, queue: _Queue) -> ShardFailed | None:
    """A worker has ended: put its shard back, with the video marked over which it was not the first, or give it up.

    One that ends before it is ready would do so again over every shard: that ends the run.
    """
    worker.process.join()
    number, code = worker.shard, worker.process.exitcode
    assert number is not None
    if not worker.is_ready:
        raise RunError(
            f"a worker died while it opened the texts and the captioner ({_exit_words(code)}); give the machine more "
            "memory, or lower workers or captioner.workers_per_gpu"
        )
    known, ends = queue.poisoned.setdefault(number, {}), queue.ends.setdefault(number, Counter())
    ends[worker.video_id] += 1
    is_to_blame = ends[worker.video_id] >= _ENDS_BEFORE_BLAME
    too_many = ends.total() >= _ENDS_BEFORE_BLAME * MAX_POISONED_PER_SHARD
    # A lack of memory kills by SIGKILL; no video brings about SIGTERM, nor SIGBUS, which comes of a mapped text index.
    is_outside = code is not None and is_outside_signal(code) and code != -signal.SIGKILL
    if too_many or worker.video_id in known or (is_to_blame and (is_outside or not worker.video_id)):
        return ShardFailed(number, f"its worker died again ({_exit_words(code)})")
    queue.waiting.append(number)
    if not is_to_blame:
        return None
    if worker.is_silent:
        known[worker.video_id] = (Reason.TIME_LIMIT, "reading it hung a worker, which was killed")
    else:
        reason = Reason.MEMORY_LIMIT if code in (-signal.SIGKILL, _OUT_OF_MEMORY) else Reason.VIDEO_UNREADABLE
        known[worker.video_id] = (reason, f"reading it killed a worker ({_exit_words(code)})")
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
    end_with_parent()
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
        except PipelineError as error:  # a captioner that cannot be loaded, a video index that cannot be read
            pipe.send(error)
            return
        except Exception as error:
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            if isinstance(error, OSError) and error.filename is None:  # reading names no file
                said += f", below {config.output}"
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
        number, poisoned, before = pipe.recv()
        try:
            shard = plan.shard(number)
            events = build_shard(shard, tools, facts, poisoned, before)
            for video in shard.videos:
                pipe.send(_VideoStarted(video.video_id))
                pipe.send(next(events))
            for _ in events:
                pass
            pipe.send(ShardDone(number))
        except (BrokenPipeError, EOFError):
            raise
        except (InputError, MachineFault) as error:  # the folder belongs to another config, the videos are gone
            pipe.send(error)
            return
        except RunError as error:
            pipe.send(ShardFailed(number, str(error)))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)  # as if it had been killed: one video is to blame, not its whole shard
        except OSError as error:
            pipe.send(ShardFailed(number, f"{error.strerror}: {error.filename or tools.config.output}"))
        except Exception:
            pipe.send(ShardFailed(number, traceback.format_exc()))
