"""What is wrong in a training config is said when it is read, not after hours in a queue or at the first evaluation."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config, read_yaml
from pipeline.errors import InputError
from pipeline.evaluation.metrics import RISING, recall_metrics
from pipeline.train_config import TrainConfig
from tests.pipeline.tiny import write_config

CONFIGS = Path(__file__).parents[2] / "configs"


def load(folder: Path, *overrides: str, **changes: Any) -> TrainConfig:
    return load_config(TrainConfig, [write_config(folder, folder / "shards", **changes)], overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine={compile: true, zero_stage: 3}", "compile works with ZeRO 0 to 2"),
        ("engine={precision: fp16, device: cpu}", "fp16 needs a GPU"),
        ("deepspeed.gradient_clipping=1.0", "deepspeed.gradient_clipping repeats what our own config decides"),
        ("deepspeed.zero_optimization.stage=2", "deepspeed.zero_optimization.stage repeats"),
        ("deepspeed.zero_optimization.round_robin_gradients=true", "checkpoints could not be converted"),
        ("deepspeed.bf16.enabled=true", "deepspeed.bf16 repeats"),
        ("stop_at_step=13", "stop_at_step is 13, but the run ends at 12"),
        ("epochs=1", "add steps=null to go by epochs, or epochs=null to go by steps"),
        ("steps=null", "the run has no length; give steps or epochs"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, override)
    assert "\n" not in str(caught.value)


def test_engine_only_keys_and_a_stop_at_the_end_are_fine(tmp_path: Path) -> None:
    load(tmp_path, "deepspeed.zero_optimization.offload_optimizer={device: cpu}", "stop_at_step=12")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("elsewhere/t2v_r1", "names no set of"),
        ("heldout/t2v_r2", "'t2v_r2' is no metric.*; there are t2v_r1, "),
        ("heldout/t2v_mdr", "no metric of which higher is better"),
        ("heldout/pairs_colour", "pairs_motion"),
        ("heldout", "no metric"),
    ],
)
def test_the_metric_that_chooses_must_exist_and_rise(tmp_path: Path, metric: str, message: str) -> None:
    sets = [{"name": "heldout", "shards": "s", "queries": "q", "split": "val", "pairs": {"motion": "m"}}]
    with pytest.raises(InputError, match=message):
        load(tmp_path, evaluation={"sets": sets, "best_metric": metric})
    load(tmp_path, evaluation={"sets": sets, "best_metric": "heldout/pairs_motion"})


def test_rising_metrics_are_metrics() -> None:
    import numpy as np

    names = {name for direction in ("t2v", "v2t") for name in recall_metrics(np.ones(3), direction)}
    assert names - set(RISING) == {"t2v_mdr", "t2v_mnr", "v2t_mdr", "v2t_mnr"}


def test_pretraining_reads_what_the_shard_jobs_write() -> None:
    written = read_yaml(CONFIGS / "preprocess" / "hdvila.yaml")["output"]
    config = load_config(TrainConfig, [CONFIGS / "pretrain" / "b32.yaml"])
    assert [source.shards for source in config.data.sources] == [written]
