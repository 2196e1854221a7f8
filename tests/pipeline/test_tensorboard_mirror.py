"""TensorBoard gets the numbers of metrics.jsonl, read back by its own reader; its trouble is no trouble of the run."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import tensorboard_mirror
from pipeline.errors import InputError
from pipeline.mirrors import Mirrors
from pipeline.tensorboard_mirror import TensorBoardMirror, check_tensorboard


def scalars(run_folder: Path, key: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(run_folder / "tensorboard"), purge_orphaned_data=True)
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(key)]


def test_numbers_arrive_and_a_resumed_run_writes_its_steps_anew(tmp_path: Path) -> None:
    first = TensorBoardMirror.start(tmp_path, step=0)
    for step in range(1, 6):
        first.log(step, {"train/loss": float(step), "train/epoch": 0, "a word": "x", "nothing": None})
    first.finish()
    assert scalars(tmp_path, "train/loss") == [(step, float(step)) for step in range(1, 6)]

    second = TensorBoardMirror.start(tmp_path, step=3)
    for step in range(4, 7):
        second.log(step, {"train/loss": 10.0 * step})
    second.finish()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]


def test_a_loss_that_is_nan_is_seen(tmp_path: Path) -> None:
    mirror = TensorBoardMirror.start(tmp_path, step=0)
    mirror.log(1, {"train/loss": math.nan})
    mirror.finish()
    ((step, value),) = scalars(tmp_path, "train/loss")
    assert step == 1 and math.isnan(value)


def test_examples_become_pictures(tmp_path: Path) -> None:
    mirror = TensorBoardMirror.start(tmp_path, step=0)
    mirror.log_examples(5, ["query", "rank", "first"], [["a red star", 2, np.full((8, 6, 3), 200, np.uint8)]])
    mirror.finish()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    (tag,) = reader.Tags()["images"]
    assert "a red star" in tag
    (image,) = reader.Images(tag)
    assert (image.step, image.width, image.height) == (5, 6, 8)


def test_trouble_ends_the_mirror_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def add_scalar(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    told: list[int] = []

    class Other:
        is_active = True

        def log(self, step: int, values: object) -> None:
            told.append(step)

    full = TensorBoardMirror(Full())
    mirrors = Mirrors([full, Other()])  # type: ignore[list-item]
    with caplog.at_level(logging.WARNING, "clip_vip"):
        logging.getLogger("clip_vip").propagate = True
        mirrors.log(1, {"train/loss": 1.0})
        mirrors.log(2, {"train/loss": 1.0})
    assert told == [1, 2] and not full.is_active
    assert [record.message for record in caplog.records] == [
        "TensorBoard: the mirror stops here: [Errno 28] No space left on device"
    ]


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_mirror.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"clip-vip-pipeline\[tensorboard\]"):
        check_tensorboard()
