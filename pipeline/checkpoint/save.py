"""Save: a snapshot in host memory holds training up; writing it goes on beside the next steps.

    at the step border   DeepSpeed's state, whole weights, random states -> host memory
    in a thread          files into a staging folder -> agree that every rank could write
      of rank 0          -> COMPLETE.json -> fsync -> rename -> latest -> remove what the keep policy lets go

The threads agree over a process group of their own. One save is under way at a time; the last one of a run, and one
that a signal asked for, is waited for. A write error on one rank reaches all of them in that vote: the checkpoints
before stay untouched, and a failed save is no reason to stop.
"""

import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint.engine_files import SnapshotWriter, write_error
from pipeline.checkpoint.folder import (
    BEST,
    LATEST,
    checkpoint_name,
    list_checkpoints,
    remove_checkpoint,
    seal,
    step_of,
    sync_folder,
    to_remove,
    write_atomically,
)
from pipeline.checkpoint.rng import gather_random_states
from pipeline.config import Section
from pipeline.dist import broadcast_value, gather_values, host_group, is_main, rank, world_size
from pipeline.engine import Engine
from pipeline.errors import RunError
from pipeline.log import logger

ENGINE_FOLDER = "engine"


class CheckpointConfig(Section):
    """When to save, and what to keep."""

    every_steps: int = Field(default=1000, ge=0)
    """Save after every so many steps; 0: not by step."""
    every_minutes: float = Field(default=0.0, ge=0)
    """Save when the last save is so long ago; 0: not by time."""
    keep_last: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay."""
    keep_every_steps: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this stay for good; 0: none."""


@dataclass(frozen=True)
class Snapshot:
    """What one rank has to write: all of it in memory, none of it touched by later steps."""

    step: int
    best_step: int | None
    staging: Path
    engine: SnapshotWriter
    weights: dict[str, Tensor]
    random_states: dict[str, Tensor]
    state: dict[str, Any]
    stall_s: float
    """How long taking it held up training."""


