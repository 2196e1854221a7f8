"""Parts of the loop that need no engine. Whole runs are in test_train and test_faults."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.log import logger
from pipeline.train_config import FailureConfig
from pipeline.trainer import Progress, watch_for_spike


def test_a_loss_far_above_its_running_mean_is_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    progress = Progress()
    run: Any = SimpleNamespace(progress=progress, config=SimpleNamespace(failure=FailureConfig(spike_factor=3.0)))
    with caplog.at_level(logging.WARNING):
        for step in range(1, 30):
            watch_for_spike(run, step, 50.0 if step == 5 else 2.0)
        assert not caplog.records, "the first steps of a run jump anyway"
        watch_for_spike(run, 30, 20.0)
    assert [record.message.split(",")[0] for record in caplog.records] == ["loss spike at step 30: 20"]
    assert progress.loss_mean is not None and 2.0 < progress.loss_mean < 20.0
