"""Train: `python -m pipeline.train FILE.yaml... key=value...`, alone, under torchrun, or started by `launch`.

How a run starts, in this order: its own newest intact checkpoint (or the one `resume` names); else the weights of
`init_from`; else what `model` says (pre-trained CLIP, or random). This file builds the parts and hands them over.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.config import parse_command_line, to_yaml
from pipeline.errors import InputError, PipelineError, RunError, run_command
from pipeline.log import quiet

with quiet():
    import torch
    from torch import nn

    from pipeline.checkpoint.folder import checkpoint_name, remove_staging, set_aside, write_atomically
    from pipeline.checkpoint.restore import choose_checkpoint, load_checkpoint, read_state
    from pipeline.checkpoint.rng import seed_everything
    from pipeline.checkpoint.save import Saver
    from pipeline.data.stream import Stream
    from pipeline.dist import allow_open_files, broadcast_value, is_initialized, is_main, rank, world_size
    from pipeline.engine import Engine, start_distributed
    from pipeline.evaluation.retrieval import check_set, retrieve
    from pipeline.examples import retrieval_examples
    from pipeline.flops import ClipWork, peak_flops_of
    from pipeline.gradient import Objective
    from pipeline.log import MetricsFile, file_logger, logger, start_logging
    from pipeline.losses.terms import texts_of
    from pipeline.meters import StepClock, Work
    from pipeline.mirrors import Mirrors, start_mirrors
    from pipeline.model.clip_vip import CLIPViP
    from pipeline.model.weights import save_model
    from pipeline.optim import make_optimizer, parameter_groups, set_hyperparameters
    from pipeline.ownership import Ownership
    from pipeline.run_folder import make_folders, prepare
    from pipeline.signals import StopRequest
    from pipeline.start import first_weights
    from pipeline.tensorboard_mirror import check_tensorboard
    from pipeline.train_config import TrainConfig
    from pipeline.trainer import Evaluate, Progress, Run, train

Value = TypeVar("Value")


def main(argv: list[str]) -> int:
    """Train; exit code 0 when the run is finished or was stopped so that it can go on."""
    config = parse_command_line(TrainConfig, argv, program="python -m pipeline.train", about=__doc__ or "")
    allow_open_files()
    group_is_ours = not is_initialized()
    with StopRequest() as stop:
        with quiet():
            device = start_distributed(config.engine)
        ownership, notes = on_main(lambda: claim_folder(config)) or (None, [])
        stop.leave = ownership.release if ownership else stop.leave
        try:
            start_logging(config.run_folder / "logs")
            for note in notes:
                logger.info(note)
            run_to_the_end(config, device, stop, ownership.check if ownership else lambda: None)
        except PipelineError as error:
            file_logger.error(f"stopped: {error}")  # the console gets it from `run_command`
            raise
        except RuntimeError as error:
            if not is_lost_rank(error):
                raise
            if ownership:
                ownership.release()
            leave_lost_group(error)
        finally:
            if ownership:
                ownership.release()
    if group_is_ours:
        torch.distributed.destroy_process_group()
    return 0


def run_to_the_end(
    config: TrainConfig, device: torch.device, stop: StopRequest, check_ownership: Callable[[], None]
) -> None:
    """Build the run and train, unless it is finished already. All ranks."""
    run = build(config, device, stop, check_ownership)
    try:
        if run.progress.step >= run.total_steps:
            logger.info(f"{config.run_folder} is finished: {run.progress.step} steps; nothing to train")
        elif config.stop_at_step is not None and run.progress.step >= config.stop_at_step:
            place = f"{config.run_folder} is at step {run.progress.step}"
            logger.info(f"{place}, and stop_at_step={config.stop_at_step}; nothing to do")
        else:
            with stop.steps_at_risk(what_is_lost(run)):
                train(run)
        if run.progress.step >= run.total_steps and is_main():
            finish_folder(config.run_folder, run.progress.step)
    except PipelineError:
        run.saver.settle_alone(config.engine.collective_timeout_s)  # what was begun before the error is good
        raise
    finally:
        if run.metrics is not None:
            run.metrics.close()
        run.mirror.finish()


def what_is_lost(run: Run) -> Callable[[], str]:
    """Gives, at any moment of training, what is lost when it ends there without saving."""
    started_at = run.progress.step

    def lost() -> str:
        saved = run.saver.saved_step
        place = f"step {max(saved, started_at)}" if max(saved, started_at) > 0 else "the start"
        steps = run.progress.step - max(saved, started_at)
        return f"{steps} step{'s' * (steps != 1)} since {place} {'is' if steps == 1 else 'are'} lost"

    return lost


def finish_folder(run_folder: Path, step: int) -> None:
    """Put the weights of the last checkpoint into `export/`, then mark the run as complete, unless it is. Rank 0."""
    if (run_folder / "COMPLETE").exists():
        return
    last = run_folder / "checkpoints" / checkpoint_name(step)
    if not (last / "model.safetensors").exists():
        raise RunError(f"the last checkpoint of {run_folder} could not be saved; make room and run the command again")
    export = run_folder / "export"
    try:
        export.mkdir(exist_ok=True)
        for name in ("model.safetensors", "model.json"):
            shutil.copyfile(last / name, export / f".{name}.tmp")
            (export / f".{name}.tmp").replace(export / name)
        write_atomically(run_folder / "COMPLETE", f"{step}\n")
    except OSError as error:
        raise RunError(f"cannot write {export}: {error.strerror}; make room and run the command again") from None


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone. gloo has no error class of its own."""
    lost = isinstance(error, torch.distributed.DistError)
    words = ("gloo", "connection closed by peer", "connection reset by peer", "timed out waiting", "nccl")
    return lost or any(word in str(error).lower() for word in words)


