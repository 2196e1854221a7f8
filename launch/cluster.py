"""What a site is like: partitions, limits, set-up lines, network. One YAML file in configs/cluster per site.

defaults < configs/cluster/<site>.yaml < command line options of the same name

site = load_site("default", {"partition": "batch", "time": "12:00:00"})
parameters = sbatch_parameters(site, Resources(nodes=8, tasks_per_node=8, gpus_per_node=8), name="b32")
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from launch.preflight import PreflightConfig
from pipeline.config import Section, load_config
from pipeline.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: jobs run with this as their working directory, so paths in configs are relative to it."""

SITES = ROOT / "configs" / "cluster"


class ClusterConfig(Section):
    """Site defaults of a job. Every command line option of the same name overrides its field."""

    partition: str | None = None
    """Partition; null: the cluster's default."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    time: str = "24:00:00"
    """Time limit as SLURM writes it: "minutes", "hours:minutes:seconds", "days-hours". A longer run requeues itself."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclude: str | None = None
    """Nodes to avoid, such as n[3,7]."""
    reservation: str | None = None
    """Reservation to run in."""
    mem: str | None = None
    """Memory per node, such as 500G; "0": all of it; null: the cluster's default."""
    gpus_per_node: int = Field(default=8, ge=0)
    """GPUs of a node, one task each; 0: one CPU task per node."""
    gpu: str = "h100"
    """Kind of GPU that the plan of a dry run is made for, by a name that pipeline.plan knows."""
    cpus_per_gpu: int = Field(default=8, ge=1)
    """CPU cores per task of a GPU job: the task itself and its data workers."""
    cpus_per_node: int = Field(default=1, ge=1)
    """CPU cores per task of a CPU job: an array task of shards, or a training task where gpus_per_node is 0."""
    cpu_partition: str | None = None
    """Partition for jobs that need no GPU (shards, merging); null: the same as `partition`."""
    setup: list[str] = []
    """Shell lines before the job starts: module load, source, ulimit."""
    python: str | None = None
    """Command that runs Python in a task, for containers: `apptainer exec --nv image.sif python`; null: this one."""
    env: dict[str, str] = {}
    """Environment of the job: NCCL_*, GLOO_SOCKET_IFNAME, ..."""
    interface: str | None = None
    """Network interface whose address the ranks meet at, and that NCCL and gloo use unless `env` says otherwise; null:
    the address of the first host's name, and whatever NCCL and gloo choose."""
    signal_lead_s: int = Field(default=120, ge=10)
    """Seconds before the time limit at which the job is told to save; SLURM may come up to 60 s earlier."""
    requeue: bool = True
    """Go on after a signal, a crash or a lost node, in the same job, as long as there is progress."""
    faulty_node: Literal["exclude", "report"] = "exclude"
    """What follows when an array task of shards meets a fault of its machine, such as a video mount that is not there:
    the task comes back on another node, and what waits in its array leaves that node out as well; or it only fails."""
    controller_timeout_s: float = Field(default=600.0, ge=0)
    """How long a job that ends asks slurmctld again where it is away, before it gives up being requeued."""
    requeue_exit_code: int | None = Field(default=None, ge=3, le=127)
    """An exit code that RequeueExit in the site's slurm.conf names: a job that could not reach slurmctld in time ends
    with it, and is requeued once slurmctld is back; null: such a job says so and stays away."""
    max_array_size: int | None = Field(default=None, ge=1)
    """Most tasks of one array; null: what `scontrol show config` says."""
    runs_dir: Path = Path("runs")
    """Where shard sets and evaluations keep what is about their jobs; a training run has a `runs_dir` of its own."""
    srun_args: list[str] = []
    """More arguments for srun, such as --mpi=none."""
    sbatch: dict[str, str | int | bool] = {}
    """More sbatch options by their long name, such as {"mail-type": "FAIL"} or {"gpus-per-node": "h100:8"}."""
    preflight: PreflightConfig = PreflightConfig()
    """What is checked inside the job before it trains."""

    @property
    def job_env(self) -> dict[str, str]:
        """Environment of the job: that of `interface`, under the site's own."""
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if self.interface else ()
        return {name: str(self.interface) for name in names} | self.env

    @field_validator("mem")
    @classmethod
    def _mem_is_readable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+[KMGT]?B?", value, re.IGNORECASE):
            raise ValueError('memory per node is written "500G", "64000" (MB) or "0" (all of it)')
        return value

    @field_validator("time")
    @classmethod
    def _time_is_readable(cls, value: str) -> str:
        minutes_of(value)
        return value


