"""Questions to SLURM: partitions, limits, states of jobs. Quiet, with a time limit, and without accounting if need be.

    facts = cluster_facts()            # partitions and limits; asked once, in one call
    states = job_states(["1234"])      # {"1234": "RUNNING"}; one query however many jobs

None or {} means that SLURM is not here or does not know; nothing here raises, except `check_partition` on wrong input.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from launch.cluster import ClusterConfig, Resources, minutes_of
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


@cache
def cluster_facts() -> ClusterFacts | None:
    """None where there is no SLURM. A launcher asks once, however many jobs it plans."""
    # scontrol takes commands from its standard input: one call answers everything.
    text = _ask("scontrol", "-a", "-o", commands="show partition\nshow config\n")
    partitions: dict[str, Partition] = {}
    max_array_size = None
    for line in (text or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PartitionName":
            partition = _read_partition(line)
            partitions[partition.name] = partition
        elif key.strip() == "MaxArraySize":
            max_array_size = int(value)
    return ClusterFacts(partitions, max_array_size) if partitions else None


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


def check_partition(site: ClusterConfig, resources: Resources) -> list[str]:
    """Compare a job with the partition it asks for. Returns findings; raises InputError on what SLURM would refuse."""
    facts = cluster_facts()
    if facts is None:
        return ["no SLURM answers here: the partition and its limits are not checked"]
    known = facts.partitions
    on_gpu = resources.gpus_per_node > 0
    wanted = site.partition if on_gpu else site.cpu_partition or site.partition
    if wanted is None:
        default = [partition for partition in known.values() if partition.is_default]
        if not default:
            raise InputError(f"this cluster has no default partition; give --partition, one of {', '.join(known)}")
        partition = default[0]
    elif wanted not in known:
        raise InputError(f"no partition {wanted!r} on this cluster; it has {', '.join(known)}")
    else:
        partition = known[wanted]
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
    return [] if partition.is_up else [f"partition {partition.name} is not up: the job will wait"]


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
    """State of a job that SLURM has forgotten, where accounting is on."""
    text = _ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "State")
    lines = (text or "").split("\n")
    return lines[0].strip() or None


def _ask(*command: str, commands: str = "") -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, input=commands, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
