"""What slurm_pretrain.py and slurm_finetune.py do: check everything here, then queue one training job.

options -> TrainConfig -> checks (data, run folder, batch, disk, partition) -> Plan -> dry run | submit | run here
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.checks import (
    check_buildable,
    check_device,
    check_disk,
    check_lead,
    check_run_folder,
    check_same_config,
    check_tag,
    missing_data,
    starts_from_model,
    what_is_done,
)
from launch.cluster import ROOT, Resources, minutes_of, training_resources
from launch.disk import compare_disk, run_disk
from launch.job import Kind, Work
from launch.options import Options, without_gpus
from launch.run_folder import JobFolder
from launch.scheduler import check_cluster
from launch.submit import Job
from pipeline.config import load_config, to_yaml
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
    doubts: tuple[str, ...] = ()
    """What may not fit, by an estimate: missing in a dry run, which alone makes it."""
    outlook: str = ""
    """Memory, hours, storage: what a dry run adds."""


def plan_training(options: Options, kind: Kind, to_come: Sequence[Path] = ()) -> Plan:
    """Check a training run. `to_come` are folders that earlier links of a chain will have written."""
    os.chdir(ROOT)
    config = read_train_config(options)
    if config.engine.device == "cpu":
        options = without_gpus(options, "engine.device")
    resources = training_resources(options.site, options.nodes)
    world_size = resources.num_tasks
    if config.batch.global_batch_size < world_size:
        raise InputError(
            f"batch.global_batch_size is {config.batch.global_batch_size}, but {options.nodes} nodes have {world_size} "
            "ranks: every rank needs at least one clip"
        )
    check_device(config, resources)
    check_buildable(config, to_come, data_may_change=bool(options.after))
    run_folder = config.run_folder.resolve()
    facts = [batch_arithmetic(config, options.nodes, world_size)]
    facts += check_run_folder(run_folder, config, options.resume)
    outlook, doubts = "", list[str]()
    if options.dry_run:
        outlook, roomy, doubts = look_ahead(config, resources, options.site.gpu, run_folder, to_come)
        facts += roomy
    else:
        facts += check_disk(run_folder)
    facts += check_lead(run_folder, options.site.signal_lead_s, 60 * minutes_of(options.site.time))
    if options.cluster == "slurm":
        facts += check_cluster(options.site, resources, options.after)
    lacking = missing_data(config, to_come)
    if (options.dry_run or not lacking) and starts_from_model(run_folder, config):
        tag_facts, uncached = check_tag(config.model, dry_run=options.dry_run)
        facts, lacking = facts + tag_facts, lacking + uncached
    text = to_yaml(config)
    stop = config.stop_at_step
    last = [run_folder / "COMPLETE"]
    last += [run_folder / "checkpoints" / f"step_{stop:08d}" / "COMPLETE.json"] if stop else []
    config_file = JobFolder(run_folder).path / f"config-{config_key(text)}.yaml"
    work = Work(
        kind=kind,
        run_folder=run_folder,
        module="pipeline.train",
        argv=(str(config_file),),
        distributed=True,
        progress=str(run_folder / "checkpoints" / "step_*" / "COMPLETE.json"),
        finished=tuple(map(str, last)),
        argv_after_requeue=("resume=auto",),
    )
    job = Job(work, resources, name=config.name)
    return Plan(job, text, config_file, tuple(facts), tuple(lacking), tuple(doubts), outlook)


def folder_of_finished(options: Options) -> Path | None:
    """The run folder, where nothing is left to train in it; InputError where it holds a run of another config."""
    os.chdir(ROOT)
    config = read_train_config(options)
    run_folder = config.run_folder.resolve()
    if config.resume == "never" or not run_folder.exists() or not what_is_done(run_folder, config):
        return None
    check_same_config(run_folder, config)
    return run_folder


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


def look_ahead(
    config: "TrainConfig", resources: Resources, gpu: str, run_folder: Path, to_come: Sequence[Path]
) -> tuple[str, list[str], list[str]]:
    """Memory per GPU, hours and storage by `pipeline.plan`, for the site's kind of GPU; then (facts, lacking) of disk.

    Shards that are not there are to be written first, unless a link before does that and counts them itself.
    """
    from pipeline.plan import BYTES_PER_CLIP, make_plan, render

    on_gpu = resources.gpus_per_node > 0
    plan = make_plan(config, gpu=gpu if on_gpu else "h100", num_gpus=resources.num_tasks)
    roomy, short = run_disk(run_folder, config, plan.parameters, plan.length.steps)
    promised = {path.resolve() for path in to_come}
    absent = [Path(source.shards) for source in config.data.sources if "://" not in source.shards]
    absent = [path for path in absent if not (path / "manifest.parquet").exists() and path.resolve() not in promised]
    if absent and plan.length.stored_clips:
        num_bytes = plan.length.stored_clips * BYTES_PER_CLIP * plan.frame_cost
        what = f"the shards of {absent[0]}{plan.length.condition},"
        fits, too_large = compare_disk(what, absent[0].resolve(), num_bytes)
        roomy, short = roomy + fits, short + too_large
    without = "without GPUs there is no estimate; python -m pipeline.plan makes one for any number of GPUs"
    return render(plan, config, gpu) if on_gpu else without, roomy, short


def config_key(text: str) -> str:
    """A short name for a config's content."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
