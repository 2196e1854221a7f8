"""Restore: choose the newest intact checkpoint and load it into the engine.

checkpoint = choose_checkpoint(run_folder, "auto")
state = load_checkpoint(checkpoint, engine, ...)        # step, stream state, counters
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, load_file

from pipeline.checkpoint.engine_files import SnapshotWriter
from pipeline.checkpoint.folder import (
    LATEST,
    find_damage,
    list_checkpoints,
    newest_intact,
    read_complete,
    read_latest,
    renamed_from,
    step_of,
    take_out,
    write_atomically,
)
from pipeline.checkpoint.rng import rank_name, set_random_state
from pipeline.checkpoint.save import ENGINE_FOLDER
from pipeline.checkpoint.universal import moments_by_name, report_conversion
from pipeline.dist import broadcast_value, is_main, world_size
from pipeline.engine import Engine
from pipeline.errors import InputError, PipelineError, RunError
from pipeline.log import logger
from pipeline.loss_scale import LossScale
from pipeline.partitions import fill_engine
from pipeline.retry import retried


def choose_checkpoint(run_folder: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, or None to start. All ranks; rank 0 reads and hashes, all get its answer.

    `resume`: auto takes the newest intact one of the run folder; a path is where a run without any begins, so that the
    same command goes on after a requeue; never takes none.
    """
    answer: tuple[Path | None, list[str]] | PipelineError = (None, [])
    if is_main() and resume != "never":
        try:
            answer = newest_intact(run_folder)
            if answer[0] is not None:
                put_right(run_folder, answer[0])
            if answer == (None, []) and resume != "auto":
                answer = (named_checkpoint(Path(resume)), [])
        except PipelineError as error:
            answer = error
    answer = broadcast_value(answer)
    if isinstance(answer, PipelineError):
        raise answer
    chosen, problems = answer
    for problem in problems:
        logger.warning(f"passed over: {problem}")
    if problems and chosen is None:
        raise RunError(
            f"{run_folder} has {len(problems)} checkpoints and none is intact (first: {problems[0]}); restore one, or "
            "start over with resume=never"
        )
    return chosen


def put_right(run_folder: Path, chosen: Path) -> None:
    """Take what is newer than the chosen checkpoint, and thus not intact, out of its row, and let `latest` name it.

    A run that died between its last checkpoint and `latest` would else be finished with a `latest` of before. Rank 0.
    """
    try:
        for folder in list_checkpoints(run_folder):
            if step_of(folder) > step_of(chosen):
                take_out(folder, "renamed" if is_renamed(folder) else "damaged")
        if read_latest(run_folder) != chosen:
            write_atomically(run_folder / LATEST, f"checkpoints/{chosen.name}\n")
    except OSError as error:
        logger.warning(f"{run_folder}: damaged checkpoints or `latest` could not be put right: {error.strerror}")


def is_renamed(folder: Path) -> bool:
    """Whether the checkpoint is another one's folder under a wrong name."""
    try:
        return renamed_from(folder, read_complete(folder)) is not None
    except ValueError:
        return False


def named_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the one that a run folder's `latest` names."""
    checkpoint = path if (path / ENGINE_FOLDER).is_dir() else read_latest(path)
    if checkpoint is None:
        raise InputError(f"resume: {path} is neither a checkpoint nor a run folder with one")
    if problem := find_damage(checkpoint):
        raise InputError(f"resume: {problem}; choose another checkpoint")
    return checkpoint


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json: the counts of the run, its length, the state of its stream."""
    state: dict[str, Any] = json.loads(retried((checkpoint / "state.json").read_bytes, checkpoint / "state.json"))
    return state


def same_layout(state: dict[str, Any], engine: Engine) -> bool:
    """Whether DeepSpeed's files hold what `engine` keeps where it keeps it: some settings cut the partitions otherwise.

    Under ZeRO 0 nothing is partitioned, whatever is set.
    """
    if state["zero_stage"] == 0 and engine.zero_stage == 0:
        return "layout" not in state or state["layout"]["precision"] == engine.config.precision
    return bool(state.get("layout") == json.loads(json.dumps(engine.layout)))


def load_checkpoint(checkpoint: Path, engine: Engine, param_names: list[str], scratch: Path) -> dict[str, Any]:
    """Load weights, optimizer and random states; returns state.json. All ranks.

    Saved by the same number of ranks under the same stage and settings of ZeRO, DeepSpeed's files are loaded as they
    are, to the last bit; else, or where the settings are not known, they are converted. `param_names` are those of the
    optimizer's groups, `scratch` a folder for the conversion.
    """
    saved_ranks, state = read_complete(checkpoint)["num_ranks"], read_state(checkpoint)
    saved_stage = state["zero_stage"]
    if saved_ranks == world_size() and same_layout(state, engine):
        engine.load(checkpoint, ENGINE_FOLDER, SnapshotWriter())
    else:
        report_conversion(checkpoint, (saved_ranks, saved_stage), (world_size(), engine.zero_stage))
        weights = load_file(str(checkpoint / "model.safetensors"))
        with moments_by_name(checkpoint / ENGINE_FOLDER, saved_stage, param_names, scratch) as moments:
            fill_engine(engine, weights, moments, state["optimizer_step"])
    if engine.loss_scale is not None and state.get("loss_scale") is not None:
        engine.loss_scale = LossScale(**state["loss_scale"])
    random_states = load(retried((checkpoint / "rng.safetensors").read_bytes, checkpoint / "rng.safetensors"))
    if rank_name() in random_states:
        set_random_state(random_states[rank_name()])
    return state
