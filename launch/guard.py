"""Runs in the batch script around srun and decides whether the job is requeued. Standard library only.

    python -m launch.guard started RUN_FOLDER --progress GLOB --finished FILE...
    python -m launch.guard ended   RUN_FOLDER --progress GLOB --finished FILE... --code 137
    python -m launch.guard timeout RUN_FOLDER ...        # after a SIGTERM: was it the time limit?

SLURM requeues by itself after a lost node and after a preemption that outlasted its grace time, and does nothing when a
rank is killed, when the run stopped on a signal, or when the time limit was reached before the ranks were done. Those
are ours, as long as the job made progress since it last started: launch/decision.py says what follows. A run folder
that cannot be read or written (full, read-only, gone) and a slurmctld that is away end no job by themselves.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from launch.controller import Controller, JobNow
from launch.decision import (
    AGAIN,
    REQUEUED_BY_SLURM,
    Decision,
    Ending,
    count_futile,
    count_unrecorded,
    decide,
    why_none_left,
)
from launch.rendezvous import expand_nodes
from launch.run_folder import JobFolder, Row, progress_mark

Value = TypeVar("Value")

LOOK_TIMEOUT_S = 20.0
"""How long the watcher of the time limit waits for slurmctld before it looks again."""
EXCLUDE_TRIES = 10
MAX_AGAIN = 2
"""So often a node may be left out and come all the same: of two tasks that do it together, one may undo the other's."""


