"""A mirror of `metrics.jsonl` for TensorBoard, in `runs/NAME/tensorboard/`. The file is the truth.

mirror = TensorBoardMirror.start(run_folder, step=100)     # steps from 101 on, if any are there, are written anew
mirror.log(120, {"train/loss": 3.2})

tensorboard --logdir runs
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pipeline.errors import InputError
from pipeline.log import logger, quiet

FOLDER = "tensorboard"


class TensorBoardMirror:
    """One writer of event files, or nothing when it does not work."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    def start(cls, run_folder: Path, *, step: int) -> Self:
        """Go on behind `step`."""
        with quiet():
            from torch.utils.tensorboard import SummaryWriter

        mirror = cls(None)
        mirror._guarded(
            lambda: setattr(mirror, "_writer", SummaryWriter(str(run_folder / FOLDER), purge_step=step + 1))
        )
        return mirror

    @property
    def is_active(self) -> bool:
        """Whether anything is mirrored."""
        return self._writer is not None

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Mirror a line: its numbers; NaN and Inf too, as they are worth seeing."""
        if self._writer is not None:
            numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
            self._guarded(lambda: self._write(step, numbers))

    def log_examples(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        """The pictures of a table of retrieval examples (uint8 [H, W, 3]), named by the texts of their rows."""
        if self._writer is not None:
            self._guarded(lambda: self._draw(step, rows))

    def finish(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._guarded(lambda: self._writer.close())

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def _draw(self, step: int, rows: list[list[Any]]) -> None:
        for number, row in enumerate(rows):
            text = " | ".join(str(cell) for cell in row if isinstance(cell, str | int | float))
            for place, picture in enumerate(cell for cell in row if not isinstance(cell, str | int | float)):
                self._writer.add_image(f"examples/{number}/{place} {text}"[:200], picture, step, dataformats="HWC")
        self._writer.flush()

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Whatever goes wrong here, training goes on: a full disk ends the mirror, not the run."""
        try:
            action()
        except Exception as error:
            self._writer = None
            reason = " ".join(str(error).split())[:200]
            logger.warning(f"TensorBoard: the mirror stops here: {reason}")


def check_tensorboard() -> None:
    """Raise an InputError where the package is not there."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "log.tensorboard needs the package tensorboard: pip install 'clip-vip-pipeline[tensorboard]', or set "
            "log.tensorboard=false"
        )