@dataclass
class Saver:
    """Writes the checkpoints of one run. All ranks make it together."""

    run_folder: Path
    config: CheckpointConfig
    config_text: str
    """The resolved config, kept in every checkpoint."""
    save_weights: Callable[[Path, dict[str, Tensor]], None]
    """Writes model.safetensors and model.json into a folder."""
    check_ownership: Callable[[], None]
    """Raises RunError when another run has taken the folder over; asked on rank 0."""
    failures: int = 0
    """Saves that failed in a row."""
    stall_s: float = 0.0
    """How long the last save held up training."""
    write_s: float = 0.0
    """How long the last save that is done took to write, beside training."""
    last_time: float = field(default_factory=time.monotonic)
    last_step: int = -1
    """The step of the last checkpoint that was begun, or resumed from."""
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self._group = host_group()

    def is_due(self, step: int) -> bool:
        """Whether the config asks for a save after `step`, as far as this rank's clock knows."""
        by_step = self.config.every_steps > 0 and step % self.config.every_steps == 0
        minutes = (time.monotonic() - self.last_time) / 60
        return by_step or (self.config.every_minutes > 0 and minutes >= self.config.every_minutes)

    def save(
        self, engine: Engine, step: int, state: dict[str, Any], best_step: int | None = None, *, wait: bool
    ) -> None:
        """Begin to save the run after `step`; with `wait`, also end it. All ranks.

        The checkpoint of `best_step` stays whatever the keep policy says, and `best` names it. A failure is logged;
        then everything saved before is still there.
        """
        started = time.monotonic()
        if step != self.last_step:
            self.settle()
            self.ensure_owned()
            self.last_step = step
            snapshot = self._snapshot(engine, step, state, best_step)
            self._thread = threading.Thread(target=self._write, args=(snapshot,), daemon=True, name=f"save {step}")
            self._thread.start()
        if wait:
            self.settle()
            self.ensure_owned()
        self.last_time = time.monotonic()
        self.stall_s = self.last_time - started

    def settle(self) -> None:
        """Wait for the save that is under way, if there is one."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def ensure_owned(self) -> None:
        """Raise RunError, on all ranks, when another run has taken the folder over. All ranks."""
        message = None
        if is_main():
            try:
                self.check_ownership()
            except RunError as error:
                message = str(error)
        message = broadcast_value(message)
        if message is not None:
            raise RunError(message)

    def _snapshot(self, engine: Engine, step: int, state: dict[str, Any], best_step: int | None) -> Snapshot:
        started = time.monotonic()
        name = f".staging-{step:08d}-{broadcast_value(secrets.token_hex(4))}"
        staging = self.run_folder / "checkpoints" / name
        writer = SnapshotWriter()
        engine.save(staging, ENGINE_FOLDER, writer)
        return Snapshot(
            step=step,
            best_step=best_step,
            staging=staging,
            engine=writer,
            weights=engine.whole_weights(),
            random_states=gather_random_states(),
            state=state,
            stall_s=time.monotonic() - started,
        )

    def _write(self, snapshot: Snapshot) -> None:
        """Write and publish; in a thread of every rank."""
        started = time.monotonic()
        try:
            errors = self._of_all(snapshot.engine.write())
            errors = errors or self._of_all(_errors_of(lambda: self._write_whole(snapshot)))
            errors = errors or self._of_all(_errors_of(lambda: self._publish(snapshot)))
        except RuntimeError as error:  # a rank is gone, as the next step will find as well
            errors = [f"rank {rank()}: {write_error(error)}"]
        self.write_s = time.monotonic() - started
        if not errors:
            self.failures = 0
            taken = f"{snapshot.stall_s:.2f} s of stall, {self.write_s:.1f} s of writing"
            logger.info(f"saved checkpoints/{checkpoint_name(snapshot.step)}: {taken}")
            return
        if is_main():
            shutil.rmtree(snapshot.staging, ignore_errors=True)
        self.failures += 1
        logger.error(
            f"SAVING FAILED at step {snapshot.step} ({self.failures} in a row): {'; '.join(errors)}. Training goes "
            "on, the checkpoints before are intact; free space or fix the folder before the run is needed"
        )

    def _of_all(self, errors: list[str]) -> list[str]:
        """The errors of all ranks, with the rank's number, on every rank."""
        everyone = gather_values(errors, self._group)
        return [f"rank {number}: {error}" for number, found in enumerate(everyone) for error in found]

    def _write_whole(self, snapshot: Snapshot) -> None:
        staging = snapshot.staging
        self.save_weights(staging, snapshot.weights)
        save_file(snapshot.random_states, str(staging / "rng.safetensors"))
        state = {"step": snapshot.step} | snapshot.state
        (staging / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (staging / "config.yaml").write_text(self.config_text, encoding="utf-8")

    def _publish(self, snapshot: Snapshot) -> None:
        staging, step, best_step = snapshot.staging, snapshot.step, snapshot.best_step
        seal(staging, {"step": step, "num_ranks": world_size(), "torch": torch.__version__})
        self.check_ownership()
        final = staging.with_name(checkpoint_name(step))
        if final.exists():  # a damaged one of the same step that the restart passed over
            remove_checkpoint(final)
        staging.rename(final)
        sync_folder(final.parent)
        write_atomically(self.run_folder / LATEST, f"checkpoints/{final.name}\n")
        if best_step is not None and (final.parent / checkpoint_name(best_step)).is_dir():
            write_atomically(self.run_folder / BEST, f"checkpoints/{checkpoint_name(best_step)}\n")
        self._prune({step} if best_step is None else {step, best_step})

    def _prune(self, protected: set[int]) -> None:
        folders = {step_of(folder): folder for folder in list_checkpoints(self.run_folder)}
        policy = self.config
        for step in to_remove(
            sorted(folders), keep_last=policy.keep_last, keep_every=policy.keep_every_steps, protected=protected
        ):
            remove_checkpoint(folders[step])


def _errors_of(action: Callable[[], None]) -> list[str]:
    """Run `action` on rank 0; its error, of whatever kind, since nobody could catch it in a thread."""
    if is_main():
        try:
            action()
        except Exception as error:
            return [write_error(error)]
    return []
