"""From a piece of work to a job: by submitit to SLURM, as processes of this machine, or in this process.

job = Job(work, resources, name="b32")
print(batch_script(job, site))                     # what --dry-run shows
job_id = submit(job, site, after=["1234"])         # SLURM
code = run_local(job, site)                        # waits
"""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.cluster import ROOT, ClusterConfig, Resources, minutes_of, sbatch_parameters
from launch.job import VISIBLE_DEVICES, TaskSettings, Work, run_work
from launch.rendezvous import LOCAL_JOB
from launch.run_folder import JobFolder
from launch.script import setup_lines
from launch.snapshot import snapshot_folder, take_snapshot
from pipeline.errors import InputError, RunError


@dataclass(frozen=True)
class Job:
    """Work, and what it takes. With `array`, one task per entry, all with these resources."""

    work: Work
    resources: Resources
    name: str
    array: tuple[tuple[str, ...], ...] = ()
    """Arguments of the entry for every task of the array, instead of those in `work`."""
    throttle: int = 1
    """Tasks of the array that run at a time."""


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's executor, which can also write its script where there is no SLURM, for --dry-run."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    @classmethod
    def name(cls) -> str:
        return "slurm"


def make_executor(job: Job, site: ClusterConfig, code: Path, after: Sequence[str], condition: str) -> Executor:
    """The executor with all parameters of one job."""
    executor = Executor(folder=JobFolder(job.work.run_folder).path, python=site.python)
    parameters = sbatch_parameters(site, job.resources, name=job.name, setup=setup_lines(site, job.work, code))
    if after:
        parameters["dependency"] = f"{condition}:{':'.join(after)}"
        # A link whose predecessor failed goes away, instead of waiting in the queue for ever.
        parameters["additional_parameters"] = parameters["additional_parameters"] | {"kill-on-invalid-dep": "yes"}
    if job.array:
        parameters["array_parallelism"] = job.throttle
    executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
    executor.parameters["wckey"] = None  # submitit's own name, refused where a site enforces its keys
    return executor


def batch_script(job: Job, site: ClusterConfig, after: Sequence[str] = (), condition: str = "afterok") -> str:
    """The sbatch script, as it would be submitted; nothing is written."""
    executor = make_executor(job, site, snapshot_folder(JobFolder(job.work.run_folder).path), after, condition)
    if job.array:
        executor.parameters["map_count"] = len(job.array)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def submit(job: Job, site: ClusterConfig, after: Sequence[str] = (), condition: str = "afterok") -> str:
    """Queue the job; returns its id, that of the whole array for an array. Raises InputError when SLURM refuses it."""
    if shutil.which("sbatch") is None:
        raise InputError("there is no SLURM here (no sbatch); use --cluster local, or --dry-run to see the script")
    folder = JobFolder(job.work.run_folder)
    code = take_snapshot(folder.path)
    executor = make_executor(job, site, code, after, condition)
    settings = task_settings(job.resources, site)
    try:
        # submitit prints what sbatch says; the error below says it once.
        with contextlib.redirect_stderr(io.StringIO()):
            if job.array:
                works = [replace(job.work, argv=argv) for argv in job.array]
                first = executor.map_array(run_work, works, [settings] * len(works))[0]
            else:
                first = executor.submit(run_work, job.work, settings)
    except (FailedSubmissionError, FailedJobError, subprocess.CalledProcessError, OSError) as error:
        reason = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        raise InputError(f"sbatch refused the job {job.name!r}: {reason}") from None
    job_id = str(first.job_id).split("_")[0]
    folder.add_submission(
        {"job": job_id, "kind": job.work.kind, "name": job.name, "nodes": job.resources.nodes, "after": list(after)}
        | {
            "progress": job.work.progress,
            "tasks": len(job.array) or job.resources.num_tasks,
            "array": bool(job.array),
            "command": sys.argv,
        }
    )
    return job_id


def task_settings(resources: Resources, site: ClusterConfig) -> TaskSettings:
    """What the tasks of a job need to know."""
    return TaskSettings(
        site.preflight,
        site.interface,
        has_gpus=resources.gpus_per_node > 0,
        leave_out_faulty=site.faulty_node == "exclude",
    )


