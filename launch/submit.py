"""From a piece of work to a job: by submitit to SLURM, or in this process. launch/local.py: on this machine.

job = Job(work, resources, name="b32")
print(batch_script(job, site))                     # what --dry-run shows
job_id = submit(job, site, after=["1234"])         # SLURM
code = run_debug(job, site)                        # here
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.cluster import ClusterConfig, Resources, sbatch_parameters
from launch.job import TaskSettings, Work, in_words, run_work
from launch.run_folder import JobFolder
from launch.script import setup_lines
from launch.snapshot import snapshot_folder, take_snapshot
from pipeline.errors import DISK_TROUBLE, InputError


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
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            raise  # the run folder cannot be written: no refusal of SLURM's
        reason = in_words(error) if isinstance(error, OSError) else " ".join(str(error).split())
        reason = reason.removeprefix("sbatch: error: ")
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
