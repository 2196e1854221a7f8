"""A NaN, a full disk, a folder that cannot be written, a dead rank: one readable cause, and nothing good is lost."""

import json
import os
import socket
import time

import pytest

from pipeline.checkpoint.folder import list_checkpoints, newest_intact
from pipeline.log import read_metrics
from tests.pipeline import cases
from tests.pipeline.ranks import start_training
from tests.pipeline.test_train import losses, pools, shards, train, wait_until, weights  # noqa: F401 - fixtures
from tests.pipeline.tiny import write_config

pytestmark = pytest.mark.heavy


def test_nan_stops_before_the_weights_are_touched(shards, pools, tmp_path):  # noqa: F811
    config = write_config(tmp_path, shards)
    code, message = pools(2).run(cases.training_with_poison, [str(config), "engine.zero_stage=1"], [7])[0]
    assert code == 1
    assert message.startswith("step 7: loss nan")
    assert "rank 0 had v0+" in message
    run = tmp_path / "runs/run"
    assert newest_intact(run)[0] == run / "checkpoints/step_00000004"
    assert [row["step"] for row in losses(run)] == list(range(1, 7))
    assert "rank 1: v0+" in (run / "logs/rank_00001.log").read_text()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_allowed_nans_are_skipped_and_leave_no_trace(shards, pools, tmp_path, stage):  # noqa: F811
    config = write_config(tmp_path, shards, steps=6, failure={"skip_nonfinite_batches": 2})
    codes = pools(2).run(cases.training_with_poison, [str(config), f"engine.zero_stage={stage}"], [3, 5])
    assert codes == [(0, ""), (0, "")]
    rows = losses(tmp_path / "runs/run")
    assert [row["train/loss"] == "nan" for row in rows] == [False, False, True, False, True, False]
    assert rows[-1]["train/skipped"] == 2
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "runs/run").values())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_one_rank_costs_one_checkpoint(shards, pools, tmp_path, rank):  # noqa: F811
    config = write_config(tmp_path, shards, checkpoint={"keep_last": 5})
    argv = [str(config), "engine.zero_stage=2"]
    assert pools(2).run(cases.training_with_full_disk, argv, rank, 8) == [0, 0]
    run = tmp_path / "runs/run"
    assert [path.name for path in list_checkpoints(run)] == ["step_00000004", "step_00000012"]
    assert f"SAVING FAILED at step 8 (1 in a row): rank {rank}: " in (run / "logs/rank_00000.log").read_text()
    assert not list((run / "checkpoints").glob(".staging*"))
    assert len(losses(run)) == 12


@pytest.mark.parametrize("place", ["a file", "/proc"])
def test_a_folder_that_cannot_be_written_is_wrong_input(shards, tmp_path, place):  # noqa: F811
    (tmp_path / "a file").write_text("")
    config = write_config(tmp_path, shards, runs_dir=str(tmp_path / place) if place == "a file" else place)
    process = start_training([str(config)], tmp_path / "out.txt")
    process.join(120)
    assert process.exitcode == 2
    assert (tmp_path / "out.txt").read_text().startswith("error: cannot write the run folder")
    assert (tmp_path / "out.txt").read_text().count("\n") == 1


def test_another_config_may_not_move_in(shards, pools, tmp_path):  # noqa: F811
    config = write_config(tmp_path, shards, steps=2)
    train(pools(1), config)
    process = start_training([str(config), "optim.lr=0.5", "engine.zero_stage=2"], tmp_path / "out.txt")
    process.join(120)
    assert process.exitcode == 2
    assert "belongs to another config: optim.lr differ;" in (tmp_path / "out.txt").read_text()


def test_a_run_that_was_taken_over_stops_without_writing(shards, tmp_path):  # noqa: F811
    config = write_config(tmp_path, shards, steps=10_000, checkpoint={"every_steps": 0})
    process = start_training([str(config)], tmp_path / "out.txt")
    run = tmp_path / "runs/run"
    wait_until(lambda: len(read_metrics(run / "metrics.jsonl")) > 2, process)
    owner = json.loads((run / "owner.json").read_text())
    taker = json.dumps(owner | {"token": "another", "job": "78", "host": "node9"})
    (run / "owner.json").write_text(taker)
    process.join(60)
    assert process.exitcode == 1
    assert "belongs to job 78" in (tmp_path / "out.txt").read_text().splitlines()[-1]
    assert list_checkpoints(run) == []
    assert (run / "owner.json").read_text() == taker


def test_a_dead_rank_ends_the_others(shards, tmp_path):  # noqa: F811
    config = write_config(tmp_path, shards, steps=10_000, checkpoint={"every_steps": 0})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        start_training(
            [str(config), "engine.collective_timeout_s=30"],
            tmp_path / f"out{number}.txt",
            common | {"RANK": str(number), "LOCAL_RANK": str(number)},
        )
        for number in range(2)
    ]
    wait_until(lambda: len(read_metrics(tmp_path / "runs/run/metrics.jsonl")) > 2, ranks[0])
    ranks[1].kill()
    killed = time.monotonic()
    ranks[0].join(60)
    assert ranks[0].exitcode == 1, (tmp_path / "out0.txt").read_text()
    assert time.monotonic() - killed < 45
    lines = [line for line in (tmp_path / "out0.txt").read_text().splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    # "died or hangs" from a collective of the step, "went away" from the one that fetches data: whichever came first.
    assert "another rank" in lines[0]
    assert not os.path.exists(tmp_path / "runs/run/owner.json")  # noqa: PTH110 - one call
