"""The training loop, and what it keeps count of.

    train(run)         # to the last step, or to a signal or stop_at_step

`run` holds the parts that `pipeline.train` built. One turn of the loop is one step: batch -> features -> loss ->
gradient -> checks -> update -> what is due (log, evaluation, checkpoint).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.checkpoint.save import Saver
from pipeline.data.batch import Batch
from pipeline.data.stream import Stream
from pipeline.dist import any_ranks, gather_values
from pipeline.engine import Engine
from pipeline.errors import RunError
from pipeline.gradient import Objective, Terms, backward_batch, without_finite_features
from pipeline.log import MetricsFile, file_logger, logger
from pipeline.meters import OwnTime, StepClock, Work, console_line
from pipeline.mirrors import Mirrors
from pipeline.optim import set_learning_rate
from pipeline.signals import StopRequest
from pipeline.train_config import TrainConfig

Evaluate = Callable[[int], dict[str, float]]


@dataclass
class Progress:
    """How far the run is; saved with every checkpoint. Counts are over all ranks once they are merged."""

    step: int = 0
    samples: int = 0
    skipped: int = 0
    """Steps without an update because of a loss or gradient that is no number."""
    loss_mean: float | None = None
    """Running mean that spikes are measured against."""
    best: float | None = None
    best_step: int | None = None
    best_metric: str | None = None
    """What `best` is a value of; None in older checkpoints: the configured one."""


@dataclass
class Run:
    """The parts of a run, put together by `pipeline.train`."""

    config: TrainConfig
    total_steps: int
    engine: Engine
    stream: Stream
    objective: Objective
    evaluate: Evaluate
    saver: Saver
    metrics: MetricsFile | None
    """On rank 0."""
    stop: StopRequest
    progress: Progress
    clock: StepClock
    work: Work
    mirror: Mirrors
    local_samples: int = 0
    """This rank's valid samples since the last merge."""


def train(run: Run) -> None:
    """Train until the last step, or until a stop is asked for; both end with a checkpoint."""
    config, progress, engine, clock = run.config, run.progress, run.engine, run.clock
    batches = iter(run.stream)
    engine.train()
    while progress.step < run.total_steps:
        clock.start()
        batch = next(batches)
        clock.mark("data")
        step = progress.step + 1
        lr = config.optim.lr_at(step, run.total_steps)
        loss, terms = backward_batch(
            engine,
            run.objective,
            batch.trimmed().to(engine.device),
            micro_batches=config.batch.micro_batches,
            accumulation=config.batch.accumulation,
        )
        loss_value, norm = engine.read(loss)
        clock.mark("gradient")
        if math.isfinite(loss_value) and (math.isfinite(norm) or engine.may_overflow):
            set_learning_rate(engine.param_groups, lr)
            engine.step()
            watch_for_spike(run, step, loss_value)
        else:
            skip_or_stop(run, step, batch, loss_value, norm)
        clock.mark("update")
        run.local_samples += int(batch.valid_B.sum())
        progress.step = step
        clock.stop()

        record: dict[str, Any] = {}
        is_last = step == run.total_steps
        if step % config.log.every_steps == 0 or is_last:
            record |= step_metrics(run, batch, loss_value, terms, lr, norm)
        if is_last or (config.evaluation.every_steps and step % config.evaluation.every_steps == 0):
            record |= evaluate_and_judge(run)
        if run.metrics is not None and record:
            run.metrics.write(step, record)
            run.mirror.log(step, record)
            logger.info(console_line(step, run.total_steps, record))
        stopping, saving = wishes(run, step)
        if stopping or saving or is_last or progress.best_step == step:
            save(run, wait=is_last or bool(stopping))
        if is_last or stopping:
            ensure_saved(run, stopping or "the last one")
        if stopping and not is_last:
            logger.info(f"stopped after step {step} ({stopping}); the same command goes on from here")
            return


def watch_for_spike(run: Run, step: int, loss: float) -> None:
    """Report a loss far above its running mean."""
    mean, factor = run.progress.loss_mean, run.config.failure.spike_factor
    if mean is not None and step > 20 and loss > factor * mean:
        logger.warning(f"loss spike at step {step}: {loss:.4g}, {loss / mean:.1f} times the running mean")
    run.progress.loss_mean = loss if mean is None else 0.98 * mean + 0.02 * loss


def skip_or_stop(run: Run, step: int, batch: Batch, loss: float, norm: float) -> None:
    """A loss or gradient that is no number: name it, then leave the weights as they are, or stop. All ranks."""
    run.engine.drop_gradients()
    run.progress.skipped += 1
    what = f"step {step}: loss {loss}, gradient norm {norm}"
    suspect = suspects(run, batch)
    allowed = run.config.failure.skip_nonfinite_batches
    if run.progress.skipped > allowed:
        file_logger.error(f"{what} {suspect}")
        raise RunError(
            f"{what} {shortened(suspect)}; the weights were not touched and the checkpoints are good; look at these "
            f"samples, lower optim.lr, or set failure.skip_nonfinite_batches over {allowed}"
        )
    logger.error(f"{what} {suspect}")
    logger.warning(f"skipped step {step}, {run.progress.skipped} of {allowed} that are allowed")


