"""`--cluster local`: the tasks of a job as processes of this machine, by submitit's local executor.

code = run_local(job, site)        # waits; shows the output of the first task

A signal reaches the tasks through us alone: they are in a session of their own, so that Ctrl-C does not kill a training
in the middle of its save. SIGTERM, SIGHUP and the first Ctrl-C ask every task to save and leave; the second Ctrl-C ends
them. Where we are killed, they are asked to leave as well.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import submitit
from submitit.local.local import LocalJob

from launch.cluster import ROOT, ClusterConfig, Resources, minutes_of
from launch.job import VISIBLE_DEVICES, Work, leave_with_parent, run_work
from launch.rendezvous import LOCAL_JOB
from launch.run_folder import JobFolder, Row
from launch.submit import Job, task_settings
from pipeline.errors import InputError, MachineFault, RunError

POLL_S = 0.2
WAIT_FOR_OTHERS_S = 15.0
"""When one rank has failed, the others wait for it in vain."""
SAID = ("error: ", "machine fault: ")
"""How a line begins by which an entry says why it failed."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LocalExecutor(submitit.LocalExecutor):  # type: ignore[misc]
    """submitit's, with its controller in a session of its own, that is told when we die."""

    def _submit_command(self, command: str) -> Any:
        """Start submitit's controller, which reads these variables."""
        chosen = self.parameters
        env = os.environ | {
            "SUBMITIT_LOCAL_NTASKS": str(chosen["tasks_per_node"]),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * chosen["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(chosen["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_EXECUTOR": "local",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(chosen["gpus_per_node"]))),
        }
        start = [sys.executable, "-m", "submitit.local._local", str(self.folder)]
        if chosen["setup"]:
            # The shell becomes the controller, so that a signal to it reaches the tasks.
            start = ["bash", "-c", " && ".join([*chosen["setup"], f"exec {shlex.join(start)}"])]
        process = subprocess.Popen(start, env=env, start_new_session=True, preexec_fn=leave_with_parent)
        tasks = list(range(chosen["tasks_per_node"]))
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=tasks)


def run_local(job: Job, site: ClusterConfig, *, go_on: str | None = None) -> bool:
    """Run all tasks as processes of this machine, show the output of the first, wait.

    submitit's local executor knows one node, so nodes x tasks become tasks of one node. An array runs in turn. Returns
    whether the job was asked to stop: a training has saved then, and that is no failure. Raises InputError or RunError
    for what failed, as the rank that failed first says it, and RunError for what did not get to its end. `go_on` says
    how to go on with that, where the command is not the launcher's own.
    """
    works = [replace(job.work, argv=argv) for argv in job.array] or [job.work]
    hint = again(job.work) if go_on is None else go_on
    for number, work in enumerate(works, start=1):
        was_stopped = _run_locally(work, job.resources, site, hint)
        if was_stopped and number < len(works):
            raise RunError(f"stopped after {number} of {len(works)} tasks{hint}")
    return was_stopped


def again(work: Work) -> str:
    """How to go on with it, in words that follow a reason."""
    more = " with --resume" if work.kind in ("pretrain", "finetune") else ""
    return f"; run the same command again{more} to go on"