def take_back(jobs: Sequence[str]) -> None:
    """Cancel what was queued for something that cannot be queued as a whole."""
    if jobs:
        subprocess.run(["scancel", *jobs], capture_output=True)


def run_debug(job: Job, site: ClusterConfig) -> int:
    """Run the work in this process, without submitit, which would end in a debugger's prompt after an error."""
    os.environ |= site.job_env
    settings = replace(task_settings(job.resources, site), exit_process=False)
    for argv in job.array or (job.work.argv,):
        code = run_work(replace(job.work, argv=argv), settings)
        if code:
            return code
    return 0


def run_local(job: Job, site: ClusterConfig) -> int:
    """Run all tasks as processes of this machine, show the output of the first, wait; returns the exit code.

    submitit's local executor knows one node, so nodes x tasks become tasks of one node. An array runs in turn.
    """
    for argv in job.array or (job.work.argv,):
        code = _run_locally(replace(job.work, argv=argv), job.resources, site)
        if code:
            return code
    return 0


def _run_locally(work: Work, resources: Resources, site: ClusterConfig) -> int:
    folder = JobFolder(work.run_folder)
    name = f"local-{uuid.uuid4().hex[:8]}"
    os.environ |= site.job_env | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    # submitit numbers the GPUs of a task from 0 on, whatever it may see.
    os.environ |= {LOCAL_JOB: name, VISIBLE_DEVICES: os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    executor = submitit.LocalExecutor(folder=folder.path / name, python=site.python)
    executor.update_parameters(
        nodes=1,
        tasks_per_node=resources.num_tasks,
        gpus_per_node=resources.nodes * resources.gpus_per_node,
        timeout_min=minutes_of(site.time),
        signal_delay_s=site.signal_lead_s,
        stderr_to_stdout=True,
        # With a trap the shell stays, and is the parent that submitit's tasks look for; bash would become its command.
        setup=["trap : EXIT", *site.setup] if site.setup else [],
    )
    settings = task_settings(resources, site)
    job = executor.submit(run_work, work, settings)
    row: dict[str, Any] = {"job": name, "kind": work.kind, "cluster": "local", "tasks": resources.num_tasks}
    folder.add_submission(row | {"pid": job.job_id, "command": sys.argv})
    return _watch_local(job._process, name, folder, resources.num_tasks)


def _watch_local(controller: "subprocess.Popen[bytes]", name: str, folder: JobFolder, num_tasks: int) -> int:
    """Show rank 0's output until the tasks are gone. A signal to us goes to every task, which saves and leaves."""

    def forward(number: int, _: FrameType | None) -> None:
        if controller.poll() is None:
            controller.send_signal(number)

    before = signal.signal(signal.SIGTERM, forward)
    shown, failed_at = 0, None
    try:
        while True:
            running = controller.poll() is None
            shown = _show(folder.log(name), shown)
            if not running:
                break
            if failed_at is None and folder.exits(name, 0):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > 15:
                controller.send_signal(signal.SIGINT)  # one rank failed; the others wait for it in vain
                failed_at = float("inf")
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    exits = folder.exits(name, 0)
    if exits:
        print(f"rank {exits[0]['rank']} failed first: {exits[0]['error']}", file=sys.stderr)
        print(f"its output: {folder.log(name, exits[0]['rank'])}", file=sys.stderr, flush=True)
        return int(exits[0]["code"])
    lost = [rank for rank in range(num_tasks) if not folder.has_result(name, rank)]
    if lost:
        log = folder.log(name, lost[0])
        raise RunError(f"ranks {lost[:8]} were killed, see {log}; run the same command again (training: with --resume)")
    return 0


def _show(log: Path, start: int) -> int:
    """Print what `log` has beyond `start`, without submitit's own lines; returns where it ends."""
    if not log.exists():
        return start
    with open(log, encoding="utf-8", errors="replace") as stream:
        stream.seek(start)
        lines = stream.readlines()
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # still being written
        for line in lines:
            if not line.startswith("submitit "):
                sys.stdout.write(line)
        sys.stdout.flush()
        return start + sum(len(line.encode()) for line in lines)