def leave_lost_group(error: RuntimeError) -> NoReturn:
    """End this process at once: the clean ways out wait for ranks that no longer exist."""
    reason = " ".join(str(error).split())[:200]
    message = (
        f"rank {rank()}: another rank died or hangs, or this one cannot reach it ({reason}); see the logs of both; the "
        "same command goes on from `latest`"
    )
    file_logger.exception(message)
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def on_main(action: Callable[[], Value]) -> Value | None:
    """Run `action` on rank 0. When it fails there, rank 0 reports the error and every rank leaves with its code."""
    result: Value | None = None
    error: Exception | None = None
    if is_main():
        try:
            result = action()
        except Exception as caught:  # whatever it is: the others wait to hear of it
            error = caught
    code = broadcast_value(0 if error is None else error.exit_code if isinstance(error, PipelineError) else 1)
    if error is not None:
        raise error
    if code:
        sys.exit(code)
    return result


def claim_folder(config: TrainConfig) -> tuple[Ownership, list[str]]:
    """Make the run folder, take it and check its config, once the held-out sets are known to be there.

    Returns what there is to say about it, for the log that begins then.
    """
    if config.log.tensorboard:
        check_tensorboard()
    for held_out in config.evaluation.sets:
        check_set(held_out)
    make_folders(config.run_folder)
    ownership = Ownership.claim(config.run_folder)
    try:
        remove_staging(config.run_folder)
        moved = set_aside(config.run_folder) if config.resume == "never" else []
        notes = [f"starting over; set aside in {config.run_folder}: {', '.join(moved)}"] if moved else []
        notes += prepare(config.run_folder, config)
    except BaseException:
        ownership.release()
        raise
    return ownership, notes


