"""Interrupted equals uninterrupted: stopped, signalled, killed, on other ranks, under another ZeRO stage."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint.folder import list_checkpoints, newest_intact, read_latest, seal
from pipeline.log import read_metrics
from pipeline.model.weights import load_model
from tests.pipeline import cases
from tests.pipeline.data.conftest import Clip, ShardSet
from tests.pipeline.ranks import RankPool, start_ranks, start_training
from tests.pipeline.tiny import FRAMES, TOKENS, write_config

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of clips, one in five without a caption."""
    written = ShardSet(tmp_path_factory.mktemp("shards") / "set")
    for first in (0, 30):
        clips = range(first, first + 30)
        written.add_shard(
            [
                Clip(number, subtitle=f"word{7 * number % 61}", caption=f"thing{number % 23}" if number % 5 else None)
                for number in clips
            ]
        )
    return written.folder


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def pools() -> Iterator[Callable[[int], RankPool]]:
    """One pool per world size, made when first asked for."""
    made: dict[int, RankPool] = {}

    def get(world_size: int) -> RankPool:
        if world_size not in made:
            made[world_size] = RankPool(world_size)
        return made[world_size]

    yield get
    for pool in made.values():
        pool.close()


def train(pool: RankPool, config: Path, *overrides: str) -> None:
    assert set(pool.run(cases.training_case, [str(config), *overrides])) == {0}


