"""The jobs that write one shard set: arrays over the tasks that have missing shards, and a merge after all of them.

    config -> plan of the set (made here, once) -> missing shards -> tasks -> arrays below MaxArraySize -> merge

Task i of n owns the shards k with k modulo n = i (`tasks` in preprocess/config.py). A task whose shards all exist is
not submitted.
"""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.checks import check_disk
from launch.cluster import ROOT, ClusterConfig, Resources
from launch.dry_run import Report, guards, show_reports
from launch.job import Work
from launch.local import again, run_local
from launch.options import Options
from launch.run_folder import JobFolder
from launch.scheduler import check_cluster, cluster_facts
from launch.shard_checks import (
    missing_inputs,
    set_disk,
    set_state,
    uncached_captioner,
    unreadable_tables,
    unseen_videos,
)
from launch.start import announce, hold_folder
from launch.submit import Job, batch_script, run_debug, submit, take_back
from launch.training import config_key
from launch.wait import wait_for
from pipeline.config import load_config, to_yaml
from pipeline.errors import InputError, RunError


@dataclass(frozen=True)
class ShardPlan:
    """The jobs of one shard set."""

    output: Path
    arrays: tuple[Job, ...]
    """Empty where no shard is missing."""
    lanes: int
    """Arrays that run side by side; each of the others waits for the one that is so many before it."""
    merge: Job
    config_text: str
    config_file: Path
    facts: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """What a dry run found missing; a submission is refused."""
    doubts: tuple[str, ...] = ()
    """What is not seen from here, or may not fit: missing in a dry run, a warning of a submission."""


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    """Options about the array of a shard set."""
    parser.add_argument("--shards-per-task", type=int, default=16, help="most shards of one array task (default: 16)")
    parser.add_argument("--throttle", type=int, help="shard tasks that run at a time (default: --nodes)")
    parser.add_argument(
        "--faulty-node",
        choices=("exclude", "report"),
        help="a node on which a shard task meets a fault of the machine, such as a missing video mount:\n"
        "leave it out and requeue the task (exclude), or let the task fail (report); default: the site's, exclude",
    )


def plan_shards(options: Options) -> ShardPlan:
    """Check the config, plan the set, find what is missing."""
    from preprocess.config import PreprocessConfig

    os.chdir(ROOT)
    config = load_config(PreprocessConfig, options.config, options.overrides)
    if config.tasks.count != 1:
        raise InputError("tasks.index and tasks.count are chosen by the array; remove them from the config")
    per_task, throttle = options.extra["shards_per_task"], options.extra["throttle"] or options.nodes
    if per_task < 1 or throttle < 1:
        raise InputError("--shards-per-task and --throttle are at least 1")
    resources = shard_resources(options.site)
    facts = check_cluster(options.site, resources, options.after) if options.cluster == "slurm" else []
    lacking, doubts = missing_inputs(config), unseen_videos(config.videos)
    lacking += [] if lacking else unreadable_tables(config)
    if lacking and not options.dry_run:
        raise InputError("; ".join(lacking))
    if config.captioner.kind != "none" and resources.gpus_per_node == 0:
        facts.append("captions will be written on CPUs, which is slow: --gpus-per-node gives the tasks GPUs")
    # Texts that are not here keep no set from being planned; metadata do.
    is_plannable = not any(line.startswith("metadata.") for line in lacking)
    state = set_state(config, dry_run=options.dry_run) if is_plannable else None
    num_shards, missing = (state.num_shards, state.missing) if state else (0, [])
    count = max(min(options.nodes, num_shards), math.ceil(num_shards / per_task))
    indices = sorted({number % count for number in missing})
    if options.dry_run:
        doubts += uncached_captioner(config)
        roomy, short = set_disk(config, state)
        facts, doubts = facts + roomy, doubts + short
    else:
        facts += check_disk(config.output.resolve())
    if state:
        facts.append(f"{len(missing)} of {num_shards} shards are missing: {len(indices)} tasks, {throttle} at a time")

    name = options.name or f"shards_{config.output.name}"
    run_folder = (options.site.runs_dir / name).resolve()
    # On this machine, one for each of its cores.
    workers = config.workers or (0 if options.cluster == "local" else resources.cpus_per_task)
    text = to_yaml(config.model_copy(update={"workers": workers}))
    config_file = JobFolder(run_folder).path / f"config-{config_key(text)}.yaml"
    argvs = [(str(config_file), f"tasks.index={index}", f"tasks.count={count}") for index in indices]
    progress = str(config.output.resolve() / "shards" / "*.parquet")
    work = Work(kind="shards", run_folder=run_folder, module="preprocess.run", argv=(), progress=progress)
    parts = split(argvs, array_limit(options))
    throttles = share(throttle, len(parts))
    arrays = [
        Job(work, resources, name, array=part, throttle=throttles[number % len(throttles)])
        for number, part in enumerate(parts)
    ]
    merge = Work(kind="merge", run_folder=run_folder, module="preprocess.merge", argv=(str(config.output),))
    return ShardPlan(
        output=config.output,
        arrays=tuple(arrays),
        lanes=len(throttles),
        merge=Job(merge, resources, f"{name}_merge"),
        config_text=text,
        config_file=config_file,
        facts=tuple(facts),
        missing=tuple(lacking),
        doubts=tuple(doubts),
    )


