"""When a save is due. That one works, fails or is cut off is shown with whole runs in test_train and test_faults."""

from pathlib import Path

import pytest

from pipeline.checkpoint import save as module
from pipeline.checkpoint.save import CheckpointConfig, Saver


def saver(**settings: float) -> Saver:
    config = CheckpointConfig.model_validate(settings)
    return Saver(Path("nowhere"), config, "", lambda *_: None, lambda: None)


def test_by_step() -> None:
    due = saver(every_steps=3)
    assert [step for step in range(1, 10) if due.is_due(step)] == [3, 6, 9]
    assert not any(saver(every_steps=0).is_due(step) for step in range(1, 10))


def test_by_minutes_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    due = saver(every_steps=0, every_minutes=2)
    due.last_time = now[0]
    assert not due.is_due(1)
    now[0] += 119
    assert not due.is_due(2)
    now[0] += 1
    assert due.is_due(3)
