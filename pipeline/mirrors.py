"""Where a run's metrics go beside `metrics.jsonl`: wandb, TensorBoard, both or neither, by one code path.

mirrors = start_mirrors(run_folder, config.log, step=100, config=config.model_dump(mode="json"))
mirrors.log(120, {"train/loss": 3.2})
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.tensorboard_mirror import TensorBoardMirror
from pipeline.train_config import LogConfig
from pipeline.wandb_mirror import WandbMirror


class Mirror(Protocol):
    """Takes what the metrics file takes; never stops a run."""

    @property
    def is_active(self) -> bool:
        """Whether anything is mirrored."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Mirror a line."""

    def log_examples(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        """A table of retrieval examples; pictures are uint8 arrays [H, W, 3]."""

    def finish(self) -> None:
        """No line will follow."""


@dataclass(frozen=True)
class Mirrors:
    """All mirrors of a run, as one."""

    parts: Sequence[Mirror] = ()

    @property
    def is_active(self) -> bool:
        """Whether anything is mirrored anywhere."""
        return any(part.is_active for part in self.parts)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Mirror a line."""
        for part in self.parts:
            part.log(step, values)

    def log_examples(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        """A table of retrieval examples; pictures are uint8 arrays [H, W, 3]."""
        for part in self.parts:
            part.log_examples(step, columns, rows)

    def finish(self) -> None:
        """No line will follow."""
        for part in self.parts:
            part.finish()


def start_mirrors(run_folder: Path, log: LogConfig, *, step: int, config: dict[str, Any]) -> Mirrors:
    """The mirrors that `log` asks for; of a resumed run they go on behind `step`. Rank 0."""
    parts: list[Mirror] = [WandbMirror.start(run_folder, mode=log.wandb, project=log.wandb_project, config=config)]
    if log.tensorboard:
        parts.append(TensorBoardMirror.start(run_folder, step=step))
    return Mirrors(parts)
