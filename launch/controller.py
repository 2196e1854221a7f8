"""slurmctld as the guard of a job sees it: asked again while it is away. Standard library only.

    controller = Controller(timeout_s=600)
    now = controller.job("1234")                  # JobNow; of a task of an array by "1234_7"
    refused = controller.requeue("1234")          # None: done; else why not
    controller.exclude("1234", ["n3"])            # the job will not get n3 any more

It is away for a moment when it is restarted, for minutes when it fails over or its host is mended. Only what it says
itself ("Invalid job id") counts as an answer; anything else is asked again, at growing intervals, for `timeout_s`.
"""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ANSWERS = re.compile(r"invalid job id|permission denied|presently disabled|already complet|not allowed", re.IGNORECASE)
"""What slurmctld itself says when it refuses; everything else (no connection, a time-out, munge) may pass."""
REFUSAL_TIMEOUT_S = 20.0
"""A refusal may pass too, while a job is on its way from one state to the next, but not for minutes."""
COMMAND_TIMEOUT_S = 60.0
MAX_PAUSE_S = 15.0
UNUSABLE = re.compile(r"^(down|drain|fail|maint|error|unk)|\*$", re.IGNORECASE)
"""States of a node on which no job will start, as `sinfo -o %T` shows them; with a * it does not respond."""


@dataclass(frozen=True)
class JobNow:
    """What SLURM says of a job; empty where slurmctld does not answer."""

    state: str = ""
    reason: str = ""
    restarts: int = 0
    preempted: bool = False
    """SLURM took the nodes for another job."""
    partition: str = ""
    features: str = ""
    """What `--constraint` asked for."""
    excluded: tuple[str, ...] = ()
    """Nodes or node lists that the job does not take."""
    problem: str = ""
    """Why nothing is known of it."""


@dataclass(frozen=True)
class Answer:
    """Of one command."""

    code: int
    text: str
    problem: str

    @property
    def is_final(self) -> bool:
        return self.code == 0 or "pending" in self.problem.lower()


class Controller:
    """`scontrol` and `sinfo`, with patience. `clock` and `sleep` are for tests."""

    def __init__(
        self,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = print,
    ) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep
        self._say = say

    def job(self, job_id: str) -> JobNow:
        """The job as SLURM sees it now."""
        answer = self._ask("scontrol", "-o", "show", "job", job_id)
        if answer.code:
            return JobNow(problem=answer.problem)
        facts = dict(word.split("=", 1) for word in answer.text.split() if "=" in word)
        excluded = facts.get("ExcNodeList", "(null)")
        return JobNow(
            state=facts.get("JobState", ""),
            reason=facts.get("Reason", ""),
            restarts=int(facts.get("Restarts", "0")),
            preempted=facts.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
            partition=facts.get("Partition", ""),
            features=facts.get("Features", "").replace("(null)", ""),
            excluded=() if excluded == "(null)" else (excluded,),
        )

    def requeue(self, job_id: str) -> str | None:
        """Put the job back into the queue; returns why SLURM does not, "pending" where it has done so already."""
        answer = self._ask("scontrol", "requeue", job_id)
        # "Job is pending execution": also while SLURM shows it as completing, on its way back into the queue.
        return None if answer.code == 0 else "pending" if answer.is_final else answer.problem

    def exclude(self, job_id: str, nodes: Sequence[str]) -> bool:
        """Keep a pending job off these nodes, all of them at once; SLURM refuses it for one that runs."""
        return run("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}").code == 0

    def exclude_when_pending(self, job_id: str, nodes: Sequence[str], tries: int) -> bool:
        """The same for a job that was just requeued and is still completing."""
        for _ in range(tries):
            if self.exclude(job_id, nodes):
                return True
            self._sleep(0.5)
        return False

    def usable_nodes(self, partition: str, features: str) -> list[str]:
        """Names of the nodes that a job of this partition may get; empty where SLURM does not say."""
        answer = run("sinfo", "-h", "-N", *(["-p", partition] if partition else []), "-o", "%N|%T|%f")
        wanted = set(features.split("&")) if re.fullmatch(r"[\w.-]+(&[\w.-]+)*", features) else set()
        found: list[str] = []
        for line in answer.text.splitlines() if answer.code == 0 else []:
            name, _, rest = line.strip().partition("|")
            state, _, offered = rest.partition("|")
            if name and not UNUSABLE.search(state) and wanted <= set(offered.split(",")) and name not in found:
                found.append(name)
        return found

    def _ask(self, *command: str) -> Answer:
        """The answer to a command, or the last failure when there was none in time."""
        began, pause_s, has_spoken = self._clock(), 1.0, False
        while not (answer := run(*command)).is_final:
            is_refusal = ANSWERS.search(answer.problem) is not None
            left_s = began + min(self.timeout_s, REFUSAL_TIMEOUT_S if is_refusal else self.timeout_s) - self._clock()
            if left_s <= 0:
                break
            if not has_spoken and not is_refusal:
                has_spoken = True
                self._say(f"slurmctld does not answer ({answer.problem}); asking again for up to {left_s:.0f} s")
            self._sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return answer


def run(*command: str) -> Answer:
    """Run one SLURM command; what keeps it from running or from ending is a failure like any other."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Answer(1, "", f"{command[0]} did not end within {COMMAND_TIMEOUT_S:.0f} s")
    except OSError as error:
        return Answer(1, "", f"{command[0]}: {error.strerror}")
    return Answer(done.returncode, done.stdout, " ".join(done.stderr.split()) or f"{command[0]} failed without a word")