def losses(run: Path) -> list[dict[str, Any]]:
    """What a run logged about training, without what depends on the clock."""
    kept = ("step", "train/")
    return [
        {key: value for key, value in row.items() if key.startswith(kept)}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    latest = read_latest(run)
    assert latest is not None
    return load_file(str(latest / "model.safetensors"))


def assert_bitwise_equal(run: Path, reference: Path) -> None:
    assert losses(run) == losses(reference)
    ours, theirs = weights(run), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def uninterrupted(shards, pools, tmp_path_factory) -> Path:
    """The run on one rank under ZeRO 0 that the others are compared with."""
    config = write_config(tmp_path_factory.mktemp("reference"), shards)
    train(pools(1), config)
    return config.parent / "runs" / "run"


def test_weights_to_start_from_are_named_where_a_checkpoint_comes_first(uninterrupted, shards, pools, tmp_path):
    config = write_config(tmp_path, shards, steps=3)
    train(pools(1), config, "stop_at_step=2")
    log = tmp_path / "runs/run/logs/rank_00000.log"
    assert "is not read" not in log.read_text()
    train(pools(1), config, f"init_from={uninterrupted}")
    assert f"init_from={uninterrupted} is not read: the run goes on from its own checkpoint; resume=never" in (
        log.read_text()
    )


WRONG = {
    "a key": (["optim.lrr=1"], "config: optim.lrr: unknown key"),
    "a file": (["nowhere.yaml"], "cannot read config nowhere.yaml: No such file"),
    "no weights": (["init_from={folder}/none.pt"], "no weights at "),
    "text as weights": (["init_from={folder}/train.yaml"], "train.yaml"),
    "a folder that is no run": (["resume={folder}"], "is neither a checkpoint nor a run folder with one"),
    "no shards": (["data.sources=[{{shards: {folder}}}]"], "has no manifest.parquet"),
    "both lengths": (["epochs=3"], "add steps=null to go by epochs"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_said_once_in_one_line(shards, tmp_path, kind):
    """On the console as a whole: also where the log of the run has begun by then."""
    words, said = WRONG[kind]
    config = write_config(tmp_path, shards)
    process = start_training([str(config), *(word.format(folder=tmp_path) for word in words)], tmp_path / "out.txt")
    process.join(120)
    shown = (tmp_path / "out.txt").read_text()
    assert process.exitcode == 2, shown
    assert shown.startswith("error: ") and shown.count("\n") == 1 and said in shown


def test_a_run_leaves_a_whole_folder(uninterrupted):
    assert [row["step"] for row in losses(uninterrupted)] == list(range(1, 13))
    assert newest_intact(uninterrupted) == (uninterrupted / "checkpoints/step_00000012", [])
    # The launchers compare these with the time that is left after a signal.
    assert read_metrics(uninterrupted / "metrics.jsonl")[-1].keys() >= {"checkpoint/stall_s", "checkpoint/write_s"}
    assert (uninterrupted / "latest").read_text() == "checkpoints/step_00000012\n"
    assert [path.name for path in list_checkpoints(uninterrupted)] == ["step_00000008", "step_00000012"]
    assert (
        json.loads((uninterrupted / "code.json").read_text())[0]["packages"]["torch"] == torch.__version__.split("+")[0]
    )
    assert (uninterrupted / "COMPLETE").exists()
    rights = {path.stat().st_mode & 0o777 for path in uninterrupted.rglob("*") if path.is_file()}
    assert rights == {(uninterrupted / "COMPLETE").stat().st_mode & 0o777}, "those of the umask"
    assert not (uninterrupted / "owner.json").exists()


def test_everything_promised_is_logged(uninterrupted):
    (*_, row) = read_metrics(uninterrupted / "metrics.jsonl")
    promised = """train/loss train/loss_s_to_v train/loss_c_to_f train/logit_scale train/lr train/grad_norm
        train/param_norm train/epoch train/samples speed/clips_per_s speed/tokens_per_s speed/step_median_s
        speed/step_worst_s speed/data_wait memory/peak_gb checkpoint/stall_s checkpoint/write_s time/data_s
        time/gradient_s time/update_s"""
    assert set(promised.split()) <= row.keys(), sorted(row)
    assert "speed/mfu" not in row, "the peak of a CPU is not known"


def test_a_finished_run_is_exported(uninterrupted):
    exported = load_model(uninterrupted / "export")
    for name, tensor in weights(uninterrupted).items():
        assert torch.equal(exported.state_dict()[name], tensor), name


def test_a_new_run_can_start_from_anothers_weights_or_state(uninterrupted, shards, pools, tmp_path):
    config = write_config(tmp_path, shards, steps=13, name="weights")
    train(pools(1), config, f"init_from={uninterrupted}", "stop_at_step=1")
    assert losses(tmp_path / "runs/weights")[0]["train/loss"] < losses(uninterrupted)[0]["train/loss"]
    config = write_config(tmp_path, shards, steps=13, name="state")
    train(pools(1), config, f"resume={uninterrupted}")
    assert [row["step"] for row in losses(tmp_path / "runs/state")] == [13]


def test_wandb_offline_gets_lines_and_examples(shards, pools, tmp_path):
    """The real wandb, offline, without a login; its file holds the run of two starts under one id."""
    (tmp_path / "queries.jsonl").write_text('{"query_id": "q", "text": "thing3 3", "clip_id": "v0.3.mp4"}\n')
    sets = [{"name": "heldout", "shards": str(shards), "queries": str(tmp_path / "queries.jsonl")}]
    sets[0] |= {"num_frames": FRAMES, "num_text_tokens": TOKENS}
    config = write_config(tmp_path, shards, steps=4, evaluation={"sets": sets}, log={"wandb": "offline"})
    train(pools(1), config, "stop_at_step=2")
    train(pools(1), config)
    folder = tmp_path / "runs/run/wandb"
    run_id = (folder / "run_id").read_text()
    assert len(list(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))) == 2
    (table,) = (json.loads(path.read_text()) for path in folder.glob("offline-run-*/files/media/table/eval/*.json"))
    assert table["columns"] == ["query", "wanted", "video 1", "clip 1", "score 1"]
    assert table["data"][0][:4] == ["thing3 3", "v0.3.mp4", "Image", "v0.3.mp4"]


def test_a_set_that_lacks_videos_is_refused_before_the_first_step(shards, tmp_path):
    """Not after the last one, when the training is paid for."""
    rows = [{"query_id": f"q{n}", "text": "thing", "clip_id": f"v0.{n}.mp4"} for n in (3, 999)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [{"name": "heldout", "shards": str(shards), "queries": str(tmp_path / "queries.jsonl")}]
    config = write_config(tmp_path, shards, evaluation={"sets": sets})
    process = start_training([str(config)], tmp_path / "out.txt")
    process.join(120)
    assert process.exitcode == 1
    assert "1 of 2 videos cannot be used" in (tmp_path / "out.txt").read_text()
    assert not (tmp_path / "runs").exists()


def test_a_set_of_which_nothing_can_be_read_is_no_run(tmp_path):
    """All masked, the loss was 0.0000 and the exit code 0."""
    written = ShardSet(tmp_path / "set")
    written.add_shard([Clip(number) for number in range(12)])
    written.tar(0).write_bytes(b"")
    config = write_config(tmp_path, written.folder, steps=2)
    process = start_training([str(config)], tmp_path / "out.txt")
    process.join(120)
    assert process.exitcode == 1
    said = (tmp_path / "out.txt").read_text()
    assert "none of the 12 samples of batch 0 is usable: {'shard_truncated': 12}, such as" in said
    assert "Traceback" not in said and not list((tmp_path / "runs/run").glob("checkpoints/step_*"))


def test_a_run_of_no_step_is_wrong_input(shards, tmp_path):
    config = write_config(tmp_path, shards, steps=None, epochs=0.01)
    process = start_training([str(config)], tmp_path / "out.txt")
    process.join(120)
    assert process.exitcode == 2
    assert "epochs=0.01 of 60 samples are no whole step of 12 clips" in (tmp_path / "out.txt").read_text()


def test_a_stop_that_is_past_trains_no_further(shards, pools, tmp_path):
    """A job that is requeued after it stopped, or is given an earlier step, must not run on to the end."""
    config = write_config(tmp_path, shards)
    for stop, reached in ((2, 2), (2, 2), (1, 2), (3, 3)):
        train(pools(1), config, f"stop_at_step={stop}")
        assert losses(tmp_path / "runs/run")[-1]["step"] == reached
    assert not (tmp_path / "runs/run/COMPLETE").exists()


def test_shards_added_to_the_set_change_neither_length_nor_schedule_of_a_run(pools, tmp_path):
    """A run of epochs keeps the set it began with, and with it its length and its learning rates."""
    runs = {}
    for name in ("left_alone", "added_to"):
        written = ShardSet(tmp_path / name / "set")
        written.add_shard([Clip(number) for number in range(40)])
        config = write_config(tmp_path / name, written.folder, steps=None, epochs=2)
        train(pools(1), config, "stop_at_step=2")
        if name == "added_to":
            written.add_shard([Clip(number) for number in range(40, 80)])
        train(pools(1), config)
        runs[name] = tmp_path / name / "runs/run"
    assert (runs["added_to"] / "COMPLETE").read_text() == "6\n"
    assert_bitwise_equal(runs["added_to"], runs["left_alone"])


def test_starting_over_sets_the_old_checkpoints_aside(shards, pools, tmp_path):
    config = write_config(tmp_path, shards, steps=3)
    train(pools(1), config, "stop_at_step=2")
    run = tmp_path / "runs/run"
    first, lines = losses(run), (run / "metrics.jsonl").read_bytes()
    train(pools(1), config, "resume=never")
    assert losses(run)[:2] == first
    assert (run / "checkpoints_before_1/step_00000002").is_dir()
    assert (run / "metrics_before_1.jsonl").read_bytes() == lines


def test_the_best_checkpoint_by_a_validation_metric_stays(shards, pools, tmp_path):
    queries = [{"query_id": f"q{n}", "text": f"thing{n % 23} {n}", "clip_id": f"v0.{n}.mp4"} for n in range(20)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    heldout = {"name": "heldout", "shards": str(shards), "queries": str(tmp_path / "queries.jsonl"), "split": "val"}
    sets = [heldout | {"num_frames": FRAMES, "num_text_tokens": TOKENS}]
    evaluation = {"every_steps": 2, "sets": sets, "best_metric": "heldout/t2v_r10"}
    config = write_config(tmp_path, shards, evaluation=evaluation, checkpoint={"every_steps": 0, "keep_last": 1})
    train(pools(2), config, "engine.zero_stage=3")
    run = tmp_path / "runs/run"
    scores = {
        row["step"]: row["eval/heldout/t2v_r10"]
        for row in read_metrics(run / "metrics.jsonl")
        if "eval/heldout/t2v_r10" in row
    }
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert json.loads((run / "checkpoints/step_00000012/state.json").read_text())["progress"]["best_step"] == best
    assert {path.name for path in list_checkpoints(run)} == {f"step_{best:08d}", "step_00000012"}
    assert (run / "best").read_text() == f"checkpoints/step_{best:08d}\n"


def test_the_loss_goes_down(uninterrupted):
    rows = losses(uninterrupted)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["train/samples"] == 12 * 12


def test_stopped_and_resumed_is_bitwise_equal(uninterrupted, shards, pools, tmp_path):
    config = write_config(tmp_path, shards)
    for step in (3, 4, 7):
        train(pools(1), config, f"stop_at_step={step}")
    train(pools(1), config)
    assert_bitwise_equal(tmp_path / "runs/run", uninterrupted)
    train(pools(1), config)  # a finished run stays as it is
    assert_bitwise_equal(tmp_path / "runs/run", uninterrupted)


def test_a_run_that_died_after_its_last_checkpoint_is_marked_as_finished(uninterrupted, shards, pools, tmp_path):
    config = write_config(tmp_path, shards)
    run = tmp_path / "runs/run"
    shutil.copytree(uninterrupted, run)
    (run / "config.yaml").unlink()  # it names the folders of another run
    (run / "COMPLETE").unlink()
    shutil.rmtree(run / "export")
    train(pools(1), config)
    assert (run / "COMPLETE").read_text() == "12\n"
    last = run / "checkpoints/step_00000012"
    assert (run / "export/model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("world_size", "stage"), [(2, 1), (2, 3)])
def test_resumed_on_two_ranks_is_bitwise_equal(shards, pools, tmp_path, world_size, stage):
    runs = {}
    for name, stops in (("whole", []), ("parts", ["stop_at_step=5"])):
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name, shards, engine={"zero_stage": stage})
        for stop in stops:
            train(pools(world_size), config, stop)
        train(pools(world_size), config)
        runs[name] = tmp_path / name / "runs/run"
    assert_bitwise_equal(runs["parts"], runs["whole"])


SMALL_STEPS = ((2, 1, 0), (4, 2, 3), (6, 1, 1), (8, 2, 2), (10, 1, 3), (12, 2, 0))
"""(Until step, ranks, ZeRO stage): every stage is left and entered."""
LARGE_STEPS = ((4, 4, 3), (8, 2, 3), (28, 3, 1))
"""4 -> 2 -> 3 ranks, then 20 more steps."""


@pytest.mark.parametrize("legs", [SMALL_STEPS, pytest.param(LARGE_STEPS, marks=pytest.mark.slow)], ids=str)
def test_other_ranks_and_other_stages_go_on(shards, pools, tmp_path, legs):
    changes = {
        "optim": {"weight_decay": 0.5, "lr_multipliers": {"^logit_scale$": 10.0}},
        "model": {"patch_dropout": 0.0},
        "steps": legs[-1][0],
    }
    (tmp_path / "steady").mkdir()
    (tmp_path / "changing").mkdir()
    steady = write_config(tmp_path / "steady", shards, **changes)
    changing = write_config(tmp_path / "changing", shards, **changes)
    train(pools(1), steady)
    for stop, world_size, stage in legs:
        train(pools(world_size), changing, f"stop_at_step={stop}", f"engine.zero_stage={stage}")
    ours, theirs = losses(tmp_path / "changing/runs/run"), losses(tmp_path / "steady/runs/run")
    changes_at = {stop + 1 for stop, *_ in legs}
    for row, expected in zip(ours, theirs, strict=True):
        limit = 1e-5 if row["step"] in changes_at else 1e-3
        assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=limit), row["step"]
        assert row["train/logit_scale"] == pytest.approx(expected["train/logit_scale"], rel=1e-4), row["step"]
        assert row["train/samples"] == expected["train/samples"]


def test_groups_keep_their_settings_on_other_ranks(shards, pools, tmp_path):
    """4 -> 2 ranks under ZeRO 3, decay 0.5 and 0, a tenfold learning rate: nobody gets the first group's settings."""
    optim = {"weight_decay": 0.5, "lr_multipliers": {"^logit_scale$": 10.0}}
    config = write_config(tmp_path, shards, optim=optim, engine={"zero_stage": 3})
    train(pools(4), config, "stop_at_step=1")
    for groups in pools(2).run(cases.groups_case, [str(config)]):
        assert [(one["name"], one["weight_decay"], one["lr_multiplier"]) for one in groups] == [
            ("logit_scale_lr_x10", 0.0, 10.0),
            ("no_decay", 0.0, 1.0),
            ("decay", 0.5, 1.0),
        ]
        assert [one["clamp"] is not None for one in groups] == [True, False, False]


def test_offloading_goes_on_from_a_checkpoint(shards, pools, tmp_path):
    """The optimizer on the host, stopped and resumed, on 2 ranks and then on 1: the losses of a run without."""
    runs = {}
    for name, deepspeed in (
        ("plain", {}),
        ("offloaded", {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}),
    ):
        (tmp_path / name).mkdir()
        changes = {"engine": {"zero_stage": 2}, "model": {"patch_dropout": 0.0}, "steps": 8}
        config = write_config(tmp_path / name, shards, deepspeed=deepspeed, **changes)
        for world_size, stop in ((2, 2), (2, 4), (1, 8)):
            train(pools(world_size), config, f"stop_at_step={stop}")
        runs[name] = losses(tmp_path / name / "runs/run")
    for row, expected in zip(runs["offloaded"], runs["plain"], strict=True):
        assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-4), row["step"]


PARTITIONING = ["deepspeed.zero_optimization.sub_group_size=5000"]


@pytest.mark.parametrize("is_old", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_another_way_to_partition_goes_on_with_the_same_run(shards, pools, tmp_path, is_old):
    """A key of DeepSpeed's that cuts the partitions anew, set and taken back; also where no layout was saved."""
    runs = {}
    for name, words in (("same", []), ("other", PARTITIONING)):
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name, shards, steps=9, model={"patch_dropout": 0.0}, engine={"zero_stage": 3})
        train(pools(2), config, "stop_at_step=3")
        if is_old:
            forget_layout(tmp_path / name / "runs/run/checkpoints/step_00000003")
        train(pools(2), config, "stop_at_step=6", *words)
        train(pools(2), config)
        runs[name] = losses(tmp_path / name / "runs/run")
    for row, expected in zip(runs["other"], runs["same"], strict=True):
        for key in ("train/loss", "train/grad_norm", "train/param_norm"):
            assert row[key] == pytest.approx(expected[key], rel=1e-4), (row["step"], key)


def forget_layout(checkpoint: Path) -> None:
    """Make it a checkpoint of before layouts were saved."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["layout"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    complete = json.loads((checkpoint / "COMPLETE.json").read_text())
    seal(checkpoint, {key: complete[key] for key in ("step", "num_ranks", "torch")})


def test_a_signal_on_any_rank_stops_all_of_them(shards, tmp_path):
    config = write_config(tmp_path, shards, steps=10_000, checkpoint={"every_steps": 0})
    ranks = start_ranks([str(config)], tmp_path, 2)
    run = tmp_path / "runs/run"
    wait_until(lambda: len(losses(run)) > 2, ranks[0])
    assert ranks[1].pid is not None
    os.kill(ranks[1].pid, signal.SIGUSR1)
    for number, process in enumerate(ranks):
        process.join(60)
        assert process.exitcode == 0, (tmp_path / f"out{number}.txt").read_text()
    last = losses(run)[-1]["step"]
    assert newest_intact(run) == (run / f"checkpoints/step_{last:08d}", [])
    assert "(a signal on another rank)" in (run / "logs/rank_00000.log").read_text()


def test_a_signal_saves_and_leaves(uninterrupted, shards, tmp_path):
    config = write_config(tmp_path, shards)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        process = start_training([str(config)], tmp_path / "out.txt")
        steps_before = len(losses(tmp_path / "runs/run"))
        wait_until(lambda steps=steps_before: len(losses(tmp_path / "runs/run")) > steps, process)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == 0, (tmp_path / "out.txt").read_text()
        if len(losses(tmp_path / "runs/run")) == 12:
            break
    finish(config, tmp_path)
    assert_bitwise_equal(tmp_path / "runs/run", uninterrupted)


def test_the_first_ctrl_c_saves_on_all_ranks(shards, tmp_path):
    """One press reaches a rank twice when a launcher passes on what the terminal has sent to everybody."""
    config = write_config(tmp_path, shards, steps=10_000, checkpoint={"every_steps": 0}, data={"num_workers": 1})
    ranks = start_ranks([str(config)], tmp_path, 2)
    run = tmp_path / "runs/run"
    wait_until(lambda: len(losses(run)) > 2, ranks[0])
    for process in ranks:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGINT)
    for number, process in enumerate(ranks):
        process.join(60)
        assert process.exitcode == 0, (tmp_path / f"out{number}.txt").read_text()
    last = losses(run)[-1]["step"]
    assert newest_intact(run) == (run / f"checkpoints/step_{last:08d}", [])
    said = (tmp_path / "out0.txt").read_text()
    assert said.count("Ctrl-C: saving after the step under way, then leaving; a second Ctrl-C leaves at once\n") == 1
    assert f"stopped after step {last} (SIGINT); the same command goes on from here" in said
    assert "Ctrl-C" not in (tmp_path / "out1.txt").read_text(), "rank 0 speaks for all"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_leaves_at_once_and_says_what_is_lost(shards, tmp_path, first):
    """While the save that the first has asked for takes its time; a launcher hands the first on as SIGTERM."""
    config = write_config(tmp_path, shards, steps=10_000, checkpoint={"every_steps": 0})
    process = start_training([str(config)], tmp_path / "out.txt", case=cases.training_with_endless_save)
    run, out = tmp_path / "runs/run", tmp_path / "out.txt"
    wait_until(lambda: len(losses(run)) > 2, process)
    assert process.pid is not None
    os.kill(process.pid, first)
    asked = time.monotonic()
    while process.is_alive():  # presses within a second of the first are the same one
        os.kill(process.pid, signal.SIGINT)
        process.join(0.1)
        assert time.monotonic() - asked < 60
    assert process.exitcode == 1 and time.monotonic() - asked > 0.9
    assert out.read_text().count("Ctrl-C: saving after the step under way") == (first == signal.SIGINT)
    last = losses(run)[-1]["step"]
    assert out.read_text().splitlines()[-1] in [
        f"error: left at once; {steps} steps since the start are lost; the same command goes on from there"
        for steps in (last, last + 1)
    ]
    assert not (run / "owner.json").exists(), "the next start has nothing to wait for, wherever it is"


def test_ctrl_c_before_the_first_step_ends_a_run_as_any_other_program(shards, tmp_path):
    config = write_config(tmp_path, shards)
    process = start_training([str(config)], tmp_path / "out.txt", case=cases.training_interrupted_while_built)
    process.join(120)
    assert process.exitcode == 1
    assert (tmp_path / "out.txt").read_text() == "error: interrupted; run the same command again to go on\n"
    assert not (tmp_path / "runs/run/owner.json").exists()


def test_killed_at_random_points_is_bitwise_equal(uninterrupted, shards, tmp_path):
    check_kills(uninterrupted, shards, tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_killed_at_ten_random_points_is_bitwise_equal(uninterrupted, shards, tmp_path):
    check_kills(uninterrupted, shards, tmp_path, kills=10, seed=2)


def check_kills(reference: Path, shards: Path, folder: Path, *, kills: int, seed: int) -> None:
    """SIGKILL at `kills` moments: every other one while a checkpoint is being written, the others between two steps."""
    draw = random.Random(seed)
    config = write_config(folder, shards, checkpoint={"every_steps": 1})
    run = folder / "runs/run"
    for number in range(kills):
        process = start_training([str(config)], folder / "out.txt")
        target = min(len(losses(run)) + draw.randrange(2), 11)
        wait_until(lambda target=target: len(losses(run)) > target, process)
        if number % 2:
            wait_until(lambda: any((run / "checkpoints").glob(".staging-*")), process)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.join()
    finish(config, folder)
    assert_bitwise_equal(run, reference)
    assert not list((run / "checkpoints").glob(".*"))


def finish(config: Path, folder: Path) -> None:
    process = start_training([str(config)], folder / "out.txt")
    process.join(120)
    assert process.exitcode == 0, (folder / "out.txt").read_text()


def wait_until(condition: Callable[[], bool], process: Any, limit_s: float = 120.0) -> None:
    """Wait for `condition`, or for the process to end, whichever comes first."""
    end = time.monotonic() + limit_s
    while not condition() and process.is_alive():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