def build(config: TrainConfig, device: torch.device, stop: StopRequest, check_ownership: Callable[[], None]) -> Run:
    """Everything a run needs, in the order in which it can be made. All ranks."""
    torch.manual_seed(config.seed)
    checkpoint = choose_checkpoint(config.run_folder, config.resume)
    own = read_state(checkpoint) if checkpoint is not None and is_within(checkpoint, config.run_folder) else None
    model = first_weights(config, checkpoint)
    model_config = model.config
    groups = parameter_groups(model.named_parameters(), config.optim)
    engine = Engine(
        model,
        make_optimizer(groups, config.optim),
        config.engine,
        device,
        clip_norm=config.optim.clip_norm,
        rows_per_rank=-(-config.batch.global_batch_size // world_size()),
        passthrough=config.deepspeed,
    )
    stream = Stream(
        config.data,
        global_batch_size=config.batch.global_batch_size,
        image_size_px=model.image_size_px,
        tokenize=model.tokenizer(config.data.num_text_tokens),
        seed=config.seed,
        rank=rank(),
        world_size=world_size(),
        manifests=own["stream"]["manifests"] if own else None,
        texts=texts_of(config.loss.name),
        device=device,
    )
    seed_everything(config.seed, rank())
    progress = Progress()
    if checkpoint is not None:
        param_names = [name for group in groups for name in group["param_names"]]
        state = load_checkpoint(checkpoint, engine, param_names, config.run_folder / "checkpoints" / ".universal-load")
        set_hyperparameters(engine.param_groups, groups)
        progress = Progress(**state["progress"])
        stream.load_state_dict(state["stream"])
    total_steps = run_length(config, stream, own)
    report_start(config, model, checkpoint, progress, total_steps)
    for remark in stream.remarks() if is_main() else ():
        logger.warning(remark)
    logger.info(engine.way.describe())
    mirror = Mirrors()
    if is_main():
        values = config.model_dump(mode="json")
        mirror = start_mirrors(config.run_folder, config.log, step=progress.step, config=values)
    return Run(
        config=config,
        total_steps=total_steps,
        engine=engine,
        stream=stream,
        objective=Objective(config.loss),
        evaluate=make_evaluate(config, engine, model, mirror),
        saver=Saver(
            run_folder=config.run_folder,
            config=config.checkpoint,
            config_text=to_yaml(config),
            save_weights=lambda folder, weights: save_model(folder, weights, model_config),
            check_ownership=check_ownership,
            device=device,
            last_step=progress.step if own else -1,
            saved_step=progress.step if own else -1,
        ),
        metrics=MetricsFile(config.run_folder / "metrics.jsonl", progress.step) if is_main() else None,
        stop=stop,
        progress=progress,
        clock=StepClock(device),
        work=work_of(config, model, device),
        mirror=mirror,
    )


def is_within(checkpoint: Path, run_folder: Path) -> bool:
    """Whether it is a checkpoint of this very run, and not of one that it starts from."""
    return checkpoint.parent.parent == run_folder


def run_length(config: TrainConfig, stream: Stream, own: dict[str, Any] | None) -> int:
    """Steps of the whole run: those that it saved, or by the manifests that `stream` is pinned to."""
    if own is not None and "total_steps" in own:
        return int(own["total_steps"])
    steps = config.steps or stream.batches_in(config.epochs or 0)
    if not steps:
        raise InputError(
            f"epochs={config.epochs} of {stream.samples_per_epoch} samples are no whole step of "
            f"{config.batch.global_batch_size} clips; set more epochs, steps, or a smaller batch.global_batch_size"
        )
    return steps


def work_of(config: TrainConfig, model: CLIPViP, device: torch.device) -> Work:
    """Tokens and operations of a clip, and the peak of all GPUs."""
    work = ClipWork.of(
        model.config,
        num_frames=config.data.num_frames,
        num_text_tokens=config.data.num_text_tokens,
        loss_name=config.loss.name,
    )
    peak = peak_flops_of(device)
    return Work(
        tokens_per_clip=work.vision_tokens + work.text_tokens,
        flops_per_clip=work.training_flops,
        peak_flops=None if peak is None else peak * world_size(),
    )


def make_evaluate(config: TrainConfig, engine: Engine, model: CLIPViP, mirror: Mirrors) -> Evaluate:
    """A function that gives the metrics of all held-out sets as <set name>/<metric>. Training does not notice it."""

    def evaluate(step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        devices = [engine.device] if engine.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            for chosen in config.evaluation.sets:
                retrieval = retrieve(engine, model.tokenizer, model.image_size_px, chosen, device=engine.device)
                found |= {f"{chosen.name}/{name}": value for name, value in retrieval.metrics().items()}
                if mirror.is_active:
                    mirror.log_examples(step, *retrieval_examples(retrieval, model.image_size_px))
        return found

    return evaluate


def report_start(
    config: TrainConfig, model: nn.Module, checkpoint: Path | None, progress: Progress, total_steps: int
) -> None:
    """Say what starts, from what, on what."""
    millions = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters()) / 1e6
    origin = f"from {checkpoint} (step {progress.step})" if checkpoint else f"from {config.init_from or 'the start'}"
    engine = f"{world_size()} rank(s), ZeRO {config.engine.zero_stage}, {config.engine.precision}"
    work = f"{total_steps} steps of {config.batch.global_batch_size} clips"
    logger.info(f"{config.run_folder}: {millions:.1f} M parameters, {work} on {engine}; {origin}")
    if checkpoint and config.init_from:
        logger.warning(
            f"init_from={config.init_from} is not read: the run goes on from its own checkpoint; resume=never starts "
            "over from init_from"
            if is_within(checkpoint, config.run_folder)
            else f"init_from={config.init_from} is not read: resume={config.resume} gives weights and state"
        )


if __name__ == "__main__":
    run_command(main)
