"""Save: a snapshot in host memory holds training up; writing it goes on beside the next steps.

    at the step border   DeepSpeed's state, whole weights, random states -> host memory
    in a thread          files into a staging folder, synced and hashed -> report to rank 0 (vote.py)
      of rank 0          -> COMPLETE.json over what was reported -> rename -> latest -> remove what the keep policy
                         lets go -> tell the others

One save is under way at a time; the last one of a run, and one that a signal asked for, is waited for. A write error on
one rank reaches all of them in that vote: the checkpoints before stay untouched, and training goes on until
`max_failures` saves in a row have failed.
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
from torch import Tensor

from pipeline.checkpoint.engine_files import SnapshotWriter, write_error
from pipeline.checkpoint.folder import (
    BEST,
    LATEST,
    checkpoint_name,
    list_checkpoints,
    read_best_step,
    remove_checkpoint,
    seal,
    step_of,
    sync_folder,
    to_remove,
    write_atomically,
)
from pipeline.checkpoint.rng import random_state, rank_name
from pipeline.checkpoint.vote import Ballot
from pipeline.config import Section
from pipeline.dist import any_ranks, broadcast_value, is_main, rank, world_size
from pipeline.engine import Engine
from pipeline.errors import RunError
from pipeline.log import logger
from pipeline.tensor_writing import write_tensors

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
    max_failures: int = Field(default=20, ge=0)
    """The run stops when so many saves in a row have failed: what it computes would be lost; 0: it never does."""


@dataclass(frozen=True)
class Snapshot:
    """What one rank has to write: all of it in memory, none of it touched by later steps."""

    step: int
    best_step: int | None
    staging: Path
    engine: SnapshotWriter
    weights: dict[str, Tensor]
    random_state: str
    """Of this rank."""
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
    device: torch.device | str = "cpu"
    """Where ranks wait for each other."""
    failures: int = 0
    """Saves that failed in a row."""
    stall_s: float = 0.0
    """How long the last save held up training."""
    write_s: float = 0.0
    """How long the last save that is done took to write, beside training."""
    last_time: float = field(default_factory=time.monotonic)
    last_step: int = -1
    """The step of the last checkpoint that was begun, or resumed from."""
    saved_step: int = -1
    """The step of the last checkpoint that is whole."""
    _thread: threading.Thread | None = None
    _broken: str = ""
    """Why this rank could not vote."""

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
        then everything saved before is still there. Raises RunError when too many have failed in a row.
        """
        started = time.monotonic()
        if step != self.last_step:
            self.settle()
            self.ensure_owned()
            if 0 < self.config.max_failures <= self.failures:
                raise RunError(
                    f"{self.failures} saves in a row failed (see the log for the reason); the run stops at step {step} "
                    f"and would go on from step {self.saved_step}: free space or mend {self.run_folder}, or allow more "
                    "with checkpoint.max_failures"
                )
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
        """Wait for the save that is under way, if there is one: however long it takes, while no rank is lost.

        The wait is made of short collectives, which fail when a rank dies. Raises RunError when a rank could not take
        part in the vote, for which the others would wait in vain. All ranks.
        """
        is_waiting = self._thread is not None
        while is_waiting and self._thread is not None:
            is_waiting, is_broken = any_ranks([self._thread.is_alive(), bool(self._broken)], self.device)
            if is_broken:
                self._thread = None
                raise RunError(
                    self._broken or "another rank could not take part in the vote on a checkpoint; see its log"
                )
            self._thread.join(0.2)
        self._thread = None

    def settle_alone(self, limit_s: float) -> None:
        """The same on the way out after an error, when other ranks may be anywhere: for so long at most."""
        if self._thread is not None:
            self._thread.join(limit_s)

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
            random_state=random_state().numpy().tobytes().decode(),
            state=state,
            stall_s=time.monotonic() - started,
        )

    def _write(self, snapshot: Snapshot) -> None:
        """Write and publish; in a thread of every rank."""
        started = time.monotonic()
        try:
            ballot = Ballot(snapshot.staging.name)
            facts, errors = snapshot.engine.write()
            files = {str(path.relative_to(snapshot.staging)): fact for path, fact in facts.items()}
            ballot.cast({"errors": errors, "files": files, "random_state": snapshot.random_state})
            if is_main():
                ballot.announce(self._finish(snapshot, ballot.reports()))
            errors = ballot.verdict()
        except Exception as error:  # most likely rank 0 is gone and the store with it, as the next step finds as well
            self._broken = f"rank {rank()} could not take part in the vote on a checkpoint: {write_error(error)}"
            errors = [self._broken]
        self.write_s = time.monotonic() - started
        if not errors:
            self.failures, self.saved_step = 0, snapshot.step
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

    def _finish(self, snapshot: Snapshot, reports: list[dict[str, Any]]) -> list[str]:
        """What is whole beside what every rank wrote, then COMPLETE.json; all errors, with their rank. Rank 0."""
        errors = [f"rank {number}: {error}" for number, report in enumerate(reports) for error in report["errors"]]
        if errors:
            return errors
        try:
            self._write_whole(snapshot, [report["random_state"] for report in reports])
            self._publish(snapshot, {name: fact for report in reports for name, fact in report["files"].items()})
        except Exception as error:  # of whatever kind, since nobody could catch it in a thread
            return [f"rank 0: {write_error(error)}"]
        return []

    def _write_whole(self, snapshot: Snapshot, random_states: list[str]) -> None:
        staging = snapshot.staging
        self.save_weights(staging, snapshot.weights)
        states = {
            rank_name(number): torch.frombuffer(bytearray(state.encode()), dtype=torch.uint8)
            for number, state in enumerate(random_states)
        }
        write_tensors(states, staging / "rng.safetensors")
        state = {"step": snapshot.step} | snapshot.state
        (staging / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (staging / "config.yaml").write_text(self.config_text, encoding="utf-8")

    def _publish(self, snapshot: Snapshot, engine_files: dict[str, dict[str, Any]]) -> None:
        staging, step, best_step = snapshot.staging, snapshot.step, snapshot.best_step
        seal(staging, {"step": step, "num_ranks": world_size(), "torch": torch.__version__}, engine_files)
        self.check_ownership()
        final = staging.with_name(checkpoint_name(step))
        if final.exists():  # a damaged one of the same step that the restart passed over
            remove_checkpoint(final)
        staging.rename(final)
        sync_folder(final.parent)
        write_atomically(self.run_folder / LATEST, f"checkpoints/{final.name}\n")
        if best_step is not None and (final.parent / checkpoint_name(best_step)).is_dir():
            write_atomically(self.run_folder / BEST, f"checkpoints/{checkpoint_name(best_step)}\n")
        # `best` goes on naming the one before until a new best is on the disk.
        self._prune({kept for kept in (step, best_step, read_best_step(self.run_folder)) if kept is not None})

    def _prune(self, protected: set[int]) -> None:
        folders = {step_of(folder): folder for folder in list_checkpoints(self.run_folder)}
        policy = self.config
        for step in to_remove(
            sorted(folders), keep_last=policy.keep_last, keep_every=policy.keep_every_steps, protected=protected
        ):
            remove_checkpoint(folders[step])
