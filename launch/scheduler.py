"""Questions to SLURM: partitions, limits, states of jobs. Quiet, with a time limit, and without accounting if need be.

    facts = cluster_facts(("1234",))   # partitions, limits, which of these jobs exist; asked once, in one call
    states = job_states(["1234"])      # {"1234": "RUNNING"}; one query however many jobs

None or {} means that SLURM is not here or does not know; nothing here raises, except `check_cluster` on wrong input.
"""

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launch.cluster import ClusterConfig, Resources, minutes_of
from launch.run_folder import JobFolder
from pipeline.errors import InputError

ACTIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT"}
"""States from which a job can still go on."""


@dataclass(frozen=True)
class Partition:
    """What SLURM says about a partition."""

    name: str
    is_default: bool
    time_limit_minutes: int | None
    num_nodes: int
    max_nodes: int | None
    """Most nodes of one job."""
    is_up: bool


@dataclass(frozen=True)
class ClusterFacts:
    """What a launcher needs to know of a cluster."""

    partitions: dict[str, Partition]
    max_array_size: int | None
    """Indices of an array stay below it."""
    jobs: frozenset[str] = frozenset()
    """Those of the jobs asked about that SLURM knows, by id or as a task of an array."""


@cache
def cluster_facts(jobs: tuple[str, ...] = ()) -> ClusterFacts | None:
    """None where there is no SLURM. A launcher asks once, however many jobs it plans."""
    # scontrol takes commands from its standard input: one call answers everything.
    commands = ["show partition", "show config", *(f"show job {job}" for job in jobs)]
    text = _ask("scontrol", "-a", "-o", commands="\n".join(commands) + "\n")
    partitions: dict[str, Partition] = {}
    max_array_size = None
    known: set[str] = set()
    for line in (text or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PartitionName":
            partition = _read_partition(line)
            partitions[partition.name] = partition
        elif key == "JobId":
            words = dict(word.split("=", 1) for word in line.split() if "=" in word)
            array = words.get("ArrayJobId", "")
            known |= {words["JobId"], array, f"{array}_{words.get('ArrayTaskId')}"}
        elif key.strip() == "MaxArraySize":
            max_array_size = int(value)
    return ClusterFacts(partitions, max_array_size, frozenset(known.intersection(jobs))) if partitions else None


def _read_partition(line: str) -> Partition:
    values = dict(word.split("=", 1) for word in line.split() if "=" in word)
    unlimited = "UNLIMITED"
    return Partition(
        name=values["PartitionName"],
        is_default=values["Default"] == "YES",
        time_limit_minutes=None if values["MaxTime"] == unlimited else minutes_of(values["MaxTime"]),
        num_nodes=int(values["TotalNodes"]),
        max_nodes=None if values["MaxNodes"] == unlimited else int(values["MaxNodes"]),
        is_up=values["State"] == "UP",
    )


def check_cluster(site: ClusterConfig, resources: Resources, after: tuple[str, ...]) -> list[str]:
    """Compare a job with the partition it asks for, and look for the jobs that it waits for.

    Returns findings; raises InputError on what SLURM would refuse, and on jobs that it does not know: it would take
    these for ended.
    """
    facts = cluster_facts(after)
    if facts is None:
        return ["no SLURM answers here: the partition and its limits are not checked"]
    for job in after:
        if job not in facts.jobs and accounted_state(job) is None and not was_submitted(job, site.runs_dir):
            raise InputError(f"--after {job}: SLURM knows no such job; correct it, or leave it out if it ended well")
    known = facts.partitions
    on_gpu = resources.gpus_per_node > 0
    wanted = site.partition if on_gpu else site.cpu_partition or site.partition
    if wanted is None:
        chosen = [partition for partition in known.values() if partition.is_default][:1]
        if not chosen:
            raise InputError(f"this cluster has no default partition; give --partition, one of {', '.join(known)}")
    else:
        unknown = [name for name in wanted.split(",") if name not in known]
        if unknown:
            raise InputError(f"no partition {unknown[0]!r} on this cluster; it has {', '.join(known)}")
        chosen = [known[name] for name in wanted.split(",")]
    refused: list[InputError] = []
    for partition in chosen:
        try:
            _check_limits(partition, site, resources)
        except InputError as error:
            refused.append(error)
    if len(refused) == len(chosen):  # SLURM takes whichever of several partitions is free first
        raise refused[0]
    return [] if any(each.is_up for each in chosen) else [f"partition {chosen[0].name} is not up: the job will wait"]


def _check_limits(partition: Partition, site: ClusterConfig, resources: Resources) -> None:
    if resources.nodes > partition.num_nodes:
        raise InputError(
            f"partition {partition.name} has {partition.num_nodes} nodes, but --nodes is {resources.nodes}"
        )
    if partition.max_nodes is not None and resources.nodes > partition.max_nodes:
        raise InputError(
            f"partition {partition.name} lets a job have {partition.max_nodes} nodes, but --nodes is {resources.nodes}"
        )
    if partition.time_limit_minutes is not None and minutes_of(site.time) > partition.time_limit_minutes:
        raise InputError(
            f"partition {partition.name} lets a job run for {partition.time_limit_minutes} minutes, but --time is "
            f"{site.time}; a run that needs longer requeues itself, so a shorter --time is fine"
        )


def was_submitted(job: str, runs_dir: Path) -> bool:
    """Whether a run below `runs_dir` remembers this job: SLURM forgets one some minutes after its end."""
    folders = (JobFolder(path.parent) for path in runs_dir.glob("*/jobs"))
    return any(str(row.get("job")) == job.partition("_")[0] for folder in folders for row in folder.submissions())


def job_states(jobs: Sequence[str]) -> dict[str, str]:
    """States of the jobs that SLURM still knows; a task of an array that did not start counts by its array."""
    # With one id, squeue fails when that job is gone; with several it does not.
    text = _ask("squeue", "-h", "-a", "-r", "-t", "all", "-j", ",".join(jobs), "-o", "%i|%A|%F|%T|%r") if jobs else None
    found: dict[str, str] = {}
    for line in (text or "").splitlines():
        shown, single, array, state, reason = line.split("|")
        note = (
            f"{state} ({reason})" if state == "PENDING" and reason not in ("None", "Priority", "Resources") else state
        )
        for name in {shown, single}:
            found[name] = note
        if array != single or "_" in shown:
            before = found.get(array, "")
            found[array] = note if not before or before.split()[0] not in ACTIVE else before
    return found


def accounted_state(job: str) -> str | None:
    """State of a job that SLURM has forgotten, where accounting is on; of an array, how many tasks are in which."""
    text = _ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "State")
    counts = Counter(line.strip() for line in (text or "").splitlines() if line.strip())
    if len(counts) < 2:
        return next(iter(counts), None)
    return ", ".join(f"{state} {count}" for state, count in counts.most_common())


def _ask(*command: str, commands: str = "") -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, input=commands, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    # Of several commands one may fail, such as that about a job that is gone.
    return done.stdout if done.returncode == 0 or (commands and done.stdout) else None