def suspects(run: Run, batch: Batch) -> str:
    """Rank by rank, the clips whose features are no numbers; all clips of the batch where there is none. All ranks."""
    batch = batch.trimmed().to(run.engine.device)
    mine = without_finite_features(run.engine, run.objective, batch, run.config.batch.micro_batches)
    everyone = gather_values((mine, [key for key in batch.keys if key]))
    if any(guilty for guilty, _ in everyone):
        named = [(number, guilty) for number, (guilty, _) in enumerate(everyone) if guilty]
        return "through clips whose features are no numbers: " + _by_rank(named)
    return "with features that are numbers, in the batch of " + _by_rank(enumerate(keys for _, keys in everyone))


def _by_rank(named: Iterable[tuple[int, list[str]]]) -> str:
    return "; ".join(f"rank {number}: {', '.join(keys)}" for number, keys in named)


def shortened(text: str, limit: int = 300) -> str:
    """The beginning of a long list, and where the rest is."""
    return text if len(text) <= limit else f"{text[:limit]} ... (all are in logs/)"


def add_samples(run: Run, everyone: Iterable[int]) -> None:
    """Add what every rank counted since the last time to the progress."""
    run.progress.samples += sum(everyone)
    run.local_samples = 0


def step_metrics(run: Run, batch: Batch, loss: float, terms: Terms, lr: float, norm: float) -> dict[str, Any]:
    """What is logged about a step. All ranks."""
    run.saver.ensure_owned()
    own = OwnTime(data_s=run.stream.waited_s, forward_s=run.engine.forward_timer.take())
    run.stream.waited_s = 0.0
    counted = gather_values((run.local_samples, own))
    add_samples(run, (samples for samples, _ in counted))
    values: dict[str, Any] = {"train/loss": loss}
    values |= {f"train/loss_{name}": value.item() for name, value in terms.items()}
    values |= {
        "train/logit_scale": run.engine.logit_scale(),
        "train/lr": lr,
        "train/grad_norm": norm,
        "train/param_norm": run.engine.parameter_norm(),
        "train/epoch": batch.epoch,
        "train/samples": run.progress.samples,
    }
    values |= {f"train/bad_{reason}": count for reason, count in run.stream.bad_by_reason.items()}
    if len(run.stream.composition) > 1:
        values |= {f"train/source_{number}": count for number, count in enumerate(run.stream.composition)}
        values |= {f"train/epoch_source_{number}": n for number, n in enumerate(run.stream.composition_of_epoch)}
    if run.progress.skipped:
        values["train/skipped"] = run.progress.skipped
    if run.saver.stall_s:
        values |= {"checkpoint/stall_s": run.saver.stall_s, "checkpoint/write_s": run.saver.write_s}
    return values | run.clock.summary(run.config.batch.global_batch_size, run.work, [own for _, own in counted])


def evaluate_and_judge(run: Run) -> dict[str, float]:
    """Metrics of every held-out set; notes whether this is the best step so far. All ranks."""
    run.engine.eval()
    values = {f"eval/{name}": value for name, value in run.evaluate(run.progress.step).items()}
    run.engine.forward_timer.take()  # its forward passes are no part of training
    run.engine.train()
    metric = run.config.evaluation.best_metric
    if metric is not None:
        progress, value = run.progress, values[f"eval/{metric}"]
        if progress.best_metric not in (None, metric):
            logger.warning(f"the best step is chosen by {metric} from now on, and no longer by {progress.best_metric}")
            progress.best = None
        progress.best_metric = metric
        if progress.best is None or value > progress.best:
            progress.best, progress.best_step = value, progress.step
    return values


def wishes(run: Run, step: int) -> tuple[str, bool]:
    """Why to stop ("" for not) and whether to save, agreed by all ranks."""
    asked, due = any_ranks([run.stop.name is not None, run.saver.is_due(step)], run.engine.device)
    if asked:
        return run.stop.name or "a signal on another rank", True
    if step == run.config.stop_at_step:
        return f"stop_at_step={step}", True
    return "", due


def ensure_saved(run: Run, why: str) -> None:
    """Raise RunError when the step with which the run ends could not be saved. All ranks."""
    step, saved_step = run.progress.step, run.saver.saved_step
    if saved_step != step:
        place = "the start" if saved_step < 0 else f"step {saved_step}"
        raise RunError(
            f"step {step} ({why}) could not be saved; the same command goes on from {place}, once what the log names "
            "is put right"
        )


def save(run: Run, *, wait: bool) -> None:
    """Save a checkpoint of the current step; it is written beside the next steps unless `wait`. All ranks."""
    add_samples(run, gather_values(run.local_samples))
    state = {
        "progress": asdict(run.progress),
        "total_steps": run.total_steps,
        "stream": run.stream.state_dict(),
        "zero_stage": run.engine.zero_stage,
        "layout": run.engine.layout,
        "loss_scale": None if run.engine.loss_scale is None else asdict(run.engine.loss_scale),
        "optimizer_step": run.engine.optimizer_step(),
    }
    run.saver.save(run.engine, run.progress.step, state, run.progress.best_step, wait=wait)
