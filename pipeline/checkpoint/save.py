"""Save: every rank writes into a staging folder, all agree that it worked, rank 0 publishes.

    staging -> DeepSpeed's files (all ranks) -> weights, state, random states (rank 0) -> agree
            -> COMPLETE.json -> fsync -> rename -> latest -> remove what the keep policy lets go

A write error on one rank must not leave the others waiting in DeepSpeed's barriers: its checkpoint engine is replaced
by one that notes the error instead. A failed save leaves the checkpoints before it untouched and is no reason to stop.
"""

import json
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.checkpoint.engine_files import NotingCheckpointEngine, write_error
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
from pipeline.dist import broadcast_value, gather_values, is_main, world_size
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


@dataclass
class Saver:
    """Writes the checkpoints of one run."""

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
    last_time: float = field(default_factory=time.monotonic)
    last_step: int = -1

    def is_due(self, step: int) -> bool:
        """Whether the config asks for a save after `step`, as far as this rank's clock knows."""
        by_step = self.config.every_steps > 0 and step % self.config.every_steps == 0
        minutes = (time.monotonic() - self.last_time) / 60
        return by_step or (self.config.every_minutes > 0 and minutes >= self.config.every_minutes)

    def save(self, engine: Engine, step: int, state: dict[str, Any], best_step: int | None = None) -> bool:
        """Save the run after `step`. All ranks. False when it failed; then everything saved before is still there.

        The checkpoint of `best_step` stays whatever the keep policy says, and `best` names it.
        """
        if step == self.last_step:
            return True
        started = time.monotonic()
        staging = self.run_folder / "checkpoints" / f".staging-{step:08d}-{broadcast_value(secrets.token_hex(4))}"
        errors = _errors_of_all(lambda: (staging / ENGINE_FOLDER).mkdir(parents=True))
        if not errors:
            errors = self._write(engine, staging, step, state)
        if not errors:
            self.ensure_owned()
            errors = _errors_of_all(lambda: self._publish(staging, step, best_step))
        self.last_time = time.monotonic()
        self.stall_s = self.last_time - started
        if errors:
            if is_main():
                shutil.rmtree(staging, ignore_errors=True)
            self.failures += 1
            logger.error(
                f"SAVING FAILED at step {step} ({self.failures} in a row): {'; '.join(errors)}. Training goes on, the "
                "checkpoints before are intact; free space or fix the folder before the run is needed"
            )
            return False
        self.failures = 0
        self.last_step = step
        logger.info(f"saved checkpoints/{checkpoint_name(step)} in {self.stall_s:.1f} s")
        return True

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

    def _write(self, engine: Engine, staging: Path, step: int, state: dict[str, Any]) -> list[str]:
        writer = NotingCheckpointEngine()
        engine.save(staging, ENGINE_FOLDER, writer)
        weights = engine.whole_weights()
        random_states = gather_random_states()
        errors = _errors_of_all(lambda: self._write_whole(staging, step, state, weights, random_states))
        return [*_of_all(writer.errors), *errors]

    def _write_whole(
        self,
        staging: Path,
        step: int,
        state: dict[str, Any],
        weights: dict[str, Tensor],
        random_states: dict[str, Tensor],
    ) -> None:
        from safetensors.torch import save_file

        self.save_weights(staging, weights)
        save_file(random_states, str(staging / "rng.safetensors"))
        (staging / "state.json").write_text(json.dumps({"step": step} | state, indent=1), encoding="utf-8")
        (staging / "config.yaml").write_text(self.config_text, encoding="utf-8")

    def _publish(self, staging: Path, step: int, best_step: int | None) -> None:
        seal(staging, {"step": step, "num_ranks": world_size(), "torch": torch.__version__})
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


def _errors_of_all(action: Callable[[], None]) -> list[str]:
    """Run `action` on rank 0; its write errors, the same list on every rank. Other errors are raised."""
    errors = []
    if is_main():
        try:
            action()
        except Exception as error:
            # safetensors reports a full disk as an exception of its own.
            if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
                raise
            errors.append(write_error(error))
    return _of_all(errors)


def _of_all(errors: list[str]) -> list[str]:
    """The errors of all ranks, with the rank's number, on every rank."""
    return [f"rank {number}: {error}" for number, found in enumerate(gather_values(errors)) for error in found]
