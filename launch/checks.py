"""What is checked on the login node about a training run, before anything is queued.

facts = check_run_folder(run_folder, config, resume=True)     # lines to show; InputError for what would fail
lacking = missing_data(config, to_come)                       # a dry run shows these, a submission refuses
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cluster import Resources
from launch.disk import checkpoint_sizes, nearest_folder
from launch.run_folder import JobFolder, Row
from launch.scheduler import ACTIVE, job_states
from pipeline.errors import InputError, RunError
from pipeline.metrics_lines import read_lines

if TYPE_CHECKING:
    from pipeline.evaluation.protocol import RetrievalSetConfig
    from pipeline.model.config import ModelConfig
    from pipeline.train_config import TrainConfig


SLURM_EARLY_S = 60
"""SLURM sends the signal before a time limit up to so much earlier (man sbatch, --signal)."""
START_S = SLURM_EARLY_S + 120
"""Least time that a job must have before the signal: ranks that meet and a model that is built take minutes."""


def check_device(config: "TrainConfig", resources: Resources) -> None:
    """Refuse a run that wants GPUs without having any."""
    for key, value in (("device", "cuda"), ("precision", "fp16")):
        if resources.gpus_per_node == 0 and getattr(config.engine, key) == value:
            raise InputError(f"engine.{key} is {value}, but the job has no GPUs; give --gpus-per-node, or change it")


def check_buildable(config: "TrainConfig", to_come: Sequence[Path], *, data_may_change: bool) -> None:
    """Refuse what the start of the run would refuse: unknown models, weights that do not fit, groups, damaged data.

    With `data_may_change`, weights and data are left alone: a job that runs before this one may be writing them.
    """
    from pipeline.data.manifest_file import manifest_facts
    from pipeline.start import check_start

    promised = {path.resolve() for path in to_come}
    if config.init_from is not None and (data_may_change or config.init_from.resolve() in promised):
        config = config.model_copy(update={"init_from": None})
    check_start(config)
    if data_may_change:
        return
    for source in config.data.sources:
        if (Path(source.shards) / "manifest.parquet").exists():
            manifest_facts(source.shards)
    check_sets(config.evaluation.sets, to_come)


def check_tag(model: "ModelConfig", *, dry_run: bool) -> tuple[list[str], list[str]]:
    """Weights of open_clip are fetched here: nodes often have no internet, and hundreds of ranks would ask at once.

    Returns (facts, findings). A dry run fetches nothing.
    """
    from pipeline.model.tags import cached_weights, fetch_weights
    from pipeline.start import needs_tag

    if not needs_tag(model):
        return [], []
    what = f"{model.name} {model.pretrained}"
    if dry_run and cached_weights(model.name, str(model.pretrained)) is None:
        return [], [f"weights of {what} are not in this machine's cache; submitting fetches them"]
    return [f"weights of {what}: {fetch_weights(model.name, str(model.pretrained))}"], []


def check_sets(sets: "Iterable[RetrievalSetConfig]", to_come: Sequence[Path]) -> None:
    """Refuse held-out sets whose queries ask for videos that are not in their shards, as far as both are here."""
    from pipeline.evaluation.retrieval import check_set

    promised = {path.resolve() for path in to_come}
    for chosen in sets:
        is_here = (chosen.shards / "manifest.parquet").exists() and chosen.queries.exists()
        if is_here and chosen.shards.resolve() not in promised:
            try:
                check_set(chosen)
            except RunError as error:
                raise InputError(str(error)) from None


def missing_data(config: "TrainConfig", to_come: Sequence[Path]) -> list[str]:
    """Shard sets, queries, weights and checkpoints that are not there, and that no earlier link will write."""
    from pipeline.start import given_weights

    promised = {path.resolve() for path in to_come}
    wanted = [(f"data.sources[{n}].shards", Path(source.shards)) for n, source in enumerate(config.data.sources)
              if "://" not in source.shards]  # fmt: skip
    wanted += [(f"evaluation set {chosen.name}", chosen.shards) for chosen in config.evaluation.sets]
    missing = [
        f"{key}: {folder} holds no manifest.parquet; write it with launch/slurm_shards.py, or correct the path"
        for key, folder in wanted
        if folder.resolve() not in promised and not (folder / "manifest.parquet").exists()
    ]
    files = [path for chosen in config.evaluation.sets for path in (chosen.queries, *chosen.pairs.values())]
    weights = given_weights(config)
    files += [weights] if weights is not None else []
    files += [Path(config.resume)] if config.resume not in ("auto", "never") else []
    return missing + [
        f"{path} does not exist" for path in files if path.resolve() not in promised and not path.exists()
    ]


def check_run_folder(run_folder: Path, config: "TrainConfig", resume: bool) -> list[str]:
    """Refuse a folder that is finished, busy, of another config, or full without --resume."""
    from pipeline.checkpoint.folder import list_checkpoints

    starts_over = config.resume == "never"
    if starts_over and resume:
        raise InputError("--resume goes on with a run, resume=never starts it over; give one of them")
    if not run_folder.exists():
        return [f"starts in the new folder {run_folder}{origin(config)}"]
    busy = active_jobs(JobFolder(run_folder))
    if busy:
        raise InputError(f"{run_folder} is the folder of {busy}; wait for it, cancel it, or give another --name")
    if not starts_over:
        check_same_config(run_folder, config)
    checkpoints = list_checkpoints(run_folder)
    if not checkpoints:
        return [f"starts in {run_folder}, which holds no checkpoint yet{origin(config)}"]
    newest = checkpoints[-1]
    # Files that tell the guard of a job that the work is done must not be there from before.
    done = what_is_done(run_folder, config)
    if done:
        raise InputError(f"{run_folder} {done}")
    if starts_over:
        return [f"starts over in {run_folder}; its checkpoints up to {newest.name} are set aside"]
    if not resume:
        raise InputError(
            f"{run_folder} holds a run with checkpoints up to {newest.name}; pass --resume to go on with it, or give "
            "another --name"
        )
    return resumed_from(run_folder)


def check_same_config(run_folder: Path, config: "TrainConfig") -> None:
    """Refuse the folder of a run whose config differs in what decides its result, as the start of the run would."""
    from pipeline.run_folder import conflict, has_steps

    different = conflict(run_folder, config)
    if different and has_steps(run_folder):
        raise InputError(
            f"{run_folder} {different}; give another --name, the values of {run_folder / 'config.yaml'}, or start "
            "over with resume=never"
        )


def starts_from_model(run_folder: Path, config: "TrainConfig") -> bool:
    """Whether the run takes its first weights from `model`: not from a checkpoint, nor from init_from."""
    from pipeline.checkpoint.folder import list_checkpoints

    if config.init_from is not None or config.resume not in ("auto", "never"):
        return False
    return config.resume == "never" or not list_checkpoints(run_folder)


def what_is_done(run_folder: Path, config: "TrainConfig") -> str:
    """Why nothing is left to train in this folder, in words that follow its name; empty where something is."""
    from pipeline.checkpoint.folder import list_checkpoints, step_of

    if (run_folder / "COMPLETE").exists():
        return "holds a finished run; give another --name"
    newest = list_checkpoints(run_folder)[-1:]
    if config.stop_at_step is not None and newest and step_of(newest[0]) >= config.stop_at_step:
        return f"is at {newest[0].name}, but stop_at_step is {config.stop_at_step}; raise it"
    return ""


def origin(config: "TrainConfig") -> str:
    """Where a run whose folder holds no checkpoint begins, in words that go on a sentence; checks `resume: PATH`."""
    from pipeline.checkpoint.restore import named_checkpoint

    if config.resume in ("auto", "never") or not Path(config.resume).exists():
        return ""
    return f", from {named_checkpoint(Path(config.resume))}"


def resumed_from(run_folder: Path) -> list[str]:
    """The checkpoint that the job will go on from, and those that it will pass over; hashes are checked here."""
    from pipeline.checkpoint.folder import newest_intact

    chosen, problems = newest_intact(run_folder)
    if chosen is None:
        raise InputError(f"{run_folder}: no checkpoint is intact ({problems[0]}); start over with resume=never")
    return [f"resumes {run_folder} from {chosen.name}", *(f"passes over {problem}" for problem in problems)]


def active_jobs(folder: JobFolder) -> str:
    """The jobs of this folder that are queued or running, in words; empty for none."""
    rows = [row for row in folder.submissions() if row.get("cluster") != "local" and not folder.is_over(row)]
    jobs = [str(row["job"]) for row in rows]
    states = job_states(jobs)
    found = [f"job {job} ({states[job]})" for job in jobs if job in states and states[job].split()[0] in ACTIVE]
    return ", ".join(found)


def check_disk(run_folder: Path) -> list[str]:
    """Free space where the run writes, beside what a checkpoint takes."""
    place = nearest_folder(run_folder)
    free_gb = shutil.disk_usage(place).free / 1e9
    sizes = checkpoint_sizes(run_folder)
    size = f", a checkpoint takes {max(sizes) / 1e9:.2g} GB" if sizes else ""
    if sizes and free_gb < 2 * max(sizes) / 1e9:
        raise InputError(f"{place} has {free_gb:.1f} GB free{size}: the next save would fail; make room first")
    return [f"disk: {free_gb:.0f} GB free in {place}{size}"]


def check_lead(run_folder: Path, lead_s: int, time_limit_s: int) -> list[str]:
    """Compare the time between the signal and the end of a job with what saving takes, and with its time limit."""
    if time_limit_s < lead_s + START_S:
        raise InputError(
            f"a job of {time_limit_s} s is told to save {lead_s} s before its end, or up to {SLURM_EARLY_S} s earlier: "
            "it would hardly make a step; raise --time, or lower signal_lead_s in the cluster config"
        )
    rows = read_lines(run_folder / "metrics.jsonl").rows
    # The last save is waited for: the copy to host memory, then the writing that otherwise goes on beside training.
    saves = [row.get("checkpoint/stall_s", 0.0) + row["checkpoint/write_s"] for row in rows if _has_save(row)]
    if not saves:
        return [f"signal: {lead_s} s before the time limit; no save has been timed yet"]
    if max(saves) * 2 > lead_s:
        raise InputError(
            f"a save of this run takes {max(saves):.0f} s, but the signal comes only {lead_s} s before the time limit; "
            f"set signal_lead_s to at least {2 * max(saves):.0f} in the cluster config"
        )
    return [f"signal: {lead_s} s before the time limit; the longest save took {max(saves):.1f} s"]


def _has_save(row: Row) -> bool:
    return isinstance(row.get("checkpoint/write_s"), float | int) and row["checkpoint/write_s"] > 0