def _run_locally(work: Work, resources: Resources, site: ClusterConfig, hint: str) -> bool:
    """Run one job; returns whether it was asked to stop."""
    folder = JobFolder(work.run_folder)
    name = f"local-{uuid.uuid4().hex[:8]}"
    paths = [str(ROOT), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path != str(ROOT))]
    os.environ |= site.job_env | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # submitit numbers the GPUs of a task from 0 on, whatever it may see.
    os.environ |= {LOCAL_JOB: name, VISIBLE_DEVICES: os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    executor = LocalExecutor(folder=folder.path / name, python=site.python)
    executor.update_parameters(
        nodes=1,
        tasks_per_node=resources.num_tasks,
        gpus_per_node=resources.nodes * resources.gpus_per_node,
        timeout_min=minutes_of(site.time),
        signal_delay_s=site.signal_lead_s,
        setup=site.setup,
    )
    with passed_on() as signals:
        job = executor.submit(run_work, work, task_settings(resources, site))
        signals.controller = job._process
        row: Row = {"job": name, "kind": work.kind, "cluster": "local", "tasks": resources.num_tasks}
        folder.add_submission(row | {"pid": job.job_id, "command": sys.argv})
        held_back = _watch(signals, name, folder)
    _raise_failure(hint, name, folder, resources.num_tasks, held_back, signals)
    return signals.first is not None


@dataclass
class Signals:
    """What was sent to us while a job runs, and where it goes."""

    controller: "subprocess.Popen[bytes] | None" = None
    first: signal.Signals | None = None
    is_over: bool = field(default=False, init=False)
    """The tasks are to end at once."""

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """The first asks the tasks to save and leave; a Ctrl-C after that ends them."""
        received = signal.Signals(number)
        if self.first is not None and received != signal.SIGINT:
            return
        self.is_over = self.first is not None
        if not self.is_over:
            self.first = received
            _say(f"{received.name}: the tasks were asked to save and leave; Ctrl-C ends them at once")
        self.send(signal.SIGINT if self.is_over else signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """To submitit's controller: SIGTERM goes to the tasks; SIGINT too, and a second later SIGKILL."""
        if self.controller is not None and self.controller.poll() is None:
            self.controller.send_signal(number)


@contextmanager
def passed_on() -> Iterator[Signals]:
    """Signals to us go to the job. One that is ignored, as SIGHUP by nohup, stays so."""
    signals = Signals()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signals.receive)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(signals: Signals, name: str, folder: JobFolder) -> list[str]:
    """Show the first rank's output until the tasks are gone; returns its lines that say an error."""
    assert signals.controller is not None, "the job was started"
    if signals.first is not None:
        signals.send(signal.SIGTERM)  # it came while the job was started
    shown, failed_at = Output(folder, name), None
    while True:
        is_running = signals.controller.poll() is None
        shown.show()
        if not is_running:
            return shown.errors
        if failed_at is None and folder.exits(name, 0):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > WAIT_FOR_OTHERS_S:
            signals.send(signal.SIGINT)
            failed_at = float("inf")
        time.sleep(POLL_S)


def _raise_failure(
    hint: str, name: str, folder: JobFolder, num_tasks: int, held_back: list[str], signals: Signals
) -> None:
    """Raise what the rank that failed first said, which is shown once, or that ranks were killed."""
    exits = folder.exits(name, 0)
    said = {f"{kind}{row['error']}" for row in exits for kind in SAID}
    for line in held_back:
        if line not in said:
            print(line, file=sys.stderr, flush=True)
    if exits:
        rank, error, code = exits[0]["rank"], exits[0]["error"], int(exits[0]["code"])
        if error == "interrupted":
            raise RunError(f"interrupted{hint}")
        whose = f"rank {rank}: " if num_tasks > 1 else ""
        is_fault = exits[0].get("machine_fault", False)
        kind = MachineFault if is_fault else InputError if code == InputError.exit_code else RunError
        raise kind(f"{whose}{error}; its output: {folder.log(name, rank)}")
    lost = [rank for rank in range(num_tasks) if not folder.has_result(name, rank)]
    if lost and signals.is_over:
        raise RunError(f"interrupted before the tasks had saved{hint}")
    if lost:
        raise RunError(f"ranks {lost[:8]} were killed, see {folder.log(name, lost[0])}{hint}")


class Output:
    """Shows what a task writes, as it comes: all but submitit's own lines, and those that say an error.

    The launcher says the error of the rank that failed first, last of all and to stderr.
    """

    def __init__(self, folder: JobFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._start = 0
        self.errors: list[str] = []
        """Lines that say one."""

    def show(self) -> None:
        """Show what is new; a line that is still being written waits."""
        log = self._folder.log(self._name)
        if not log.exists():
            return
        with open(log, "rb") as stream:
            stream.seek(self._start)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._start += len(whole) + len(newline)
        for line in whole.decode(errors="replace").split("\n") if newline else []:
            if line.startswith(SAID):
                self.errors.append(line)
            elif not line.startswith("submitit "):
                sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _say(text: str) -> None:
    # In a signal handler print() may meet itself at work on the same stream.
    os.write(sys.stderr.fileno(), f"{text}\n".encode())
