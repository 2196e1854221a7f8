"""Runs in the batch script around srun and decides whether the job is requeued. Standard library only.

    python -m launch.guard started RUN_FOLDER --progress GLOB --finished FILE...
    python -m launch.guard ended   RUN_FOLDER --progress GLOB --finished FILE... --code 137
    python -m launch.guard timeout RUN_FOLDER ...        # after a SIGTERM: was it the time limit?

SLURM requeues by itself after a lost node and after a preemption that outlasted its grace time, and does nothing when a
rank is killed, when the run stopped on a signal, or when the time limit was reached before the ranks were done. Those
are ours, as long as the job made progress since it last started.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launch.run_folder import JobFolder, Row, progress_mark

WRONG_INPUT = 2
MAX_FUTILE = 1
"""A job that fails is requeued so often without progress."""
MAX_FUTILE_SIGNALS = 3
"""One that a signal stops while it starts: being preempted twice in a row is not its fault."""
MAX_FUTILE_EXCLUSIONS = 5
"""One whose nodes are sick: it comes back without them, but not for ever."""
PATIENCE_S = 20.0
"""How long slurmctld may be away: it is restarted now and then, and fails over."""
AGAIN = "run the same command again (training: with --resume) to go on"
REQUEUED_BY_SLURM = "SLURM requeued the job itself"
STOP_CODES = (128 + signal.SIGTERM, 128 + signal.SIGUSR1, 128 + signal.SIGUSR2)


@dataclass(frozen=True)
class Ending:
    """What is known when srun came back."""

    code: int
    restart: int
    """How often this job had been requeued when it started."""
    state: str
    """SLURM's state of the job now; empty where it cannot be asked."""
    state_reason: str
    restarts_now: int
    finished: bool
    preempted: bool = False
    """SLURM took the nodes for another job."""
    futile: int = 0
    """How often in a row this job was requeued before without getting further than now."""
    rank_codes: tuple[int, ...] = ()
    """Exit codes of the ranks that reported one, in the order of failing."""
    first_failure: str = ""
    """The first of them in words: rank, node, error."""
    may_requeue: bool = True
    """The site allows it."""
    excluded: str = ""
    """Nodes that the preflight wants to be rid of."""


@dataclass(frozen=True)
class Decision:
    """What follows."""

    action: str
    """done, stop, requeue, or left: somebody else decided already."""
    why: str


def decide(end: Ending) -> Decision:
    """Requeue, unless the work is done, cannot succeed, was cancelled, or gets nowhere."""
    if end.finished:
        return Decision("done", "finished")
    if end.code == WRONG_INPUT or WRONG_INPUT in end.rank_codes:
        return Decision("stop", "wrong input: running it again would fail in the same way")
    timed_out = end.state in ("TIMEOUT", "COMPLETING") and end.state_reason == "TimeLimit"
    if end.state == "PENDING" or (end.state != "RUNNING" and end.restarts_now > end.restart):
        return Decision("left", REQUEUED_BY_SLURM)
    # A preemption that cancels requeues nothing by itself; one that requeues will have done so before our request.
    if end.state != "RUNNING" and not timed_out and not end.preempted:
        if end.state == "":
            return Decision("stop", f"SLURM does not answer; {AGAIN}")
        return Decision("left", "cancelled")
    cause = _cause(end, timed_out)
    if not end.may_requeue:
        return Decision("stop", f"{cause}; it is not requeued, {AGAIN}")
    if end.futile >= _patience(end):
        return Decision("stop", f"{cause}, and no progress since the last requeue: something must be put right first")
    return Decision("requeue", cause)


def _patience(end: Ending) -> int:
    if end.excluded:
        return MAX_FUTILE_EXCLUSIONS
    return MAX_FUTILE_SIGNALS if _asked_to_stop(end) else MAX_FUTILE


def _asked_to_stop(end: Ending) -> bool:
    return not end.rank_codes and (end.code == 0 or end.code in STOP_CODES)


def _cause(end: Ending, timed_out: bool) -> str:
    if end.excluded:
        return f"the preflight found {end.excluded} sick"
    if timed_out:
        return "the time limit came before the ranks were done"
    if end.code == 0:
        return "stopped by a signal, state saved"
    if end.preempted and not end.rank_codes:
        return "preempted"
    if end.code > 128 and not end.rank_codes:
        return f"a rank was ended by {signal.Signals(end.code - 128).name}"
    return end.first_failure or f"failed with exit code {(end.rank_codes or (end.code,))[0]}"