@dataclass(frozen=True)
class Resources:
    """What one job takes."""

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1

    @property
    def num_tasks(self) -> int:
        return self.nodes * self.tasks_per_node


def load_site(site: str, given: Mapping[str, Any]) -> ClusterConfig:
    """The site's file (a name in configs/cluster, or a path) under the values `given` on the command line."""
    path = Path(site) if site.endswith((".yaml", ".yml")) else SITES / f"{site}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in SITES.glob("*.yaml")))
        raise InputError(
            f"no site {site!r}: {path} does not exist; known are {known}, or give the path of a .yaml file"
        )
    # JSON keeps a time such as 12:00:00 a string, which YAML would read as a number in base 60.
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    return load_config(ClusterConfig, [path], overrides)


def training_resources(site: ClusterConfig, nodes: int) -> Resources:
    """A task per GPU, or one per node without GPUs."""
    on_gpu = site.gpus_per_node > 0
    return Resources(
        nodes=nodes,
        tasks_per_node=max(1, site.gpus_per_node),
        gpus_per_node=site.gpus_per_node,
        cpus_per_task=site.cpus_per_gpu if on_gpu else site.cpus_per_node,
    )


def sbatch_parameters(site: ClusterConfig, resources: Resources, *, name: str, setup: list[str]) -> dict[str, Any]:
    """The parameters of submitit's SLURM executor; what is None is left to the cluster."""
    on_gpu = resources.gpus_per_node > 0
    more: dict[str, Any] = {"chdir": str(ROOT), "requeue": True} if site.requeue else {"chdir": str(ROOT)}
    if site.reservation is not None:
        more["reservation"] = site.reservation
    return {
        "job_name": name,
        "partition": site.partition if on_gpu else site.cpu_partition or site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": minutes_of(site.time),
        "constraint": site.constraint,
        "exclude": site.exclude,
        "mem": site.mem,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "gpus_per_node": resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "signal_delay_s": site.signal_lead_s,
        "stderr_to_stdout": True,
        "setup": setup,
        # One lost rank ends the step, instead of leaving the others in a collective until the time limit. srun does
        # not take --cpus-per-task from the job by itself, nor the environment where a site sets SBATCH_EXPORT=NONE.
        "srun_args": [
            "--kill-on-bad-exit=1",
            "--export=ALL",
            f"--cpus-per-task={resources.cpus_per_task}",
            *site.srun_args,
        ],
        # The site's own words replace ours, such as a GPU with its type: {"gpus-per-node": "h100:8"}.
        "additional_parameters": more | {name.replace("-", "_"): value for name, value in site.sbatch.items()},
    }


def minutes_of(time: str) -> int:
    """SLURM's time notation in minutes, rounded up.

    >>> [minutes_of(text) for text in ("90", "90:30", "12:00:00", "2-12", "1-00:30", "1-00:00:01")]
    [90, 91, 720, 3600, 1470, 1441]
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if match is None:
        raise ValueError('a time limit is written "minutes", "hours:minutes:seconds" or "days-hours:minutes:seconds"')
    days, first, second, third = (None if group is None else int(group) for group in match.groups())
    if days is not None:
        seconds = days * 86400 + first * 3600 + (second or 0) * 60 + (third or 0)  # type: ignore[operator]
    elif third is not None:
        seconds = first * 3600 + (second or 0) * 60 + third  # type: ignore[operator]
    else:
        seconds = first * 60 + (second or 0)  # type: ignore[operator]
    if seconds == 0:
        raise ValueError("a time limit of 0 lets nothing run")
    return -(-seconds // 60)
