"""What slurm_pretrain.py and slurm_finetune.py do: check everything here, then queue one training job.

options -> TrainConfig -> checks (data, run folder, batch, disk, partition) -> Plan -> dry run | submit | run here
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cluster import ROOT, Resources, training_resources
from launch.job import Kind, Work
from launch.options import Options
from launch.run_folder import JobFolder, read_rows
from launch.scheduler import ACTIVE, check_partition, job_states
from launch.submit import Job
from pipeline.config import load_config, read_yaml, to_yaml
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.train_config import TrainConfig


@dataclass(frozen=True)
class Plan:
    """A job that was checked: what is missing for it, and what it would do."""

    job: Job
    config_text: str
    """The resolved config; the job reads it from `config_file`."""
    config_file: Path
    facts: tuple[str, ...]
    """Lines about the run: batch arithmetic, where it resumes, disk."""
    missing: tuple[str, ...] = ()
    """Why the job cannot start now: data that are not there. A dry run shows them, a submission refuses."""
    outlook: str = ""
    """Memory, hours, storage: what a dry run adds."""


def plan_training(options: Options, kind: Kind, to_come: Sequence[Path] = ()) -> Plan:
    """Check a training run. `to_come` are folders that earlier links of a chain will have written."""
    os.chdir(ROOT)
    config = read_train_config(options)
    resources = training_resources(options.site, options.nodes)
    world_size = resources.num_tasks
    if config.batch.global_batch_size < world_size:
        raise InputError(
            f"batch.global_batch_size is {config.batch.global_batch_size}, but {options.nodes} nodes have {world_size} "
            "ranks: every rank needs at least one clip"
        )
    run_folder = config.run_folder.resolve()
    facts = [batch_arithmetic(config, options.nodes, world_size)]
    facts += check_run_folder(run_folder, config, options.resume)
    facts += check_disk(run_folder)
    facts += check_lead(run_folder, options.site.signal_lead_s)
    if options.cluster == "slurm":
        facts += check_partition(options.site, resources)
    text = to_yaml(config)
    stop = config.stop_at_step
    last = f"checkpoints/step_{stop:08d}/COMPLETE.json" if stop else "COMPLETE"
    config_file = JobFolder(run_folder).path / f"config-{config_key(text)}.yaml"
    work = Work(
        kind=kind,
        run_folder=run_folder,
        module="pipeline.train",
        argv=(str(config_file),),
        distributed=True,
        progress=str(run_folder / "checkpoints" / "step_*" / "COMPLETE.json"),
        finished=str(run_folder / last),
        argv_after_requeue=("resume=auto",),
    )
    job = Job(work, resources, name=config.name)
    outlook = look_ahead(config, resources) if options.dry_run else ""
    return Plan(job, text, config_file, tuple(facts), tuple(missing_data(config, to_come)), outlook)


def read_train_config(options: Options) -> "TrainConfig":
    """The resolved config of the run. Only its sections are imported; nothing is built."""
    from pipeline.train_config import TrainConfig

    name = [f"name={options.name}"] if options.name else []
    return load_config(TrainConfig, options.config, [*name, *options.overrides])


def batch_arithmetic(config: "TrainConfig", nodes: int, world_size: int) -> str:
    """How the global batch is cut."""
    total, parts = config.batch.global_batch_size, config.batch.micro_batches
    per_rank = -(-total // world_size)
    return (
        f"batch: {total} clips = {world_size} ranks ({nodes} x {world_size // nodes}) x up to {per_rank} clips, "
        f"in {parts} micro-batch{'es' * (parts > 1)} of up to {-(-per_rank // parts)}"
    )


def look_ahead(config: "TrainConfig", resources: Resources) -> str:
    """Memory per GPU, hours and storage by `pipeline.plan`, for the GPU that it assumes."""
    from pipeline.plan import make_plan, render

    if resources.gpus_per_node == 0:
        return "without GPUs there is no estimate; python -m pipeline.plan makes one for any number of GPUs"
    try:
        plan = make_plan(config, gpu="h100", num_gpus=resources.num_tasks, mfu=0.45, num_clips=None)
    except InputError as error:
        return f"no estimate: {error}"
    return render(plan, config, "h100")


def missing_data(config: "TrainConfig", to_come: Sequence[Path]) -> list[str]:
    """Shard sets, queries and weights that are not there, and that no earlier link will write."""
    promised = {path.resolve() for path in to_come}
    wanted = [(f"data.sources[{n}].shards", Path(source.shards)) for n, source in enumerate(config.data.sources)
              if "://" not in source.shards]  # fmt: skip
    wanted += [(f"evaluation set {chosen.name}", chosen.shards) for chosen in config.evaluation.sets]
    missing = [
        f"{key}: {folder} holds no manifest.parquet; write it with launch/slurm_shards.py, or correct the path"
        for key, folder in wanted
        if folder.resolve() not in promised and not (folder / "manifest.parquet").exists()
    ]
    files = [chosen.queries for chosen in config.evaluation.sets]
    files += [config.init_from] if config.init_from is not None else []
    return missing + [
        f"{path} does not exist" for path in files if path.resolve() not in promised and not path.exists()
    ]


def check_run_folder(run_folder: Path, config: "TrainConfig", resume: bool) -> list[str]:
    """Refuse a folder that is finished, busy, of another config, or full without --resume."""
    from pipeline.run_folder import differing_keys

    if not run_folder.exists():
        return [f"starts in the new folder {run_folder}"]
    busy = active_jobs(JobFolder(run_folder))
    if busy:
        raise InputError(f"{run_folder} is the folder of {busy}; wait for it, cancel it, or give another --name")
    stored = run_folder / "config.yaml"
    if stored.exists():
        different = differing_keys(read_yaml(stored), config.model_dump(mode="json"))
        if different:
            raise InputError(
                f"{run_folder} belongs to another config: {', '.join(different)} differ; give another --name, or the "
                f"values of {stored}"
            )
    if (run_folder / "COMPLETE").exists():
        raise InputError(f"{run_folder} holds a finished run; give another --name")
    steps = [path.parent.name for path in sorted(run_folder.glob("checkpoints/step_*/COMPLETE.json"))]
    if not steps:
        return [f"starts in {run_folder}, which holds no checkpoint yet"]
    if not resume:
        raise InputError(
            f"{run_folder} holds a run with checkpoints up to {steps[-1]}; pass --resume to go on with it, or give "
            "another --name"
        )
    return [f"resumes {run_folder} from {steps[-1]}"]


def active_jobs(folder: JobFolder) -> str:
    """The jobs of this folder that are queued or running, in words; empty for none."""
    jobs = [str(row["job"]) for row in folder.submissions() if row.get("cluster") != "local"]
    states = job_states(jobs)
    found = [f"job {job} ({states[job]})" for job in jobs if job in states and states[job].split()[0] in ACTIVE]
    return ", ".join(found)


def check_disk(run_folder: Path) -> list[str]:
    """Free space where the run writes, beside what a checkpoint takes."""
    place = run_folder
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / 1e9
    sizes = [
        sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        for path in run_folder.glob("checkpoints/step_*/COMPLETE.json")
    ]
    size = f", a checkpoint takes {max(sizes) / 1e9:.2g} GB" if sizes else ""
    if sizes and free_gb < 2 * max(sizes) / 1e9:
        raise InputError(f"{place} has {free_gb:.1f} GB free{size}: the next save would fail; make room first")
    return [f"disk: {free_gb:.0f} GB free in {place}{size}"]


def check_lead(run_folder: Path, lead_s: int) -> list[str]:
    """Compare the time between the signal and the end of a job with what saving takes."""
    rows = read_rows(run_folder / "metrics.jsonl")
    # The last save is waited for: the copy to host memory, then the writing that otherwise goes on beside training.
    saves = [row["checkpoint/stall_s"] + row["checkpoint/write_s"] for row in rows if row.get("checkpoint/write_s")]
    if not saves:
        return [f"signal: {lead_s} s before the time limit; no save has been timed yet"]
    if max(saves) * 2 > lead_s:
        raise InputError(
            f"a save of this run takes {max(saves):.0f} s, but the signal comes only {lead_s} s before the time limit; "
            f"set signal_lead_s to at least {2 * max(saves):.0f} in the cluster config"
        )
    return [f"signal: {lead_s} s before the time limit; the longest save took {max(saves):.1f} s"]


def config_key(text: str) -> str:
    """A short name for a config's content."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