def shard_resources(site: ClusterConfig) -> Resources:
    """A task has a node of its own, with GPUs or without."""
    cpus = site.cpus_per_gpu * site.gpus_per_node if site.gpus_per_node else site.cpus_per_node
    return Resources(gpus_per_node=site.gpus_per_node, cpus_per_task=cpus)


def array_limit(options: Options) -> int:
    """Most tasks of one array. MaxArraySize 1001 is SLURM's default: indices 0 to 1000."""
    facts = cluster_facts(options.after) if options.cluster == "slurm" else None
    return options.site.max_array_size or (facts.max_array_size if facts else None) or 1000


def split(tasks: Sequence[tuple[str, ...]], size: int) -> list[tuple[tuple[str, ...], ...]]:
    """Parts of at most `size` tasks, of nearly equal length.

    >>> [len(part) for part in split([("a",)] * 10, 4)]
    [3, 3, 4]
    """
    parts = math.ceil(len(tasks) / size)
    return [tuple(tasks[len(tasks) * n // parts : len(tasks) * (n + 1) // parts]) for n in range(parts)]


def share(throttle: int, num_arrays: int) -> list[int]:
    """Tasks at a time of the arrays that run side by side: SLURM throttles every array by itself.

    >>> share(8, 3), share(2, 5)
    ([3, 3, 2], [1, 1])
    """
    lanes = max(1, min(throttle, num_arrays))
    return [throttle // lanes + (lane < throttle % lanes) for lane in range(lanes)]


def start_shards(plan: ShardPlan, options: Options) -> int:
    """Dry run, or submit (and wait for the merge), or run here."""
    if options.dry_run:
        return show_reports([report_shards(plan, options)], allow_missing=options.allow_missing)
    for fact in (*plan.facts, *(f"warning: {line}" for line in plan.doubts)):
        print(fact)
    write_shard_config(plan)
    if options.cluster == "local":
        run_shards_here(plan, options)
        return 0
    if options.cluster == "debug":
        codes = (run_debug(job, options.site) for job in (*plan.arrays, plan.merge))
        return next((code for code in codes if code), 0)
    last = submit_shards(plan, options, options.after)[-1]
    announce(last, plan.merge.work)
    return wait_for(last, JobFolder(plan.merge.work.run_folder)) if options.wait else 0


def report_shards(plan: ShardPlan, options: Options, after: Sequence[str] = ()) -> Report:
    """What a dry run says about a set."""
    jobs = (*plan.arrays, plan.merge) if options.cluster == "slurm" else ()
    return Report(
        kind="shards",
        config_text=plan.config_text,
        facts=plan.facts,
        missing=(*plan.missing, *plan.doubts),
        guards=guards(options, "shards", 1),
        scripts=tuple(batch_script(job, options.site, after or options.after) for job in jobs),
    )


def run_shards_here(plan: ShardPlan, options: Options, go_on: str | None = None) -> None:
    """Write what is missing on this machine, then merge."""
    write_shard_config(plan)
    for job in (*plan.arrays, plan.merge):
        if run_local(job, options.site, go_on=go_on) and job is not plan.merge:
            raise RunError(f"stopped{again(job.work) if go_on is None else go_on}")


def write_shard_config(plan: ShardPlan) -> None:
    """Put the resolved config where the tasks read it."""
    plan.config_file.parent.mkdir(parents=True, exist_ok=True)
    plan.config_file.write_text(plan.config_text)


def submit_shards(plan: ShardPlan, options: Options, after: tuple[str, ...]) -> tuple[str, ...]:
    """Queue the arrays, and the merge after all of them, or none; returns all ids, that of the merge last."""
    hold_folder(JobFolder(plan.merge.work.run_folder))
    write_shard_config(plan)
    arrays: list[str] = []
    try:
        for number, job in enumerate(plan.arrays):
            if number < plan.lanes:
                arrays.append(submit(job, options.site, after))
            else:
                arrays.append(submit(job, options.site, [arrays[number - plan.lanes]], "afterany"))
            print(f"queued array {arrays[-1]}")
        # After any end: where a task failed, the merge says what is missing and fails, which stops a chain.
        merge = submit(plan.merge, options.site, arrays or after, "afterany" if arrays else "afterok")
    except InputError as error:
        take_back(arrays)
        more = ", or larger --shards-per-task for fewer of them" if plan.arrays else ""
        raise InputError(
            f"{error}; nothing stays queued: wait for room{more}, and run the same command again"
        ) from None
    return (*arrays, merge)