def main(argv: list[str]) -> int:
    """Record a start, or decide at the end; the exit code is that of the job."""
    parser = argparse.ArgumentParser(prog="python -m launch.guard", description="see the head of launch/guard.py")
    parser.add_argument("event", choices=("started", "ended", "timeout"))
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--progress", default="", help="files whose number and last name tell the progress")
    parser.add_argument("--finished", nargs="*", default=[], help="files one of which exists when the work is done")
    parser.add_argument("--no-requeue", action="store_true", help="decide and record, but never requeue")
    parser.add_argument("--code", type=int, default=0, help="exit code of srun")
    given = parser.parse_args(argv)
    folder, job, restart = JobFolder(given.run_folder), job_name(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if given.event == "started":
        row: Row = {"event": "started", "restart": restart, "progress": progress_mark(given.progress)}
        folder.add_event(job, row | {"nodes": os.environ.get("SLURM_JOB_NODELIST", "")})
        return 0
    now = ask_slurm(os.environ["SLURM_JOB_ID"])
    if given.event == "timeout" and now.reason != "TimeLimit":
        # A SIGTERM at the start of a grace time: the ranks are saving. Exit code 1: ask again later.
        return 1
    if not folder.claim_decision(job, restart):
        return int(given.code)
    exits = folder.exits(job, restart)
    end = Ending(
        code=given.code,
        restart=restart,
        state=now.state,
        state_reason=now.reason,
        restarts_now=now.restarts,
        preempted=now.preempted,
        # Without such files, a job that ended well is done.
        finished=any(Path(file).exists() for file in given.finished) if given.finished else given.code == 0,
        futile=count_futile(folder.events(job), progress_mark(given.progress)),
        rank_codes=tuple(row["code"] for row in exits),
        first_failure="rank {rank} on {node} failed: {error}".format(**exits[0]) if exits else "",
        may_requeue=not given.no_requeue,
        excluded=",".join(sorted({node for row in exits for node in row.get("exclude", [])})),
    )
    return carry_out(decide(end), end, folder, job, exits, progress_mark(given.progress))


def count_futile(events: list[Row], progress: str) -> int:
    """How many of the last requeues found the progress that there is now."""
    count = 0
    for row in reversed([row for row in events if row["event"] == "ended" and row["action"] == "requeue"]):
        if row["progress"] != progress:
            break
        count += 1
    return count


def carry_out(decision: Decision, end: Ending, folder: JobFolder, job: str, exits: list[Row], progress: str) -> int:
    """Record and say the decision, requeue if it says so; returns the exit code of the job."""
    row: Row = {"event": "ended", "restart": end.restart, "code": end.code, "action": decision.action}
    folder.add_event(job, row | {"why": decision.why, "progress": progress, "failed_ranks": exits[:8]})
    print(f"[launch] {decision.action}: {decision.why} (progress: {progress or 'none yet'})", flush=True)
    if decision.action == "requeue":
        # Recorded before it is asked for: SLURM may end this process as soon as it has granted it.
        refused = requeue(os.environ["SLURM_JOB_ID"], end.excluded)
        if refused:
            folder.add_event(job, row | {"action": refused.action, "why": refused.why, "progress": progress})
            print(f"[launch] {refused.action}: {refused.why}", flush=True)
        return end.code or 1
    return end.code if decision.action != "stop" else end.code or 1


def requeue(job_id: str, exclude: str) -> Decision | None:
    """Requeue the job, without the nodes in `exclude`: SLURM takes these only while the job is pending.

    Asks again while slurmctld is away; returns what follows where it will not do it.
    """
    before = show_job(job_id).get("ExcNodeList", "(null)")
    if exclude and before != "(null)":
        exclude = f"{before},{exclude}"
    deadline = time.monotonic() + PATIENCE_S
    while (done := subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True)).returncode:
        # "Job is pending execution": also while SLURM shows it as completing, on its way back into the queue.
        if "pending" in done.stderr.lower():
            return Decision("left", REQUEUED_BY_SLURM)
        if time.monotonic() > deadline:
            reason = " ".join(done.stderr.split())
            return Decision("stop", f"SLURM does not requeue it ({reason}); {AGAIN}")
        time.sleep(2.0)
    for _ in range(10 if exclude else 0):
        update = ["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={exclude}"]
        if subprocess.run(update, capture_output=True).returncode == 0:
            break
        time.sleep(0.5)
    return None


def job_name() -> str:
    """The job id, `<array id>_<index>` for a task of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


@dataclass(frozen=True)
class JobNow:
    """What SLURM says of a job; empty where slurmctld does not answer."""

    state: str = ""
    reason: str = ""
    restarts: int = 0
    preempted: bool = False


def ask_slurm(job_id: str) -> JobNow:
    """The job as SLURM sees it now. Asks again while slurmctld is away."""
    deadline = time.monotonic() + PATIENCE_S
    while not (facts := show_job(job_id)):
        if time.monotonic() > deadline:
            return JobNow()
        time.sleep(1.0)
    return JobNow(
        state=facts.get("JobState", ""),
        reason=facts.get("Reason", ""),
        restarts=int(facts.get("Restarts", "0")),
        preempted=facts.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
    )


def show_job(job_id: str) -> dict[str, str]:
    """The fields of a job as SLURM shows them; empty where it does not answer."""
    done = subprocess.run(["scontrol", "-o", "show", "job", job_id], capture_output=True, text=True)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word) if done.returncode == 0 else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
