"""What a task of a job does: find its rank, meet the others, check the nodes, then run an entry by its module name.

    Work(kind="pretrain", run_folder=..., module="pipeline.train", argv=(...), distributed=True)
      -> submitit starts `run_work(work, ...)` in every task -> RANK, WORLD_SIZE, ... -> pipeline.train.main(argv)

submitit's own signal handlers act on rank 0 alone and swallow SIGTERM; they are removed here. Until the entry installs
its own, a signal ends the task, and the guard in the batch script requeues the job.
"""

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.preflight import PreflightConfig, check
from launch.rendezvous import Place, SickNodes, meet, read_place
from launch.run_folder import JobFolder, Row
from pipeline.errors import MachineFault, PipelineError

_LIBC = ctypes.CDLL(None)
VISIBLE_DEVICES = "LAUNCH_VISIBLE_DEVICES"
"""What CUDA_VISIBLE_DEVICES was where --cluster local was started."""
Kind = Literal["shards", "merge", "pretrain", "finetune", "evaluate"]


@dataclass(frozen=True)
class Work:
    """One entry to run, and how the launcher can tell its progress."""

    kind: Kind
    run_folder: Path
    module: str
    argv: tuple[str, ...]
    distributed: bool = False
    """All tasks form one process group; else each task works alone."""
    progress: str = ""
    """Files (a glob) whose number and last name change with progress."""
    finished: tuple[str, ...] = ()
    """Files one of which exists once the work is done; none: exit code 0 means done."""
    argv_after_requeue: tuple[str, ...] = ()
    """More arguments from the second start on: go on from what the job itself saved."""


@dataclass(frozen=True)
class TaskSettings:
    """What a task needs to know about the site."""

    preflight: PreflightConfig
    interface: str | None
    has_gpus: bool = False
    """The job asked for GPUs: a task that sees none is on a sick node."""
    leave_out_faulty: bool = False
    """A task that meets a fault of its machine comes back on another node."""
    exit_process: bool = True
    """End the process with the entry's exit code, for srun to see; false: return it."""


def run_work(work: Work, settings: TaskSettings) -> int:
    """Called by submitit in every task."""
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        leave_with_parent()
        # As Ctrl-C: an entry that does not save ends its own processes first.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.environ.get(VISIBLE_DEVICES):
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[VISIBLE_DEVICES]
    place = read_place()
    set_rank_environment(place, gpu_of(place) if work.distributed else place.local_rank)
    outcome = run_entry(work, settings, place)
    if outcome.code:
        note_exit(work, place, outcome, leave_out(settings, place, outcome))
    if outcome.code and settings.exit_process:
        sys.stdout.flush()
        sys.exit(outcome.code)
    return outcome.code


def leave_out(settings: TaskSettings, place: Place, outcome: "Outcome") -> Row:
    """What tells the guard to requeue the job without its sick nodes; nothing where the site does not want it."""
    sick = list(outcome.sick)
    if outcome.machine_fault and len(place.nodes) == 1:
        return {"exclude": sick, "machine_fault": True} if settings.leave_out_faulty else {}
    # Leaving out most of a job's nodes would be no remedy.
    is_remedy = settings.preflight.slow_node == "exclude" and len(sick) * 2 <= len(place.nodes)
    return {"exclude": sick} if is_remedy else {}


def note_exit(work: Work, place: Place, outcome: "Outcome", more: Row) -> None:
    """Tell the guard why this rank failed; srun tells it the exit code where the run folder cannot be written."""
    row: Row = {"time": time.time(), "rank": place.rank, "node": place.node, "code": outcome.code}
    row |= {"error": outcome.error} | more
    try:
        JobFolder(work.run_folder).add_exit(place.job, place.restart, place.rank, row)
    except OSError as failed:
        print(f"cannot write below {work.run_folder}: {failed.strerror}", file=sys.stderr, flush=True)


def leave_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent is gone, however that ended."""
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


def gpu_of(place: Place) -> int:
    """The number of this task's GPU among those that it sees: all of the node's, or by some sites' binding its own."""
    import torch

    visible = torch.cuda.device_count()
    return place.local_rank % visible if visible else place.local_rank


def set_rank_environment(place: Place, local_rank: int) -> None:
    """The variables that torchrun sets. LOCAL_RANK is what everybody takes for the number of the GPU."""
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "GROUP_RANK": str(place.rank // place.local_world_size),
    }


@dataclass(frozen=True)
class Outcome:
    """How the entry ended on this rank."""

    code: int
    error: str = ""
    """What went wrong, in one line."""
    sick: tuple[str, ...] = ()
    """The nodes to blame."""
    machine_fault: bool = False
    """The entry itself blames this one."""


def run_entry(work: Work, settings: TaskSettings, place: Place) -> Outcome:
    """Run the entry's `main`; whatever it raises becomes an outcome."""
    try:
        store = meet_and_check(work, settings, place) if work.distributed and place.world_size > 1 else None
        argv = [*work.argv, *(work.argv_after_requeue if place.restart else ())]
        code = int(importlib.import_module(work.module).main(argv) or 0)
        del store  # it had to live as long as the entry: on rank 0 it is the server
        return Outcome(code, "" if code == 0 else f"{work.module} ended with exit code {code}")
    except PipelineError as error:
        is_fault = isinstance(error, MachineFault)
        print(f"{'machine fault' if is_fault else 'error'}: {error}", file=sys.stderr, flush=True)
        sick = error.nodes if isinstance(error, SickNodes) else [place.node] * is_fault
        return Outcome(error.exit_code, str(error), tuple(sick), is_fault)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        return Outcome(code, f"{work.module} ended with exit code {code}" if code else "")
    except KeyboardInterrupt:
        return Outcome(1, "interrupted")
    except BaseException as error:
        traceback.print_exc()
        return Outcome(1, in_words(error))


def in_words(error: BaseException) -> str:
    """An error that nobody foresaw, in one line; one of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]


def meet_and_check(work: Work, settings: TaskSettings, place: Place) -> Any:
    """Let all ranks meet, then look at the nodes before training starts."""
    folder = JobFolder(work.run_folder).path / "rendezvous"
    store = meet(place, folder=folder, timeout_s=settings.preflight.meet_timeout_s, interface=settings.interface)
    if work.kind in ("pretrain", "finetune"):
        check(place, store, settings.preflight, work.run_folder, has_gpus=settings.has_gpus)
    return store
