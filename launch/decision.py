"""What follows the end of a job, from what is known of it. Standard library only; no file and no command is touched.

decision = decide(Ending(code=137, state="RUNNING", ...))        # Decision("requeue", "a rank was ended by SIGKILL")
"""

import signal
from dataclasses import dataclass
from typing import Literal

from launch.run_folder import Row

WRONG_INPUT = 2
MAX_FUTILE = 1
"""A job that fails is requeued so often without progress."""
MAX_FUTILE_SIGNALS = 3
"""One that a signal stops while it starts: being preempted twice in a row is not its fault."""
MAX_FUTILE_EXCLUSIONS = 5
"""One whose nodes are sick: it comes back without them, but not for ever."""
MAX_UNRECORDED = 3
"""One whose run folder cannot be written: whether it got further is not known."""
MAX_EXCLUDED = 16
"""Nodes with a machine fault that are left out, where that is over half of the partition or its size is not known."""
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
    """Nodes that the preflight, or a task that met a fault of its machine, wants to be rid of."""
    machine_fault: bool = False
    """It is such a task. Each requeue leaves out one node more, which ends where `no_exclusion` says why."""
    no_exclusion: str = ""
    """Why no node can be left out any more; empty where one can."""
    unrecorded: int = 0
    """Requeues of which the run folder has no record, where it cannot be written."""
    slurm_problem: str = ""
    """Why SLURM cannot be asked."""
    requeue_exit_code: int | None = None
    """Exit code with which slurmctld requeues a job by itself, once it is back: RequeueExit of slurm.conf."""

    @property
    def slurm_is_away(self) -> bool:
        return self.state == ""


@dataclass(frozen=True)
class Decision:
    """What follows."""

    action: Literal["done", "stop", "requeue", "left"]
    """left: somebody else decided already."""
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
    if end.state not in ("", "RUNNING") and not timed_out and not end.preempted:
        return Decision("left", "cancelled")
    cause = _cause(end, timed_out)
    if not end.may_requeue:
        return Decision("stop", f"{cause}; it is not requeued, {AGAIN}")
    if end.no_exclusion:
        return Decision("stop", f"{cause}; {end.no_exclusion}")
    if not end.machine_fault and end.futile >= most_futile(end):
        return Decision("stop", f"{cause}, and no progress since the last requeue: something must be put right first")
    if end.unrecorded >= MAX_UNRECORDED:
        return Decision("stop", f"{cause}, and the run folder cannot be written: make room there, then {AGAIN}")
    if not end.slurm_is_away:
        return Decision("requeue", cause)
    if end.requeue_exit_code is None:
        return Decision("stop", f"{cause}; SLURM cannot be asked to requeue it ({end.slurm_problem}): {AGAIN}")
    left = f"exit code {end.requeue_exit_code} tells slurmctld to requeue it once it is back"
    return Decision("requeue", f"{cause}; SLURM cannot be asked ({end.slurm_problem}): {left}")


def most_futile(end: Ending) -> int:
    """So many requeues in a row without progress, and the next one does not come."""
    if end.excluded:
        return MAX_FUTILE_EXCLUSIONS
    return MAX_FUTILE_SIGNALS if _asked_to_stop(end) else MAX_FUTILE


def _asked_to_stop(end: Ending) -> bool:
    return not end.rank_codes and (end.code == 0 or end.code in STOP_CODES)


def _cause(end: Ending, timed_out: bool) -> str:
    if end.machine_fault:
        return end.first_failure
    if end.excluded:
        return f"the preflight found {end.excluded} sick"
    if timed_out:
        return "the time limit came before the ranks were done"
    if end.code == 0:
        return "stopped by a signal, state saved"
    if end.preempted and not end.rank_codes:
        return "preempted"
    if end.code > 128 and not end.rank_codes:
        return f"a rank was ended by {signal_name(end.code - 128)}"
    return end.first_failure or f"failed with exit code {(end.rank_codes or (end.code,))[0]}"


def signal_name(number: int) -> str:
    """SIGKILL for 9; the number itself for one that has no name here.

    >>> signal_name(9), signal_name(99)
    ('SIGKILL', 'signal 99')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def why_none_left(excluded: list[str], usable: list[str], partition: str) -> str:
    """Why leaving out the nodes `excluded` is no way on, out of the nodes `usable` in all; empty where it is.

    A fault on every node, or on most of a large partition, is no fault of a node.

    >>> why_none_left(["n1", "n2"], ["n1", "n2"], "batch")
    'no usable node of partition batch is left without such a fault: it had one on n1, n2'
    >>> why_none_left(["n1"], ["n1", "n2"], "batch")
    ''
    """
    if len(excluded) > MAX_EXCLUDED and len(excluded) > len(usable) // 2:
        return f"a fault on {len(excluded)} nodes, over half of those it may get, is no fault of a node: mend its cause"
    if usable and set(usable) <= set(excluded):
        named = ", ".join([*excluded[:8], *(["..."] if len(excluded) > 8 else [])])
        return f"no usable node of partition {partition} is left without such a fault: it had one on {named}"
    return ""


def count_futile(events: list[Row], progress: str) -> int:
    """How many of the last requeues found the progress that there is now."""
    count = 0
    for row in reversed([row for row in events if row["event"] == "ended" and row.get("action") == "requeue"]):
        if row.get("progress") != progress:
            break
        count += 1
    return count


def count_unrecorded(events: list[Row], restart: int) -> int:
    """How many of the `restart` requeues of a job left no word about why its start before them ended."""
    return max(0, restart - len({row.get("restart") for row in events if row["event"] == "ended"} - {restart}))
