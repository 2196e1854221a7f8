"""A NaN, a full disk, a folder that cannot be written, a dead rank: one readable cause, and nothing good is lost."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.checkpoint.folder import find_damage, list_checkpoints, newest_intact
from pipeline.log import read_metrics
from tests.pipeline import cases
from tests.pipeline.ranks import start_ranks, start_training
from tests.pipeline.test_train import (  # noqa: F401 - fixtures
    assert_bitwise_equal,
    losses,
    pools,
    shards,
    train,
    uninterrupted,
    wait_until,
    weights,
)
from tests.pipeline.tiny import write_config

pytestmark = pytest.mark.heavy


def test_nan_stops_before_the_weights_are_touched(shards, pools, tmp_path):  # noqa: F811
    config = write_config(tmp_path, shards)
    code, message = pools(2).run(cases.training_with_poison, [str(config), "engine.zero_stage=1"], [7])[0]
    assert code == 1
    assert message.startswith("step 7: loss nan")
    assert "numbers, in the batch of rank 0: v0+" in message
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


def test_a_save_may_take_longer_than_a_collective(shards, tmp_path):  # noqa: F811
    """Rank 0 writes for 5 s where collectives end after 3 s: every checkpoint is there."""
    config = write_config(tmp_path, shards, steps=9, checkpoint={"keep_last": 5})
    argv = [str(config), "engine.collective_timeout_s=3"]
    for rank, process in enumerate(start_ranks(argv, tmp_path, 2, cases.training_with_slow_save)):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / f"out{rank}.txt").read_text()
    names = [path.name for path in list_checkpoints(tmp_path / "runs/run")]
    assert names == ["step_00000004", "step_00000008", "step_00000009"]
    assert "SAVING FAILED" not in (tmp_path / "out0.txt").read_text()


def test_the_old_best_stays_until_the_new_one_is_on_the_disk(pools, tmp_path):  # noqa: F811
    (tmp_path / "checkpoints").mkdir()
    saves = [(10, 10, False), (20, 10, False), (30, 30, True), (40, 30, False), (50, 50, False), (60, 50, False)]
    (found,) = pools(1).run(cases.saves_case, str(tmp_path), saves, {"keep_last": 1})
    assert [([int(name.removeprefix("step_")) for name in names], best[-2:]) for names, best in found] == [
        ([10], "10"),
        ([10, 20], "10"),
        ([10, 20], "10"),
        ([10, 40], "10"),
        ([50], "50"),
        ([50, 60], "50"),
    ]


def test_saves_that_fail_one_after_the_other_end_the_run(pools, tmp_path):  # noqa: F811
    """What is computed meanwhile could not be kept; one success in between starts the count anew."""
    (tmp_path / "checkpoints").mkdir()
    full = [(step, None, step not in (10, 30)) for step in (10, 20, 30, 40, 50, 60)]
    (found,) = pools(1).run(cases.saves_case, str(tmp_path), full, {"max_failures": 2})
    assert found.startswith("2 saves in a row failed (see the log for the reason); the run stops at step 60 and would")
    assert "from step 30: " in found


def test_a_rank_that_cannot_vote_ends_the_run_on_all(pools, tmp_path):  # noqa: F811
    (tmp_path / "checkpoints").mkdir()
    others, mute = pools(2).run(cases.saves_case, str(tmp_path), [(10, None, False)], {}, 1)
    assert mute == "rank 1 could not take part in the vote on a checkpoint: RuntimeError: Broken pipe"
    assert others.startswith("another rank could not take part in the vote")
    assert list_checkpoints(tmp_path) == []


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """A file system of its own of this size; needs the right to mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_without_room_for_the_next_checkpoint_keeps_the_one_before(shards, pools, tmp_path):  # noqa: F811
    """A checkpoint takes 6 MB: one fits, the next does not, and with the disk emptied a save works again."""
    with small_disk(tmp_path / "disk", 10) as disk:
        config = write_config(tmp_path, shards, runs_dir=str(disk))
        argv = [str(config), "engine.zero_stage=1", "stop_at_step=10"]
        for code, message in pools(2).run(cases.training_with_poison, argv, []):
            assert code == 1
            assert message.startswith(
                "step 10 (stop_at_step=10) could not be saved; the same command goes on from step 4"
            )
        run = disk / "run"
        log = (run / "logs/rank_00000.log").read_text()
        for step, times in ((8, 1), (10, 2)):
            assert f"SAVING FAILED at step {step} ({times} in a row): rank" in log
        assert "No space left on device" in log
        assert newest_intact(run) == (run / "checkpoints/step_00000004", [])
        assert len(losses(run)) == 10
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        train(pools(2), config, "engine.zero_stage=1")
        assert newest_intact(run) == (run / "checkpoints/step_00000012", [])