def main(argv: list[str], controller: Controller | None = None) -> int:
    """Record a start, or decide at the end; the exit code is that of the job."""
    given = parse(argv)
    folder, job, restart = JobFolder(given.run_folder), job_name(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    progress = progress_mark(given.progress)
    if given.event == "started":
        row: Row = {"event": "started", "restart": restart, "progress": progress}
        note(folder, job, row | {"nodes": os.environ.get("SLURM_JOB_NODELIST", "")})
        return 0
    timeout_s = min(LOOK_TIMEOUT_S, given.timeout) if given.event == "timeout" else given.timeout
    controller = controller or Controller(timeout_s, say=say)
    now = controller.job(job)
    if given.event == "timeout" and now.reason != "TimeLimit":
        # A SIGTERM at the start of a grace time: the ranks are saving. Exit code 1: ask again later.
        return 1
    # Where this cannot be noted, the slower of two guards finds the job requeued already.
    if not on_disk("note who decides", lambda: folder.claim_decision(job, restart), otherwise=True):
        return int(given.code)
    exits: list[Row] = on_disk("read why ranks failed", lambda: folder.exits(job, restart), otherwise=[])
    events = folder.events(job)
    excluded = sorted({node for row in exits for node in row.get("exclude", [])})
    machine_fault = any(row.get("machine_fault") for row in exits)
    end = Ending(
        code=given.code,
        restart=restart,
        state=now.state,
        state_reason=now.reason,
        restarts_now=now.restarts,
        preempted=now.preempted,
        finished=is_finished(given.finished, given.code),
        futile=count_futile(events, progress),
        rank_codes=tuple(row["code"] for row in exits),
        first_failure=in_words(exits[0]) if exits else "",
        may_requeue=not given.no_requeue,
        excluded=",".join(excluded),
        machine_fault=machine_fault,
        no_exclusion=why_no_exclusion(controller, now, events, folder, job, excluded) if machine_fault else "",
        slurm_problem=now.problem,
        requeue_exit_code=given.requeue_exit_code,
    )
    return carry_out(end, folder, job, exits, progress, controller, now)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as launch/script.py writes it."""
    parser = argparse.ArgumentParser(prog="python -m launch.guard", description="see the head of launch/guard.py")
    parser.add_argument("event", choices=("started", "ended", "timeout"))
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--progress", default="", help="files whose number and last name tell the progress")
    parser.add_argument("--finished", nargs="*", default=[], help="files one of which exists when the work is done")
    parser.add_argument("--no-requeue", action="store_true", help="decide and record, but never requeue")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for a slurmctld that is away")
    parser.add_argument("--requeue-exit-code", type=int, help="exit code that slurm.conf requeues (RequeueExit)")
    parser.add_argument("--code", type=int, default=0, help="exit code of srun")
    return parser.parse_args(argv)


def in_words(exited: Row) -> str:
    """Which rank failed, where and why."""
    how = " by a fault of its machine" if exited.get("machine_fault") else ""
    return f"rank {exited['rank']} on {exited['node']} failed{how}: {exited['error']}"


def is_finished(files: Sequence[str], code: int) -> bool:
    """Whether the work is done: one of the files is there, or, without such files, the job ended well."""
    if not files:
        return code == 0
    return on_disk("look whether the work is done", lambda: any(Path(file).exists() for file in files), otherwise=False)


def why_no_exclusion(
    controller: Controller, now: JobNow, events: Sequence[Row], folder: JobFolder, job: str, nodes: Sequence[str]
) -> str:
    """Why leaving out `nodes` beside those that are left out already is no way on; empty where it is one."""
    again = [name for name in nodes if left_out(events).count(name) >= MAX_AGAIN]
    if again:
        return f"{again[0]} was left out before, but SLURM gave it again: take it out of service"
    return why_none_left(
        without_nodes(now, folder, job, nodes), controller.usable_nodes(now.partition, now.features), now.partition
    )


def without_nodes(now: JobNow, folder: JobFolder, job: str, nodes: Sequence[str]) -> list[str]:
    """`nodes`, those that the job leaves out already, and those on which other tasks of its array met a fault."""
    known = [name for text in now.excluded for name in expand_nodes(text)]
    if is_task(job):
        known += left_out([row for rows in folder.array_events(array_of(job)).values() for row in rows])
    return list(dict.fromkeys([*known, *nodes]))


def carry_out(
    end: Ending, folder: JobFolder, job: str, exits: list[Row], progress: str, controller: Controller, now: JobNow
) -> int:
    """Decide, record and say it, requeue if that is the decision; returns the exit code of the job."""
    decision = decide(end)
    row: Row = {"event": "ended", "restart": end.restart, "code": end.code, "progress": progress}
    without = {"excluded": end.excluded} if end.excluded and not end.slurm_is_away else {}
    # Recorded before it is asked for: SLURM may end this process as soon as it has granted it.
    recorded = note(folder, job, row | verdict(decision) | {"failed_ranks": exits[:8]} | without)
    if not recorded and decision.action == "requeue":
        decision = decide(replace(end, unrecorded=count_unrecorded(folder.events(job), end.restart)))
    say(f"{decision.action}: {decision.why} (progress: {progress or 'none yet'})")
    if decision.action != "requeue":
        return end.code if decision.action != "stop" else end.code or 1
    if end.slurm_is_away:
        assert end.requeue_exit_code is not None, "decide requeues without SLURM only where there is such a code"
        return end.requeue_exit_code
    sick = end.excluded.split(",") if end.excluded else []
    # Read again: another task may have met its fault at the same time, and two must not leave out all nodes together.
    reason = why_no_exclusion(controller, now, [], folder, job, sick) if end.machine_fault else ""
    if reason:
        refused: Decision | None = Decision("stop", f"{end.first_failure}; {reason}")
    elif end.machine_fault:
        refused = requeue(controller, job, without_nodes(now, folder, job, sick), and_array=True)
    else:
        refused = requeue(controller, job, [*now.excluded, *sick] if sick else [], and_array=False)
    if refused:
        note(folder, job, row | verdict(refused))
        say(f"{refused.action}: {refused.why}")
    return end.code or 1


def verdict(decision: Decision) -> Row:
    return {"action": decision.action, "why": decision.why}


def left_out(events: Sequence[Row]) -> list[str]:
    """The nodes that these ends of jobs were to be requeued without."""
    return [name for row in events for name in str(row.get("excluded", "")).split(",") if name]


def requeue(controller: Controller, job: str, without: Sequence[str], *, and_array: bool) -> Decision | None:
    """Requeue the job, without the nodes in `without`; returns what follows where SLURM will not do it.

    SLURM takes the nodes only while a job is pending. With `and_array`, what waits in the same array leaves them out as
    well: a node that fails quickly would else draw one task after the other.
    """
    problem = controller.requeue(job)
    if problem is not None and problem != "pending":
        return Decision("stop", f"SLURM does not requeue it ({problem}); {AGAIN}")
    if without:
        controller.exclude_when_pending(job, without, EXCLUDE_TRIES)
        if and_array and is_task(job):
            controller.exclude(array_of(job), without)
    return Decision("left", REQUEUED_BY_SLURM) if problem == "pending" else None


def job_name() -> str:
    """The job id, `<array id>_<index>` for a task of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def is_task(job: str) -> bool:
    """Whether it is a task of an array, by its name."""
    return "_" in job


def array_of(job: str) -> str:
    """The id of the array of a task."""
    return job.partition("_")[0]


def note(folder: JobFolder, job: str, row: Row) -> bool:
    """Record an event; a folder that takes none is said, and is no reason for anything else to fail."""

    def write() -> bool:
        folder.add_event(job, row)
        return True

    return on_disk(f"record that job {job} {row['event']}", write, otherwise=False)


def on_disk(what: str, action: Callable[[], Value], *, otherwise: Value) -> Value:
    """What `action` gives; where the file system fails, say so and take `otherwise`."""
    try:
        return action()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        say(f"cannot {what}: {error.strerror}{where}; the job goes on from what is known")
        return otherwise


def say(text: str) -> None:
    """Write to the job's log, which may lie in a folder that is full."""
    try:
        os.write(sys.stdout.fileno(), f"[launch] {text}\n".encode())
    except (OSError, ValueError):
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
