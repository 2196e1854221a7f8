"""Retries add what can be delivered now, and the account goes on to add up."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from preprocess.config import PreprocessConfig, TasksConfig
from preprocess.merge import merge
from preprocess.published import published_shards
from preprocess.retry import retry
from preprocess.rounds import standing_failures
from preprocess.run import run

Values = dict[str, Any]


def delivered(output: Path) -> list[str]:
    return sorted(
        clip_id
        for shard in published_shards(output)
        for clip_id in pq.read_table(output / f"{shard}.parquet")["clip_id"].to_pylist()
    )


def standing(output: Path) -> dict[str, str]:
    rows = list(standing_failures(output, set(published_shards(output))))
    answer = {row["clip_id"]: row["reason"] for row in rows}
    assert len(answer) == len(rows)
    return answer


@pytest.fixture
def with_failures(small_set: Values, tmp_path: Path) -> Values:
    """Two of four videos are not there yet, one of them will stay away."""
    for number in (1, 2):
        (tmp_path / "videos" / f"-vid_{number}.mp4").rename(tmp_path / f"later_{number}.mp4")
    return small_set


def test_rounds_of_retry(with_failures: Values, tmp_path: Path) -> None:
    config = PreprocessConfig.model_validate(with_failures)
    stats = run(config)
    assert (stats["num_delivered"], stats["reasons"]) == (6, {"video_missing": 6})
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in config.output.glob("*/0*")}

    assert retry(config)["num_delivered"] == 6
    assert not list(config.output.glob("shards/retry*")), "nothing new is there, so there is nothing to try"

    (tmp_path / "videos" / "-vid_1.mp4").write_bytes(b"not a video")
    stats = retry(config)
    assert stats["reasons"] == {"video_missing": 3, "video_unreadable": 3}

    for number in (1, 2):
        (tmp_path / f"later_{number}.mp4").replace(tmp_path / "videos" / f"-vid_{number}.mp4")
    only_missing = PreprocessConfig.model_validate({**with_failures, "retry": {"reasons": ["video_missing"]}})
    stats = retry(only_missing)
    assert (stats["num_delivered"], stats["reasons"]) == (9, {"video_unreadable": 3})
    stats = retry(config)
    assert (stats["num_delivered"], stats["num_failed"]) == (12, 0)
    assert standing(config.output) == {}
    assert len(set(delivered(config.output))) == len(delivered(config.output)) == 12
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in before} == before


def test_an_interrupted_round_goes_on(with_failures: Values, tmp_path: Path) -> None:
    config = PreprocessConfig.model_validate({**with_failures, "shards": {"clips_per_shard": 3}})
    run(config)
    for number in (1, 2):
        (tmp_path / f"later_{number}.mp4").replace(tmp_path / "videos" / f"-vid_{number}.mp4")
    retry(config)
    names = sorted(config.output.glob("shards/retry_001_*.parquet"))
    assert len(names) == 2
    wanted = names[1].read_bytes()
    names[1].unlink()
    assert set(standing(config.output).values()) == {"video_missing"}
    assert retry(config)["num_delivered"] == 12
    assert names[1].read_bytes() == wanted
    assert len(list(config.output.glob("plan/retry_*"))) == 1


def later(config: PreprocessConfig, tmp_path: Path) -> None:
    """The two videos that were away come."""
    for number in (1, 2):
        (tmp_path / f"later_{number}.mp4").replace(tmp_path / "videos" / f"-vid_{number}.mp4")


def one_of(config: PreprocessConfig, index: int, count: int) -> PreprocessConfig:
    return config.model_copy(update={"tasks": TasksConfig(index=index, count=count)})


def test_array_tasks_share_one_round(with_failures: Values, tmp_path: Path) -> None:
    """Whichever is done first, and also where there are more tasks than shards."""
    config = PreprocessConfig.model_validate({**with_failures, "shards": {"clips_per_shard": 3}})
    run(config)
    later(config, tmp_path)
    assert retry(one_of(config, 0, 3)) == {}
    assert not list(config.output.glob("plan/retry_*")), "a task opens no round"
    only_plan = config.model_copy(update={"retry": config.retry.model_copy(update={"only_plan": True})})
    for _ in range(2):
        assert retry(only_plan)["num_delivered"] == 6
    for index in (2, 1, 0, 2, 1):
        assert retry(one_of(config, index, 3)) == {}
    assert len(list(config.output.glob("plan/retry_*"))) == 1
    stats = merge(config.output)
    assert (stats["num_delivered"], stats["num_failed"]) == (12, 0)
    assert len(set(delivered(config.output))) == len(delivered(config.output)) == 12


def test_no_round_starts_while_the_one_before_lacks_a_shard(with_failures: Values, tmp_path: Path) -> None:
    config = PreprocessConfig.model_validate({**with_failures, "shards": {"clips_per_shard": 3}})
    run(config)
    later(config, tmp_path)
    retry(config)
    missing = config.output / "shards" / "retry_001_000000.parquet"
    missing.unlink()
    retry(one_of(config, 1, 2))  # its own shard is there
    assert len(list(config.output.glob("plan/retry_*"))) == 1 and not missing.exists()
    assert retry(config)["num_delivered"] == 12
    assert len(list(config.output.glob("plan/retry_*"))) == 1


def test_a_round_goes_on_with_its_own_limits_only(with_failures: Values, tmp_path: Path) -> None:
    config = PreprocessConfig.model_validate({**with_failures, "shards": {"clips_per_shard": 3}})
    run(config)
    later(config, tmp_path)
    longer = config.model_copy(update={"limits": config.limits.model_copy(update={"time_s": 9000.0})})
    retry(longer)
    (config.output / "shards" / "retry_001_000000.parquet").unlink()
    with pytest.raises(InputError, match=r"retry_001 was begun with other limits"):
        retry(config)
    assert retry(longer)["num_delivered"] == 12