def test_a_disk_that_others_fill_does_not_end_the_run(shards, tmp_path):  # noqa: F811
    """Neither a checkpoint nor a line of metrics fits; when there is room again, no line is missing."""
    with small_disk(tmp_path / "disk", 40) as disk:
        # However many saves fail before there is room again: how many that are is the machine's.
        kept = {"max_failures": 1_000_000}
        config = write_config(tmp_path, shards, runs_dir=str(disk), steps=100_000, checkpoint=kept)
        process = start_training([str(config)], tmp_path / "out.txt")
        steps = disk / "run/metrics.jsonl"
        wait_until(lambda: len(read_metrics(steps)) > 2, process)
        with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        wait_until(
            lambda: "metrics.jsonl cannot be written (No space left" in (tmp_path / "out.txt").read_text(), process
        )
        wait_until(lambda: "SAVING FAILED" in (tmp_path / "out.txt").read_text(), process)
        written = len(read_metrics(steps))
        (disk / "filler").unlink()
        wait_until(lambda: len(read_metrics(steps)) > written + 8, process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == 0, (tmp_path / "out.txt").read_text()[-2000:]
        rows = read_metrics(steps)
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        assert newest_intact(disk / "run") == (disk / f"run/checkpoints/step_{len(rows):08d}", [])
        assert "Logging error" not in (tmp_path / "out.txt").read_text()


def test_a_damaged_checkpoint_is_passed_over_by_name(uninterrupted, shards, pools, tmp_path):  # noqa: F811
    """The files of a real checkpoint, one after the other: truncated or with a flipped bit; then the run goes on."""
    config = write_config(tmp_path, shards)
    train(pools(1), config, "stop_at_step=9")
    run, draw = tmp_path / "runs/run", random.Random(0)
    newest = run / "checkpoints/step_00000009"
    files = [path for path in sorted(newest.rglob("*")) if path.is_file() and path.name != "COMPLETE.json"]
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        for truncated in (True, False):
            place = draw.randrange(len(content))
            changed = content[:place] if truncated else _flipped(content, place)
            path.write_bytes(changed)
            assert path.name in (find_damage(newest) or "")
        if path != files[-1]:
            path.write_bytes(content)
    train(pools(1), config)
    assert f"passed over: {newest}: {files[-1].relative_to(newest)}" in (run / "logs/rank_00000.log").read_text()
    assert_bitwise_equal(run, uninterrupted)


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize("stage", [0, 3])
def test_training_does_not_wait_for_the_disk_and_a_checkpoint_is_of_its_own_step(shards, pools, tmp_path, stage):  # noqa: F811
    """Every file of step 4 is written after step 7; going on from it repeats steps 5 to 12 to the last bit."""
    config = write_config(tmp_path, shards, steps=7, engine={"zero_stage": stage})
    assert pools(2).run(cases.training_with_slow_disk, [str(config)], 3) == [0, 0]
    run = tmp_path / "runs/run"
    assert [path.name for path in list_checkpoints(run)] == ["step_00000004", "step_00000007"]
    shutil.copytree(run, tmp_path / "runs/once")
    shutil.rmtree(run / "checkpoints/step_00000007")
    (run / "COMPLETE").unlink()
    train(pools(2), config)
    assert_bitwise_equal(run, tmp_path / "runs/once")


def test_a_killed_run_leaves_nothing_outside_its_folder(shards, tmp_path):  # noqa: F811
    """Trainer and data workers end at once; the temporary folder and /dev/shm are as before."""
    config = write_config(tmp_path, shards, steps=10_000, data={"num_workers": 2}, checkpoint={"every_steps": 1})
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = set(Path("/dev/shm").iterdir())
    process = start_training([str(config)], tmp_path / "out.txt", {"TMPDIR": str(temporary)})
    wait_until(lambda: len(read_metrics(tmp_path / "runs/run/metrics.jsonl")) > 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3, "the server of the workers and two workers"
    process.kill()
    process.join()
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert not list(temporary.iterdir())
    pids = [str(process.pid), *(str(one.pid) for one in family)]
    assert not [p for p in set(Path("/dev/shm").iterdir()) - before if any(pid in p.name for pid in pids)]


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
    assert "belongs to another config: optim.lr (0.001 there, 0.5 now);" in (tmp_path / "out.txt").read_text()
    assert process_output_is_one_error(tmp_path / "out.txt")
    train(pools(1), config, "optim.lr=0.5", "resume=never")
    run = tmp_path / "runs/run"
    assert "lr: 0.5" in (run / "config.yaml").read_text() and "lr: 0.001" in (run / "config_before_1.yaml").read_text()
    assert (run / "checkpoints_before_1/step_00000002").is_dir() and (run / "COMPLETE").exists()


def process_output_is_one_error(path: Path) -> bool:
    """Whether a process said what was wrong in one line, and nothing else."""
    return path.read_text().startswith("error: ") and path.read_text().count("\n") == 1


def test_a_refused_run_leaves_the_folder_as_it_is(shards, tmp_path):  # noqa: F811
    config = write_config(tmp_path, shards, steps=10_000, checkpoint={"every_steps": 0})
    owner = start_training([str(config)], tmp_path / "out.txt")
    run = tmp_path / "runs/run"
    wait_until(lambda: len(read_metrics(run / "metrics.jsonl")) > 2, owner)
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "code.json")}
    refused = start_training([str(config), "log.every_steps=7"], tmp_path / "refused.txt")
    refused.join(120)
    assert refused.exitcode == 2
    assert "is in use by another run" in (tmp_path / "refused.txt").read_text()
    assert {name: (run / name).read_bytes() for name in before} == before
    owner.kill()
    owner.join()
    refused = start_training([str(config), "optim.lr=0.5"], tmp_path / "refused.txt")
    refused.join(120)
    assert refused.exitcode == 2
    assert "belongs to another config" in (tmp_path / "refused.txt").read_text()
    assert not (run / "owner.json").exists(), "a run that is refused gives the folder back"


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


@pytest.mark.parametrize("every_steps", [0, 1])
def test_a_dead_rank_ends_the_others(shards, tmp_path, every_steps):  # noqa: F811
    """Also while checkpoints are being written all the time."""
    config = write_config(tmp_path, shards, steps=10_000, checkpoint={"every_steps": every_steps})
    ranks = start_ranks([str(config), "engine.collective_timeout_s=30"], tmp_path, 2)
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
