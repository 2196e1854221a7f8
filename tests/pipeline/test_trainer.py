"""Parts of the loop that need no DeepSpeed. Whole runs are in test_train and test_faults."""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline.gradient import Objective
from pipeline.log import logger
from pipeline.losses import LossConfig
from pipeline.train_config import BatchConfig, FailureConfig
from pipeline.trainer import Progress, evaluate_and_judge, shortened, suspects, watch_for_spike
from tests.pipeline.tiny import make_batch, make_model


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


def test_a_best_value_counts_for_its_own_metric_only() -> None:
    timer = SimpleNamespace(take=lambda: None)
    nothing = SimpleNamespace(eval=lambda: None, train=lambda: None, forward_timer=timer)
    progress = Progress(step=10, best=50.0, best_step=5)
    run: Any = SimpleNamespace(engine=nothing, progress=progress, config=SimpleNamespace(evaluation=SimpleNamespace()))
    for step, metric, found, best_step in (
        (10, "a/t2v_r1", 40.0, 5),
        (20, "a/pairs_x", 30.0, 20),
        (30, "a/pairs_x", 29.0, 20),
        (40, "a/pairs_x", 31.0, 40),
    ):
        progress.step, run.config.evaluation.best_metric = step, metric
        run.evaluate = lambda _, metric=metric, found=found: {metric: found}
        evaluate_and_judge(run)
        assert progress.best_step == best_step


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_clip_whose_features_are_no_numbers_is_named(micro_batches: int) -> None:
    model, batch = make_model(), make_batch(8)

    def engine(**inputs: Any) -> Any:
        features = model(**inputs)
        is_fifth = (inputs["subtitle"] == batch.subtitle_BL[5]).all(dim=1)
        spoilt = torch.where(is_fifth[:, None], torch.nan, features.subtitle_BD)
        return features._replace(subtitle_BD=spoilt)

    engine.device = torch.device("cpu")  # type: ignore[attr-defined]
    run: Any = SimpleNamespace(
        engine=engine,
        objective=Objective(LossConfig(name="vsc_fc")),
        config=SimpleNamespace(batch=BatchConfig(micro_batches=micro_batches)),
    )
    assert suspects(run, batch) == "through clips whose features are no numbers: rank 0: clip5"
    run.engine = model
    model.device = torch.device("cpu")
    assert suspects(run, batch).startswith("with features that are numbers, in the batch of rank 0: clip0, clip1, ")


def test_texts_are_trimmed_before_they_go_to_the_device() -> None:
    batch = make_batch(4)
    wide = replace(batch, subtitle_BL=F.pad(batch.subtitle_BL, (0, 9)), caption_BL=torch.zeros(4, 9, dtype=torch.int64))
    used = int(batch.subtitle_BL.any(dim=0).nonzero().max()) + 1
    trimmed = wide.trimmed()
    assert trimmed.subtitle_BL.equal(batch.subtitle_BL[:, :used]) and trimmed.caption_BL.shape == (4, 1)
    model, seen = make_model(), []
    model.device = torch.device("cpu")
    model.text.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    config = SimpleNamespace(batch=BatchConfig())
    run: Any = SimpleNamespace(engine=model, objective=Objective(LossConfig(name="vs")), config=config)
    whole = model(video=wide.video_BTCHW, subtitle=wide.subtitle_BL).subtitle_BD
    suspects(run, wide)
    assert seen[-1] == used
    torch.testing.assert_close(model(subtitle=trimmed.subtitle_BL).subtitle_BD, whole, rtol=0, atol=1e-6)


def test_long_lists_are_cut_with_a_pointer() -> None:
    assert shortened("short") == "short"
    assert shortened("k" * 400) == "k" * 300 + " ... (all are in logs/)"
